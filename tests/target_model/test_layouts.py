"""The layouts: each is a rule file to classic names, and what transformers says of its own
modules is the judge.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from llava_remap.rewrite import Program, compile_rules
from llava_remap.rulefile import load_rule_file, shipped_folder
from llava_remap.target_model import wanted_parameters
from tests.conftest import DATA
from tests.end_to_end.test_expected import expected

LAYOUTS = sorted(path.stem for path in (shipped_folder() / "layouts").glob("*.yaml"))


def layout(name: str) -> dict[str, str]:
    """Module names of a small LLaVA in the installed transformers, to what a layout makes of
    them.
    """
    rules = program(name)
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlavaConfig(
        text_config=LlamaConfig(**small),
        vision_config=SiglipVisionConfig(**small, image_size=28, patch_size=14),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return {name: str(rules.rewrite(name).target) for name in model.state_dict()}


def test_module_names_of_the_installed_transformers_are_known() -> None:
    names = layout("module-5.6")
    assert "None" not in names.values()
    assert len(set(names.values())) == len(names)
    assert names["model.vision_tower.head.probe"] == "vision_tower.vision_model.head.probe"
    assert names["lm_head.weight"] == "language_model.lm_head.weight"


@cache
def program(name: str) -> Program:
    return compile_rules(load_rule_file(shipped_folder() / "layouts" / f"{name}.yaml"))


def takes_all(layout: str, names: Collection[str]) -> bool:
    return all(program(layout).rewrite(name).target is not None for name in names)


@pytest.mark.parametrize(
    "checkpoint", sorted(path.stem for path in (DATA / "expected").glob("*.json"))
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_the_same(layout: str, checkpoint: str) -> None:
    """Every parameter of every class at full size: classic to a layout and back; no other layout
    takes what was made.
    """
    classic = expected(checkpoint)["target"]
    there = {name: program(layout).inverse(name) for name in classic}
    written = {str(name) for name in there.values()}
    assert None not in there.values()
    assert len(written) == len(classic)
    assert {name: program(layout).rewrite(str(made)).target for name, made in there.items()} == {
        name: name for name in classic
    }
    assert [other for other in LAYOUTS if takes_all(other, written)] == [layout]
    assert (there == {name: name for name in classic}) == (layout == "classic")


def test_the_mixture_as_it_was_seen_on_disk() -> None:
    """What 5.4.0 and 5.5.4 saved, spelt out by hand."""
    names = {
        "language_model.lm_head.weight": "language_model.lm_head.weight",
        "model.image_newline": "image_newline",
        "model.language_model.model.layers.0.mlp.up_proj.weight": "language_model.model.layers.0.mlp.up_proj.weight",  # noqa: E501
        "model.video_tower.vision_model.pre_layrnorm.bias": "video_tower.vision_model.pre_layrnorm.bias",  # noqa: E501
    }
    assert {name: program("mixed-5.4").rewrite(name).target for name in names} == names


@pytest.mark.parametrize("heads", [16, 8])
def test_wanted_parameters_are_those_of_the_official_converter(heads: int) -> None:
    """Names and shapes of the class, in the classic layout, at full size; the number of heads is
    in no shape.
    """
    config = {
        "model_type": "llava",
        "text_config": LlamaConfig(
            hidden_size=4096, intermediate_size=11008, vocab_size=32000
        ).to_dict(),
        "vision_config": CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=heads,
            image_size=336,
            patch_size=14,
        ).to_dict(),
    }
    wanted = wanted_parameters("LlavaForConditionalGeneration", config)
    assert {name: list(shape) for name, shape in wanted.shapes.items()} == expected(
        "llava-v1.5-7b"
    )["target"]
    assert wanted.tied == {}
