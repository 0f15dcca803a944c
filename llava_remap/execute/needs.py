"""How much memory the work on a plan takes, computed from its shapes. It doesn't grow with the
number of tensors or their size, only with the width of computed tensors.
"""

from __future__ import annotations

from math import prod

from llava_remap.core import DTYPE_BITS
from llava_remap.execute.apart import lies_apart, needed_nbytes
from llava_remap.execute.pieces import Recipe
from llava_remap.execute.values import CHUNK_ELEMENTS
from llava_remap.execute.writer import BUFFER_NBYTES
from llava_remap.planning import Mapped, Plan

#: Copied bytes go through two buffers, which two threads handle.
_COPYING = 2 * BUFFER_NBYTES + (1 << 20)
#: A chunk of values as stored, as float32, as float64, and for a comparison.
_CHUNK = CHUNK_ELEMENTS * 24
#: Rows that a post-load rule reads at once, in three arrays of float64 if they are stored so; as
#: many new rows are made at once, in four arrays.
_ROWS, _READ_IN, _MADE_IN = 512, 3, 4
#: Elements of a merged tensor that are computed at once, in five arrays of float64; A and a block
#: of B take four arrays each.
_MERGED, _MERGED_IN, _FACTORS_IN = 1 << 20, 5, 4


def computes(plan: Plan, recipe: Recipe) -> bool:
    """Whether values are checked or computed, which needs numpy."""
    return bool(plan.value_checks) or any(map(recipe.computes, recipe.mapped))


def working_nbytes(plan: Plan, recipe: Recipe, jobs: int = 1) -> int:
    """Bytes of memory for buffers and computed tensors at the worst moment; program and libraries
    not included.

    Args:
        jobs: how many files are written at the same time.
    """
    computed = max(
        (_computed(recipe.mapped[name]) for name in recipe.mapped if recipe.computes(name)),
        default=0,
    )
    return max(_CHUNK * bool(plan.value_checks), jobs * (_COPYING + computed))


def _computed(entry: Mapped) -> int:
    nbytes = _CHUNK
    if lies_apart(entry.parts) or (entry.loras and not entry.merges_whole):
        nbytes += needed_nbytes(entry.parts, DTYPE_BITS[entry.dtype] // 8)
    merged = 0
    for lora in entry.loras:
        rows, columns = entry.base_shape(lora)
        block = min(rows, max(1, _MERGED // max(1, columns)))
        factors = lora.rank * (columns + block)
        merged = max(merged, 8 * _MERGED_IN * block * columns)
        nbytes += 8 * _FACTORS_IN * factors
    nbytes += merged
    if entry.post_load is not None:
        before, after = entry.post_load.before or (0,), entry.shape
        new = after[0] - before[0] if after else 0
        width = prod(after[1:])
        nbytes += (
            8 * width * (_READ_IN * min(before[0], _ROWS) + _MADE_IN * min(max(new, 1), _ROWS))
        )
        if entry.is_made:  # a tensor made by a plug-in may come in one piece
            nbytes += entry.nbytes
    return nbytes
