"""What a person has, whichever form it takes, as a `Checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.catalog import Catalog, Checkpoint, Tensor
from llava_remap.checkpoint.manifest import FORMAT, parse_manifest
from llava_remap.checkpoint.purpose import ADAPTER_CONFIG, ADAPTER_FILES, PROJECTOR_FILE, adapter_only, refuse_unless_model
from llava_remap.checkpoint.shards import read_index, read_shard_set, shard_sets
from llava_remap.checkpoint.strict_json import read_object
from llava_remap.checkpoint.weight_file import WeightFile, read_weight_files
from llava_remap.checkpoint.wording import quoted, several
from llava_remap.errors import refuse

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_INDEX = ".index.json"
#: `Checkpoint.form` of a folder that is taken for its config and tokenizer alone.
NO_WEIGHTS = "config and tokenizer alone"
#: The forms of a whole checkpoint with a name of their own, the preferred one first.
_KNOWN = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model_state_dict.bin",
)
#: What transformers' Trainer leaves beside the weights.
_TRAINER = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to read a checkpoint.

    Attributes:
        file: what it is named after in messages: the one file, the index, or the first shard.
        read: its weight files, read.
        sharded: how the report calls its shards, or None where it is one file.
    """

    file: Path
    read: Callable[[], dict[Path, WeightFile]]
    sharded: str | None = None


def open_checkpoint(path: Path, *, weights: bool = True) -> Checkpoint:
    """The checkpoint at `path`, read from headers alone: a folder, one file of weights, an index or a manifest.

    Where a folder holds several forms, the first of these is read and the rest are named in `passed_over`: the index of
    safetensors shards, `model.safetensors`, the index of torch shards, `pytorch_model.bin`, `model_state_dict.bin`, a set of
    shards without one of these indexes, a single weight file of any other name.

    Args:
        weights: whether its tensors are wanted; if not, a folder is taken for its config and tokenizer and needs no weights.

    Raises:
        RemapError: LR100 to LR103, LR105 to LR108, LR113.
    """
    try:
        if not weights and path.is_dir():
            return Checkpoint(path, NO_WEIGHTS, {}, _config(path), path)
        return _open(path)
    except OSError as error:
        code = "LR100" if isinstance(error, (PermissionError, FileNotFoundError)) else "LR102"
        cause = f"{quoted(str(error.filename or path))} can't be read: {error.strerror or error}."
        raise refuse(code, cause, "Check the path and its permissions.") from None


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    fix = "Give a checkpoint's folder or file."
    if path.exists():
        raise refuse("LR100", f"{quoted(str(path))} is neither a file nor a folder.", fix)
    if _HUB_ID.fullmatch(str(path)) and not path.parent.exists():
        fix = "If a hub id was meant: this version downloads nothing. Download the repository and give its local folder."
    raise refuse("LR100", f"there is no {quoted(str(path))}.", fix)


def _open_file(path: Path) -> Checkpoint:
    if _TRAINER.fullmatch(path.name):
        raise refuse("LR106", f"{quoted(path.name)} is the trainer's own file, not weights.", "Give the checkpoint's folder.")
    if not _is_json(path):
        return _checkpoint(path, path.parent, _file_form(path))
    content = read_object(path, "LR102", "Download or copy it again.")
    if content.get("format") == FORMAT:
        manifest = parse_manifest(path, content)
        _refuse_unless_sound(path, manifest.catalog, None)
        return manifest
    if "weight_map" in content:
        return _checkpoint(path, path.parent, _index_form(path))
    cause = f"{quoted(path.name)} is JSON, but neither a manifest nor the index of a sharded checkpoint."
    raise refuse("LR106", cause, "Give a checkpoint's folder, a file of weights, an index or a manifest.")


def _is_json(path: Path) -> bool:
    """Whether it can only be JSON: no format of weights starts so without a zero byte nearby."""
    with path.open("rb") as stream:
        head = stream.read(64)
    return path.suffix == ".json" or (head.lstrip().startswith(b"{") and b"\0" not in head)


