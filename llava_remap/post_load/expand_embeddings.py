"""More rows for the vocabulary: `embed_tokens` and `lm_head` grown to hold new tokens.

By default new rows are drawn from N(mean, scale·cov) of the rows of `embed_tokens`, for both matrices, as LLaVA's conversion
scripts do. With X the n rows and z ~ N(0, I_n), `mean + sqrt(scale/n)·(X − mean)ᵀz` has exactly that distribution (its covariance
is scale/n·(X − mean)ᵀ(X − mean)), also where the covariance is singular; neither it nor a Cholesky factor of it is ever formed.

The rows are the same on every machine: the normals (`normals`) and the sums (`exact_sums`) are, and the rest is elementwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from llava_remap.errors import Problem, refuse
from llava_remap.post_load.protocol import Before, Change, Effect, OldBytes, Reader
from llava_remap.target import EMBEDDING, HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Options that only some ways of making new rows use. Given with another way, one would do nothing, so it is an error.
USED_BY: Mapping[str, tuple[str, ...]] = {
    "statistics": ("multivariate_normal", "mean"),
    "scale": ("multivariate_normal",),
    "std": ("normal",),
    "token": ("copy",),
    "seed": ("multivariate_normal", "normal"),
}


class ExpandEmbeddings(BaseModel):
    """Options of `use: expand_embeddings`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    pad_to_multiple_of: int = Field(
        64, ge=1, description="the number of rows after growing is a multiple of this; a matrix with rows enough stays as it is"
    )
    init: Literal["multivariate_normal", "mean", "zeros", "normal", "copy"] = Field(
        "multivariate_normal",
        description="how new rows are made. multivariate_normal: drawn from N(mean, scale·cov) of the old rows; mean: all their "
        "mean; zeros; normal: each number drawn from N(0, std²); copy: all like the row of `token`",
    )
    statistics: Literal["embed_tokens", "own"] = Field(
        "embed_tokens",
        description="whose mean and covariance: those of embed_tokens for both matrices, as in LLaVA's scripts, or each its own",
    )
    scale: float = Field(1e-5, ge=0, allow_inf_nan=False, description="factor on the covariance")
    std: float = Field(
        0.02, ge=0, le=1000, description="standard deviation; 0.02 is the default of initializer_range in transformers"
    )
    token: str | None = Field(
        None,
        min_length=1,
        description="the token whose row is copied, each matrix its own, spelt as in the tokenizer's files (`▁Hello`)",
    )
    seed: int = Field(0, ge=0, lt=2**64, description="the same seed gives the same rows, on every machine")

    @model_validator(mode="after")
    def _only_what_is_used(self) -> ExpandEmbeddings:
        idle = [name for name, ways in USED_BY.items() if name in self.model_fields_set and self.init not in ways]
        if idle:
            reasons = (
                f"`{name}` does nothing with `init: {self.init}`, only with {' and '.join(USED_BY[name])}" for name in idle
            )
            raise PydanticCustomError("idle", "{reasons}", {"reasons": "; ".join(reasons)})
        if self.init == "copy" and self.token is None:
            raise PydanticCustomError("token", "`init: copy` needs `token`, the text of the token whose row is copied")
        return self

    def plan(self, before: Before) -> Effect:
        """Grow both matrices to the next multiple if the vocabulary needs more rows than there are; else leave them.

        Raises:
            RemapError: LR212 where the token to copy has no row.
        """
        if EMBEDDING not in before.tensors or len(before.tensors[EMBEDDING][1]) != 2:
            return Effect(())
        rows = before.tensors[EMBEDDING][1][0]
        if before.rows_needed <= rows:
            note = Problem("LR407", f"{before.rows_needed} tokens fit into the {rows} rows that embed_tokens has.")
            return Effect((), (note,))
        grown = -(-before.rows_needed // self.pad_to_multiple_of) * self.pad_to_multiple_of
        matrices = ((name, *before.tensors[name]) for name in (EMBEDDING, HEAD) if name in before.tensors)
        facts = {"row": _row_of(self.token, before.token_ids, rows)} if self.token is not None else {}
        return Effect(
            tuple(
                Change(name, dtype, shape, (grown, *shape[1:]), self._reads(name), facts)
                for name, dtype, shape in matrices
                if len(shape) == 2 and shape[0] == rows
            )
        )

    def _reads(self, name: str) -> tuple[str, ...]:
        if self.init in ("zeros", "normal"):
            return ()
        return (name,) if self.init == "copy" or self.statistics == "own" else (EMBEDDING,)

    def pieces(self, change: Change, read: Reader) -> Iterator[OldBytes | bytes]:
        """The old rows as they are, then the new ones, rounded once to the stored dtype."""
        from llava_remap.checkpoint import DTYPE_BITS
        from llava_remap.dtypes import from_float64

        rows, columns = change.shape_before
        new = change.shape_after[0] - rows
        row_nbytes = columns * DTYPE_BITS[change.dtype] // 8
        yield OldBytes(0, rows * row_nbytes)
        if self.init == "copy":
            yield from [OldBytes(change.facts["row"] * row_nbytes, row_nbytes)] * new
        elif self.init == "zeros":
            yield bytes(new * row_nbytes)
        else:
            yield from_float64(self._made(change, read, new), change.dtype)

    def _made(self, change: Change, read: Reader, new: int) -> NDArray[np.float64]:
        """The new rows that are computed, [new, columns]."""
        import numpy as np

        from llava_remap.post_load.exact_sums import CHUNK_ROWS, ExactSums
        from llava_remap.post_load.normals import normals

        rows, columns = change.shape_before
        # The matrices get rows of their own, as in the scripts. The end of a name is the same in every layout.
        stream = int(change.target.endswith("lm_head.weight"))
        bits = np.random.Philox(key=self.seed + (stream << 64))
        if self.init == "normal":
            return self.std * normals(bits, new * columns).reshape(new, columns)
        (source,) = change.reads
        drawn = new if self.init == "multivariate_normal" else 0
        sums = ExactSums(columns, drawn)
        for start in range(0, rows, CHUNK_ROWS):
            x = read(source, start, min(start + CHUNK_ROWS, rows))
            sums.add(x, normals(bits, len(x) * drawn).reshape(len(x), drawn))
        mean = sums.mean(change.dtype)
        return mean + sums.spread(sqrt(self.scale / rows)) if drawn else np.tile(mean, (new, 1))


def _row_of(token: str, ids: Mapping[str, int] | None, rows: int) -> int:
    """The row of a token that has one among the first `rows`."""
    if ids is None:
        raise refuse(
            "LR212",
            f"`init: copy` needs the id of `{token}`, and no source has a tokenizer.",
            "Give one with --source language_model=DIR, or choose another `init`.",
        )
    if token not in ids:
        raise refuse(
            "LR212",
            f"`init: copy`: the tokenizer has no token `{token}`.",
            "Write it as the tokenizer's files have it, a leading space as `▁` or `Ġ`.",
        )
    if ids[token] >= rows:
        raise refuse(
            "LR212",
            f"`init: copy`: `{token}` is number {ids[token]}, and embed_tokens has {rows} rows: it has none to copy.",
            "Name a token that the model was trained with.",
        )
    return ids[token]
