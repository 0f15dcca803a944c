"""What is less than a checkpoint, or in parts, is told with the command that works: each one is
run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import CLIP, RELEASED, TINY, Ran, Run, Tensors

LORA, PRETRAINED = TINY / "llava-v1.5-lora", TINY / "llava-v1.5" / "pretrain_projector_only"
LLAVA = RELEASED / "safetensors"
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}

#: The folders of a model in parts: for the language model, the tower and the projector, and how the
#: projector's names begin.
LAYOUTS = {
    "VILA": ("llm", "vision_tower", "mm_projector", "layers."),
    "xtuner": ("llm", "visual_encoder", "projector", "model."),
    "TinyLLaVA": ("language_model", "vision_tower", "connector", "_connector."),
}


def told(ran: Ran) -> str:
    return re.sub(r"\s+", " ", ran.out + ran.err)


def command(ran: Ran) -> list[str]:
    """The arguments of the last command that was printed, for its dry run."""
    [*_, found] = re.findall(r"llava-remap (apply .+)", ran.out + ran.err)
    found = found.replace("vision_tower=DIR", f"vision_tower={CLIP}")
    return [*shlex.split(found), "--output", "new"]


def saved(
    path: Path, tensors: Tensors, config: Mapping[str, Any] | None = None, tokenizer: bool = False
) -> Path:
    path.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path / "model.safetensors",
        {"format": "pt"},
    )
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for file in TOKENIZER if tokenizer else ():
        shutil.copy(LLAVA / file, path)
    return path


@pytest.fixture(scope="module")
def whole() -> Tensors:
    return {
        name: t
        for name, t in load_file(LLAVA / "model.safetensors").items()
        if "inv_freq" not in name
    }


def text_config() -> dict[str, Any]:
    config = json.loads((LLAVA / "config.json").read_text())
    return {
        key: value
        for key, value in config.items()
        if "mm_" not in key and key != "image_aspect_ratio"
    } | LLAMA


def in_parts(top: Path, layout: str, whole: Tensors, *, model_on_top: bool = False) -> Path:
    llm, tower, projector, prefix = LAYOUTS[layout]
    text = {name: tensor for name, tensor in whole.items() if "mm_projector" not in name}
    saved(top if model_on_top else top / llm, text, text_config(), tokenizer=True)
    shutil.copytree(CLIP, top / tower)
    saved(
        top / projector,
        {
            prefix + name.split("mm_projector.")[1]: t
            for name, t in whole.items()
            if "mm_projector" in name
        },
    )
    if not model_on_top:
        (top / "config.json").write_text(
            json.dumps({"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama"})
        )
    return top


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_of_the_projector_alone(
    layout: str, whole: Tensors, run: Run, tmp_path: Path
) -> None:
    """Its names are those of its layers. It isn't taken for a model that lacks the rest."""
    projector = in_parts(tmp_path / "parts", layout, whole) / LAYOUTS[layout][2]
    found = told(run("inspect", projector))
    assert f"convert {projector} --source model=DIR --source vision_tower=DIR" in found
    refused = run("apply", "llava-v1.5", "--source", projector)
    assert (refused.code, "LR108" in refused.err) == (3, True)
    sources = (f"model={LLAVA}", f"projector={projector}", f"vision_tower={CLIP}")
    options = [option for source in sources for option in ("--source", source)]
    assert run("apply", "llava-v1.5", *options, "--output", "new").code == 0


def test_a_tower_with_names_that_nothing_knows(whole: Tensors, run: Run, tmp_path: Path) -> None:
    """No rule file is said to take every name, and the one that is named agrees with the config."""
    top = in_parts(tmp_path / "parts", "TinyLLaVA", whole)
    tower = top / "vision_tower" / "model.safetensors"
    named = {f"_vision_tower.{name}": tensor for name, tensor in load_file(tower).items()}
    save_file(named, tower, {"format": "pt"})
    ran = run("inspect", top)
    assert (ran.code, "takes every name" in ran.out) == (0, False)
    assert "llava-v1.5: doesn't fit, maps 25 of " in ran.out
    assert ran.out.index("llava-v1.5:") < ran.out.index("bakllava:")


