"""Adds a linear layer that changes nothing, for models whose class has two and whose checkpoints
have one.

LLaVA 1.0 has one linear layer between tower and language model; transformers' LLaVA has two with an
activation between them. There are two forms in which both compute the same:

- identity: the trained layer is the first, the activation is the identity, and the second layer has
  ones on the diagonal and zeros elsewhere. Products with 0 or 1 and sums with 0 are exact. Only the
  sign of a zero is lost, and inf becomes NaN.
- gelu: for programs that put a GELU there, whatever the config says. gelu(x) - gelu(-x) = x, since
  gelu(x) = x * F(x) with F(x) + F(-x) = 1; the usual approximations have this property, too. The
  first layer computes x and -x. The trained layer is the second: its weight applies to x, the
  negated weight to -x. The result is rounded a few times more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llava_remap.post_load import (
    Before,
    Change,
    Effect,
    OldBytes,
    Problem,
    Reader,
    from_float64,
    refuse,
)

_IDENTITY = (
    "the projector is one linear layer, so the config names the activation `linear`. transformers "
    "accepts this. vLLM refuses it. llama.cpp and mlx-vlm put a GELU there and silently compute "
    "something else."
)
_OTHER_FORM = "For these programs, convert with --projector-form gelu."
_GELU = (
    "the projector is one linear layer, written as two with a GELU between them that compute the "
    "same but for rounding: for vLLM, llama.cpp and other programs that always put a GELU there."
)


#: The key of the activation in the config of every class that has such a projector.
_ACTIVATION = "projector_hidden_act"


class IdentityLayer(BaseModel):
    """Options of `use: identity_layer`: names of parameters of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    after: str = Field(
        min_length=1,
        description="the weight of the first layer, which the trained weight is renamed to",
    )
    weight: str = Field(min_length=1, description="the weight of the second layer")
    bias: str = Field(min_length=1, description="the bias of the second layer")
    projector_form: Literal["identity", "gelu"] = Field(
        "identity",
        description="identity: the second layer is made, for programs that take the activation "
        "from the config; gelu: the first layer is made, and the trained layer is the second, for "
        "programs that always put a GELU between the two. On the command line: `--projector-form`",
    )

    def plan(self, before: Before) -> Effect:
        """All tensors of the new layer. Without a trained layer there are none, and the plan
        reports the layer as missing.

        Raises:
            RemapError: LR212 if the trained weight isn't a matrix; for the form `gelu`, also if it
                has too few rows, or if the config's activation has to be kept.
        """
        if self.after not in before.tensors:
            return Effect(())
        dtype, shape = before.tensors[self.after]
        if len(shape) != 2:
            raise refuse(
                "LR212",
                f"`identity_layer`: `{self.after}` is {list(shape)}, but the weight of a linear "
                "layer has two dimensions.",
                "Name the weight of a linear layer.",
            )
        rows, columns = shape
        linear = before.config.get(_ACTIVATION) == "linear"
        if self.projector_form == "identity":
            made = (
                Change(self.weight, dtype, None, (rows, rows), ()),
                Change(self.bias, dtype, None, (rows,), ()),
            )
            return Effect(made, (Problem("LR315", _IDENTITY, _OTHER_FORM),) * linear)
        if not linear or not self.after.endswith(".weight"):
            raise refuse(
                "LR212",
                "`identity_layer`: the form `gelu` is for a layer whose weight is named "
                f"`….weight`, in a config that says {_ACTIVATION}: linear. Here they are "
                f"`{self.after}` and {before.config.get(_ACTIVATION)!r}.",
                "Use the form `identity`.",
            )
        if rows < 2 * columns:
            raise refuse(
                "LR212",
                f"`identity_layer` in the form `gelu` needs {2 * columns} rows, two for each "
                f"column of `{self.after}`, which is {list(shape)}.",
                "Use the form `identity`, and a program that knows the activation `linear`.",
            )
        bias = self.after.removesuffix("weight") + "bias"
        moved = {
            name: to
            for name, to in ((self.after, self.weight), (bias, self.bias))
            if name in before.tensors
        }
        changes = (
            Change(self.weight, dtype, shape, (rows, rows), (self.weight,)),
            Change(self.after, dtype, None, shape, ()),
            Change(bias, dtype, None, (rows,), ()),
        )
        return Effect(changes, (Problem("LR315", _GELU),), moved, {_ACTIVATION: "gelu"})

    def pieces(
        self, changes: Sequence[Change], read: Reader
    ) -> Mapping[str, Iterator[OldBytes | bytes]]:
        """Row by row."""
        return {change.target: self._rows(change) for change in changes}

    def _rows(self, change: Change) -> Iterator[OldBytes | bytes]:
        """The rows of a weight or bias, told apart by shape, since names differ between layouts."""
        import numpy as np

        one = from_float64(np.ones(1), change.dtype)
        zero = bytes(len(one))
        size = change.shape_after[0]
        if len(change.shape_after) == 1:
            yield zero * size
        elif change.shape_before is not None:
            taken = change.shape_before[1]
            nbytes, rest = taken * len(one), zero * (size - 2 * taken)
            for row in range(size):
                yield OldBytes(row * nbytes, nbytes)
                yield OldBytes(row * nbytes, nbytes, negated=True)
                yield rest
        else:
            columns = change.shape_after[1]
            minus = from_float64(-np.ones(1), change.dtype)
            for row in range(size):
                number = one if row < columns else minus if row < 2 * columns else zero
                at = row % columns
                yield zero * at + number + zero * (columns - 1 - at)
