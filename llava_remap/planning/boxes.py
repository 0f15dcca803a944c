"""Placed boxes: where numbers of a source tensor go in a target tensor. Pure arithmetic on shapes.

A box is a rectangular region of a tensor, seen through a reshape and an order of axes. A part puts
the numbers of one box into another box of equal sizes. Renames, splits, concatenations, stacks,
slices, transposes and permutations are all made of parts; the other direction swaps the boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import accumulate, pairwise, product
from math import prod
from operator import mul
from typing import Any, NamedTuple

Shape = tuple[int, ...]

#: The most steps for the coverage of a tensor. A split, concat or stack along one axis takes at
#: most the square of the number of its boxes.
MOST_STEPS = 1 << 18
#: Up to this number of runs, coverage is computed by runs, even if there are fewer cells.
_MANY_RUNS = 1 << 13
#: The most axes and elements of a tensor.
_MOST_AXES, _MOST_ELEMENTS = 64, 1 << 62


class Run(NamedTuple):
    """Elements that are contiguous in both tensors. `taken` and `placed` are the offsets of the
    first element in source and target, in elements in row-major order; `size` is their number.
    """

    taken: int
    placed: int
    size: int


class Axis(NamedTuple):
    """An axis of a block: its size, and the distance of neighbours in target and source, in
    elements.
    """

    placed: int
    taken: int
    size: int


class Block(NamedTuple):
    """Elements of a part in rows and columns.

    Attributes:
        taken, placed: offsets of the first element in source and target, in elements.
        axes: in the order of the target; each has several elements.
    """

    taken: int
    placed: int
    axes: tuple[Axis, ...]

    def between(self, axis: Axis, start: int, stop: int) -> Block:
        """The block, limited to start..stop of one axis."""
        axes = tuple(
            axis._replace(size=stop - start) if each == axis else each for each in self.axes
        )
        return Block(
            self.taken + start * axis.taken,
            self.placed + start * axis.placed,
            tuple(axis for axis in axes if axis.size > 1),
        )


@dataclass(frozen=True, slots=True)
class Box:
    """A region of a tensor.

    Attributes:
        name: the tensor's name.
        view: the tensor's shape after a reshape; as many elements as the tensor has.
        axes: the order of the view's axes, a permutation.
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
        """Whether the region lies inside the view, and `axes` is a permutation of its axes."""
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
        """Whether the region is all of a tensor of this shape, as it is."""
        return self == Box.whole(self.name, shape)

    def divided(self, at: int, sizes: Shape) -> Box:
        """The same region, with one axis divided into several.

        Args:
            at: the axis, in the order of `axes`.
            sizes: the region's sizes along the new axes.

        Raises:
            ValueError: the axis can't be divided there.
        """
        inner, axis = prod(sizes[1:]), self.axes[at]
        start, stop, whole = self.start[at], self.stop[at], self.view[axis]
        if not inner or start % inner or whole % inner or stop - start != inner * sizes[0]:
            raise ValueError(f"{start}..{stop - 1} of {whole} isn't divided by {inner}")
        new = len(sizes) - 1
        moved = [other + new if other > axis else other for other in self.axes]
        return Box(
            self.name,
            (*self.view[:axis], whole // inner, *sizes[1:], *self.view[axis + 1 :]),
            (*moved[:at], *range(axis, axis + new + 1), *moved[at + 1 :]),
            (*self.start[:at], start // inner, *(0 for _ in sizes[1:]), *self.start[at + 1 :]),
            (*self.stop[:at], stop // inner, *sizes[1:], *self.stop[at + 1 :]),
        )

    def strides(self) -> Shape:
        """For each axis, in the order of `axes`, the distance of neighbours in elements."""
        steps = _strides(self.view)
        return tuple(steps[axis] for axis in self.axes)

    def in_view(self) -> tuple[tuple[int, int], ...]:
        """Start and stop for each axis of the view, in the view's own order."""
        bounds = dict(zip(self.axes, zip(self.start, self.stop, strict=True), strict=True))
        return tuple(bounds[axis] for axis in range(len(self.view)))

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
    if not isinstance(found, list) or len(found) > _MOST_AXES:
        raise ValueError("a list of sizes was expected")
    if not all(type(size) is int and 0 <= size <= _MOST_ELEMENTS for size in found):
        raise ValueError("a list of sizes was expected")
    if prod(max(size, 1) for size in found) > _MOST_ELEMENTS:
        raise ValueError("no tensor has so many elements")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Part:
    """Numbers of a source tensor and their place in the target tensor.

    Attributes:
        source: the source's name in the rule file.
        shape: of the source tensor.
        taken: the region of the source tensor.
        placed: the region of the target tensor; it has the same sizes as `taken`.
    """

    source: str
    shape: Shape
    taken: Box
    placed: Box

    @classmethod
    def whole(cls, source: str, name: str, target: str, shape: Shape) -> Part:
        """A rename: a whole source tensor becomes a whole target tensor."""
        return cls(source, shape, Box.whole(name, shape), Box.whole(target, shape))

    def is_rename(self, shape: Shape) -> bool:
        """Whether the part is all of both tensors, and changes only the name.

        Args:
            shape: of the target tensor.
        """
        return self.shape == shape and self.taken.is_whole(shape) and self.placed.is_whole(shape)

    def swapped(self, source: str, shape: Shape) -> Part:
        """The reverse part: `source` has the target tensor, which is of this shape."""
        return Part(source, shape, self.placed, self.taken)

    def runs(self) -> Iterator[Run]:
        """The contiguous runs, in the order of the target tensor.

        Axes that are contiguous on both sides are merged. So a split along the first axis is one
        run, and only an exchange of the last axis goes element by element.
        """
        first, then = self._first
        steps, count = self._steps
        for there, here in _offsets(steps):
            yield Run(first + here, then + there, count)

    @property
    def run_size(self) -> int:
        """The number of elements of each run."""
        return self._steps[1]

    @property
    def nruns(self) -> int:
        """The number of runs."""
        return prod(size for *_, size in self._steps[0])

    @property
    def block(self) -> Block | None:
        """All elements of the part; None if there are none."""
        steps, count = self._steps
        if not count or not self.nruns:
            return None
        axes = [Axis(*step) for step in steps] + [Axis(1, 1, count)] * (count > 1)
        return Block(*self._first, tuple(axes))

    @property
    def _first(self) -> tuple[int, int]:
        """The offsets of the first element in source and target."""
        taken, placed = self.taken.strides(), self.placed.strides()
        return _dot(self.taken.start, taken), _dot(self.placed.start, placed)

    @property
    def _steps(self) -> tuple[list[tuple[int, int, int]], int]:
        """The axes of the runs, and the elements of a run."""
        taken, placed = self.taken.strides(), self.placed.strides()
        return _merged(zip(placed, taken, self.taken.sizes, strict=True))


def blocks_between(part: Part, start: int, stop: int) -> Iterator[Block]:
    """The elements of a part that have their places in a run of the target tensor, as few blocks.

    Args:
        start, stop: the run, in elements.
    """
    if (block := part.block) is not None:
        yield from _blocks(block, start, stop)


def _blocks(block: Block, start: int, stop: int) -> Iterator[Block]:
    if not block.axes:
        if start <= block.placed < stop:
            yield block
        return
    axis, *inner = block.axes
    # All elements of an index of the first axis lie before the elements of the next index.
    extent = 1 + sum((each.size - 1) * each.placed for each in inner)
    first = max(-(-(start - block.placed) // axis.placed), 0)
    last = min((stop - block.placed - extent) // axis.placed + 1, axis.size)
    if first < last:
        yield block.between(axis, first, last)
    for index in dict.fromkeys((first - 1, max(last, first - 1, 0))):
        if 0 <= index < axis.size and not first <= index < last:
            yield from _blocks(block.between(axis, index, index + 1), start, stop)


def _merged(axes: Iterable[tuple[int, int, int]]) -> tuple[list[tuple[int, int, int]], int]:
    """Merge axes that are contiguous on both sides into one run.

    Args:
        axes: for each axis its strides on both sides, and its size.

    Returns:
        The other axes, ordered by their strides on the first side, the largest first; and the
        number of elements of a run.
    """
    steps = sorted((axis for axis in axes if axis[2] != 1), reverse=True)
    count = 1
    while steps and steps[-1][:2] == (count, count):
        count *= steps.pop()[2]
    return (steps, count) if count else ([(0, 0, 0)], 0)


def _offsets(steps: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """The offsets of runs on both sides, counted from the first run, in order."""
    if not steps:
        yield 0, 0
        return
    (one, other, size), *inner = steps
    for number in range(size):
        for first, second in _offsets(inner):
            yield number * one + first, number * other + second


def runs_in_order(parts: Sequence[Part]) -> Iterator[tuple[Part, Run]]:
    """The runs of all parts of one target tensor, in the order of the target tensor."""

    def of(part: Part) -> Iterator[tuple[Part, Run]]:
        return ((part, run) for run in part.runs())

    if len(parts) == 1:
        return of(parts[0])
    return merge(*map(of, parts), key=lambda entry: entry[1].placed)


def coverage_gaps(shape: Shape, boxes: Iterable[Box]) -> tuple[list[range], list[range]]:
    """The rows of a tensor that no box covers, and the rows that several boxes cover.

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
    steps, in_cells = _way(boxes)
    if steps > MOST_STEPS:
        raise ValueError(f"{len(boxes)} boxes cut the tensor into too many pieces")
    width = prod(shape[1:]) or 1
    counts = list(_counts_of_cells(boxes) if in_cells else _counts(nelements, boxes))
    return (
        _rows(width, [span for span, count in counts if count == 0]),
        _rows(width, [span for span, count in counts if count > 1]),
    )


def coverage_steps(boxes: Sequence[Box]) -> int:
    """Steps that `coverage_gaps` takes for these boxes of one tensor."""
    return 0 if len(boxes) == 1 else _way(boxes)[0]


def _way(boxes: Sequence[Box]) -> tuple[int, bool]:
    """How to compute coverage: the number of steps, and whether by cells.

    Runs give the exact rows. Cells are for boxes with so many runs that counting these takes long.
    """
    by_runs = _steps_by_runs(boxes)
    if by_runs <= _MANY_RUNS:
        return by_runs, False
    by_cells = _steps_by_cells(boxes)
    return min(by_runs, by_cells), by_cells < by_runs


def _steps_by_runs(boxes: Sequence[Box]) -> int:
    """The number of contiguous regions of all boxes."""
    return sum(prod(size for *_, size in _own_runs(box)[0]) for box in boxes)


def _steps_by_cells(boxes: Sequence[Box]) -> int:
    """The number of cells in the grid that the boxes' borders make, times the number of boxes. Over
    the limit if the boxes have different views, because they have no common grid then.
    """
    if len({box.view for box in boxes}) != 1:
        return MOST_STEPS + 1
    return prod(len(cut) - 1 for cut in _cuts(boxes)) * len(boxes)


def _cuts(boxes: Sequence[Box]) -> list[list[int]]:
    """For each axis of the boxes' view, the indices at which a box begins or ends."""
    bounds = [box.in_view() for box in boxes]
    return [
        sorted({0, size, *(cut for box in bounds for cut in box[axis])})
        for axis, size in enumerate(boxes[0].view)
    ]


def _counts_of_cells(boxes: Sequence[Box]) -> Iterator[tuple[range, int]]:
    """Like `_counts`, for boxes of one view. A cell stands for all elements from its first to its
    last.
    """
    strides, bounds = _strides(boxes[0].view), [box.in_view() for box in boxes]
    for cell in product(*(pairwise(cut) for cut in _cuts(boxes))):
        count = sum(
            all(
                low <= start and stop <= high
                for (start, stop), (low, high) in zip(cell, box, strict=True)
            )
            for box in bounds
        )
        if count != 1:
            first = _dot([start for start, _ in cell], strides)
            yield range(first, _dot([stop - 1 for _, stop in cell], strides) + 1), count


def _counts(nelements: int, boxes: Sequence[Box]) -> Iterator[tuple[range, int]]:
    """The elements that no box or several boxes cover, and how many boxes do."""
    borders: list[tuple[int, int]] = []
    for box in boxes:
        for start, stop in _spans(box):
            borders += [(start, 1), (stop, -1)]
    at, count = 0, 0
    for border, change in [*sorted(borders), (nelements, 0)]:
        if border > at and count != 1:
            yield range(at, border), count
        at, count = border, count + change


def _spans(box: Box) -> Iterator[tuple[int, int]]:
    """The contiguous spans of a box: start and stop in elements."""
    steps, count = _own_runs(box)
    first = _dot(box.start, box.strides())
    for offset, _ in _offsets(steps):
        yield first + offset, first + offset + count


def _own_runs(box: Box) -> tuple[list[tuple[int, int, int]], int]:
    """Like `_merged`, for one box alone."""
    strides = box.strides()
    return _merged(zip(strides, strides, box.sizes, strict=True))


def _strides(shape: Shape) -> list[int]:
    """For each axis the distance of neighbours in elements, in row-major order."""
    return [*accumulate(reversed(shape[1:]), mul, initial=1)][::-1] if shape else []


def _rows(width: int, spans: Iterable[range]) -> list[range]:
    """The rows, of `width` elements each, that spans touch. Neighbouring rows are one range."""
    rows: list[range] = []
    for span in spans:
        start, stop = span.start // width, -(-span.stop // width)
        if rows and rows[-1].stop >= start:
            start = rows.pop().start
        rows.append(range(start, stop))
    return rows


def _dot(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(one, other, strict=True))
