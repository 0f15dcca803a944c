"""A rule file that writes what transformers doesn't know: refused by name, in lint and in apply."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_remap.rulefile import load_rule_file, shipped_rule_files
from llava_remap.target_model import unknown_target
from tests.conftest import CLIP, RELEASED, Run

FILES = {name: path for name, path in shipped_rule_files().items() if name != "hf-layouts"}


def mine(text: str, parent: str = "llava-v1.5") -> Path:
    path = Path("mine.yaml")
    path.write_text(
        f"schema: 1\nname: mine\nversion: 1.0.0\nsummary: mine\nextends: [{parent}.yaml]\ntarget:\n"
        f"  {text}\n"
    )
    return path


@pytest.mark.parametrize("name", FILES)
def test_shipped_files_say_nothing_that_is_unknown(name: str) -> None:
    assert unknown_target(load_rule_file(FILES[name])) == []


@pytest.mark.parametrize(
    ("text", "wrong", "meant"),
    [
        (
            "config: {vision_feature_layr: {const: -1}}",
            "vision_feature_layr",
            "vision_feature_layer",
        ),
        ("config: {text_config.hiden_act: {const: silu}}", "hiden_act", "hidden_act"),
        ("config: {vision_config.image_sise: {const: 28}}", "image_sise", "image_size"),
        (
            "config: {text_config.rope_parameters.rope_tetha: {const: 1.0}}",
            "rope_tetha",
            "rope_theta",
        ),
        ("config: {text_config.model_type: {const: qwen33}}", "qwen33", "qwen3"),
        (
            "config: {image_grid_pinpoints: {const: [[28, 28]]}}",
            "image_grid_pinpoints",
            "",
        ),  # the class's for tiles has it
        ("text_models: {LlavaOursForCausalLM: lama}", "lama", "llama"),
        ("config: {text_config.model_type: {const: 5}}", "5", ""),
        ("config: {text_config.model_type: {cases: [{const: lama}]}}", "lama", "llama"),
        (
            "config: {text_config.model_type: {from: model_type, map: {llava_llama: lama}}}",
            "lama",
            "llama",
        ),
        ("config: {text_config: {const: 1}}", "text_config", ""),
        ("config: {text_config.rms_norm_eps.x: {const: 1}}", "text_config.rms_norm_eps", ""),
        (
            "config: {text_config.rope_parameters.full_attention.rope_tetha: {const: 1.0}}",
            "rope_tetha",
            "rope_theta",
        ),
        (
            "config: {text_config.rope_parameters: {const: {rope_tetha: 1.0}}}",
            "rope_tetha",
            "rope_theta",
        ),
        ("config: {text_config.rope_parameters: {const: 5}}", "text_config.rope_parameters", ""),
        ("config: {txt_config.rms_norm_eps: {const: 1}}", "txt_config", "text_config"),
        ("config: {model_type: {const: llavva}}", "target.config.model_type", ""),
        ("config: {model_type: {const: llava_next}}", "target.config.model_type", ""),
        (
            "config: {vision_config.model_type: {const: clip_vision}}",
            "vision_config.model_type",
            "clip_vision_model",
        ),
        ("config: {projector_hidden_act: {const: geluu}}", "projector_hidden_act", "gelu"),
        (
            "config: {vision_feature_select_strategy: {const: fulll}}",
            "vision_feature_select_strategy",
            "full",
        ),
        ("config: {vision_feature_layer: {const: abc}}", "vision_feature_layer", ""),
        (
            "class: LlavaForConditionalGeneratoin",
            "LlavaForConditionalGeneratoin",
            "LlavaForConditionalGeneration",
        ),
        ("class: LlavaModel", "LlavaModel", "LlavaForConditionalGeneration"),
        ("class: LlamaForCausalLM", "LlamaForCausalLM", ""),
        ("class: T5ForConditionalGeneration", "T5ForConditionalGeneration", ""),
        ("config: {}\nprocessor: {class: LlavaProcesor}", "LlavaProcesor", "LlavaProcessor"),
        (
            "config: {}\nprocessor: {image_processor: {class: ClipImageProcesor}}",
            "ClipImageProcesor",
            "CLIPImageProcessor",
        ),
        (
            "config: {}\nprocessor: {video_processor: {class: LlavaNextVideoVideoProcesor}}",
            "LlavaNextVideoVideoProcesor",
            "LlavaNextVideoVideoProcessor",
        ),
    ],
)
@pytest.mark.parametrize("command", ["apply", "lint"])
def test_what_transformers_does_not_know(
    text: str, wrong: str, meant: str, command: str, run: Run
) -> None:
    rules = mine(text)
    if command == "lint":
        ran = run("rules", "lint", rules)
    else:
        ran = run(
            "apply",
            rules,
            "--source",
            RELEASED / "safetensors",
            "--source",
            f"vision_tower={CLIP}",
            "--output",
            "out",
        )
    said = ran.out + ran.err
    assert (
        ran.code,
        "LR201" in said,
        "mine.yaml:" in said,
        f"`{wrong}`" in said,
        f"`{meant}`" in said or not meant,
    ) == (
        2,
        *4 * [True],
    )
    assert "config.json" not in said
    assert len(said) < 2500
    assert not Path("out").exists()


def test_a_key_of_the_language_model_that_is_meant() -> None:
    """Where the rule file says which it is, that one's class is asked; else any."""
    key = "text_config.attn_logit_softcapping"
    assert unknown_target(load_rule_file(mine(f"config: {{{key}: {{const: 50.0}}}}"))) == []
    rules = load_rule_file(
        mine(f"config: {{text_config.model_type: {{const: llama}}, {key}: {{const: 50.0}}}}")
    )
    assert [problem.code for problem in unknown_target(rules)] == ["LR201"]


def test_the_kind_that_the_sources_tell() -> None:
    """Keys are held against the class of that kind alone."""
    rules = load_rule_file(mine("config: {text_config.attn_logit_softcapping: {const: 50.0}}"))
    assert unknown_target(rules, "gemma2") == []
    assert [problem.code for problem in unknown_target(rules, "llama")] == ["LR201"]


def test_the_place_is_that_of_the_parts_walked() -> None:
    (problem,) = unknown_target(
        load_rule_file(mine("config: {txt_config.rms_norm_eps: {const: 1}}"))
    )
    assert "in `" not in problem.cause


def test_a_constant_that_only_these_sizes_refuse(run: Run) -> None:
    """The default config is built with it, that of the source isn't: the rule file is to be
    mended all the same.
    """
    rules = mine(
        "config: {text_config.num_attention_heads: {const: 7}, projector_hidden_act: {const: relu}}"
    )
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "safetensors",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
    )
    said = ran.out + ran.err
    assert (ran.code, "LR201" in said, "mine.yaml:7:" in said) == (2, True, True), said
    assert "config.json" not in said


def test_a_key_that_is_taken_away() -> None:
    """`const: null` takes an inherited key away, and so names one that the class needn't have."""
    assert (
        unknown_target(load_rule_file(mine("config: {image_grid_pinpoints: {const: null}}"))) == []
    )
