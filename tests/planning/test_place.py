"""Tensor operations on shapes: numpy joins and divides, and the boxes have the same numbers."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_remap.planning import coverage_gaps
from llava_remap.planning.place import MisfitError, PartOfWhole, Placed, place, viewed
from llava_remap.rulefile import AS_STORED, Join, Seen
from tests.planning.test_boxes import Numbers, region


def parts_of(whole: Numbers, placed: list[list[Placed]], shapes: list[Any]) -> list[Numbers]:
    """The parts that the boxes take out of the whole; all of the whole is taken once."""
    regions = [entry.in_whole for entries in placed for entry in entries]
    assert coverage_gaps(whole.shape, regions) == ([], [])
    found = []
    for entries, shape in zip(placed, shapes, strict=True):
        for entry in entries:
            assert entry.in_part is not None
            assert coverage_gaps(shape, [entry.in_part]) == ([], [])
            part = np.full(prod(shape), -1)
            region(part, entry.in_part)[...] = region(whole.ravel(), entry.in_whole)
            found.append(part.reshape(shape))
    return found


def numbered(*shape: int) -> Numbers:
    return np.arange(prod(shape)).reshape(shape)


def a_part(
    name: str, shape: tuple[int, ...], number: int = 0, seen: Seen = AS_STORED, **sizes: int
) -> PartOfWhole:
    return PartOfWhole(viewed(name, shape, seen, sizes), number)


def alone(
    *shapes: tuple[int, ...], seen: Seen = AS_STORED, **sizes: int
) -> list[list[PartOfWhole]]:
    return [[a_part(f"part-{at}", shape, 0, seen, **sizes)] for at, shape in enumerate(shapes)]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 2),
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
)
def test_parts_follow_one_another(sizes: list[int], axis: int, extents: list[int]) -> None:
    axis %= len(sizes)
    shapes = [(*sizes[:axis], extent, *sizes[axis + 1 :]) for extent in extents]
    whole = numbered(*sizes[:axis], sum(extents), *sizes[axis + 1 :])
    placed = place(viewed("whole", whole.shape, AS_STORED, {}), Join(along=axis), alone(*shapes))
    wanted = np.split(whole, np.cumsum(extents)[:-1], axis=axis)
    for got, part in zip(parts_of(whole, placed, shapes), wanted, strict=True):
        np.testing.assert_array_equal(got, part)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 3), st.integers(2, 4))
def test_a_list_is_stacked_along_a_new_axis(sizes: list[int], axis: int, count: int) -> None:
    axis %= len(sizes) + 1
    tensors = [numbered(*sizes) + 1000 * number for number in range(count)]
    whole = np.stack(tensors, axis=axis)
    listed = [[a_part(f"part-{n}", tuple(sizes), n) for n in range(count)]]
    placed = place(viewed("whole", whole.shape, AS_STORED, {}), Join(stacked=axis), listed)
    for got, part in zip(parts_of(whole, placed, [tuple(sizes)]), tensors, strict=True):
        np.testing.assert_array_equal(got, part)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_lists_of_gates_and_ups_become_one_stack(
    experts: int, gates: int, ups: int, width: int
) -> None:
    gate, up = numbered(experts, gates, width), numbered(experts, ups, width) + 1000
    whole = np.concatenate([gate, up], axis=1)
    lists = [
        [a_part(f"gate-{n}", (gates, width), n) for n in range(experts)],
        [a_part(f"up-{n}", (ups, width), n) for n in range(experts)],
    ]
    placed = place(viewed("whole", whole.shape, AS_STORED, {}), Join(along=1, stacked=0), lists)
    got = parts_of(whole, placed, [(gates, width), (ups, width)])
    for found, part in zip(got, [*gate, *up], strict=True):
        np.testing.assert_array_equal(found, part)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_grouped_queries_are_divided_inside_each_group(
    groups: int, queries: int, size: int, width: int
) -> None:
    """InternLM2's `wqkv`: for each key-value head, its query heads, the key and the value."""
    grouped = numbered(groups, queries + 2, size, width)
    shapes = [(groups * n * size, width) for n in (queries, 1, 1)]
    seen, sizes = Seen(view=("groups", "*", "size")), {"groups": groups, "size": size}
    whole = viewed("wqkv", (groups * (queries + 2) * size, width), seen, sizes)
    placed = place(whole, Join(along=1), alone(*shapes))
    got = parts_of(grouped.reshape(-1, width), placed, shapes)
    wanted = [grouped[:, :queries], grouped[:, queries], grouped[:, queries + 1]]
    for found, part in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(found, part.reshape(found.shape))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_halves_of_heads_are_put_in_order_for_rope(
    heads: int, half: int, width: int, is_bias: bool
) -> None:
    shape = (heads * half * 2,) if is_bias else (heads * half * 2, width)
    whole = numbered(*shape)
    seen = Seen(view=("heads", "*", 2), axes=(0, 2, 1))
    placed = place(viewed("q", shape, seen, {"heads": heads}), Join(), alone(shape))
    wanted = whole.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(shape)
    np.testing.assert_array_equal(parts_of(whole, placed, [shape])[0], wanted)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_a_part_of_a_fused_tensor_may_have_its_own_order(heads: int, half: int, width: int) -> None:
    rows = heads * half * 2
    whole = numbered(3 * rows, width)
    turned = Seen(view=("heads", 2, "*"), axes=(0, 2, 1))
    parts = [
        *alone((rows, width), (rows, width), seen=turned, heads=heads),
        [a_part("v", (rows, width))],
    ]
    placed = place(viewed("qkv", whole.shape, AS_STORED, {}), Join(along=0), parts)
    q, k, v = parts_of(whole, placed, [(rows, width)] * 3)
    for got, chunk in zip((q, k), np.split(whole, 3), strict=False):
        wanted = chunk.reshape(heads, half, 2, width).swapaxes(1, 2).reshape(rows, width)
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(v, whole[2 * rows :])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_rows_of_two_tensors_alternate(experts: int, rows: int, width: int) -> None:
    whole = numbered(experts, 2 * rows, width)
    shape = (experts, rows, width)
    seen = Seen(axis=1, view=("*", 2))
    placed = place(viewed("gate_up", whole.shape, seen, {}), Join(stacked=2), alone(shape, shape))
    gate, up = parts_of(whole, placed, [shape, shape])
    np.testing.assert_array_equal(gate, whole[:, ::2])
    np.testing.assert_array_equal(up, whole[:, 1::2])


