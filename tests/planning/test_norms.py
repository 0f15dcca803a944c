"""Which weights the check for delta weights reads."""

from __future__ import annotations

import pytest

from llava_remap.planning import Mapped, Part
from llava_remap.planning.value_checks import value_checks
from llava_remap.routing import Routes

#: Names of the language model in two layouts, and one outside it.
INSIDE = [
    "language_model.model.layers.0.input_layernorm.weight",
    "language_model.model.norm.weight",
    "model.language_model.norm.weight",
    "language_model.model.layers.0.input_layernorm.bias",
    "language_model.model.layers.0.mixer.gate.weight",
]
OUTSIDE = "vision_tower.vision_model.post_layernorm.weight"


@pytest.mark.parametrize(
    ("name", "is_read"),
    [*zip(INSIDE, (True, True, True, False, False), strict=True), (OUTSIDE, False)],
)
def test_norms_of_the_language_model_are_read(name: str, is_read: bool) -> None:
    """Other weights of one dimension may be about 0 in any model."""
    entry = Mapped(name, "F16", (64,), (Part.whole("model", name, name, (64,)),), (), ())
    checks = value_checks([entry], (), {}, {}, {}, (), Routes(()), frozenset(INSIDE))
    assert [check.target for check in checks] == ([name] if is_read else [])
