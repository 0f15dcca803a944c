"""Plans from a few lines: names with shapes, a rule file's text, and the shapes that a target
wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llava_remap.checkpoint import Checkpoint, Location, LoraPair, Tensor
from llava_remap.planning import Plan, PostLoadChange, build_plan
from llava_remap.rewrite import compile_rules
from llava_remap.routing import route
from llava_remap.rulefile import load_rule_file
from llava_remap.target_model import Target

#: A shape alone stands for a tensor of 16-bit numbers.
Tensors = Mapping[str, tuple[int, ...] | Tensor]
Planned = Callable[..., Plan]

RULES = """
schema: 1
name: test
summary: for tests of the plan
version: 1.0.0
sources:
  model: {}
  tower: {optional: true, prefix: tower., used_if_absent: 'model.tower.{rest...}'}
  adapter: {optional: true, overrides: true}
target: {class: LlavaForConditionalGeneration}
names:
  - {id: tower, from: 'model.tower.{rest...}', to: 'vision_tower.{rest}'}
  - {id: own-tower, from: 'tower.{rest...}', to: 'vision_tower.{rest}'}
  - {id: body, from: 'model.{rest...}', to: 'language_model.{rest}'}
  - {id: head, from: lm_head.weight, to: lm_head.weight}
  - {id: gone, from: '{rest...}.inv_freq', drop: a buffer that the target computes}
"""


def checkpoint(
    tensors: Tensors, name: str = "model", pairs: tuple[LoraPair, ...] = (), **named: Any
) -> Checkpoint:
    """A checkpoint in one file, its tensors one behind the other."""
    catalog: dict[str, Tensor] = {}
    file, at = Path(f"{name}.safetensors"), 0
    for key, found in tensors.items():
        tensor = found if isinstance(found, Tensor) else Tensor.of(key, "F16", found, None)
        place = tensor.location or Location(file, at, None, False, (at, tensor.nbytes))
        catalog[key] = Tensor.of(key, tensor.dtype, tensor.shape, place)
        at += tensor.nbytes
    return Checkpoint(Path(name), "safetensors", catalog, {}, Path(name), pairs=pairs, **named)


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """The plan of these sources for a target of these shapes."""

    def plan(
        sources: Tensors | Mapping[str, Checkpoint],
        wanted: Mapping[str, tuple[int, ...]],
        *,
        rules: str = RULES,
        tied: Mapping[str, str] | None = None,
        changes: tuple[PostLoadChange, ...] = (),
        **named: Any,
    ) -> Plan:
        (tmp_path / "rules.yaml").write_text(rules)
        file = load_rule_file(tmp_path / "rules.yaml")
        checkpoints = {
            name: found for name, found in sources.items() if isinstance(found, Checkpoint)
        }
        tensors = {
            name: found for name, found in sources.items() if not isinstance(found, Checkpoint)
        }
        checkpoints = checkpoints or {"model": checkpoint(tensors)}
        program = compile_rules(file, [*checkpoints["model"].catalog], {})
        routes = route(file, program, checkpoints)
        target = Target("LlavaForConditionalGeneration", wanted, tied or {})
        return build_plan(file, program, checkpoints, routes, target, changes, **named)

    return plan
