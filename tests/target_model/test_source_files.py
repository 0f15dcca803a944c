"""A value of the wrong kind in a source's small JSON files is told with file, key, value and
what is needed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CLIP, Changed, Run


def planned(run: Run, source: Path, tower: Path = CLIP) -> tuple[int, str]:
    ran = run(
        "apply", "llava-v1.5", "--source", source, "--source", f"vision_tower={tower}", "--dry-run"
    )
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
        ("eos_token_id", [], "a token's id, or a list of them that isn't empty"),
        ("bos_token_id", 10**30, "a token's id, or a list of them that isn't empty"),
        ("max_position_embeddings", 10**30, "a number of at most 64 bits"),
        ("text_config", [1], "an object"),
    ],
)
def test_a_value_of_another_kind(
    key: str, value: Any, needed: str, changed: Changed, run: Run
) -> None:
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
    assert (code, "LR112" in said, f"says {where}: {value!r};" in said, str(tower) in said) == (
        3,
        True,
        True,
        True,
    )


def test_all_of_them_are_told(changed: Changed, run: Run) -> None:
    code, said = planned(
        run, changed(config=lambda config: config.update(mm_hidden_size=0, tie_word_embeddings=1))
    )
    assert (code, "says mm_hidden_size: 0;" in said, "says tie_word_embeddings: 1;" in said) == (
        3,
        True,
        True,
    )


def test_a_fault_of_our_own_blames_no_config(
    changed: Changed, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise TypeError("a fault")

    monkeypatch.setattr("llava_remap.jobs.apply.derive", broken)
    with pytest.raises(TypeError, match="a fault"):
        planned(run, changed())


def test_a_tower_says_what_no_vision_config_has(changed: Changed, run: Run, tmp_path: Path) -> None:
    """LanguageBind's, for one, which a stock tower has not; what transformers writes into every
    config is no news.
    """
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    config = json.loads((tower / "config.json").read_text())
    config.get("vision_config", config).update(
        add_time_attn=True, num_frames=8, use_cache=True, lora_r=2, id2label={"0": "x"}
    )
    (tower / "config.json").write_text(json.dumps(config))
    source = changed()
    code, said = planned(run, source, tower)
    assert (code, "LR318" in said) == (0, True)
    assert "the tower's config says add_time_attn: True, num_frames: 8; no vision config" in said
    assert "LR318" not in planned(run, source)[1]


def with_value(source: Path, file: str, key: str, value: Any) -> Path:
    path = source / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, key: value}))
    return source


@pytest.mark.parametrize(
    ("file", "key", "value", "needed"),
    [
        ("tokenizer_config.json", "truncation_side", "x", "left or right"),
        ("tokenizer_config.json", "padding_side", ["left"], "left or right"),
        ("tokenizer_config.json", "model_max_length", [2048], "a number above 0"),
        ("tokenizer_config.json", "add_bos_token", "true", "true or false"),
        ("tokenizer_config.json", "tokenizer_class", ["LlamaTokenizer"], "a text"),
        (
            "tokenizer_config.json",
            "bos_token",
            1,
            "a text, or an object with the text as `content`",
        ),
        (
            "tokenizer_config.json",
            "added_tokens_decoder",
            {"x": {"content": "<s>"}},
            "an object of ids with a token's",
        ),
        ("tokenizer_config.json", "added_tokens_decoder", [1], "an object of ids with a token's"),
        (
            "special_tokens_map.json",
            "eos_token",
            {"text": "</s>"},
            "a text, or an object with the text as `content`",
        ),
        (
            "special_tokens_map.json",
            "additional_special_tokens",
            7,
            "texts, or objects with `content`",
        ),
        ("added_tokens.json", "<a>", "320", "a token's id"),
        ("added_tokens.json", "<a>", True, "a token's id"),
        ("generation_config.json", "temperature", "hot", "a number"),
        ("generation_config.json", "max_length", 2.5, "a whole number, 0 or more"),
        (
            "generation_config.json",
            "eos_token_id",
            "2",
            "a token's id, or a list of them that isn't empty",
        ),
        ("generation_config.json", "do_sample", 1, "true or false"),
    ],
)
def test_small_files_of_a_model(
    file: str, key: str, value: Any, needed: str, changed: Changed, run: Run
) -> None:
    source = with_value(changed(), file, key, value)
    code, said = planned(run, source)
    assert (
        code,
        "LR113" in said,
        f"`{source / file}` says {key}: {value!r}; {needed}" in said,
    ) == (3, True, True)


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("do_rescale", [], "true or false"),
        ("do_normalize", [[]], "true or false"),
        ("rescale_factor", {}, "a number"),
        ("resample", 9, "a number from 0 to 5"),
        ("size", {"shortest_edge": "28"}, "pixels, or an object of sides in pixels"),
        ("image_mean", ["a"], "a number, or one for each colour"),
    ],
)
def test_small_files_of_a_tower(
    key: str, value: Any, needed: str, changed: Changed, run: Run, tmp_path: Path
) -> None:
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    with_value(tower, "preprocessor_config.json", key, value)
    code, said = planned(run, changed(), tower)
    assert (code, "LR113" in said, f"says {key}: {value!r}; {needed}" in said) == (3, True, True)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "model_max_length", 1000000000000000019884624838656),
        ("tokenizer_config.json", "padding_side", None),
        (
            "tokenizer_config.json",
            "chat_template",
            [{"name": "default", "template": "{{ messages }}"}],
        ),
        (
            "tokenizer_config.json",
            "pad_token",
            {"__type": "AddedToken", "content": "<unk>", "lstrip": False},
        ),
        ("special_tokens_map.json", "additional_special_tokens", ["<unk>", {"content": "<s>"}]),
        ("generation_config.json", "temperature", 1),
        ("generation_config.json", "eos_token_id", [2]),
    ],
)
def test_forms_that_are_seen(file: str, key: str, value: Any, changed: Changed, run: Run) -> None:
    code, said = planned(run, with_value(changed(), file, key, value))
    assert (code, said if code else "") == (0, "")


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_a_special_token_that_is_no_token(role: str, changed: Changed, run: Run) -> None:
    """The folder's tokenizer would go without it, and the model would be given other ids."""
    source = with_value(changed(), "special_tokens_map.json", role, "<other>")
    code, said = planned(run, source)
    assert (
        code,
        "LR113" in said,
        f"say {role}: '<other>', which isn't one of their tokens" in said,
    ) == (3, True, True)


def test_a_special_token_that_only_has_no_use(changed: Changed, run: Run) -> None:
    code, said = planned(
        run, with_value(changed(), "special_tokens_map.json", "sep_token", "<sep>")
    )
    assert (
        code,
        "LR415" in said,
        "say sep_token: '<sep>', which isn't one of their tokens" in said,
    ) == (0, True, True)
