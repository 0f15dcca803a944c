"""The language model: its kind, the keys of the config that are carried over, and those that can't
be. transformers itself is the oracle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import plan
from llava_remap.target_model import SCALED_PICTURES
from llava_remap.target_model.text_kind import class_names, text_kind
from llava_remap.target_model.text_model import TextModel, read_text_model
from tests.conftest import CLIP, RELEASED, Changed, Run
from tests.text_models.matrix import Own, checkpoint

LLAVA = "LlavaForConditionalGeneration"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
}
SOURCE = RELEASED / "safetensors"


def read(
    said: str | None = None, forks: dict[str, str] | None = None, target: str = LLAVA, **config: Any
) -> TextModel:
    return read_text_model({**SIZES, **config}, target, forks or {}, said)


@pytest.mark.parametrize(
    ("config", "kind", "known_by"),
    [
        ({"model_type": "mistral"}, "mistral", ""),
        ({"architectures": ["Qwen2ForCausalLM"]}, "qwen2", ""),
        ({"architectures": ["GPT2LMHeadModel"]}, "gpt2", ""),
        ({"architectures": ["LlavaGemma2ForCausalLM"]}, "gemma2", "LlavaGemma2ForCausalLM"),
        (
            {"architectures": ["LlavaGemmaForCausalLM"], "model_type": "llava_gemma"},
            "gemma",
            "llava_gemma",
        ),
        (
            {"architectures": ["MobileLlamaForCausalLM"], "model_type": "mobilevlm"},
            "llama",
            "MobileLlamaForCausalLM",
        ),
        (
            {"architectures": ["BunnyPhi3ForCausalLM"], "model_type": "bunny-phi3"},
            "phi3",
            "bunny-phi3",
        ),
        ({"architectures": ["LlavaStableLMForCausalLM"]}, "stablelm", "LlavaStableLMForCausalLM"),
        (
            {"architectures": ["LlavaGPTNeoXForCausalLM"], "model_type": "llava_gpt_neox"},
            "gpt_neox",
            "llava_gpt_neox",
        ),
        (
            {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava"},
            "llama",
            "LlavaLlamaForCausalLM",
        ),
    ],
)
def test_the_kind_comes_from_the_config(config: dict[str, Any], kind: str, known_by: str) -> None:
    found = read(**config)
    assert (found.kind, found.known_by) == (kind, known_by)
    assert (
        found.config["architectures"][0]
        == transformers.AutoModelForCausalLM._model_mapping[type(build(kind))].__name__
    )


@pytest.mark.parametrize(("kind", "name"), class_names().items(), ids=class_names())
def test_type_and_class_as_transformers_saves_them(kind: str, name: str) -> None:
    """Several kinds may have one class: InternLM 3 has Llama's."""
    assert text_kind({"model_type": kind, "architectures": [name]}, {}, None) == (kind, "")


def build(kind: str, **values: Any) -> Any:
    return transformers.CONFIG_MAPPING[kind](**values)


def test_what_research_code_derives_from() -> None:
    assert (
        read(forks={"LlavaQwenForCausalLM": "qwen2"}, architectures=["LlavaQwenForCausalLM"]).kind
        == "qwen2"
    )
    assert read(forks={"llava_qwen": "qwen2"}, model_type="llava_qwen").kind == "qwen2"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "neither model_type nor architectures"),
        (
            {"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"},
            "`llava_qwen`, `LlavaQwenForCausalLM`",
        ),
        (
            {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "mistral"},
            "contradicts itself",
        ),
        (
            {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_gemma"},
            "contradicts itself",
        ),
        (
            {"architectures": ["AdoptForCausalLM"]},
            "doesn't tell",
        ),  # it ends in "opt", but only as part of another word
    ],
)
def test_what_cannot_be_known_is_refused_with_the_line_to_write(
    config: dict[str, Any], words: str
) -> None:
    with pytest.raises(RemapError) as refused:
        read(**config)
    [problem] = refused.value.problems
    assert problem.code == "LR112"
    assert words in problem.cause
    line = (
        "text_models: {"
        if "contradicts" in words
        else "config: {text_config.model_type: {const: TYPE}}"
    )
    assert f"`target: {{{line}" in problem.fix


def test_a_rule_file_that_names_another_one() -> None:
    assert read("qwen2", architectures=["LlavaQwenForCausalLM"]).kind == "qwen2"
    with pytest.raises(
        RemapError,
        match=r"says that the language model is llama, but .*`LlavaGemmaForCausalLM` is gemma",
    ) as refused:
        read("llama", architectures=["LlavaGemmaForCausalLM"])
    assert "text_models: {LlavaGemmaForCausalLM: llama}" in refused.value.problems[0].fix
    assert (
        read(
            "llama", {"LlavaGemmaForCausalLM": "llama"}, architectures=["LlavaGemmaForCausalLM"]
        ).kind
        == "llama"
    )
    with pytest.raises(RemapError, match="Did you mean `qwen3`"):
        read("qwen33", architectures=["LlavaQwenForCausalLM"])