def test_tinyllava_in_one_file(whole: Tensors, run: Run, tmp_path: Path) -> None:
    """A part of its names are those of a layout of transformers; it is no model of transformers
    for that, and the rule file that is inferred takes all of its names.
    """
    tower = load_file(CLIP / "model.safetensors")
    tensors = {
        f"vision_tower._vision_tower.{name}": tensor
        for name, tensor in tower.items()
        if name.startswith("vision_model.")
    }
    for name, tensor in whole.items():
        text, _, layer = name.partition("model.mm_projector.")
        tensors[f"connector._connector.{layer}" if layer else f"language_model.{text}"] = tensor
    config = json.loads((LLAVA / "config.json").read_text())
    config |= {"architectures": ["TinyLlavaForConditionalGeneration"], "model_type": "tinyllava"}
    source = saved(tmp_path / "tiny", tensors, config)
    for ran in (run("inspect", source), run("apply", "llava-v1.5", "--source", source)):
        assert "hf-layouts --source" not in told(ran)
        [new] = re.findall(r"llava-remap (rules new .+)", ran.out + ran.err)
    drafted = told(run(*shlex.split(new)))
    assert "LR112" in drafted
    assert "LR301" not in drafted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_for_each_part(layout: str, whole: Tensors, run: Run, tmp_path: Path) -> None:
    top = in_parts(tmp_path / "it's in parts", layout, whole)
    ran = run("inspect", top)
    assert (ran.code, "llava-v1.5: fits" in ran.out) == (0, True)
    assert run(*command(ran)).code == 0
    found = {
        name: tensor
        for file in Path("new").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    for layer, new in (("0", "linear_1"), ("2", "linear_2")):
        assert torch.equal(
            found[f"multi_modal_projector.{new}.weight"],
            whole[f"model.mm_projector.{layer}.weight"],
        )
    refused = run("apply", "llava-v1.5", "--source", top)
    [options] = re.findall(r"Give each part as its source: (.+)", refused.err)
    assert refused.code == 3
    assert run("apply", "llava-v1.5", *shlex.split(options), "--output", "again").code == 0


def test_parts_beside_a_model_on_top(whole: Tensors, run: Run, tmp_path: Path) -> None:
    """As xtuner writes a language model that was trained in full."""
    top = in_parts(tmp_path / "xtuner", "xtuner", whole, model_on_top=True)
    ran = run("inspect", top)
    assert ran.code == 0
    assert run(*command(ran)).code == 0


def test_parts_that_no_rule_file_takes_together(whole: Tensors, run: Run, tmp_path: Path) -> None:
    top = in_parts(tmp_path / "parts", "VILA", whole)
    shutil.rmtree(top / "mm_projector")
    saved(
        top / "mm_projector",
        {"layers.1.weight": torch.ones(4), "layers.2.weight": torch.ones(4, 4)},
    )
    ran = run("inspect", top)
    assert (ran.code, "fits," in ran.out) == (0, False)
    parts = (
        f"--from model={top}/llm --from projector={top}/mm_projector --from "
        f"vision_tower={top}/vision_tower"
    )
    assert (
        f"llava-remap rules new {parts} --to LlavaForConditionalGeneration --output mine.yaml"
        in told(ran)
    )


def test_an_adapter_says_its_rule_file_and_command(run: Run) -> None:
    ran = run("inspect", LORA)
    assert (ran.code, "14 LoRA pairs of rank 4, scaled by 2" in ran.out) == (0, True)
    assert "llava-v1.5: takes it" in ran.out
    assert "fits," not in ran.out  # the model that it belongs to isn't here
    assert "llava-next: takes it" not in ran.out
    wanted = command(ran)
    assert wanted[:6] == [
        "apply",
        "llava-v1.5",
        "--source",
        "model=DIR",
        "--source",
        f"adapter={LORA}",
    ]
    wanted[3] = f"model={LLAVA}"
    assert run(*wanted).code == 0


def test_an_adapter_whose_base_is_here_is_planned_with_it(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(LORA, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    full = tmp_path / "base"
    shutil.copytree(TINY / "llava-v1.5" / "full_state_dict", full)
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(full)})
    )
    (full / "config.json").write_text((LLAVA / "config.json").read_text())
    ran = run("inspect", folder)
    assert f"--source model={full} --source adapter={folder}" in ran.out
    assert ("llava-v1.5: fits" in ran.out) is (run(*command(ran)).code == 0)


def test_a_projector_says_its_rule_file_and_command(run: Run) -> None:
    ran = run("inspect", PRETRAINED)
    assert (ran.code, "llava-v1.5: takes it" in ran.out) == (0, True)
    wanted = command(ran)
    assert wanted[:6] == [
        "apply",
        "llava-v1.5",
        "--source",
        "model=DIR",
        "--source",
        f"projector={PRETRAINED}",
    ]
    wanted[3] = f"model={LLAVA}"
    assert run(*wanted).code == 0


def test_a_projector_beside_which_the_missing_part_lies(
    whole: Tensors, run: Run, tmp_path: Path
) -> None:
    """The refusal of a model without its projector names the folder in which one lies."""
    top = in_parts(tmp_path / "xtuner", "xtuner", whole, model_on_top=True)
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        top,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "new",
    )
    assert ran.code != 0
    assert f"--source projector={top}/projector" in told(ran)


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [
        ("LlavaLlamaForCausalLM", "llava-v1.5"),
        ("Share4VLlamaForCausalLM", "sharegpt4v"),
        ("LlavaMistralForCausalLM", "bakllava"),
    ],
)
def test_of_rule_files_that_know_as_many_names_the_config_says_the_nearest(
    architecture: str, nearest: str, whole: Tensors, run: Run, tmp_path: Path
) -> None:
    config = {**json.loads((LLAVA / "config.json").read_text()), "architectures": [architecture]}
    folder = saved(tmp_path / "in", {**whole, "model.own_part.weight": torch.ones(2)}, config)
    ran = run("inspect", folder)
    assert ran.code == 0
    [first, *_] = re.findall(r"^  ([\w.-]+): doesn't fit", ran.out, re.MULTILINE)
    assert first == nearest


def test_zero_3_stubs_beside_the_files_that_have_the_values(run: Run, tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", {"model.norm.weight": torch.empty(0)}, text_config())
    (folder / "global_step9").mkdir()
    for what in ("model", "optim"):
        (folder / "global_step9" / f"zero_pp_rank_0_mp_rank_00_{what}_states.pt").touch()
    (folder / "latest").write_text("global_step9")
    (folder / "zero_to_fp32.py").write_text("output_dir")
    ran = run("apply", "llava-v1.5", "--source", folder)
    assert (ran.code, "LR104" in told(ran)) == (1, True)
    assert f"or its index: cd {folder} && python zero_to_fp32.py . ." in told(ran)
