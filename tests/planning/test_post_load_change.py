"""A post-load change as JSON: enough to make it again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llava_remap.planning import PostLoadChange
from llava_remap.post_load import Change

CHANGE = PostLoadChange(
    "expand_embeddings",
    {"init": "copy", "token": "</s>", "pad_to_multiple_of": 8},
    Change(
        "language_model.lm_head.weight",
        "F16",
        (320, 64),
        (328, 64),
        ("language_model.lm_head.weight",),
        {"row": 2},
    ),
)


@pytest.mark.parametrize(
    "change",
    [
        CHANGE,
        PostLoadChange("x", {}, Change("y", "BF16", (), (), ())),
        PostLoadChange("x", {}, Change("y", "BF16", None, (2,), ())),
    ],
)
def test_there_and_back(change: PostLoadChange) -> None:
    assert PostLoadChange.from_json(json.loads(json.dumps(change.to_json()))) == change


@pytest.mark.parametrize("field", CHANGE.to_json())
def test_every_field_is_needed(field: str) -> None:
    content = CHANGE.to_json()
    del content[field]
    with pytest.raises(KeyError, match=field):
        PostLoadChange.from_json(content)


GARBAGE: list[tuple[str, Any]] = [
    *[(field, None) for field in CHANGE.to_json() if field != "shape_before"],
    ("shape_before", [320, -1]),
    ("shape_before", [320, 64.0]),
    ("shape_after", [True, 64]),
    ("shape_after", ["320", 64]),
    ("reads", [3]),
    ("with", []),
    ("facts", [2]),
    ("target", ["x"]),
]


@pytest.mark.parametrize(("field", "value"), GARBAGE)
def test_garbage(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"`reads`|shape|is no"):
        PostLoadChange.from_json({**CHANGE.to_json(), field: value})
