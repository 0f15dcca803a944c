"""Placed boxes: where numbers of a source tensor go in a target tensor. Pure arithmetic on shapes.

A box is a rectangular region of a tensor, seen through a reshape and an order of axes. A part puts
the numbers of one box into another box of equal sizes. Renames, splits, concatenations, stacks,
slices, transposes and permutations are all made of parts; the other direction swaps the boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import product
from math import prod
from typing import Any, NamedTuple

Shape = tuple[int, ...]

#: Borders of contiguous regions up to which the coverage of a tensor is computed. A split, concat
#: or stack along the first axis has two for each box.
_MOST_BORDERS = 1 << 20


class Run(NamedTuple):
    """Elements that are contiguous on both sides: `taken` and `placed` are the offsets of the first
    one in its tensor, counted in elements in row-major order, and `size` is their number.
    """

    taken: int
    placed: int
    size: int


@dataclass(frozen=True, slots=True)
class Box:
    """A region of a tensor.

    Attributes:
        name: the tensor's name.
        view: the tensor's shape after a reshape; as many elements as the tensor has.
        axes: the order in which the axes of the view are seen, a permutation.
        start, stop: the region, for each axis in that order.
    """

    name: str
    view: Shape
    axes: Shape
    start: Shape
    stop: Shape

    @classmethod
    def whole(cls, name: str, shape: Shape) -> Box:
        """All of a tensor, as it is."""
        return cls(name, shape, tuple(range(len(shape))), (0,) * len(shape), shape)

    @classmethod
    def flat(cls, name: str, nelements: int, start: int, count: int) -> Box:
        """`count` elements of a tensor of `nelements`, in row-major order."""
        return cls(name, (nelements,), (0,), (start,), (start + count,))

    @property
    def sizes(self) -> Shape:
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def is_sound(self) -> bool:
        """Whether it lies inside its view, and the axes are an order of the view's."""
        seen = len(self.view)
        return (
            sorted(self.axes) == list(range(seen))
            and len(self.start) == len(self.stop) == seen
            and all(
                0 <= start <= stop <= self.view[axis]
                for start, stop, axis in zip(self.start, self.stop, self.axes, strict=True)
            )
        )

    def is_whole(self, shape: Shape) -> bool:
        """Whether it is all of a tensor of this shape, as it is."""
        return self == Box.whole(self.name, shape)

    def strides(self) -> Shape:
        """For each axis as it is seen, the elements between neighbours."""
        steps = [prod(self.view[axis + 1 :]) for axis in range(len(self.view))]
        return tuple(steps[axis] for axis in self.axes)

    def to_json(self) -> dict[str, Any]:
        return {
            "view": list(self.view),
            "axes": list(self.axes),
            "start": list(self.start),
            "stop": list(self.stop),
        }

    @classmethod
    def from_json(cls, name: str, entry: Mapping[str, Any]) -> Box:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        box = cls(name, *(shape_of(entry[field]) for field in ("view", "axes", "start", "stop")))
        if not box.is_sound:
            raise ValueError(f"a box of `{name}` lies outside of it")
        return box