def _open_folder(folder: Path) -> Checkpoint:
    every = sorted(entry.name for entry in folder.iterdir())
    files = {name for name in every if (folder / name).is_file()}
    weights = {name for name in files if name.endswith(_SUFFIXES) and not _TRAINER.fullmatch(name)}
    indexes = {name for name in files if name.endswith(tuple(suffix + _INDEX for suffix in _SUFFIXES))}
    if form := _choose(folder, weights, indexes):
        return _checkpoint(folder, folder, form, _by_index(weights, indexes))

    for name in (*ADAPTER_FILES, PROJECTOR_FILE):
        if name in weights:
            # Refused, as a rule; if its tensors are a model's after all, it is the checkpoint.
            return _checkpoint(folder, folder, _file_form(folder / name), _by_index(weights, indexes))
    if ADAPTER_CONFIG in files:
        raise adapter_only(folder, {}, folder)
    if weights:
        cause = (
            f"{quoted(str(folder))} has {len(weights)} weight files, nothing says which is meant: {several(sorted(weights), 6)}."
        )
        raise refuse("LR100", cause, "Give one of them by its name.")
    has = f"It has: {several(every, 12)}." if every else "It is empty."
    cause = f"{quoted(str(folder))} has no weight file (*.safetensors, *.bin, *.pt, *.pth, *.ckpt). {has}"
    raise refuse("LR100", cause, "Give the folder that the weights lie in.")


def _choose(folder: Path, weights: set[str], indexes: set[str]) -> _Form | None:
    for name in _KNOWN:
        if name in indexes:
            return _index_form(folder / name)
        if name in weights:
            return _file_form(folder / name)
    if sets := shard_sets(weights):
        # safetensors before torch here as well
        (stem, suffix, total), names = min(sets.items(), key=lambda item: (item[0][1] != ".safetensors", item[0]))
        index = f"{stem}{suffix}{_INDEX}"
        return _index_form(folder / index) if index in indexes else _set_form(folder, total, names)
    others = sorted(weights - {*ADAPTER_FILES, PROJECTOR_FILE})
    return _file_form(folder / others[0]) if len(others) == 1 else None


def _by_index(weights: set[str], indexes: set[str]) -> set[str]:
    """All forms in a folder, a set of shards named by its index where it has one."""
    sets = shard_sets(weights).items()
    indexed = {name for (stem, suffix, _), names in sets if f"{stem}{suffix}{_INDEX}" in indexes for name in names.values()}
    return (weights - indexed) | indexes


def _file_form(file: Path) -> _Form:
    return _Form(file, lambda: read_weight_files([file]))


def _index_form(index: Path) -> _Form:
    return _Form(index, lambda: read_index(index), sharded=f"shards ({index.name})")


def _set_form(folder: Path, total: int, names: dict[int, str]) -> _Form:
    return _Form(folder / min(names.values()), lambda: read_shard_set(folder, total, names), sharded="shards without an index")


def _checkpoint(path: Path, folder: Path, form: _Form, forms: Set[str] = frozenset()) -> Checkpoint:
    read = form.read()
    catalog = {tensor.name: tensor for file in read.values() for tensor in file.tensors}
    _refuse_unless_sound(form.file, catalog, folder)
    kind = " and ".join(sorted({file.kind for file in read.values()}))
    which = f", {len(read)} {form.sharded}" if form.sharded else f" ({form.file.name})"
    inside = sorted({" / ".join(file.inside) for file in read.values() if file.inside})
    label = kind + which + (f", inside {several(inside)}" if inside else "")
    passed_over = [*sorted(forms - {form.file.name} - {file.name for file in read})]
    passed_over += [key for file in read.values() for key in file.passed_over]
    return Checkpoint(path, label, catalog, _config(folder), folder, tuple(passed_over), _aliases(catalog.values()))


def _config(folder: Path) -> dict[str, Any] | None:
    if not (folder / "config.json").is_file():
        return None
    return read_object(folder / "config.json", "LR113", "Download or copy it again.", unique=False)


def _aliases(tensors: Iterable[Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for tensor in tensors:
        if tensor.nbytes:  # empty tensors show no bytes that they could share
            groups.setdefault((tensor.dtype, tensor.shape, tensor.location), []).append(tensor.name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _refuse_unless_sound(file: Path, catalog: Catalog, folder: Path | None) -> None:
    # JSON and pickles can spell halves of characters, which no UTF-8 file, report or header can hold.
    if broken := [name for name in catalog if any("\ud800" <= letter <= "\udfff" for letter in name)]:
        cause = f"{len(broken)} tensor names in {quoted(file.name)} are not valid Unicode: {several(broken)}."
        raise refuse("LR102", cause, "Download or copy it again.")
    refuse_unless_model(file, catalog, folder)
