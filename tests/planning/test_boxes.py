"""Placed boxes against numpy: the same numbers in the same places, both ways, and coverage."""

from __future__ import annotations

from math import prod
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llava_remap.planning import Box, Part, coverage_gaps, runs_in_order

Numbers = NDArray[np.int64]


def region(of: Numbers, box: Box) -> Numbers:
    """What numpy has under a box: a view, so that writing into it writes into the tensor."""
    seen = of.reshape(box.view).transpose(box.axes)
    slices: tuple[Any, ...] = (*map(slice, box.start, box.stop), ...)
    return cast(Numbers, seen[slices])


@st.composite
def boxes(draw: st.DrawFn, sizes: tuple[int, ...] | None = None) -> Box:
    """Any box; with `sizes`, one of these sizes."""
    if sizes is None:
        sizes = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    axes = tuple(draw(st.permutations(range(len(sizes)))))
    start = tuple(draw(st.integers(0, 2)) for _ in sizes)
    stop = tuple(first + size for first, size in zip(start, sizes, strict=True))
    view = [0] * len(sizes)
    for axis, last in zip(axes, stop, strict=True):
        view[axis] = last + draw(st.integers(0, 2))
    return Box("x", tuple(view), axes, start, stop)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    taken = draw(boxes())
    placed = draw(boxes(taken.sizes))
    return Part("model", taken.view, taken, placed)


@given(parts())
def test_a_part_moves_what_numpy_moves_and_back(part: Part) -> None:
    source = np.arange(prod(part.taken.view))
    wanted = np.full(part.placed.view, -1)
    region(wanted, part.placed)[...] = region(source, part.taken)
    moved = np.full(wanted.size, -1)
    reached = 0
    for run in part.runs():
        assert run.placed >= reached, "in the order of the target's elements"
        reached = run.placed + run.size
        moved[run.placed : reached] = source[run.taken : run.taken + run.size]
    assert np.array_equal(moved, wanted.ravel())
    back = np.full(source.size, -1)
    for run in part.swapped("converted", part.placed.view).runs():
        back[run.placed : run.placed + run.size] = moved[run.taken : run.taken + run.size]
    untouched = np.full(part.taken.view, -1)
    region(untouched, part.taken)[...] = region(source, part.taken)
    assert np.array_equal(back, untouched.ravel())


@given(boxes().flatmap(lambda box: st.tuples(st.just(box.view), st.lists(boxes(), max_size=3))))
def test_gaps_are_where_numpy_counts_none_or_several(
    drawn: tuple[tuple[int, ...], list[Box]],
) -> None:
    shape, others = drawn
    fitting = [box for box in others if prod(box.view) == prod(shape)]
    count = np.zeros(prod(shape), np.int64)
    for box in fitting:
        region(count, box)[...] += 1
    rows = count.reshape(shape[0] if shape else 1, prod(shape[1:]))
    left_out, twice = coverage_gaps(shape, fitting)
    assert [row for rows in left_out for row in rows] == list(np.flatnonzero((rows == 0).any(1)))
    assert [row for rows in twice for row in rows] == list(np.flatnonzero((rows > 1).any(1)))


def whole(name: str, *shape: int) -> Box:
    return Box.whole(name, shape)


def test_contiguous_regions_are_single_runs() -> None:
    """A split along the first axis is one range of bytes for each part."""
    qkv = Box("qkv", (12, 8), (0, 1), (4, 0), (8, 8))
    assert [*Part("m", (12, 8), qkv, whole("k", 4, 8)).runs()] == [(32, 0, 32)]
    assert [*Part("m", (4, 8), whole("k", 4, 8), qkv).runs()] == [(0, 32, 32)]


def test_a_permutation_of_rope_moves_whole_rows() -> None:
    heads, half, width = 4, 3, 10
    seen = (heads, half, 2, width)
    taken = Box("q", seen, (0, 2, 1, 3), (0, 0, 0, 0), (heads, 2, half, width))
    placed = Box.whole("q", (heads, 2, half, width))
    runs = [*Part("m", (heads * half * 2, width), taken, placed).runs()]
    assert {run.size for run in runs} == {width}
    assert len(runs) == heads * half * 2


def test_parts_of_one_tensor_come_in_its_order() -> None:
    """Of two that are concatenated along the second axis, rows alternate."""
    placed = [Box("t", (2, 5), (0, 1), (0, first), (2, last)) for first, last in ((0, 2), (2, 5))]
    parts = [
        Part(name, box.sizes, whole(name, *box.sizes), box)
        for name, box in zip("ab", placed, strict=True)
    ]
    found = [(part.source, *run) for part, run in runs_in_order(parts)]
    assert found == [("a", 0, 0, 2), ("b", 0, 2, 3), ("a", 2, 5, 2), ("b", 3, 7, 3)]


def test_what_is_left_out_is_told_in_rows() -> None:
    boxes = [Box("w", (10, 4), (0, 1), (first, 0), (last, 4)) for first, last in ((0, 3), (5, 7))]
    assert coverage_gaps((10, 4), boxes) == ([range(3, 5), range(7, 10)], [])
    assert coverage_gaps((10, 4), [*boxes, boxes[0]])[1] == [range(3)]


def test_a_box_of_another_tensor_covers_nothing() -> None:
    with pytest.raises(ValueError, match="another number of elements"):
        coverage_gaps((3, 4), [whole("w", 3, 5)])


def test_coverage_that_can_not_be_counted_is_refused() -> None:
    """The even and the odd columns of a large matrix, each seen otherwise."""
    rows, columns = 4096, 2048
    even = Box("w", (rows, columns, 2), (0, 1, 2), (0, 0, 0), (rows, columns, 1))
    odd = Box("w", (rows * columns, 2), (0, 1), (0, 1), (rows * columns, 2))
    halves = [even, odd]
    with pytest.raises(ValueError, match="too many pieces"):
        coverage_gaps((4096, 4096), halves)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": [0, 0]},
        {"axes": [0, 2]},
        {"axes": [0]},
        {"start": [-1, 0]},
        {"start": [3, 0]},
        {"stop": [2, 6]},
        {"stop": [2]},
        {"view": [2, "5"]},
        {"view": 10},
        {"start": [True, 0]},
    ],
)
def test_a_box_that_can_not_be(change: dict[str, Any]) -> None:
    entry = {"view": [2, 5], "axes": [0, 1], "start": [0, 0], "stop": [2, 5]}
    assert Box.from_json("x", entry) == whole("x", 2, 5)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the words
        Box.from_json("x", entry | change)


@given(boxes())
def test_json_and_back(box: Box) -> None:
    assert Box.from_json("x", box.to_json()) == box


def test_columns_of_a_huge_tensor_are_counted_by_their_borders() -> None:
    rows = 10**15
    columns = [Box("w", (rows, 3), (0, 1), (0, n), (rows, n + 1)) for n in range(3)]
    assert coverage_gaps((rows, 3), columns) == ([], [])
    assert coverage_gaps((rows, 3), columns[:2]) == ([range(rows)], [])
    assert coverage_gaps((rows, 3), [*columns, columns[0]]) == ([], [range(rows)])