def shape_of(found: Any) -> Shape:
    """A list of sizes from JSON.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if not isinstance(found, list) or not all(type(size) is int and size >= 0 for size in found):
        raise ValueError(f"{found!r} is no list of sizes")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Part:
    """Numbers of a source tensor and their place in the target tensor.

    Attributes:
        source: the source's name in the rule file.
        shape: of the source tensor.
        taken: the region of the source tensor.
        placed: the region of the target tensor; its sizes are those of `taken`.
    """

    source: str
    shape: Shape
    taken: Box
    placed: Box

    @classmethod
    def whole(cls, source: str, name: str, target: str, shape: Shape) -> Part:
        """A rename: one whole tensor is another one."""
        return cls(source, shape, Box.whole(name, shape), Box.whole(target, shape))

    @property
    def is_whole(self) -> bool:
        """Whether every number of both tensors keeps its place."""
        return (
            self.taken.view == self.placed.view == self.shape
            and self.taken.is_whole(self.shape)
            and self.placed.is_whole(self.shape)
        )

    def swapped(self, source: str, shape: Shape) -> Part:
        """The way back: the target tensor, of this shape, as a tensor of a source."""
        return Part(source, shape, self.placed, self.taken)

    def runs(self) -> Iterator[Run]:
        """The contiguous runs, in the order in which they lie in the target tensor.

        The axes on which both sides are contiguous are merged, so a split along the first axis is
        one run, and only an exchange of the last axis goes element by element.
        """
        taken, placed = self.taken.strides(), self.placed.strides()
        first, then = _dot(self.taken.start, taken), _dot(self.placed.start, placed)
        steps, count = _merged(zip(placed, taken, self.taken.sizes, strict=True))
        for numbers in product(*(range(size) for *_, size in steps)):
            yield Run(
                first + sum(n * step for n, (_, step, _) in zip(numbers, steps, strict=True)),
                then + sum(n * step for n, (step, _, _) in zip(numbers, steps, strict=True)),
                count,
            )


def _merged(axes: Iterable[tuple[int, int, int]]) -> tuple[list[tuple[int, int, int]], int]:
    """The axes that runs are counted along, and the elements of a run.

    Args:
        axes: for each the strides on both sides, and the size. In the order of the first side's
            strides runs come in the order of that side's elements.
    """
    steps = sorted((axis for axis in axes if axis[2] != 1), reverse=True)
    count = 1
    while steps and steps[-1][:2] == (count, count):
        count *= steps.pop()[2]
    return (steps, count) if count else ([(0, 0, 0)], 0)


def runs_in_order(parts: Sequence[Part]) -> Iterator[tuple[Part, Run]]:
    """The runs of all parts of one target tensor, in the order in which they lie in it."""

    def of(part: Part) -> Iterator[tuple[Part, Run]]:
        return ((part, run) for run in part.runs())

    if len(parts) == 1:
        return of(parts[0])
    return merge(*map(of, parts), key=lambda entry: entry[1].placed)


def coverage_gaps(shape: Shape, boxes: Iterable[Box]) -> tuple[list[range], list[range]]:
    """Which rows of a tensor its boxes leave out, and which they cover twice.

    Args:
        shape: of the tensor; a row is an index of its first axis.
        boxes: its regions; each is sound (`Box.is_sound`).

    Raises:
        ValueError: for a box of a tensor with another number of elements, and for boxes that cut
            the tensor into more pieces than can be counted.
    """
    boxes, nelements = list(boxes), prod(shape)
    if any(prod(box.view) != nelements for box in boxes):
        raise ValueError(f"a box has another number of elements than the tensor, {list(shape)}")
    if len(boxes) == 1 and prod(boxes[0].sizes) == nelements:
        return [], []
    width = prod(shape[1:]) or 1
    counts = list(_counts(nelements, boxes))
    return (
        _rows(width, [span for span, count in counts if count == 0]),
        _rows(width, [span for span, count in counts if count > 1]),
    )


def _counts(nelements: int, boxes: Sequence[Box]) -> Iterator[tuple[range, int]]:
    """The elements on which other than one box lies, and how many do."""
    borders: list[tuple[int, int]] = []
    for box in boxes:
        for start, stop in _spans(box):
            borders += [(start, 1), (stop, -1)]
            if len(borders) > _MOST_BORDERS:
                raise ValueError(f"{len(boxes)} boxes cut the tensor into too many pieces")
    at, count = 0, 0
    for border, change in [*sorted(borders), (nelements, 0)]:
        if border > at and count != 1:
            yield range(at, border), count
        at, count = border, count + change


def _spans(box: Box) -> Iterator[tuple[int, int]]:
    """The contiguous elements of a box: first, and last plus one."""
    strides = box.strides()
    steps, count = _merged(zip(strides, strides, box.sizes, strict=True))
    first = _dot(box.start, strides)
    for numbers in product(*(range(size) for *_, size in steps)):
        start = first + sum(n * step for n, (step, _, _) in zip(numbers, steps, strict=True))
        yield start, start + count


def _rows(width: int, spans: Iterable[range]) -> list[range]:
    """The rows of so many elements that spans of elements touch, neighbours as one."""
    rows: list[range] = []
    for span in spans:
        start, stop = span.start // width, -(-span.stop // width)
        if rows and rows[-1].stop >= start:
            start = rows.pop().start
        rows.append(range(start, stop))
    return rows


def _dot(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(one, other, strict=True))
