"""Where a class of transformers has embedding, head and layers, and in which layouts it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_remap import plan
from llava_remap.target_model import Target, wanted_parameters
from tests.conftest import CLIP, RELEASED

TEXT: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
GPT: dict[str, Any] = {
    "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 28, "patch_size": 14,
}  # fmt: skip


def target(
    class_name: str, model_type: str, text: dict[str, Any], tower: str = "clip_vision_model"
) -> Target:
    config = {
        "model_type": model_type,
        "text_config": text,
        "vision_config": TOWER | {"model_type": tower},
        "tie_word_embeddings": False,
    }
    return wanted_parameters(class_name, config)


@pytest.mark.parametrize(
    ("class_name", "model_type", "tower"),
    [
        ("LlavaForConditionalGeneration", "llava", "clip_vision_model"),
        ("Mistral3ForConditionalGeneration", "mistral3", "clip_vision_model"),
        ("InternVLForConditionalGeneration", "internvl", "internvl_vision"),
        ("FastVlmForConditionalGeneration", "fast_vlm", "clip_vision_model"),
    ],
)
def test_places_come_from_the_class(class_name: str, model_type: str, tower: str) -> None:
    found = target(class_name, model_type, TEXT, tower)
    assert found.embedding == "language_model.model.embed_tokens.weight"
    assert found.head == "language_model.lm_head.weight"
    assert found.layers == "language_model.model.layers."


def test_another_language_model_has_other_places() -> None:
    found = target("LlavaForConditionalGeneration", "llava", GPT)
    assert found.embedding == "language_model.model.embed_in.weight"
    assert found.layers == "language_model.model.layers."


def test_a_tower_without_the_level_keeps_its_names() -> None:
    found = target("InternVLForConditionalGeneration", "internvl", TEXT, "internvl_vision")
    assert "vision_tower.encoder.layer.1.lambda_2" in found.shapes
    assert "vision_tower.embeddings.patch_embeddings.projection.bias" in found.shapes
    assert found.layout == "classic"


def test_a_class_that_the_loader_knows_no_classic_names_for_has_module_names() -> None:
    found = target("FastVlmForConditionalGeneration", "fast_vlm", TEXT)
    assert found.layout == "module-5.6"
    assert found.names["language_model.lm_head.weight"] == "lm_head.weight"
    assert found.names[found.embedding] == "model.language_model.embed_tokens.weight"


@pytest.mark.parametrize("key", ["language_model", "projector"])
def test_a_prefix_that_the_class_does_not_have_is_refused(key: str) -> None:
    """Checks of that part would look at nothing."""
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: x\nextends: [llava-v1.5.yaml]\n"
        f"target: {{{key}: elsewhere.}}\n"
    )
    given = [str(RELEASED / "safetensors"), f"vision_tower={CLIP}"]
    [problem] = plan("mine.yaml", given, dry_run=True).plan.problems
    assert problem.code == "LR201"
    assert f"`target.{key}: elsewhere.`" in problem.cause
