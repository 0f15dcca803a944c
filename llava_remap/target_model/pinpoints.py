"""Converts LLaVA's `image_grid_pinpoints`, the sizes of a tiled image, to those of transformers."""

from __future__ import annotations

import json
import re
from typing import Any

from llava_remap.core.problem import ConfigError

#: `(1x1),...,(6x6)`: all sizes between two, in tiles.
_RANGE = re.compile(r"\(?(\d{1,3})x(\d{1,3})\)?,\s*\.\.\.,\s*\(?(\d{1,3})x(\d{1,3})\)?")


def grid_pinpoints(where: str, value: Any, side: int) -> list[list[int]]:
    """`[height, width]` pairs in pixels.

    LLaVA compares the pairs with an image's `(width, height)` (`select_best_resolution` of its
    `mm_utils.py`), transformers with the image's `(height, width)`. The order of the pairs is kept,
    since both take the first of two equally good pairs.

    Args:
        where: the rule file's value, for messages.
        value: `[width, height]` pairs in pixels, the same as a text, or a text with a range in
            tiles.
        side: side of a tile in pixels.

    Raises:
        RemapError: LR112 for anything else, and for sizes that aren't a whole number of tiles.
    """
    pairs = _pairs(value, side)
    if (
        not isinstance(pairs, (list, tuple))
        or not pairs
        or not all(_is_size(pair, side) for pair in pairs)
    ):
        said = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        raise ConfigError.of(
            "LR112",
            f"`{where}` is {said}; it needs pairs [width, height] in multiples of the tower's "
            f"{side} px, or a range of tiles.",
            "Correct `image_grid_pinpoints` in the source's config.json.",
        )
    return [[height, width] for width, height in pairs]


def _pairs(value: Any, side: int) -> Any:
    if not isinstance(value, str):
        return value
    if found := _RANGE.fullmatch(value.strip()):
        first_width, first_height, last_width, last_height = map(int, found.groups())
        widths, heights = range(first_width, last_width + 1), range(first_height, last_height + 1)
        return [[width * side, height * side] for width in widths for height in heights]
    try:  # a list, as on the command line of training scripts
        return json.loads(value.replace("(", "[").replace(")", "]"))
    except ValueError:
        return None


def _is_size(pair: Any, side: int) -> bool:
    return (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(type(size) is int and size > 0 and size % side == 0 for size in pair)
    )
