"""LLaVA-1.5 with fused, turned and divided matrices, made of the genuine checkpoint by torch, and
rule files for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import CLIP, RELEASED, Tensors

PLAIN = RELEASED / "safetensors"

RULES = """\
schema: 1
name: fused
version: 1.0.0
summary: LLaVA-1.5 with fused and turned matrices
extends: [llava-v1.5]
tensors:
  - id: qkv
    from: '{m...}.wqkv.weight'
    to: ['{m}.q_proj.weight', '{m}.k_proj.weight', '{m}.v_proj.weight']
    how: {view: [groups, '*', size], split: 1}
    let: {groups: target.text_config.num_key_value_heads, size: target.text_config.head_dim}
  - id: gate-up
    from: '{m...}.gate_up.weight'
    to: ['{m}.gate_proj.weight', '{m}.up_proj.weight']
    how: {view: ['*', 2], unstack: 1}
  - {id: down, from: '{m...}.down_proj.weight', to: '{m}.down_proj.weight', how: {axes: [1, 0]}}
  - id: output
    from: '{m...}.o_proj.weight'
    to: '{m}.o_proj.weight'
    how: {view: [heads, '*', 2], axes: [0, 2, 1]}
    let: {heads: target.text_config.num_attention_heads}
"""
#: The beginning of a rule file with other operations.
HEAD = RULES.split("tensors:")[0] + "tensors:\n"


def weights(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def fused(tensors: Tensors, heads: int) -> Tensors:
    """The tensors as a toolkit that fuses matrices would store them."""
    made: Tensors = {}
    for name, value in tensors.items():
        if not name.startswith("model.layers.") or "inv_freq" in name:
            made[name] = value
        elif "q_proj" in name:
            kinds = [tensors[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            width = value.shape[1]
            grouped = [kind.view(heads, -1, width) for kind in kinds]
            made[name.replace("q_proj", "wqkv")] = torch.cat(grouped, 1).reshape(-1, width)
        elif "gate_proj" in name:
            up = tensors[name.replace("gate", "up")]
            made[name.replace("gate_proj", "gate_up")] = torch.stack([value, up], 1).flatten(0, 1)
        elif "down_proj" in name:
            made[name] = value.T.contiguous()
        elif "o_proj" in name:
            halves = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2)
            made[name] = halves.reshape(value.shape).contiguous()
        elif not any(kind in name for kind in ("k_proj", "v_proj", "up_proj")):
            made[name] = value
    return made


def fused_checkpoint(folder: Path) -> Path:
    """LLaVA-1.5 as `RULES` take it."""
    heads = json.loads((PLAIN / "config.json").read_text())["num_attention_heads"]
    return stored(folder, fused(weights(PLAIN), heads))


def changed_checkpoint(folder: Path, change: Callable[[Tensors], object]) -> Path:
    """LLaVA-1.5 without its buffers, with its tensors changed."""
    tensors = {name: value for name, value in weights(PLAIN).items() if "inv_freq" not in name}
    change(tensors)
    return stored(folder, tensors)


def stored(folder: Path, tensors: Tensors) -> Path:
    """A checkpoint with these tensors, and what lies beside the weights of the genuine one."""
    shutil.copytree(PLAIN, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return folder


def sources(model: Path) -> dict[str, str]:
    return {"model": str(model), "vision_tower": str(CLIP)}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
