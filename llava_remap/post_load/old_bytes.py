"""Where in a changed tensor its old bytes lie. The plug-in that changed it says so, piece by
piece.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import prod
from typing import TYPE_CHECKING, Any

from llava_remap.core.dtypes import DTYPE_BITS
from llava_remap.core.problem import RemapError
from llava_remap.post_load.protocol import Change, OldBytes
from llava_remap.post_load.run import make_pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


class _NotAtHandError(RemapError):
    """New values are made from what isn't known yet."""


def find_old_bytes(
    use: str, options: Mapping[str, Any], change: Change
) -> list[tuple[int, int]] | None:
    """The runs of a changed tensor that, one behind the other, are the tensor as it was; None where
    not all of it is kept.

    A run is an offset, counted from the first byte of the changed tensor, and a number of bytes.
    The plug-in is asked only until all is found, so that new values that stand behind the old ones
    are never computed. Those that stand before them can't be, as what they were made from isn't
    known yet: None, too.

    Raises:
        RemapError: LR212 as `make_pieces`.
    """
    assert change.shape_before is not None, "what was made has no old bytes"
    nbytes = prod(change.shape_before) * DTYPE_BITS[change.dtype] // 8
    waiting: list[
        tuple[int, int, int]
    ] = []  # old bytes: from where, how many, and where they lie now
    found: list[tuple[int, int]] = []
    reached = at = 0
    try:
        pieces = make_pieces(use, options, [change], _not_at_hand)[change.target]
        for piece in pieces:
            if isinstance(piece, OldBytes):
                heappush(waiting, (piece.offset, piece.nbytes, at))
            at += piece.nbytes if isinstance(piece, OldBytes) else len(piece)
            while waiting and waiting[0][0] <= reached:
                offset, length, start = heappop(waiting)
                if offset + length > reached:
                    found.append((start + reached - offset, offset + length - reached))
                    reached = offset + length
            if reached == nbytes:
                return found
    except _NotAtHandError:
        pass
    return None


def _not_at_hand(
    target: str, start: int, stop: int, *, as_stored: bool = False
) -> NDArray[np.float64]:
    raise _NotAtHandError.of("LR607", f"`{target}` as it was isn't at hand.")
