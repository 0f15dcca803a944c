"""Decides which tensors are gathered in memory (`execute/gather.py`), and how much memory that
takes. Needs no numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from llava_remap.planning import Part

#: Bytes of a window of the target tensor: for rows that stay whole, and for exchanged axes. With
#: exchanged axes, only a large window can be read in long runs.
_ROWS_NBYTES, _ELEMENTS_NBYTES = 1 << 20, 32 << 20
#: The fewest bytes of a row that counts as whole.
ROW_NBYTES = 512
#: Bytes of a source that are read at once.
READ_NBYTES = 4 << 20
#: A tensor is copied run by run if its runs have at least `_LONG` elements, or if it has at most
#: `_FEW` runs.
_LONG, _FEW = 1 << 17, 64


def lies_apart(parts: Sequence[Part]) -> bool:
    """Whether a tensor is gathered in memory. Otherwise it is copied run by run."""
    runs = sum(part.nruns for part in parts)
    return runs > _FEW and any(part.nruns > 1 and part.run_size < _LONG for part in parts)


def window_nbytes(parts: Sequence[Part], width: int) -> int:
    """The most bytes of a window of a gathered tensor.

    Args:
        width: bytes of a written element.
    """
    shortest = min(part.run_size for part in parts) * width
    return _ROWS_NBYTES if shortest >= ROW_NBYTES else _ELEMENTS_NBYTES


def needed_nbytes(parts: Sequence[Part], width: int) -> int:
    """Bytes of memory for a gathered tensor: the window, the bytes read, and their cast."""
    nbytes = prod(parts[0].placed.view) * width
    return min(window_nbytes(parts, width), nbytes) + 4 * READ_NBYTES
