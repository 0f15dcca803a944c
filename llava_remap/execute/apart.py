"""Which tensors are put in order in memory (`execute/gather.py`), and in how much of it. Needs no
numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from llava_remap.planning import Part

#: Bytes of the target tensor in a window: of rows that stay whole, and of exchanged axes. A wide
#: window makes long runs of the latter.
_ROWS_NBYTES, _ELEMENTS_NBYTES = 1 << 20, 32 << 20
#: Bytes of a row that stays whole.
_ROW_NBYTES = 512
#: Bytes of a source that are read at once.
READ_NBYTES = 4 << 20
#: A tensor of runs of so many elements, or of so few runs, is copied run by run.
_LONG, _FEW = 1 << 17, 64


def lies_apart(parts: Sequence[Part]) -> bool:
    """Whether a tensor is put in order in memory; else each run is copied."""
    runs = sum(part.nruns for part in parts)
    return runs > _FEW and any(part.nruns > 1 and part.run_size < _LONG for part in parts)


def window_nbytes(parts: Sequence[Part], width: int) -> int:
    """Bytes of a window of such a tensor, at most.

    Args:
        width: bytes of an element that is written.
    """
    shortest = min(part.run_size for part in parts) * width
    return _ROWS_NBYTES if shortest >= _ROW_NBYTES else _ELEMENTS_NBYTES


def needed_nbytes(parts: Sequence[Part], width: int) -> int:
    """Bytes of memory for such a tensor: the window, what is read, and its cast."""
    nbytes = prod(parts[0].placed.view) * width
    return min(window_nbytes(parts, width), nbytes) + 4 * READ_NBYTES