@given(st.permutations(range(3)), st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_axes_are_put_in_another_order(order: list[int], sizes: list[int]) -> None:
    whole = numbered(*sizes)
    wanted = whole.transpose(order)
    placed = place(
        viewed("x", whole.shape, Seen(axes=tuple(order)), {}), Join(), alone(wanted.shape)
    )
    np.testing.assert_array_equal(parts_of(whole, placed, [wanted.shape])[0], wanted)


def test_a_dropped_part_has_what_the_others_leave() -> None:
    parts = [[PartOfWhole.dropped(1, {})], [a_part("rows", (4, 3))]]
    [[first], [rest]] = place(viewed("table", (5, 3), AS_STORED, {}), Join(along=0), parts)
    assert (first.in_part, first.in_whole.stop) == (None, (1, 3))
    assert rest.in_whole.start == (1, 0)
    parts = [[a_part("rows", (4, 3))], [PartOfWhole.dropped("*", {})]]
    [_, [rest]] = place(viewed("table", (9, 3), AS_STORED, {}), Join(along=0), parts)
    assert (rest.in_whole.start, rest.in_whole.stop) == ((4, 0), (9, 3))


@pytest.mark.parametrize(
    ("shape", "seen", "join", "parts", "why"),
    [
        (
            (12, 5), AS_STORED, Join(along=0), alone((6, 5), (3, 5)),
            "6 of `part-0` + 3 of `part-1` don't add up to the 12 of `whole`",
        ),
        (
            (12, 5), AS_STORED, Join(along=0), alone((6, 4), (6, 4)),
            "`part-0` has the shape [6, 4], but its place in `whole` has [6, 5]",
        ),
        (
            (4, 6), Seen(axes=(1, 0)), Join(), alone((4, 6)),
            "`part-0` has the shape [4, 6], but its place in `whole` has [6, 4]",
        ),
        (
            (4, 6), AS_STORED, Join(along=2), alone((4, 3), (4, 3)),
            "`whole` has 2 axes after its view, so it has no axis 2",
        ),
        (
            (9, 2), Seen(view=("heads", "*", 2)), Join(along=1), alone((9, 2), (9, 2)),
            "the 9 rows of `whole` can't be divided as 4 × * × 2",
        ),
        (
            (3, 2), AS_STORED, Join(stacked=0),
            [[a_part(f"e{n}", (2,), n) for n in range(4)]],
            "`whole` has room for 3 tensors, and `e3` is one more",
        ),
        (
            (4, 3, 16), AS_STORED, Join(stacked=1), alone(*[(64,)] * 3, seen=Seen(view=(8, 8))),
            "`part-0` has the shape [64], but its place in `whole` has [4, 16]",
        ),
        (
            (192, 2), Seen(view=(4, 3, "*")), Join(stacked=1),
            alone(*[(64, 2)] * 3, seen=Seen(view=(8, 8), axes=(1, 0))),
            "the view of `part-0` divides an axis into [8, 8], but the view of `whole` divides it "
            "into [4, 16]",
        ),
        (
            (16,), Seen(view=(4, "*")), Join(along=1), alone((10,), (6,)),
            "the 10 rows of `part-0` can't be divided by 4",
        ),
    ],
)  # fmt: skip
def test_sizes_that_dont_add_up_are_told(
    shape: tuple[int, ...], seen: Seen, join: Join, parts: Any, why: str
) -> None:
    with pytest.raises(MisfitError) as refused:
        place(viewed("whole", shape, seen, {"heads": 4}), join, parts)
    assert str(refused.value) == why


@pytest.mark.parametrize("part", [(6, 4), (1, 6, 4), (6, 1, 4)])
def test_axes_of_size_one_dont_count(part: tuple[int, ...]) -> None:
    """A single tensor is unstacked where its first axis, of size 1, is taken away."""
    whole = numbered(1, 6, 4)
    placed = place(viewed("whole", whole.shape, AS_STORED, {}), Join(stacked=0), alone(part))
    [got] = parts_of(whole, placed, [part])
    np.testing.assert_array_equal(got, whole.reshape(part))


def test_a_single_tensor_is_not_unstacked_of_several() -> None:
    [[placed]] = place(viewed("whole", (2, 6), AS_STORED, {}), Join(stacked=0), alone((6,)))
    gaps, _ = coverage_gaps((2, 6), [placed.in_whole])
    assert gaps, "the second one goes nowhere"


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.integers(0, 3), st.integers(0, 2))
def test_a_view_makes_several_axes_of_one(view: list[int], rank: int, axis: int) -> None:
    """numpy reshapes: a convolution's kernel from the matrix of a linear layer, and back."""
    axis = min(axis, rank)
    before, after = (2, 3, 2)[:axis], (3, 2, 4)[axis:rank]
    whole = numbered(*before, prod(view), *after)
    shape = (*before, *view, *after)
    seen = Seen(axis, tuple(view))
    [found] = parts_of(
        whole, place(viewed("whole", whole.shape, seen, {}), Join(), alone(shape)), [shape]
    )
    assert (found == whole.reshape(shape)).all()
    [back] = parts_of(
        whole.reshape(shape),
        place(viewed("whole", shape, AS_STORED, {}), Join(), alone(whole.shape, seen=seen)),
        [whole.shape],
    )
    assert (back == whole).all()


def test_other_axes_than_those_of_the_view_are_refused() -> None:
    whole = viewed("whole", (24, 5), Seen(0, (4, "*")), {})
    for shape in ((6, 4, 5), (4, 5, 6), (4, 3, 2, 5), (24, 1, 6), (4, 30), (24, 5)):
        with pytest.raises(MisfitError, match="its place in"):
            place(whole, Join(), alone(shape))