def test_every_key_that_the_class_knows_is_carried() -> None:
    """As the class itself keeps them, in its own names and in those of the keys that it renames."""
    said: dict[str, Any] = {
        "query_pre_attn_scalar": 4,
        "attn_logit_softcapping": 2.0,
        "sliding_window": 16,
        "head_dim": 16,
        "hidden_activation": "gelu",
    }
    found = read(model_type="gemma2", **said)
    assert found.unknown == ()
    again = build(
        "gemma2",
        **{
            key: value
            for key, value in found.config.items()
            if key not in ("architectures", "model_type")
        },
    )
    whole = build("gemma2", **SIZES, **said)
    assert {**again.to_dict(), "vocab_size": 320} == whole.to_dict()
    named = read_text_model(
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320},
        LLAVA,
        {},
    )
    assert (named.config["n_embd"], named.config["n_layer"]) == (64, 2)


def test_the_classs_own_defaults_count() -> None:
    """Gemma ties its head, and its config.json doesn't say so."""
    assert read(model_type="gemma").config["tie_word_embeddings"] is True
    assert read(model_type="llama").config["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("config", "old"),
    [
        ({"model_type": "llama", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": None},
        ),
        (
            {
                "model_type": "phi",
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e5,
                    "partial_rotary_factor": 0.25,
                },
            },
            {"rope_theta": 5e5, "partial_rotary_factor": 0.25},
        ),
        (
            {
                "model_type": "gpt_neox",
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e5,
                    "partial_rotary_factor": 0.5,
                },
            },
            {"rotary_emb_base": 5e5, "rotary_pct": 0.5},
        ),
        (
            {"model_type": "gpt_neox", "rotary_emb_base": 5e5, "rotary_pct": 0.5},
            {"rotary_emb_base": 5e5, "rotary_pct": 0.5},
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                },
            },
            {
                "rope_theta": 5e5,
                "rope_local_base_freq": 500.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
)
def test_rope_is_said_in_the_keys_of_both_generations(
    config: dict[str, Any], old: dict[str, Any]
) -> None:
    found = read(**config)
    assert found.unknown == ()
    assert {key: found.config[key] for key in old} == old
    with_old = build(found.kind, **SIZES, **old)
    assert found.config["rope_parameters"] == with_old.rope_parameters


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "gemma2", "head_dim": 16}, "final_logit_softcapping 30.0"),
        ({"model_type": "cohere"}, "logit_scale 0.0625"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "logits_scaling 8.0"),
        ({"model_type": "phi"}, "lm_head.bias"),
        (
            {"model_type": "minicpm3"},
            "dim_model_base 256",
        ),  # it multiplies the rows of a table by a buffer of integers
        ({"model_type": "bert", "tie_word_embeddings": False}, "BertModel"),
        (
            {"model_type": "falcon", "tie_word_embeddings": True},
            "ties its head to `word_embeddings.weight`",
        ),
    ],
)
@pytest.mark.parametrize(
    "target", [LLAVA, "LlavaNextForConditionalGeneration", "LlavaOnevisionForConditionalGeneration"]
)
def test_what_the_class_leaves_out_is_named(
    config: dict[str, Any], named: str, target: str
) -> None:
    assert named in read(target=target, **config).differs


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "granite"},
        {"model_type": "gemma2", "final_logit_softcapping": None, "head_dim": 16},
    ],
)
def test_what_has_no_effect_is_no_difference(config: dict[str, Any]) -> None:
    assert read(**config).differs == ""


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_thta": 3000.0}},
            "rope_parameters.rope_thta: 3000.0",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}},
            "rope_scaling.alpha: 1000.0",
        ),
    ],
)
def test_a_key_inside_rope_that_nobody_knows(rope: dict[str, Any], named: str) -> None:
    """transformers passes over it, with a warning at the most."""
    with pytest.raises(RemapError, match=rf"{named}, which LlamaConfig") as caught:
        read(model_type="llama", **rope)
    assert [problem.code for problem in caught.value.problems] == ["LR112"]


