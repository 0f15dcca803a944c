"""Configs of sources that no model can have, and those that their tensors contradict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, Changed, Run
from tests.small_llava import apply_v15


@pytest.mark.parametrize("said", [100, 384, 400])
def test_a_vocabulary_that_the_config_has_otherwise(said: int, run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update({"vocab_size": said})))
    assert ran.code == 1
    assert f"embed_tokens has 320 rows, the source's config says vocab_size: {said}" in ran.out
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": "linear"}, {"rope_scaling": [1]}, {"rope_parameters": "x"},
        {"mm_vision_select_feature": {}}, {"num_attention_heads": "4"},
        {"num_attention_heads": 0}, {"hidden_size": None}, {"mm_vision_select_layer": [-2, -1]},
        {"mm_vision_select_layer": 100},
        {"mm_vision_select_layer": "x"}, {"mm_vision_select_layer": 0},
        {"tie_word_embeddings": "false"}, {"rope_theta": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_cannot_be(change: dict[str, Any], run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update(change)))
    assert ran.code == 3
    assert "LR112" in ran.out
    assert not Path("out").exists()


@pytest.mark.parametrize("named", ["LlamaForCausalLMX", "LlavaOursForCausalLM"])
def test_an_architecture_that_is_not_known(named: str, run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update({"architectures": [named]})))
    assert (
        ran.code,
        "doesn't tell which language model" in ran.out,
        "model_type: {const: TYPE}" in ran.out,
    ) == (3, True, True)


def test_a_config_with_nan(run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update({"rms_norm_eps": float("nan")})))
    assert ran.code == 3
    assert "LR113" in ran.err


def test_cls_patch_makes_one_token_more(changed: Changed, tmp_path: Path) -> None:
    source = changed(config=lambda c: c.update({"mm_vision_select_feature": "cls_patch"}))
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["image_seq_length"] == 5
