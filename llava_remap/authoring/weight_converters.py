"""Turns tensor operations into the `WeightConverter`s of transformers 5. Pure.

The loader (`core_model_loading.py`) uses converters after all renamings: the first converter whose
pattern is found anywhere in a name takes the tensor. The first new name replaces the text that
matched; the text before and after it stays. `*` stands for the number of a tensor in a list. So a
converter has only the part in which the names differ, without the modules around that part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from llava_remap.rulefile import AS_STORED, End, Operation, Seen

_REST = "*"
_HEADS = re.compile(r"(?:(.+)\.)?num_attention_heads")


class NoConverterError(Exception):
    """An operation that no `WeightConverter` can do, with the reason."""


@dataclass(frozen=True, slots=True)
class Converter:
    """A `WeightConverter`.

    Attributes:
        sources, targets: the patterns of old and new names.
        operations: calls of transformers' operation classes, as Python text.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[str, ...]

    @property
    def python(self) -> str:
        """The Python call that makes the converter."""
        sources, targets = ([*map(_literal, side)] for side in (self.sources, self.targets))
        return (
            f"WeightConverter([{', '.join(sources)}], [{', '.join(targets)}], "
            f"operations=[{', '.join(self.operations)}])"
        )


def converter(operation: Operation) -> Converter:
    """The converter that does the same as an operation.

    Raises:
        NoConverterError: if no converter does the same.
    """
    calls = tuple(_calls(operation))
    names = [_parts(end) for end in (*operation.sources, *operation.targets)]
    head = _common(names)
    while head and head[-1] != ".":  # whole segments
        head = head[:-1]
    rests = [name[len(head) :] for name in names]
    tail = _common([rest[::-1] for rest in rests])[::-1]
    before = max((at + 1 for at, token in enumerate(head) if _is_field(token)), default=0)
    if not before:
        raise NoConverterError(
            "its names have no field before the part in which they differ, and the model's own "
            "renamings run first"
        )
    after = next((at for at, token in enumerate(tail) if _is_field(token)), len(tail))
    own = [[*head[before:], *rest[: len(rest) - len(tail)], *tail[:after]] for rest in rests]
    if any(_is_field(token) for name in own for token in name):
        raise NoConverterError("its names have fields between the parts in which they differ")
    texts = ["".join(name) for name in own]
    count = len(operation.sources)
    return Converter(
        # After `*`, transformers expects a dot without a backslash.
        tuple(text if _REST in text else text.replace(".", r"\.") for text in texts[:count]),
        tuple(texts[count:]),
        calls,
    )


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """The common beginning of all names."""
    columns = zip(*names, strict=False)
    return [column[0] for column in takewhile(lambda column: len({*column}) == 1, columns)]


def _parts(end: End) -> list[str]:
    """A name as single characters and whole fields; `*` stands for the field of a list."""
    if end.names is None:
        raise NoConverterError("a part is dropped")
    return [
        part
        for text, field, kind in end.names.pieces
        for part in (text or [_REST if kind == ":each" else f"{{{field}}}"])
    ]


def _is_field(token: str) -> bool:
    return len(token) > 1


def _literal(text: str) -> str:
    return f'r"{text}"'


