"""Which weights the check for delta weights reads."""

from __future__ import annotations

import pytest

from llava_remap.planning import Mapped, Part
from llava_remap.planning.value_checks import _is_norm


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("language_model.model.layers.0.input_layernorm.weight", True),
        ("language_model.model.norm.weight", True),
        ("language_model.model.layers.0.input_layernorm.bias", False),
        ("language_model.model.layers.0.mixer.gate.weight", False),
        ("vision_tower.vision_model.post_layernorm.weight", False),
    ],
)
def test_norms_are_known_by_their_modules_name(name: str, is_one: bool) -> None:
    """Other weights of one dimension may be about 0 in any model."""
    assert (
        _is_norm(Mapped(name, "F16", (64,), (Part.whole("model", name, name, (64,)),), (), ()))
        is is_one
    )
