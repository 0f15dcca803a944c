"""The facts of a checkpoint: its components, its vocabulary, and what is unusual about it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llava_remap.checkpoint import BESIDE, Checkpoint, Tensor, has_file, is_trainers
from llava_remap.core import FLOATS, RemapError, counted, quoted, several
from llava_remap.rewrite import Program, compile_rules
from llava_remap.routing.fits import shipped
from llava_remap.rulefile import load_rule_file, shipped_folder
from llava_remap.target_model import (
    Component,
    LanguageModel,
    components,
    embedding_and_head,
    read_vocabulary,
    text_config,
)

#: The rule files that recognise segments that frameworks put around modules, and buffers that
#: classes make themselves.
_WRAPPERS, _BUFFERS = "parts/wrappers.yaml", "parts/buffers.yaml"
#: Files that a training leaves beside the weights, and that no model needs.
_TRAINING = re.compile(r"trainer_state\.json|zero_to_fp32\.py|latest|global_step\d{1,12}")
#: Keys of a config that say that weights are quantised.
_QUANTISED = ("quantization_config", "quantization", "compression_config")
#: The names of components in sentences.
CALLED: Mapping[str, str] = {
    "language_model": "language model",
    "vision_tower": "vision tower",
    "projector": "projector",
    "adapter": "adapter",
    "newline": "end of rows",
    "text_encoder": "text encoder",
    "other": "other tensors",
}
#: Characters of a config's value that are shown.
_LONGEST_VALUE = 120
#: Numbers in names. Thousands of names differ only in these, which makes no difference to rules.
_DIGITS = re.compile(r"\d{1,9}")

OddityKind = Literal[
    "buffers",
    "components_differ_in_dtype",
    "empty_tensors",
    "integer_weights",
    "layers_missing",
    "mixed_dtypes",
    "no_config",
    "not_read",
    "quantised",
    "rows_and_config",
    "rows_and_tokenizer",
    "shared_tensors",
    "tokenizer_unreadable",
    "training_state",
    "unknown_tensors",
    "wrappers",
]


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something unusual.

    Attributes:
        kind: its kind, for programs.
        text: a description in one line, for a person.
        names: the tensors concerned, or the files.
    """

    kind: OddityKind
    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Words:
    """The vocabulary.

    Attributes:
        rows: rows of the table of token embeddings; None without one.
        head: where the output layer is: `own` tensor, `shared` with the embeddings, or `absent`.
        said_rows: `vocab_size` of the config, or None.
        said_tied: `tie_word_embeddings` of the config, or None.
        tokenizer: the tokenizer's files.
        tokens: one more than the tokenizer's largest id; None without a readable tokenizer.
    """

    rows: int | None
    head: Literal["own", "shared", "absent"]
    said_rows: int | None
    said_tied: bool | None
    tokenizer: tuple[str, ...]
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint is.

    Attributes:
        checkpoint: the checkpoint.
        components: its components, the largest first.
        vocabulary: None without language model and tokenizer.
        said_tower: the tower that the config names; None if it names none.
        oddities: what is unusual.
    """

    checkpoint: Checkpoint
    components: tuple[Component, ...]
    vocabulary: Words | None
    said_tower: str | None
    oddities: tuple[Oddity, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.components)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.components)

    @property
    def architectures(self) -> list[str]:
        """The classes that the config names."""
        named = (self.checkpoint.config or {}).get("architectures")
        every = named if isinstance(named, list) else [named]
        return [name for name in every if isinstance(name, str) and name]

    def to_json(self) -> dict[str, Any]:
        """An entry of `checkpoints` in the document `llava-remap/inspection`."""
        checkpoint, config = self.checkpoint, self.checkpoint.config or {}
        model_type = config.get("model_type")
        words = self.vocabulary
        return {
            "location": checkpoint.location,
            "form": checkpoint.form,
            "manifest": checkpoint.is_manifest,
            "architectures": self.architectures,
            "model_type": model_type if isinstance(model_type, str) else None,
            "base": checkpoint.base or None,
            "vision_tower": self.said_tower,
            "tensors": len(checkpoint.catalog),
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "components": [part.to_json() for part in self.components],
            "vocabulary": (
                None if words is None else {**asdict(words), "tokenizer": list(words.tokenizer)}
            ),
            "ties": [list(group) for group in checkpoint.aliases],
            "oddities": [
                {"kind": odd.kind, "text": odd.text, "names": list(odd.names)}
                for odd in self.oddities
            ],
        }


def describe(checkpoint: Checkpoint) -> Facts:
    """Describe a checkpoint, from its headers, its config and the files beside it."""
    catalog, config = checkpoint.catalog, checkpoint.config
    buffers, wrapped = _buffers_and_wrapped(catalog)
    if checkpoint.pairs:  # PEFT's own form
        wrapped.pop("base_model.model", None)
    forks = {
        name: of for rules in shipped().values() for name, of in rules.target.text_models.items()
    }
    parts = components(checkpoint, buffers, forks)
    text = (text_config([config]) if config else None) or {}
    is_text = any(part.kind == "language_model" for part in parts)
    words, unreadable = _words(checkpoint, text, is_text)
    oddities = (
        *_config_oddities(checkpoint),
        *_name_oddities(checkpoint, parts, buffers, wrapped),
        *_dtype_oddities(checkpoint, parts, buffers),
        *_size_oddities(parts, words, text),
        *unreadable,
        *_file_oddities(checkpoint),
    )
    named = (config or {}).get("mm_vision_tower")
    named = named[0] if isinstance(named, list) and named else named
    said = named if isinstance(named, str) and named else None
    return Facts(checkpoint, parts, words, said, oddities)


def _words(
    checkpoint: Checkpoint, text: Mapping[str, Any], is_text: bool
) -> tuple[Words | None, list[Oddity]]:
    embedding, head = embedding_and_head(checkpoint.unpaired)
    folder, tokens, odd = checkpoint.folder, None, list[Oddity]()
    files = _there(folder, BESIDE["tokenizer"])
    if not is_text and not files:
        return None, []
    if folder is not None and files:
        try:
            vocabulary = read_vocabulary(folder)
            tokens = vocabulary.size if vocabulary is not None else None
        except RemapError as error:
            odd = [Oddity("tokenizer_unreadable", error.problems[0].placed_cause, files)]
    rows, tied = text.get("vocab_size"), text.get("tie_word_embeddings")
    shared = bool(embedding and head and checkpoint.same_tensor(embedding.name, head.name))
    return (
        Words(
            embedding.shape[0] if embedding is not None else None,
            "absent" if head is None else "shared" if shared else "own",
            rows if type(rows) is int else None,
            tied if isinstance(tied, bool) else None,
            files,
            tokens,
        ),
        odd,
    )


def _there(folder: Path | None, names: tuple[str, ...]) -> tuple[str, ...]:
    return () if folder is None else tuple(name for name in names if has_file(folder / name))


@cache
def _program(part: str) -> Program:
    return compile_rules(load_rule_file(shipped_folder() / part))


def _buffers_and_wrapped(catalog: Mapping[str, Tensor]) -> tuple[set[str], dict[str, list[str]]]:
    """The names of buffers, and for each wrapper the names that contain it.

    Of names that differ only in numbers, one is tried.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for name in catalog:
        alike[_DIGITS.sub("0", name)].append(name)
    buffers: set[str] = set()
    wrapped: dict[str, list[str]] = defaultdict(list)
    words = {rule.label: rule.kind for rule in _program(_WRAPPERS).prepare}
    for names in alike.values():
        bare = _program(_WRAPPERS).rewrite(names[0])
        for label in dict.fromkeys(bare.rules):
            pattern = getattr(words.get(label), "pattern", None)
            wrapped[getattr(pattern, "text", label)] += names
        if bare.reason is None and _program(_BUFFERS).rewrite(bare.prepared).reason is not None:
            buffers.update(names)
    return buffers, wrapped