def _calls(operation: Operation) -> list[str]:
    """The operations of transformers, in the order in which they run."""
    along, stacked = operation.join.along, operation.join.stacked
    seen, parts = operation.seen, operation.parts
    lists = any(end.each for end in parts)
    plain_parts = all(end.seen == AS_STORED for end in parts)
    if operation.divides:
        if seen == AS_STORED and along is not None and stacked is None:
            if plain_parts:
                return [f"Split(dim={along})"]
            return [f"Chunk(dim={along})", _rope_of(operation)]
        pairs = seen.view == (_REST, 2) and not seen.axes and stacked == seen.axis + 1
        if pairs and along is None and plain_parts and not lists:
            return [f"Interleave(dim={seen.axis})", f"Chunk(dim={seen.axis})"]
        if along is stacked is None and plain_parts:
            return [_permuted(operation, seen)]
        if along is stacked is None and seen == AS_STORED:
            return [_permuted(operation, parts[0].seen, back=True)]
    elif plain_parts and (lists or stacked is None):
        calls = [f"MergeModulelist(dim={stacked})"] if stacked is not None else []
        calls += [f"Concatenate(dim={along})"] if along is not None else []
        if seen == AS_STORED:
            return calls
        # transformers joins first, so an axis behind or inside the view would be another one.
        joined_before = (along is None or along <= seen.axis) and (
            stacked is None or stacked < seen.axis
        )
        if not seen.view or joined_before:
            return [*calls, _permuted(operation, seen, back=True)]
    raise NoConverterError("transformers has no operations that do the same")


def _rope_of(operation: Operation) -> str:
    """The rope permutation of some parts of a divided tensor."""
    turned = [end for end in operation.parts if end.seen != AS_STORED]
    calls = {_permuted(operation, end.seen, back=True) for end in turned}
    if len(calls) != 1 or not next(iter(calls)).startswith("PermuteForRope"):
        raise NoConverterError("transformers has no operation for the views of its parts")
    segments = [str(end.names).split(".") for end in operation.parts]
    at = next(at for at in range(len(segments[0])) if len({part[at] for part in segments}) > 1)
    names = ", ".join(f'"{str(end.names).split(".")[at]}"' for end in turned)
    return f"{next(iter(calls))[:-1]}, permute_layer_names=[{names}])"


def _permuted(operation: Operation, seen: Seen, *, back: bool = False) -> str:
    """The call for a tensor with its axes in another order.

    Args:
        back: whether the view is that of the new tensor instead of the old one.
    """
    view, axes = seen.view, seen.axes
    swapped = [at for at, axis in enumerate(axes) if at != axis]
    if len(swapped) == 2 and not view:
        return f"Transpose(dim0={swapped[0]}, dim1={swapped[1]})"
    if view in ((_REST, 2), (2, _REST)) and swapped == [seen.axis, seen.axis + 1]:
        pairs_first = (view == (_REST, 2)) is not back
        return f"Interleave(dim={seen.axis}{'' if pairs_first else ', inverse=True'})"
    if len(view) == 3 and seen.axis == 0 and axes == (0, 2, 1) and set(view[1:]) == {_REST, 2}:
        key = _HEADS.fullmatch(operation.sizes.get(str(view[0]), ""))
        if key is not None:
            pairs_first = (view[1:] == (_REST, 2)) is not back
            inverse = "" if pairs_first else ", inverse=True"
            key_text = f'"{key[1]}"' if key[1] else "None"
            return f"PermuteForRope(subconfig_key={key_text}{inverse})"
    raise NoConverterError("transformers has no operation for this order of axes")


def python_text(
    patterns: Sequence[tuple[str, str]], converters: Sequence[Converter], class_name: str | None
) -> str:
    """Python that registers the renamings and converters for a class, before the class's own."""
    used = sorted(
        {call.partition("(")[0] for one in converters for call in one.operations}
        | {"WeightConverter", "WeightRenaming"}
    )
    lines = [
        "import transformers",
        "from transformers import conversion_mapping",
        f"from transformers.core_model_loading import {', '.join(used)}",
        "",
        "conversions = [",
        *(f"    WeightRenaming({one!r}, {other!r})," for one, other in patterns),
        *(f"    {one.python}," for one in converters),
        "]",
    ]
    if class_name is not None:
        lines += [
            f"kind = transformers.{class_name}",
            "entry = conversion_mapping.get_checkpoint_conversion_mapping",
            "own = entry(kind.__name__) or entry(kind.config_class.model_type) or []",
            "conversion_mapping.register_checkpoint_conversion_mapping(",
            "    kind.__name__, [*conversions, *own], overwrite=True",
            ")",
        ]
    return "\n".join(lines) + "\n"
