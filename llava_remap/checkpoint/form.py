"""Chooses the weights to read in a folder or repository, by the names of its files alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass

from llava_remap.checkpoint.catalog import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    BESIDE_ADAPTER,
    PROJECTOR_FILE,
)
from llava_remap.checkpoint.source_file import AbsentError
from llava_remap.core import RemapError, quoted, several

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_INDEX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")
#: The files of a whole checkpoint that have a fixed name, in the order of transformers'
#: `from_pretrained`, which takes a single file before an index.
_KNOWN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model_state_dict.bin",
)
#: Names of files that are only a part of a model.
_ASIDE = (*ADAPTER_FILES, BESIDE_ADAPTER, PROJECTOR_FILE)
#: Files that transformers' Trainer leaves beside the weights; files that DeepSpeed, verl and
#: Megatron-LM write for one rank.
_TRAINER = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler|sampler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth|"
    r"\w*zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt|\w+_world_size_\d+_rank_\d+\.pt|model_optim_rng\.pt"
)


@dataclass(frozen=True, slots=True)
class Form:
    """One stored form of the weights.

    Attributes:
        files: the files, in their order. If there is an index, only the index, which names the
            shards.
        is_index: whether the file is an index.
        total: for shards without an index, the number of shards by their names; otherwise None.
    """

    files: tuple[str, ...]
    is_index: bool = False
    total: int | None = None

    @property
    def file(self) -> str:
        """The file that messages name for the form."""
        return self.files[0]

    @property
    def is_aside(self) -> bool:
        """Whether its name is that of an adapter or a projector."""
        return self.file in _ASIDE

    @property
    def missing(self) -> list[str]:
        """The missing files of a set of shards without an index."""
        match = _SHARD.fullmatch(self.file)
        if match is None or self.total is None:
            return []
        every = (
            f"{match['stem']}-{number:05}-of-{self.total:05}{match['suffix']}"
            for number in range(1, self.total + 1)
        )
        return [name for name in every if name not in self.files]


def is_trainers(name: str) -> bool:
    """Whether a file of this name is the trainer's own, not weights."""
    return _TRAINER.fullmatch(name) is not None


def has_fixed_name(name: str) -> bool:
    """Whether this is always the name of a checkpoint's file. A folder may be called
    `iter_500.pth`, but never `model.safetensors`.
    """
    return name in (*_KNOWN, *_ASIDE, ADAPTER_CONFIG) or (
        name.endswith(_SUFFIXES) and _SHARD.fullmatch(name) is not None
    )


def choose_form(names: Collection[str]) -> Form | None:
    """The form to read if these files lie side by side; None if there are no weights, or several
    and no way to choose.

    It is the first of these: `model.safetensors`, the index of safetensors shards,
    `pytorch_model.bin`, the index of torch shards, `model_state_dict.bin`, a set of shards without
    one of these indexes, a single weight file of any other name, an adapter and the weights trained
    with it, a projector. If a whole model is needed, the last two are refused when they are read,
    unless their tensors turn out to be a model's.
    """
    weights, indexes = _weights(names), _indexes(names)
    for name in _KNOWN:
        if name in weights | indexes:
            return Form((name,), is_index=name in indexes)
    if sets := shard_sets(weights):
        # safetensors before torch here as well
        (stem, suffix, total), shards = min(
            sets.items(), key=lambda item: (item[0][1] != ".safetensors", item[0])
        )
        index = f"{stem}{suffix}{_INDEX}"
        if index in indexes:
            return Form((index,), is_index=True)
        return Form(tuple(shards.values()), total=total)
    others = weights.difference(_ASIDE)
    if len(others) == 1:
        return Form((others.pop(),))
    for name in _ASIDE:
        if name in weights:
            is_trained_with = name in ADAPTER_FILES and BESIDE_ADAPTER in weights
            return Form((name, BESIDE_ADAPTER) if is_trained_with else (name,))
    return None


def every_form(names: Collection[str]) -> Set[str]:
    """All weights and indexes among these files. An index stands for its shards, except for the
    index that is read: shards beside it may be from an earlier save.
    """
    weights, indexes = _weights(names), _indexes(names)
    form = choose_form(names)
    unread = indexes - {form.file if form is not None else ""}
    indexed = {
        name
        for (stem, suffix, _), shards in shard_sets(weights).items()
        if f"{stem}{suffix}{_INDEX}" in unread
        for name in shards.values()
    }
    return (weights - indexed) | indexes


def shard_sets(names: Iterable[str]) -> dict[tuple[str, str, int], dict[int, str]]:
    """The file names of each set of shards, by number. The key of a set is its name without number,
    its suffix, and its number of shards according to the names.
    """
    sets: dict[tuple[str, str, int], dict[int, str]] = defaultdict(dict)
    for name in sorted(names):
        if match := _SHARD.fullmatch(name):
            sets[match["stem"], match["suffix"], int(match["total"])][int(match["number"])] = name
    return sets


def no_form(where: str, names: Collection[str], every: Collection[str]) -> RemapError:
    """LR100: `choose_form` found no form among the files.

    Args:
        where: the folder or repository.
        names: its files.
        every: its files and folders.
    """
    if weights := sorted(_weights(names)):
        return AbsentError.of(
            "LR100",
            f"{quoted(where)} has {len(weights)} weight files, and nothing shows which one to "
            f"read: {several(weights, 6)}.",
            "Give one of these files.",
        )
    has = f"The folder has: {several(sorted(every), 12)}." if every else "The folder is empty."
    return AbsentError.of(
        "LR100",
        f"{quoted(where)} has no weight file (*.safetensors, *.bin, *.pt, *.pth, *.ckpt). {has}",
        "Give the folder with the weights.",
    )


def _weights(names: Collection[str]) -> set[str]:
    return {name for name in names if name.endswith(_SUFFIXES) and not is_trainers(name)}


def _indexes(names: Collection[str]) -> set[str]:
    return {name for name in names if name.endswith(tuple(suffix + _INDEX for suffix in _SUFFIXES))}
