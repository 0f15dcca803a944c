"""A second linear layer that changes nothing, for a model whose class has one and whose checkpoints
don't.

LLaVA 1.0 has one linear layer between tower and language model; transformers' LLaVA has two with an
activation between them. With the trained first layer, the identity as activation, and a second
layer with ones on the diagonal and zeros elsewhere, both compute the same: products with 0 or 1 and
sums with 0 are exact. Only the sign of a zero is lost, and inf becomes NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from llava_remap.post_load import Before, Change, Effect, OldBytes, Reader, from_float64, refuse


class IdentityLayer(BaseModel):
    """Options of `use: identity_layer`: names of parameters of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    after: str = Field(
        min_length=1,
        description="the weight of the layer before; the new layer has its dtype and as many rows",
    )
    weight: str = Field(
        min_length=1, description="the weight that is made: ones on the diagonal, zeros elsewhere"
    )
    bias: str = Field(min_length=1, description="the bias that is made: zeros")

    def plan(self, before: Before) -> Effect:
        """Both tensors. Without the layer before, the rule makes none, and the plan reports the
        layer as missing.

        Raises:
            RemapError: LR212 where the weight of the layer before isn't a matrix.
        """
        if self.after not in before.tensors:
            return Effect(())
        dtype, shape = before.tensors[self.after]
        if len(shape) != 2:
            raise refuse(
                "LR212",
                f"`identity_layer`: `{self.after}` is {list(shape)}, and the weight of a "
                "linear layer has two dimensions.",
                "Name the weight of a linear layer.",
            )
        rows = shape[0]
        return Effect(
            (
                Change(self.weight, dtype, None, (rows, rows), ()),
                Change(self.bias, dtype, None, (rows,), ()),
            )
        )

    def pieces(
        self, changes: Sequence[Change], read: Reader
    ) -> Mapping[str, Iterator[OldBytes | bytes]]:
        """Row by row."""
        return {change.target: self._rows(change) for change in changes}

    def _rows(self, change: Change) -> Iterator[bytes]:
        """The rows of weight or bias. The shape tells which, since names differ between layouts."""
        import numpy as np

        one = from_float64(np.ones(1), change.dtype)
        zero = bytes(len(one))
        size = change.shape_after[0]
        if len(change.shape_after) == 1:
            yield zero * size
        else:
            yield from (zero * row + one + zero * (size - 1 - row) for row in range(size))
