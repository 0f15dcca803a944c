"""Regions in words: the rows that are named are those that numpy finds in the box."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_remap.planning import Box
from llava_remap.planning.regions import _by_axis, in_words
from tests.planning.test_boxes import region


@pytest.mark.parametrize(
    ("box", "shape", "words"),
    [
        (Box.whole("x", (4, 6)), (4, 6), "`x`"),
        (Box("x", (4, 6), (0, 1), (1, 0), (3, 6)), (4, 6), "rows 1..2 of `x`"),
        (Box("x", (4, 6), (0, 1), (3, 0), (4, 6)), (4, 6), "row 3 of `x`"),
        (Box("x", (4, 6), (0, 1), (0, 2), (4, 4)), (4, 6), "columns 2..3 of `x`"),
        (Box("x", (4, 6), (0, 1), (1, 2), (2, 4)), (4, 6), "[1, 2..3] of `x`"),
        (Box("x", (4, 2, 3), (0, 1, 2), (0, 0, 1), (4, 2, 2)), (4, 2, 3), "[all, all, 1] of `x`"),
        # Rows of a view that lie side by side in the tensor are rows of the tensor.
        (Box("x", (2, 2, 6), (0, 1, 2), (1, 0, 0), (2, 2, 6)), (4, 6), "rows 2..3 of `x`"),
        (Box("x", (2, 2, 6, 1), (3, 0, 1, 2), (0, 0, 0, 0), (1, 2, 2, 6)), (4, 6), "`x`"),
        (
            Box("x", (2, 2, 6), (0, 1, 2), (0, 1, 0), (2, 2, 6)),
            (4, 6),
            "[all, 1, all] of `x` seen as [2, 2, 6]",
        ),
        (
            Box("x", (4, 6), (1, 0), (0, 0), (6, 4)),
            (4, 6),
            "`x` seen as [4, 6] in the order [1, 0]",
        ),
        (Box.whole("x", ()), (), "`x`"),
    ],
)
def test_words(box: Box, shape: tuple[int, ...], words: str) -> None:
    assert in_words(box, shape) == words


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Box, tuple[int, ...]]:
    """A box of a tensor, whose axes a view divides."""
    divided = draw(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3))
    view = tuple(size for sizes in divided for size in sizes)
    spans = [sorted(draw(st.tuples(st.integers(0, s - 1), st.integers(0, s - 1)))) for s in view]
    start, stop = tuple(a for a, _ in spans), tuple(b + 1 for _, b in spans)
    return Box("x", view, tuple(range(len(view))), start, stop), tuple(map(prod, divided))


@given(boxes())
def test_the_spans_of_axes_are_the_region(found: tuple[Box, tuple[int, ...]]) -> None:
    box, shape = found
    numbers = np.arange(prod(shape))
    inside = {*region(numbers, box).ravel().tolist()}
    spans = _by_axis(box, shape)
    if spans is not None:
        whole = numbers.reshape(shape)
        assert {*whole[tuple(slice(*span) for span in spans)].ravel().tolist()} == inside
        return
    # There is no span for each axis that has exactly these numbers.
    at = [np.unravel_index(number, shape) for number in inside]
    bounds = [range(min(axis), max(axis) + 1) for axis in zip(*at, strict=True)]
    around = {int(np.ravel_multi_index(one, shape)) for one in product(*bounds)}
    assert around > inside