def test_keys_inside_rope_that_a_class_alone_knows() -> None:
    rope = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 1.0,
        "alpha": 1000.0,
        "mscale": None,
    }
    assert (
        read(model_type="hunyuan_v1_dense", rope_parameters=rope, head_dim=16).config[
            "rope_parameters"
        ]["alpha"]
        == 1000.0
    )
    layers = {
        kind: {"rope_type": "default", "rope_theta": 5000.0}
        for kind in ("full_attention", "sliding_attention")
    }
    assert read(model_type="gemma3_text", rope_parameters=layers, head_dim=16).kind == "gemma3_text"


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        (
            "gpt_neox",
            {
                "rotary_pct": 0.5,
                "rotary_emb_base": 5000,
                "partial_rotary_factor": 0.5,
                "rope_theta": 5000,
            },
        ),
        (
            "apertus",
            {
                "rope_theta": 777.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                },
            },
        ),
    ],
)
def test_all_keys_of_rope_that_older_versions_write(kind: str, rope: dict[str, Any]) -> None:
    """Some say one thing twice; some count only beside another."""
    found = read(model_type=kind, **rope)
    assert (found.unknown, found.config["rope_parameters"]["rope_theta"]) == (
        (),
        rope["rope_theta"],
    )


def test_one_thing_said_twice_and_differently() -> None:
    assert read(model_type="gpt_neox", rotary_emb_base=5000, rope_theta=10000).unknown == (
        "rope_theta",
    )


def test_sizes_that_are_not_said() -> None:
    """The class's default would take their place, and the number of heads shows in no shape."""
    with pytest.raises(RemapError, match="has no num_attention_heads"):
        read(model_type="llama", num_attention_heads=None)


def apply(source: Path, run: Run, *more: str) -> Any:
    return run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
        *more,
    )


def test_a_key_that_nobody_knows(changed: Changed, run: Run) -> None:
    source = changed(
        SOURCE,
        config=lambda c: c.update(
            residual_scale=0.5, mm_of_mine=3, mm_projector_lr=1e-5, unset=None
        ),
    )
    ran = apply(source, run)
    assert (ran.code, "LR112" in ran.out) == (3, True)
    assert "residual_scale: 0.5" in ran.out
    assert "`config_keys: {residual_scale: unused}`" in ran.out
    assert "unset" not in ran.out
    own = Path("own.yaml")
    own.write_text(
        "schema: 1\nname: own\nversion: 1.0.0\nsummary: own\nextends: [llava-v1.5.yaml]\n"
        "config_keys: {residual_scale: unused}\n"
    )
    ran = run(
        "apply", own, "--source", source, "--source", f"vision_tower={CLIP}", "--output", "out"
    )
    assert ran.code == 0, ran.err
    assert "LR318" in ran.out
    assert "mm_of_mine: 3" in ran.out
    assert "mm_projector_lr" not in ran.out


def test_a_config_of_its_own_inside(changed: Changed, run: Run) -> None:
    """As TinyLLaVA Factory writes it. The tower that is inside too, with nothing but its type,
    is the one that is given.
    """

    def nest(config: dict[str, Any]) -> None:
        own = [
            key
            for key in config
            if key.startswith("mm_") or key in ("image_aspect_ratio", "transformers_version")
        ]
        text = {key: config.pop(key) for key in [*config] if key not in own} | {
            "model_type": "llama",
            "rms_norm_eps": 1e-4,
        }
        text["architectures"] = ["LlamaForCausalLM"]
        config |= {
            "architectures": ["TinyLlavaForConditionalGeneration"],
            "model_type": "tinyllava",
            "hidden_size": 64,
        }
        config |= {"text_config": text, "vision_config": {"model_type": "clip_vision_model"}}

    ran = apply(changed(SOURCE, config=nest), run)
    assert ran.code == 0, ran.err
    text = json.loads(Path("out/config.json").read_text())["text_config"]
    assert (text["model_type"], text["rms_norm_eps"], text["architectures"]) == (
        "llama",
        1e-4,
        ["LlamaForCausalLM"],
    )


@pytest.mark.parametrize(
    ("outside", "said"),
    [
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps: 0.01 around it and 1e-06 inside"),
        ({"rope_theta": 5e5}, "rope_theta: 500000.0 around it and 10000.0 inside"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' around it and 'silu' inside"),
    ],
)
def test_what_stands_around_counts_for_nothing_inside(outside: dict[str, Any], said: str) -> None:
    """The research code builds the language model from its own config: what that leaves out is
    the class's default.
    """
    inner = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "vocab_size": 320,
    }  # sizes equal to the default are left out too
    assert read_text_model(
        inner, LLAVA, {}, None, {"hidden_size": 64, "mm_hidden_size": 32}
    ).unknown == ("mm_hidden_size",)
    with pytest.raises(RemapError) as refused:
        read_text_model(inner, LLAVA, {}, None, outside)
    assert said in refused.value.problems[0].cause


