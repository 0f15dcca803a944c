"""Entries of a plan: where the numbers of a target tensor come from, and what is computed with
them. Pure data, and its JSON form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any

from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, HELD_BY
from llava_remap.planning.boxes import (
    MOST_STEPS,
    Box,
    Part,
    Shape,
    coverage_gaps,
    coverage_steps,
    shape_of,
)
from llava_remap.routing import SourceName


def holds(dtype: str, stored: str) -> bool:
    """Whether `dtype` represents every number of the dtype `stored` exactly."""
    return dtype in HELD_BY.get(stored, (stored,))


def written_dtype(stored: str, wanted: str | None) -> str:
    """The dtype in which a tensor is written: `wanted`, or its own if `wanted` is None or the
    tensor doesn't hold floating-point numbers.
    """
    return wanted if wanted is not None and stored in FLOATS else stored


@dataclass(frozen=True, slots=True)
class AddLora:
    """Add a LoRA pair of an adapter: `scale` times B times A.

    Attributes:
        base: the source tensor that the pair changes, a matrix; the parts take their boxes from the
            sum. None if the pair changes the matrix that the parts make.
        a, b: the matrices, [rank, columns] and [rows, rank].
        scale: None if a manifest doesn't have it.
    """

    base: SourceName | None
    a: SourceName
    b: SourceName
    rank: int
    scale: float | None

    def to_json(self) -> dict[str, Any]:
        base = None if self.base is None else source_names([self.base])[0]
        a, b = source_names((self.a, self.b))
        return {"add_lora": {"base": base, "a": a, "b": b, "rank": self.rank, "scale": self.scale}}


@dataclass(frozen=True, slots=True)
class Cast:
    """Write numbers in another dtype than they are stored in.

    Attributes:
        stored: the dtype in the sources.
        of: the source tensors of this dtype, if others have another one; empty for all.
    """

    stored: str
    of: tuple[SourceName, ...] = ()

    def to_json(self) -> dict[str, Any]:
        of = {"of": source_names(self.of)} if self.of else {}
        return {"cast": {"stored": self.stored, **of}}


def casts(stored: Mapping[SourceName, str], written: str) -> tuple[Cast, ...]:
    """The casts that make one dtype of all source tensors.

    Args:
        stored: the source tensors, each with its dtype.
    """
    dtypes = dict.fromkeys(stored.values())
    if len(dtypes) == 1:
        return tuple(Cast(dtype) for dtype in dtypes if dtype != written)
    return tuple(
        Cast(dtype, tuple(name for name, own in stored.items() if own == dtype))
        for dtype in dtypes
        if dtype != written
    )


@dataclass(frozen=True, slots=True)
class PostLoad:
    """A post-load rule changes the tensor, or makes it.

    Attributes:
        use: name of the plug-in. Its change is in the plan's `post_load`.
        before: shape of the tensor before the change; None if no source has the tensor.
    """

    use: str
    before: Shape | None

    def to_json(self) -> dict[str, Any]:
        before = None if self.before is None else list(self.before)
        return {"post_load": {"use": self.use, "before": before}}


Step = AddLora | Cast | PostLoad


def _step(entry: Mapping[str, Any]) -> Step:
    """A step from its JSON form.

    Raises:
        KeyError, TypeError, ValueError: for anything else.
    """
    if not isinstance(entry, dict) or not all(isinstance(f, dict) for f in entry.values()):
        raise ValueError(f"{entry!r} is not a step")
    [(kind, fields)] = entry.items()
    if kind == "cast":
        return Cast(_text(fields["stored"]), tuple(map(_source_name, fields.get("of", ()))))
    if kind == "post_load":
        before = None if fields["before"] is None else shape_of(fields["before"])
        return PostLoad(_text(fields["use"]), before)
    if kind == "add_lora":
        rank, scale = fields["rank"], fields["scale"]
        sound = type(rank) is int and rank >= 1 and type(scale) in (int, float) and isfinite(scale)
        if not sound:
            raise ValueError(f"rank {rank!r} and scale {scale!r}")
        base = None if fields["base"] is None else _source_name(fields["base"])
        a, b = (_source_name(fields[key]) for key in ("a", "b"))
        return AddLora(base, a, b, rank, float(scale))
    raise ValueError(f"{kind!r} is not a step")


@dataclass(frozen=True, slots=True)
class Mapped:
    """A target tensor: where its numbers come from, and what is computed with them.

    Attributes:
        dtype, shape: as written.
        parts: the boxes of source tensors and their places. Together they cover the tensor before
            any change by a post-load rule. Empty if a post-load rule makes the tensor.
        then: the computation, in order; empty if numbers are only moved. A LoRA sum is rounded
            once, to `dtype`, even if a cast follows.
        rules: the rules that made the target name.
    """

    target: str
    dtype: str
    shape: Shape
    parts: tuple[Part, ...]
    then: tuple[Step, ...]
    rules: tuple[str, ...]

    @property
    def casts(self) -> tuple[Cast, ...]:
        """The casts, one for each dtype that isn't the written one."""
        return tuple(step for step in self.then if isinstance(step, Cast))

    def dtype_of(self, origin: SourceName) -> str:
        """The dtype of one of the source tensors."""
        own = (cast.stored for cast in self.casts if not cast.of or origin in cast.of)
        return next(own, self.dtype)

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """The dtypes in the sources, each once."""
        return tuple(dict.fromkeys(map(self.dtype_of, self.origins))) or (self.dtype,)

    @property
    def stored_dtype(self) -> str:
        """The dtype in the sources. If they have several, the smallest that holds all numbers."""
        first, *others = self.stored_dtypes
        if not others:
            return first
        return next(dtype for dtype in HELD_BY[first] if all(holds(dtype, o) for o in others))

    @property
    def loras(self) -> tuple[AddLora, ...]:
        """The LoRA pairs to add: at most one for each source tensor, or one for what the parts
        make.
        """
        return tuple(step for step in self.then if isinstance(step, AddLora))

    @property
    def is_renamed(self) -> bool:
        """Whether the parts are one whole source tensor, whose numbers and shape stay."""
        return len(self.parts) == 1 and self.parts[0].is_rename(self.shape_before)

    @property
    def merges_whole(self) -> bool:
        """Whether a LoRA pair is added to the matrix that the parts make, or to a whole source
        tensor, which is the same.
        """
        return bool(self.loras) and (self.is_renamed or self.loras[0].base is None)

    def base_shape(self, lora: AddLora) -> Shape:
        """The shape of the matrix that a LoRA pair changes."""
        if lora.base is None:
            return self.shape_before
        return next(p.shape for p in self.parts if SourceName(p.source, p.taken.name) == lora.base)

    @property
    def post_load(self) -> PostLoad | None:
        return next((step for step in self.then if isinstance(step, PostLoad)), None)

    @property
    def shape_before(self) -> Shape:
        """The shape that the parts cover, before any change by a post-load rule."""
        change = self.post_load
        return self.shape if change is None or change.before is None else change.before

    @property
    def is_rounded(self) -> bool:
        """Whether the written dtype can't represent every number of the sources' dtypes."""
        return not holds(self.dtype, self.stored_dtype)

    @property
    def is_made(self) -> bool:
        """Whether no source has the tensor, and a post-load rule makes it."""
        return not self.parts

    @property
    def origins(self) -> tuple[SourceName, ...]:
        """The source tensors of the parts, each once."""
        return tuple(dict.fromkeys(SourceName(p.source, p.taken.name) for p in self.parts))

    @property
    def nbytes(self) -> int:
        """Size of the written tensor in bytes."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "from": [part_json(part, self.shape_before) for part in self.parts],
            "then": [step.to_json() for step in self.then],
            "rules": list(self.rules),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Mapped:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        target, dtype, shape = (
            _text(entry["target"]),
            _text(entry["dtype"]),
            shape_of(entry["shape"]),
        )
        then = tuple(map(_step, entry["then"]))
        kinds = [(AddLora, Cast, PostLoad).index(type(step)) for step in then]
        if kinds != sorted(kinds) or kinds.count(2) > 1 or dtype not in DTYPE_BITS:
            raise ValueError(f"`{target}` is {dtype}, or its steps have an impossible order")
        mapped = cls(target, dtype, shape, (), then, tuple(map(_text, entry["rules"])))
        parts = tuple(_part(part, target, mapped.shape_before) for part in entry["from"])
        mapped = replace(mapped, parts=parts)
        if mapped.casts:
            _refuse_casts(mapped)
        made = mapped.post_load is not None and mapped.post_load.before is None
        if mapped.is_made is not made or (made and len(then) > 1):
            raise ValueError(f"`{target}` comes from {len(parts)} boxes")
        bases = [lora.base for lora in mapped.loras]
        if bases != [None] and (len({*bases}) < len(bases) or not {*bases} <= {*mapped.origins}):
            raise ValueError(f"`{target}` is merged with tensors that it isn't made of")
        if any(len(mapped.base_shape(lora)) != 2 for lora in mapped.loras):
            raise ValueError(f"`{target}` is merged, and what is merged is not a matrix")
        return mapped


def _refuse_casts(mapped: Mapped) -> None:
    """
    Raises:
        ValueError: the casts aren't those of the source tensors.
    """
    stored = {origin: mapped.dtype_of(origin) for origin in mapped.origins}
    dtypes = {*stored.values(), mapped.dtype}
    if not dtypes <= {*FLOATS} or mapped.casts != casts(stored, mapped.dtype):
        raise ValueError(f"`{mapped.target}` was {', '.join(mapped.stored_dtypes)}")


def refuse_uncovered(mapped: Collection[Mapped]) -> None:
    """Check that the parts of entries from a record cover each tensor once.

    Raises:
        ValueError: if they don't, or if there are more parts than any job writes.
    """
    placed = [(entry, [part.placed for part in entry.parts]) for entry in mapped]
    if sum(coverage_steps(boxes) for _, boxes in placed) > MOST_STEPS:
        raise ValueError("the parts in it are too many")
    for entry, boxes in placed:
        if boxes and any(coverage_gaps(entry.shape_before, boxes)):
            raise ValueError(f"the parts of `{entry.target}` don't cover it")


def part_json(part: Part, whole: Shape) -> dict[str, Any]:
    """The JSON form of a part. A renamed tensor has the source tensor's name alone.

    Args:
        whole: the shape of the target tensor.
    """
    named = {"source": part.source, "name": part.taken.name}
    if part.is_rename(whole):
        return named
    boxes = {"taken": part.taken.to_json(), "placed": part.placed.to_json()}
    return {**named, "shape": list(part.shape), **boxes}


def _part(entry: Mapping[str, Any], target: str, whole: Shape) -> Part:
    """The inverse of `part_json`; `whole` is the shape of the target tensor."""
    origin = _source_name(entry)
    if "taken" not in entry:
        return Part.whole(origin.source, origin.name, target, whole)
    shape = shape_of(entry["shape"])
    taken = Box.from_json(origin.name, entry["taken"])
    placed = Box.from_json(target, entry["placed"])
    if taken.sizes != placed.sizes or prod(taken.view) != prod(shape):
        raise ValueError(f"a box of `{origin.name}` doesn't fit into that of `{target}`")
    return Part(origin.source, shape, taken, placed)


@dataclass(frozen=True, slots=True)
class Alias:
    """A target name that a source has but that isn't written, because the model ties it to another
    parameter.

    Attributes:
        of: the target tensor that it shares.
        dtype, shape: of the source tensor.
        rules: the rules that made the target name.
    """

    target: str
    of: str
    source: SourceName
    dtype: str
    shape: Shape
    rules: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        [source] = source_names([self.source])
        return {
            "target": self.target,
            "of": self.of,
            "from": source,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "rules": list(self.rules),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Alias:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        dtype = _text(entry["dtype"])
        if dtype not in DTYPE_BITS:
            raise ValueError(f"`{entry['target']}` was {dtype}")
        return cls(
            _text(entry["target"]),
            _text(entry["of"]),
            _source_name(entry["from"]),
            dtype,
            shape_of(entry["shape"]),
            tuple(map(_text, entry["rules"])),
        )


def _source_name(entry: Mapping[str, Any]) -> SourceName:
    return SourceName(_text(entry["source"]), _text(entry["name"]))


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError(f"{found!r} is not text")
    return found


def aligned(entries: Sequence[Mapped]) -> list[Mapped]:
    """Order the entries of a file so that each tensor is aligned to the size of its elements, which
    readers that map the file need. The given order is kept if it does so; else wider elements come
    first.
    """
    at = 0
    for entry in entries:
        if at * 8 % DTYPE_BITS[entry.dtype]:
            return sorted(entries, key=lambda entry: -DTYPE_BITS[entry.dtype])
        at += entry.nbytes
    return list(entries)


def source_names(names: Sequence[SourceName]) -> list[dict[str, str]]:
    return [{"source": n.source, "name": n.name} for n in names]
