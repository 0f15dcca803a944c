"""How much memory the work on a plan takes, told from its shapes. None of it grows with the number
of tensors or their size, but for the width of those that are computed.
"""

from __future__ import annotations

from math import prod

from llava_remap.core.dtypes import DTYPE_BITS
from llava_remap.execute.values import CHUNK_ELEMENTS
from llava_remap.execute.writer import BUFFER_NBYTES
from llava_remap.plan import Mapped, Plan, PostLoadChange

#: What is copied goes through two buffers, and two threads handle them.
_COPYING = 2 * BUFFER_NBYTES + (1 << 20)
#: A chunk of values as it is stored, as float32, as float64, and what is compared of it.
_CHUNK = CHUNK_ELEMENTS * 24
#: Rows that a post-load rule reads at once, in three arrays of float64 where they are stored so;
#: new ones are made in four, no more at a time.
_ROWS, _READ_IN, _MADE_IN = 512, 3, 4
#: Elements of a merged tensor that are computed at once, in five arrays of float64; A and a block
#: of B are held in four each.
_MERGED, _MERGED_IN, _FACTORS_IN = 1 << 20, 5, 4


def computes(plan: Plan) -> bool:
    """Whether values are checked or computed, for which numpy is needed; what is only renamed is
    not looked at.
    """
    return bool(plan.value_checks or plan.post_load) or any(
        entry.op not in (None, "tied") for entry in plan.mapped
    )


def working_nbytes(plan: Plan, jobs: int = 1) -> int:
    """Bytes of memory for buffers and computed tensors at the worst moment; program and libraries
    not included.

    Args:
        jobs: how many files are written at the same time.
    """
    changes = {change.change.target: change for change in plan.post_load}
    computed = max(
        (_computed(entry, changes.get(entry.target)) for entry in plan.mapped), default=0
    )
    checked = _CHUNK * bool(plan.value_checks)
    return max(checked, jobs * (_COPYING + computed))


def _computed(entry: Mapped, change: PostLoadChange | None) -> int:
    nbytes = 0 if entry.op in (None, "tied") else _CHUNK
    if entry.merge is not None:
        rows, columns = entry.shape
        block = min(rows, max(1, _MERGED // max(1, columns)))
        factors = entry.merge.rank * (columns + block)
        nbytes += 8 * (_MERGED_IN * block * columns + _FACTORS_IN * factors)
    if change is not None:
        before, after = change.change.shape_before or (0,), change.change.shape_after
        new = after[0] - before[0] if after else 0
        width = prod(after[1:])
        nbytes += (
            8 * width * (_READ_IN * min(before[0], _ROWS) + _MADE_IN * min(max(new, 1), _ROWS))
        )
        if change.change.shape_before is None:  # one that a plug-in makes may come in one piece
            nbytes += prod(after) * DTYPE_BITS[change.change.dtype] // 8
    return nbytes