def _config_oddities(checkpoint: Checkpoint) -> Iterator[Oddity]:
    config = checkpoint.config
    if config is None:
        yield Oddity("no_config", "no config.json is beside the weights")
    for key in _QUANTISED:
        if config and config.get(key):
            yield Oddity("quantised", f"its config says {key}: {_cut(repr(config[key]))}")


def _name_oddities(
    checkpoint: Checkpoint,
    parts: tuple[Component, ...],
    buffers: set[str],
    wrapped: Mapping[str, list[str]],
) -> Iterator[Oddity]:
    catalog = checkpoint.catalog
    if buffers:
        text = f"{counted(len(buffers), 'buffer')} that the model computes itself"
        yield Oddity("buffers", text, tuple(name for name in catalog if name in buffers))
    for wrapper, names in wrapped.items():
        text = f"{counted(len(names), 'name')} with {quoted(wrapper)}, put there by a framework"
        yield Oddity("wrappers", text, tuple(names))
    if empty := tuple(name for name, tensor in catalog.items() if 0 in tensor.shape):
        text = f"{counted(len(empty), 'tensor')} without elements"
        yield Oddity("empty_tensors", text, empty)
    embedding, head = embedding_and_head(checkpoint.unpaired)
    usual = {tensor.name for tensor in (embedding, head) if tensor is not None}
    for group in checkpoint.aliases:
        if not usual.issuperset(group):
            yield Oddity("shared_tensors", f"{len(group)} names of one tensor", group)
    if other := next((part for part in parts if part.kind == "other"), None):
        text = f"{counted(other.tensors, 'tensor')} of no known component"
        yield Oddity("unknown_tensors", text, other.names)


