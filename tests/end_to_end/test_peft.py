"""Merged tensors are those of PEFT's own `merge_and_unload`: PEFT writes the adapters, too."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply
from llava_remap.jobs.apply import plan as plan_job
from tests.conftest import CLIP, RELEASED, Changed, Tensors
from tests.text_models.matrix import Own, checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # PEFT's, about what is tried on purpose

#: The modules that LLaVA's training takes.
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DIGITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}


class Tree(nn.Module):
    """Modules with the names of a checkpoint's: a linear layer for each matrix, any other tensor
    as a parameter.
    """

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, module, leaf = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, Tree({}))
                place = place.get_submodule(part)
            if module not in place._modules:
                is_linear = tensors.get(f"{name.rpartition('.')[0]}.weight", tensor).ndim == 2
                place.add_module(module, nn.Linear(1, 1, bias=False) if is_linear else Tree({}))
            setattr(
                place.get_submodule(module), leaf, nn.Parameter(tensor.clone(), requires_grad=False)
            )


def linear(tree: Tree) -> Tree:
    """With the sizes that PEFT asks of a layer."""
    for module in tree.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    return tree


def trained(tree: Tree, folder: Path, **config: Any) -> tuple[Tensors, Tensors]:
    """Let PEFT make an adapter and save it, as if it had been trained; gives what PEFT merges,
    and what it merges in float64.
    """
    model = peft.get_peft_model(
        linear(tree), peft.LoraConfig(**{"target_modules": LINEAR, **config})
    )
    draw = torch.Generator().manual_seed(3)
    for parameter in (p for _, p in sorted(model.named_parameters()) if p.requires_grad):
        parameter.data = (torch.randn(parameter.shape, generator=draw) * 0.03).to(parameter.dtype)
    model.save_pretrained(str(folder))
    torch.save(model.state_dict(), f"{folder}.whole.bin")
    exact = copy.deepcopy(model).double()
    return model.merge_and_unload().state_dict(), exact.merge_and_unload().state_dict()


def furthest(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in units in the last place of the value that is wanted, in
    float64.
    """
    assert found.shape == wanted.shape
    lowest = -24 if found.dtype == torch.float16 else -149
    exponent = torch.frexp(wanted).exponent.double() - DIGITS[found.dtype]
    return float(((found.double() - wanted).abs() / torch.exp2(exponent.clamp(min=lowest))).max())


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 16, "lora_alpha": 5, "use_rslora": True},
        {
            "r": 8,
            "lora_alpha": 16,
            "rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.up_proj": 12},
            "alpha_pattern": {r"layers\.0\..*_proj": 3, "v_proj": 40},
        },
        {
            "r": 8,
            "lora_alpha": 16,
            "use_rslora": True,
            "rank_pattern": {"k_proj": 3},
            "alpha_pattern": {"layers.1.self_attn.k_proj": 1},
        },
        {"r": 4, "fan_in_fan_out": True},
        {"r": 4, "init_lora_weights": "orthogonal", "bias": "lora_only"},
        {"r": 4, "target_modules": r".*\.(q_proj|lm_head)", "modules_to_save": ["mm_projector"]},
    ],
    ids=[
        "plain",
        "rslora",
        "patterns",
        "rslora-patterns",
        "fan-in-fan-out",
        "orthogonal",
        "modules-to-save",
    ],
)
def test_as_peft_merges(dtype: torch.dtype, config: dict[str, Any], changed: Changed) -> None:
    def cast(tensors: Tensors) -> None:
        tensors.update(
            {name: tensor.to(dtype) for name, tensor in tensors.items() if "inv_freq" not in name}
        )

    base = changed(RELEASED / "safetensors", tensors=cast)
    tensors = load_file(base / "model.safetensors")
    wanted, exact = trained(
        Tree({name: tensor for name, tensor in tensors.items() if "inv_freq" not in name}),
        Path("adapter"),
        **config,
    )
    apply("llava-v1.5", [str(base), "adapter=adapter", f"vision_tower={CLIP}"], "out")
    found = {
        name: tensor
        for file in Path("out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    plan = json.loads(Path("out/llava_remap.json").read_text())["plan"]
    taken = {e["target"]: e for e in plan["mapped"] if not e["target"].startswith("vision_tower.")}
    names = {
        target: entry["from"][0]["name"].removeprefix("base_model.model.")
        for target, entry in taken.items()
    }
    assert set(names.values()) == set(wanted)
    merged = [
        target
        for target, entry in taken.items()
        if any("add_lora" in step for step in entry["then"])
    ]
    assert (
        len(merged)
        == len([n for n in load_file("adapter/adapter_model.safetensors") if ".lora_A." in n])
        > 0
    )
    for target, name in names.items():
        tensor = found[target][: len(wanted[name])]  # new rows stand behind the old ones
        if target in merged:
            assert not torch.equal(tensor, tensors[name])
            assert furthest(tensor, exact[name]) <= 1, name
            # In float32 PEFT's own product is wrong by several last places.
            assert dtype == torch.float32 or furthest(tensor, wanted[name].double()) <= 1, name
        else:
            assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"target_modules": r".*\.(q_proj|lm_head)", "modules_to_save": ["mm_projector"]},
    ],
    ids=["plain", "rslora", "modules-to-save"],
)
def test_the_whole_state_of_a_model_that_was_not_merged(
    config: dict[str, Any], changed: Changed
) -> None:
    """Base, pairs and copies in one file: merged as PEFT merges, and of two copies of a module
    the trained one is taken.
    """
    folder = changed(RELEASED / "safetensors")
    tensors = {
        n: t for n, t in load_file(folder / "model.safetensors").items() if "inv_freq" not in n
    }
    wanted, exact = trained(Tree(tensors), Path("adapter"), r=4, lora_alpha=8, **config)
    (folder / "model.safetensors").unlink()
    state = torch.load("adapter.whole.bin")
    assert any(".base_layer." in name for name in state)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(RemapError) as caught:
        apply("llava-v1.5", [str(folder), f"vision_tower={CLIP}"], "out")
    [problem] = caught.value.problems
    assert problem.code == "LR115"
    assert "the state of a PEFT model that wasn't merged" in problem.cause
    assert (
        f"Put the adapter_config.json of the training into `{folder}`, and the pairs are merged"
        in problem.fix
    )
    shutil.copy("adapter/adapter_config.json", folder)
    apply("llava-v1.5", [str(folder), f"vision_tower={CLIP}"], "out", verify="full")
    found = {
        name: tensor
        for file in Path("out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    for name, value in wanted.items():
        if name.startswith("model.mm_projector."):
            new = name.replace("model.mm_projector.0", "multi_modal_projector.linear_1")
            new = new.replace("model.mm_projector.2", "multi_modal_projector.linear_2")
        else:
            new = f"language_model.{name}"
        assert furthest(found[new][: len(value)], exact[name]) <= 1, name
        assert (
            "modules_to_save" not in config
            or "mm_projector" not in name
            or not torch.equal(found[new], tensors[name])
        )


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_is_no_plain_lora_is_refused(config: dict[str, Any]) -> None:
    """As the installed PEFT saves it."""
    from llava_remap.checkpoint import open_checkpoint

    tensors = load_file(RELEASED / "safetensors" / "model.safetensors")
    tree = linear(
        Tree({name: tensor.float() for name, tensor in tensors.items() if "inv_freq" not in name})
    )
    embedding = nn.Embedding(320, 64)
    tree.get_submodule("model").embed_tokens = embedding
    for module in tree.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features))
    model = peft.get_peft_model(
        tree, peft.LoraConfig(**{"target_modules": LINEAR, "r": 4, **config})
    )
    model.save_pretrained("adapter")
    with pytest.raises(RemapError) as caught:
        open_checkpoint(Path("adapter"), part=True)
    assert {problem.code for problem in caught.value.problems} == {"LR115"}


@pytest.mark.parametrize("module", ["attn.c_proj", "attn.c_attn"], ids=["square", "not square"])
def test_a_pair_of_a_transposed_matrix_is_refused(module: str) -> None:
    """PEFT adds the transposed product to GPT-2's Conv1D; of a square one no shape shows it."""
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    checkpoint(Own("gpt2", model, (), ()), Path("base"))
    peft.get_peft_model(
        model, peft.LoraConfig(target_modules=[module], r=4, fan_in_fan_out=True)
    ).save_pretrained("adapter")
    job = plan_job(
        "llava-v1.5", ["base", "adapter=adapter", f"vision_tower={CLIP}"], "out", dry_run=True
    )
    assert [(problem.code, len(problem.names)) for problem in job.plan.problems] == [("LR115", 2)]
