"""Grid pinpoints: every form in which LLaVA's configs have them, and the sizes that an image is
then cut into.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution

from llava_remap.core.problem import RemapError
from llava_remap.target_model.pinpoints import grid_pinpoints

LISTED = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def test_pairs_are_turned_round() -> None:
    assert grid_pinpoints("x", LISTED, 336) == [
        [672, 336],
        [336, 672],
        [672, 672],
        [336, 1008],
        [1008, 336],
    ]


@pytest.mark.parametrize(
    "text", ["[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]", str(LISTED)]
)
def test_a_list_as_text(text: str) -> None:
    """As a training script's command line had it."""
    assert grid_pinpoints("x", text, 336) == grid_pinpoints("x", LISTED, 336)


def test_a_range_of_tiles() -> None:
    """LLaVA-OneVision's: 36 sizes from one tile to six by six."""
    found = grid_pinpoints("x", "(1x1),...,(6x6)", 384)
    assert len(found) == 36
    assert (found[0], found[1], found[-1]) == ([384, 384], [768, 384], [2304, 2304])
    assert sorted(found) == [
        [384 * height, 384 * width] for height in range(1, 7) for width in range(1, 7)
    ]
    assert grid_pinpoints("x", "1x2, ..., 2x3", 28) == [[56, 28], [84, 28], [56, 56], [84, 56]]


def best_of_llava(size: tuple[int, int], sizes: list[list[int]]) -> tuple[int, int]:
    """Which (width, height) LLaVA shows an image of (width, height) in: the most pixels, then
    the least waste, then the first.
    """
    width, height = size
    best, most, least = (0, 0), -1, float("inf")
    for wide, high in sizes:
        scale = min(wide / width, high / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        waste = wide * high - pixels
        if pixels > most or (pixels == most and waste < least):
            best, most, least = (wide, high), pixels, waste
    return best


@given(st.integers(1, 2000), st.integers(1, 2000), st.permutations(LISTED), st.integers(1, 5))
def test_an_image_is_cut_as_llava_cuts_it(
    width: int, height: int, sizes: list[list[int]], count: int
) -> None:
    """transformers, given the pairs turned round, takes the size that LLaVA takes: also of a
    list that isn't symmetric.
    """
    sizes = sizes[:count]
    turned = select_best_resolution((height, width), grid_pinpoints("x", sizes, 336))
    assert tuple(turned)[::-1] == best_of_llava((width, height), sizes)


@pytest.mark.parametrize(
    "value",
    [
        None, [], 5, "", "(1x1)", "[[336]]", [[336]], [[336, 335]], [[0, 336]], [[336.0, 336]],
        [[True, 336]], ["ab"], {"a": 1},
        "(2x2),...,(1x1)",
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_be(value: Any) -> None:
    with pytest.raises(RemapError, match=r"LR112.*`x` is"):
        grid_pinpoints("x", value, 336)
