"""What a source's config says of the wrong kind: told with key, value and what is needed, before anything is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CLIP, Changed, Run


def planned(run: Run, source: Path, tower: Path = CLIP) -> tuple[int, str]:
    ran = run("apply", "llava-v1.5", "--source", source, "--source", f"vision_tower={tower}", "--dry-run")
    return ran.code, " ".join((ran.out + ran.err).split())


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("model_type", 5, "a text"),
        ("architectures", {"a": 1}, "a text or a list of texts"),
        ("architectures", [None], "a text or a list of texts"),
        ("vocab_size", "320", "a whole number above 0"),
        ("vocab_size", 0, "a whole number above 0"),
        ("tie_word_embeddings", "false", "true or false"),
        ("tie_word_embeddings", 0, "true or false"),
        ("mm_projector_type", ["linear"], "a text"),
        ("mm_hidden_size", 1.5, "a whole number above 0"),
        ("mm_vision_tower", 5, "a text or a list of texts"),
        ("mm_vision_select_layer", "-2", "a whole number or a list of them"),
        ("mm_vision_select_layer", [-2, "x"], "a whole number or a list of them"),
        ("mm_tunable_parts", ["mm_mlp_adapter"], "a text"),
        ("tune_mm_mlp_adapter", "yes", "true or false"),
        ("image_aspect_ratio", ["pad"], "a text"),
        ("image_grid_pinpoints", 5, "a text or a list"),
        ("vision_config", "clip", "an object"),
        ("text_config", [1], "an object"),
    ],
)
def test_a_value_of_another_kind(key: str, value: Any, needed: str, changed: Changed, run: Run) -> None:
    code, said = planned(run, changed(config=lambda config: config.update({key: value})))
    assert code != 0
    assert f"says {key}: {value!r}; {needed} is needed." in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", "4"),
        ("image_size", -1),
        ("patch_size", 0),
        ("hidden_act", 1),
        ("layer_norm_eps", 0.0),
        ("num_channels", [3]),
    ],
)
def test_of_a_tower(key: str, value: Any, changed: Changed, run: Run, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    config = json.loads((tower / "config.json").read_text())
    config.get("vision_config", config)[key] = value
    (tower / "config.json").write_text(json.dumps(config))
    code, said = planned(run, changed(), tower)
    where = f"vision_config.{key}" if "vision_config" in config else key
    assert (code, "LR112" in said, f"says {where}: {value!r};" in said, str(tower) in said) == (3, True, True, True)


def test_all_of_them_are_told(changed: Changed, run: Run) -> None:
    code, said = planned(run, changed(config=lambda config: config.update(mm_hidden_size=0, tie_word_embeddings=1)))
    assert (code, "says mm_hidden_size: 0;" in said, "says tie_word_embeddings: 1;" in said) == (3, True, True)


def test_a_fault_of_our_own_blames_no_config(changed: Changed, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise TypeError("a fault")

    monkeypatch.setattr("llava_remap.apply.derive", broken)
    with pytest.raises(TypeError, match="a fault"):
        planned(run, changed())


def test_a_tower_says_what_no_vision_config_has(changed: Changed, run: Run, tmp_path: Path) -> None:
    """LanguageBind's, for one, which a stock tower has not; what transformers writes into every config is no news."""
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    config = json.loads((tower / "config.json").read_text())
    config.get("vision_config", config).update(add_time_attn=True, num_frames=8, use_cache=True, lora_r=2, id2label={"0": "x"})
    (tower / "config.json").write_text(json.dumps(config))
    source = changed()
    code, said = planned(run, source, tower)
    assert (code, "LR318" in said) == (0, True)
    assert "the tower's config says add_time_attn: True, num_frames: 8; no vision config" in said
    assert "LR318" not in planned(run, source)[1]
