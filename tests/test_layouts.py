"""The layouts: each is a rule file to classic names, and what transformers says of its own modules is the judge."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import load_rule_file, shipped_folder
from llava_remap.target import wanted_parameters
from tests.test_expected import expected


def layout(name: str) -> dict[str, str]:
    """Module names of a small LLaVA in the installed transformers, to what a layout makes of them."""
    program = compile_rules(load_rule_file(shipped_folder() / "layouts" / f"{name}.yaml"))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=LlamaConfig(**small), vision_config=SiglipVisionConfig(**small, image_size=28, patch_size=14)
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return {name: str(program.rewrite(name).target) for name in model.state_dict()}


def test_module_names_of_the_installed_transformers_are_known() -> None:
    names = layout("module-5.6")
    assert "None" not in names.values()
    assert len(set(names.values())) == len(names)
    assert names["model.vision_tower.head.probe"] == "vision_tower.vision_model.head.probe"
    assert names["lm_head.weight"] == "language_model.lm_head.weight"


def test_classic_names_stay() -> None:
    program = compile_rules(load_rule_file(shipped_folder() / "layouts" / "classic.yaml"))
    for name in expected("llava-v1.5-7b")["target"]:
        assert program.rewrite(name).target == name


@pytest.mark.parametrize("heads", [16, 8])
def test_wanted_parameters_are_those_of_the_official_converter(heads: int) -> None:
    """Names and shapes of the class, in the classic layout, at full size; the number of heads is in no shape."""
    config = {
        "model_type": "llava",
        "text_config": LlamaConfig(hidden_size=4096, intermediate_size=11008, vocab_size=32000).to_dict(),
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
    assert {name: list(shape) for name, shape in wanted.shapes.items()} == expected("llava-v1.5-7b")["target"]
    assert wanted.tied == {}
