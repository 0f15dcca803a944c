"""More rows for the vocabulary: `embed_tokens` and `lm_head` grown to hold new tokens.

New rows are drawn from N(mean, scale·cov) of the rows of `embed_tokens`, for both matrices, as LLaVA's conversion scripts do.
With X the n rows and z ~ N(0, I_n), `mean + sqrt(scale/n)·(X − mean)ᵀz` has exactly that distribution (its covariance is
scale/n·(X − mean)ᵀ(X − mean)), also where the covariance is singular; neither it nor a Cholesky factor of it is ever formed.
Xᵀ(z − mean z) equals (X − mean)ᵀz, so one pass over X in chunks of rows does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava_remap.errors import Problem, refuse
from llava_remap.post_load.protocol import Before, Change, Effect, OldBytes, Reader
from llava_remap.target import EMBEDDING, HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Rows read at once. Fixed, since sums depend in their last bits on where they are cut.
CHUNK_ROWS = 512


class ExpandEmbeddings(BaseModel):
    """Options of `use: expand_embeddings`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    pad_to_multiple_of: int = Field(64, ge=1, description="the number of rows after growing is a multiple of this")
    init: Literal["multivariate_normal"] = Field("multivariate_normal", description="how new rows are made")
    scale: float = Field(1e-5, ge=0, allow_inf_nan=False, description="factor on the covariance")
    seed: int = Field(0, ge=0, lt=2**64)

    def plan(self, before: Before) -> Effect:
        """Grow both matrices to the next multiple if the vocabulary needs more rows than there are; else leave them."""
        if EMBEDDING not in before.tensors or len(before.tensors[EMBEDDING][1]) != 2:
            return Effect(())
        rows = before.tensors[EMBEDDING][1][0]
        if before.rows_needed <= rows:
            note = Problem("LR407", f"{before.rows_needed} tokens fit into the {rows} rows that embed_tokens has.")
            return Effect((), (note,))
        grown = -(-before.rows_needed // self.pad_to_multiple_of) * self.pad_to_multiple_of
        matrices = ((name, *before.tensors[name]) for name in (EMBEDDING, HEAD) if name in before.tensors)
        return Effect(
            tuple(
                Change(name, dtype, shape, (grown, *shape[1:]), (EMBEDDING,))
                for name, dtype, shape in matrices
                if len(shape) == 2 and shape[0] == rows
            )
        )

    def pieces(self, change: Change, read: Reader) -> Iterator[OldBytes | bytes]:
        """The old rows as they are, then the new ones, rounded once to the stored dtype."""
        from math import prod

        import numpy as np

        from llava_remap.checkpoint import DTYPE_BITS
        from llava_remap.dtypes import from_float64, to_float64

        rows, columns = change.shape_before
        new = change.shape_after[0] - rows
        yield OldBytes(0, prod(change.shape_before) * DTYPE_BITS[change.dtype] // 8)
        stream = (EMBEDDING, HEAD).index(change.target)  # the matrices get rows of their own, as in the scripts
        made = from_float64(self._draw(read, rows, columns, new, stream), change.dtype)
        if not np.isfinite(to_float64(made, change.dtype)).all():
            raise refuse(
                "LR406",
                f"new rows of `{change.target}` don't fit into {change.dtype}: its values are close to the largest ones.",
                "Find out why the training produced them.",
                [change.target],
            )
        yield made

    def _draw(self, read: Reader, rows: int, columns: int, new: int, stream: int) -> NDArray[np.float64]:
        """`new` rows, [new, columns]."""
        import numpy as np

        bits = np.random.Philox(key=self.seed + (stream << 64))
        sum_x, sum_z, product = np.zeros(columns), np.zeros(new), np.zeros((columns, new))
        for start in range(0, rows, CHUNK_ROWS):
            x = read(EMBEDDING, start, min(start + CHUNK_ROWS, rows))
            z = _normals(bits, len(x) * new).reshape(len(x), new)
            sum_x += x.sum(axis=0)
            sum_z += z.sum(axis=0)
            product += x.T @ z
        centred = product - np.outer(sum_x, sum_z / rows)
        drawn: NDArray[np.float64] = sum_x / rows + np.sqrt(self.scale / rows) * centred.T
        return drawn


def _normals(bits: np.random.Philox, count: int) -> NDArray[np.float64]:
    """Standard normals by Box and Muller's method, from raw bits: these numpy promises to keep as they are."""
    import numpy as np

    raw = bits.random_raw(count + count % 2)
    uniform = ((raw >> np.uint64(11)) + 0.5) * 2.0**-53  # inside (0, 1)
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0::2])), 2.0 * np.pi * uniform[1::2]
    normals: NDArray[np.float64] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return normals