def test_rope_said_twice() -> None:
    """As this tool itself writes it, for both generations; but not differently."""
    new = {"rope_type": "default", "rope_theta": 5e5}
    assert (
        read(model_type="llama", rope_parameters=new, rope_theta=5e5, rope_scaling=None).unknown
        == ()
    )
    with pytest.raises(RemapError, match="contradicts itself on rope"):
        read(model_type="llama", rope_parameters=new, rope_theta=7777.0)


def test_one_line_overrules_what_names_end_in() -> None:
    names: dict[str, Any] = {"architectures": ["LlavaPhiForCausalLM"], "model_type": "llava_phi"}
    assert read(**names).kind == "phi"
    assert read(forks={"LlavaPhiForCausalLM": "phi3"}, **names).kind == "phi3"
    assert read(forks={"llava_phi": "phi3"}, **names).kind == "phi3"
    with pytest.raises(RemapError) as refused:
        read("phi3", **names)
    assert (
        "text_models: {llava_phi: phi3, LlavaPhiForCausalLM: phi3}" in refused.value.problems[0].fix
    )


def test_older_versions_are_told_in_their_own_names() -> None:
    """4.x reads `num_experts` and no other name; Phi-3's class there takes three keys of
    longrope and no more.
    """
    found = read(model_type="qwen3_moe", num_experts=4, head_dim=16)
    assert (found.config["num_experts"], found.config["num_local_experts"]) == (4, 4)
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    scaling = {"type": "longrope", **factors}
    config = read(
        model_type="phi3",
        rope_scaling=scaling,
        original_max_position_embeddings=128,
        max_position_embeddings=256,
    ).config
    assert config["rope_scaling"] == scaling
    assert config["rope_parameters"]["rope_type"] == "longrope"


def with_rules(line: str, run: Run, source: Path = SOURCE) -> Any:
    rules = Path("own.yaml")
    rules.write_text(
        "schema: 1\nname: own\nversion: 1.0.0\nsummary: own\nextends: [llava-v1.5.yaml]\n"
        f"target: {{config: {{{line}}}}}\n"
    )
    return run(
        "apply", rules, "--source", source, "--source", f"vision_tower={CLIP}", "--output", "out"
    )


@pytest.mark.parametrize(
    "key", ["text_config.rope_theta", "text_config.rope_parameters.rope_theta"]
)
def test_a_rule_files_own_value_is_said_to_both_generations(key: str, run: Run) -> None:
    ran = with_rules(f"{key}: {{const: 777.0}}", run)
    assert ran.code == 0, ran.out
    text = json.loads(Path("out/config.json").read_text())["text_config"]
    assert (text["rope_theta"], text["rope_parameters"]["rope_theta"]) == (777.0, 777.0)


def test_a_rule_files_own_value_is_tried_like_any_other(run: Run, changed: Changed) -> None:
    source = changed(
        SOURCE,
        config=lambda c: c.update(architectures=["GraniteForCausalLM"], model_type="granite"),
    )
    ran = with_rules("text_config.logits_scaling: {const: 4.0}", run, source)
    assert (ran.code, "LR314" in ran.out, "logits_scaling 4.0" in ran.out) == (1, True, True)


def test_a_kind_known_by_its_name_is_told(changed: Changed, run: Run) -> None:
    ran = apply(
        changed(SOURCE, config=lambda c: c.update(architectures=["OursLlamaForCausalLM"])), run
    )
    assert ran.code == 0, ran.err
    assert "LR319" in ran.out
    assert "`OursLlamaForCausalLM`" in ran.out
    assert "LR319" not in apply(SOURCE, run, "--output", "other").out


@pytest.mark.parametrize("kind", ["gemma", "gemma3_text"])
def test_a_scale_of_pictures_that_differs_between_versions_is_told(
    kind: str, tmp_path: Path
) -> None:
    """The table of words scales them in both kinds; up to transformers 5.0, Gemma's model scaled
    pictures as well.
    """
    model = transformers.AutoModelForCausalLM.from_config(build(kind, **SIZES, head_dim=16))
    table, ids = model.get_input_embeddings(), torch.arange(8)
    assert not torch.equal(table(ids), table.weight[ids])
    assert (kind in SCALED_PICTURES) == (kind == "gemma")
    source = checkpoint(Own(kind, model, (), ()), tmp_path / "source")
    job = plan("llava-v1.5", [source, f"vision_tower={CLIP}"], tmp_path / "out", dry_run=True)
    assert job.plan.complete, job.plan.problems
    told = [
        note.cause for note in job.plan.notes if note.code == "LR319" and "pictures" in note.cause
    ]
    assert len(told) == (kind == "gemma")
