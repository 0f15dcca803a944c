"""Numbers and dtypes from a file, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from llava_remap.core.problem import RemapError, refuse
from llava_remap.core.wording import quoted

#: torch and numpy allow no more dimensions.
MOST_DIMENSIONS = 64
#: Elements of at most 8 bytes each then have an address in 63 bits.
MOST_ELEMENTS = 2**60


def is_count(number: object) -> bool:
    """Whether it is an integer (not a bool) that a signed 64-bit offset or size can hold."""
    return type(number) is int and 0 <= number < 2**63


def is_shape(sizes: Sequence[object]) -> bool:
    """Whether a tensor of these sizes can exist."""
    if len(sizes) > MOST_DIMENSIONS or not all(map(is_count, sizes)):
        return False
    return prod(size for size in sizes if isinstance(size, int)) < MOST_ELEMENTS


def unknown_dtype(file: Path, name: str, dtype: str) -> RemapError:
    """LR106: a dtype that a language model, tower or projector is not trained in."""
    return refuse(
        "LR106",
        f"in {quoted(file.name)} the tensor {quoted(name)} has dtype {quoted(dtype)}, which "
        "can't be converted.",
        "Give the unquantised checkpoint, in F16, BF16 or F32.",
        [name],
    )
