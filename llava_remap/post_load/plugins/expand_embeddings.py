"""Adds rows for new tokens to `embed_tokens` and `lm_head`.

By default, new rows of both matrices are drawn from N(mean, scale·cov) of the rows of
`embed_tokens`, as in LLaVA's conversion scripts. With X the n rows and z ~ N(0, I_n), `mean +
sqrt(scale/n)·(X − mean)ᵀz` has exactly that distribution: its covariance is scale/n·(X − mean)ᵀ(X −
mean). This also holds for a singular covariance. Neither the covariance nor its Cholesky factor is
ever computed.

The rows are the same on every machine: so are the normals (`normals`) and the sums (`exact_sums`),
and all other operations are elementwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from llava_remap.post_load import (
    Before,
    Change,
    Effect,
    OldBytes,
    Problem,
    Reader,
    refuse,
)

#: New rows made at a time. Each such group reads the old rows once.
GROUP_ROWS = 512
#: Option → the values of `init` that use it. With any other value, the option is an error, since it
#: would do nothing.
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

    vocab: Literal["pad", "keep"] | Annotated[int, Field(ge=1, lt=2**31)] = Field(
        "pad",
        description="the number of rows. pad: if there are fewer rows than tokens, the rows that "
        "the tokens need, rounded up to a multiple of `pad_to_multiple_of`; keep: the present "
        "number; or a number. On the command line: `--vocab`",
    )
    pad_to_multiple_of: int = Field(
        64,
        ge=1,
        description="with `vocab: pad`, the number of rows after growing is a multiple of this; a "
        "matrix with enough rows stays as it is",
    )
    init: Literal["multivariate_normal", "mean", "zeros", "normal", "copy"] = Field(
        "multivariate_normal",
        description="how new rows are made. multivariate_normal: drawn from N(mean, scale·cov) of "
        "the old rows; mean: each is the mean of the old rows; zeros; normal: each number drawn "
        "from N(0, std²); copy: each is the row of `token`",
    )
    statistics: Literal["embed_tokens", "own"] = Field(
        "embed_tokens",
        description="source of mean and covariance. embed_tokens: its rows, for both matrices, as "
        "in LLaVA's scripts; own: each matrix's own rows",
    )
    scale: float = Field(1e-5, ge=0, allow_inf_nan=False, description="factor on the covariance")
    std: float = Field(
        0.02,
        ge=0,
        le=1000,
        description="standard deviation; 0.02 is the default of initializer_range in transformers",
    )
    token: str | None = Field(
        None,
        min_length=1,
        description="the token whose row is copied, within each matrix; spelt as in the "
        "tokenizer's files (`▁Hello`)",
    )
    seed: int = Field(
        0, ge=0, lt=2**64, description="the same seed gives the same rows, on every machine"
    )

    @model_validator(mode="after")
    def _only_what_is_used(self) -> ExpandEmbeddings:
        if idle := [
            f"`{name}` does nothing with `init: {self.init}`, only with {' and '.join(ways)}"
            for name, ways in USED_BY.items()
            if name in self.model_fields_set and self.init not in ways
        ]:
            raise PydanticCustomError("idle", "{reasons}", {"reasons": "; ".join(idle)})
        if self.init == "copy" and self.token is None:
            raise PydanticCustomError(
                "token", "`init: copy` needs `token`, the text of the token whose row is copied"
            )
        return self

    def plan(self, before: Before) -> Effect:
        """Grow both matrices as `vocab` says; rows are never removed. The gate checks that all
        tokens have rows.

        Raises:
            RemapError: LR212 if the token to copy has no row.
        """
        table = before.embedding
        if table not in before.tensors or len(before.tensors[table][1]) != 2:
            return Effect(())
        rows = before.tensors[table][1][0]
        grown = self._grown(rows, before.rows_needed)
        if grown == rows:
            note = Problem(
                "LR407",
                f"{before.rows_needed} tokens fit into the {rows} rows that embed_tokens has.",
            )
            return Effect((), (note,) * (before.rows_needed <= rows))
        matrices = [
            (name, dtype, shape)
            for name in (table, before.head)
            for dtype, shape in [before.tensors.get(name, ("", ()))]
            if len(shape) == 2 and shape[0] == rows
        ]
        facts: dict[str, Any] = (
            {"row": _row_of(self.token, before.token_ids, rows)} if self.token is not None else {}
        )
        if (
            self.init == "multivariate_normal"
            and self.statistics == "embed_tokens"
            and _are_alike(matrices, grown - rows)
        ):
            facts["together"] = True
        return Effect(
            tuple(
                Change(name, dtype, shape, (grown, *shape[1:]), self._reads(name, table), facts)
                for name, dtype, shape in matrices
            )
        )

    def _grown(self, rows: int, needed: int) -> int:
        if self.vocab == "pad":
            return (
                rows
                if needed <= rows
                else -(-needed // self.pad_to_multiple_of) * self.pad_to_multiple_of
            )
        return rows if self.vocab == "keep" else max(rows, self.vocab)

    def _reads(self, name: str, table: str) -> tuple[str, ...]:
        if self.init in ("zeros", "normal"):
            return ()
        return (name,) if self.init == "copy" or self.statistics == "own" else (table,)

    def pieces(
        self, changes: Sequence[Change], read: Reader
    ) -> Mapping[str, Iterator[OldBytes | bytes]]:
        """The old rows unchanged, then the new rows, rounded once to the dtype to write."""
        from llava_remap.post_load.plugins.new_rows import NewRows

        made = NewRows(self.init, self.std, self.scale, self.seed, GROUP_ROWS, read)
        return {change.target: made.pieces(change) for change in changes}


def _are_alike(matrices: Sequence[tuple[str, str, tuple[int, ...]]], new: int) -> bool:
    """Whether two matrices have the same dtype and shape, and their new rows fit into one group."""
    return len(matrices) == 2 and matrices[0][1:] == matrices[1][1:] and 2 * new <= GROUP_ROWS


def _row_of(token: str, ids: Mapping[str, int] | None, rows: int) -> int:
    """The row of a token that has one among the first `rows`."""
    if ids is None:
        raise refuse(
            "LR212",
            f"`init: copy` needs the id of `{token}`, but no source has a tokenizer.",
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
            f"`init: copy`: the id of `{token}` is {ids[token]}, but embed_tokens has only {rows} "
            "rows, so there is no row to copy.",
            "Name a token that the model was trained with.",
        )
    return ids[token]