def _dtype_oddities(
    checkpoint: Checkpoint, parts: tuple[Component, ...], buffers: set[str]
) -> Iterator[Oddity]:
    main: dict[str, str] = {}
    for part in parts:
        dtypes = {n: checkpoint.catalog[n].dtype for n in part.names if n not in buffers}
        if len(counts := Counter(dtypes.values())) > 1:
            common = counts.most_common(1)[0][0]
            others = ", ".join(f"{number} {of}" for of, number in counts.most_common()[1:])
            yield Oddity(
                "mixed_dtypes",
                f"the {CALLED[part.kind]} is stored as {common}, except {others}",
                tuple(name for name, of in dtypes.items() if of != common),
            )
        if counts and part.kind not in ("text_encoder", "other"):
            main[CALLED[part.kind]] = counts.most_common(1)[0][0]
    if len(set(main.values())) > 1:
        text = ", ".join(f"{part} {dtype}" for part, dtype in main.items())
        yield Oddity("components_differ_in_dtype", f"components differ in dtype: {text}")
    whole = tuple(
        name
        for name, tensor in checkpoint.catalog.items()
        if tensor.dtype not in FLOATS and len(tensor.shape) > 1 and name not in buffers
    )
    if whole:
        dtypes_ = " and ".join(sorted({checkpoint.catalog[name].dtype for name in whole}))
        text = f"{counted(len(whole), 'weight')} of dtype {dtypes_}, as in quantised checkpoints"
        yield Oddity("integer_weights", text, whole)


def _size_oddities(
    parts: tuple[Component, ...], words: Words | None, text: Mapping[str, Any]
) -> Iterator[Oddity]:
    model = next((part for part in parts if isinstance(part, LanguageModel)), None)
    said = text.get("num_hidden_layers")
    if model is not None and type(said) is int and said != model.layers:
        yield Oddity(
            "layers_missing",
            f"the config says {said} layers of the language model, but the checkpoint has "
            f"{model.layers}",
        )
    if words is None or words.rows is None:
        return
    if words.said_rows is not None and words.said_rows != words.rows:
        yield Oddity(
            "rows_and_config",
            f"the embeddings have {words.rows} rows, but the config says vocab_size: "
            f"{words.said_rows}",
        )
    if words.tokens is not None and words.tokens > words.rows:
        yield Oddity(
            "rows_and_tokenizer",
            f"the embeddings have {words.rows} rows, but the tokenizer has {words.tokens} tokens",
        )


def _file_oddities(checkpoint: Checkpoint) -> Iterator[Oddity]:
    if checkpoint.passed_over:
        text = f"not read: {several(checkpoint.passed_over)}"
        yield Oddity("not_read", text, checkpoint.passed_over)
    if checkpoint.folder is None:
        return
    left = sorted(
        path.name
        for path in checkpoint.folder.iterdir()
        if is_trainers(path.name) or _TRAINING.fullmatch(path.name)
    )
    if left:
        yield Oddity("training_state", f"files of a training: {several(left)}", tuple(left))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"
