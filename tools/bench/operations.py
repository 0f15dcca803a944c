"""Checkpoints in which every matrix of the language model is fused, divided or turned, and the rule
file that undoes it: how fast tensor operations are, beside `cp` of the same checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
#: Tensor name to dtype ("F16", "F32") and shape.
Shapes = Mapping[str, tuple[str, Shape]]

_MATRIX = re.compile(r"(model\.layers\.\d+\..*|model\.embed_tokens|lm_head)\.weight")
_RULES = """\
schema: 1
name: {name}
version: 1.0.0
summary: LLaVA-1.5 with its matrices stored otherwise
extends: [llava-v1.5]
tensors:
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A tensor operation to measure.

    Attributes:
        name: in tables.
        stored: the tensors of the checkpoint for a matrix: suffix of the name → shape.
        tensors: `from`, `to` and `how` of the rule; {from} and {to} stand for the module's names.
        limit: the goal for its time, divided by that of `cp`.
        peak: the goal for its peak memory, in MiB.
    """

    name: str
    stored: Callable[[Shape], Mapping[str, Shape]]
    tensors: str
    limit: float
    peak: int

    def shapes(self, shapes: Shapes) -> dict[str, tuple[str, Shape]]:
        """The tensors of the checkpoint, given those of a plain one."""
        made: dict[str, tuple[str, Shape]] = {}
        for name, (dtype, shape) in shapes.items():
            if (found := _MATRIX.fullmatch(name)) is None or len(shape) != 2:
                made[name] = (dtype, shape)
                continue
            for suffix, size in self.stored(shape).items():
                made[f"{found[1]}.{suffix}"] = (dtype, size)
        return made

    @property
    def rules(self) -> str:
        """The rule file."""
        tensors = self.tensors.replace("{from}", "{m...}").replace("{to}", "{m}")
        return f"{_RULES.format(name=self.name.replace(' ', '-'))}  - {{id: matrices, {tensors}}}\n"


def _halves(shape: Shape, axis: int) -> dict[str, Shape]:
    half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
    return {"one": half, "other": half}


KINDS = (
    Kind(
        "concat along the first axis",
        lambda shape: _halves(shape, 0),
        "from: ['{from}.one', '{from}.other'], to: '{to}.weight', how: {concat: 0}",
        1.1,
        60,
    ),
    Kind(
        "rope permutation",
        lambda shape: {"paired": shape},
        "from: '{from}.paired', to: '{to}.weight', how: {view: ['*', 64, 2], axes: [0, 2, 1]}",
        1.5,
        60,
    ),
    Kind(
        "concat along the second axis",
        lambda shape: _halves(shape, 1),
        "from: ['{from}.one', '{from}.other'], to: '{to}.weight', how: {concat: 1}",
        1.5,
        60,
    ),
    Kind(
        "transpose",
        lambda shape: {"turned": shape[::-1]},
        "from: '{from}.turned', to: '{to}.weight', how: {axes: [1, 0]}",
        2.5,
        200,
    ),
)
