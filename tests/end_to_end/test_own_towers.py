"""A tower in the checkpoint is the one that is written, to the bit, whatever the config says and
whatever is given beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.jobs.apply import apply, plan
from llava_remap.jobs.job import Job
from tests.conftest import CLIP, TINY, Run, Tensors

FULL = TINY / "llava-v1.5" / "full_state_dict"
QWEN2, SIGLIP = TINY / "llava-onevision" / "safetensors", TINY / "siglip-tiny-patch14-28"
PREFIX, TARGET = "model.vision_tower.vision_tower.", "vision_tower."

#: What training writes into config.json about a tower; none of it says what the tensors are.
FLAGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "not unfrozen": {"unfreeze_mm_vision_tower": False},
    "unfrozen": {"unfreeze_mm_vision_tower": True},
    "only the projector tuned": {
        "mm_tunable_parts": "mm_mlp_adapter",
        "tune_mm_mlp_adapter": True,
        "freeze_backbone": True,
    },
    "the tower tuned": {
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_vision_tower_lr": 2e-6,
    },
    "loaded late": {"delay_load": True, "unfreeze_mm_vision_tower": False},
    "no projector, it says": {"use_mm_proj": False},
    "another tower": {"mm_vision_tower": "openai/clip-vit-large-patch14"},
    "a tower in a folder": {"mm_vision_tower": "/data/towers/clip-vit-large-patch14-336"},
    "none": {"mm_vision_tower": None},
    "frozen, everything at once": {
        "unfreeze_mm_vision_tower": False,
        "mm_tunable_parts": "mm_mlp_adapter",
        "delay_load": True,
        "use_mm_proj": False,
    },
}


def trained() -> Tensors:
    """The checkpoint with a tower of which every number is another one than in the stock tower."""
    generator = torch.Generator().manual_seed(0)
    state: Tensors = torch.load(FULL / "model_state_dict.bin", weights_only=True)
    for name in [name for name in state if name.startswith(PREFIX)]:
        noise = torch.randn(state[name].shape, generator=generator)
        state[name] = (state[name].float() + 0.1 + noise.abs()).to(state[name].dtype)
    return state


def folder(path: Path, state: Tensors, form: str, **config: Any) -> Path:
    path.mkdir()
    said = {**json.loads((FULL / "config.json").read_text()), **config}
    (path / "config.json").write_text(json.dumps(said))
    for file in FULL.glob("*token*"):
        shutil.copy(file, path)
    if form == "safetensors":
        save_file(state, path / "model.safetensors", {"format": "pt"})
    elif form == "sharded":
        names = sorted(state)
        shards = {f"pytorch_model-{n + 1:05d}-of-00002.bin": names[n::2] for n in range(2)}
        for file_name, held in shards.items():
            torch.save({name: state[name] for name in held}, path / file_name)
        weight_map = {name: file_name for file_name, held in shards.items() for name in held}
        (path / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    elif form == "legacy":
        torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "wrapped":
        wrapped = {
            name.replace(PREFIX, f"{PREFIX}_fsdp_wrapped_module."): tensor
            for name, tensor in state.items()
        }
        torch.save(
            {"module": {f"module.{name}": tensor for name, tensor in wrapped.items()}},
            path / "pytorch_model.bin",
        )
    else:
        torch.save(state, path / "pytorch_model.bin")
    return path


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_kept(state: Tensors, output: str = "out") -> None:
    written = {
        name: tensor
        for file in Path(output).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    tower = {
        name.replace(PREFIX, TARGET): tensor
        for name, tensor in state.items()
        if name.startswith(PREFIX)
    }
    assert {name for name in written if name.startswith(TARGET)} == tower.keys()
    for name, tensor in tower.items():
        assert (written[name].dtype, bits(written[name])) == (tensor.dtype, bits(tensor)), name


def told(job: Job) -> list[str]:
    return [note.cause for note in job.plan.notes if note.code == "LR310"]


@pytest.mark.parametrize("flags", FLAGS)
def test_whatever_the_config_says(flags: str, tmp_path: Path) -> None:
    state = trained()
    source = folder(tmp_path / "source", state, "bin", **FLAGS[flags])
    result = apply("llava-v1.5", [source, f"vision_tower={CLIP}"], "out")
    assert_kept(state)
    tensors = sum(name.startswith(PREFIX) for name in state)
    stock, differing = [note for note in result.notes if note.code == "LR310"]
    assert stock.cause == "`model` has these tensors itself, so `vision_tower` is not used."
    assert differing.cause == f"{tensors} of {tensors} tensors differ from those of `vision_tower`."


@pytest.mark.parametrize("form", ["bin", "safetensors", "sharded", "legacy", "wrapped"])
@pytest.mark.parametrize("beside", ["stock tower", "its config alone", "nothing"])
def test_in_every_form(form: str, beside: str, tmp_path: Path) -> None:
    """With a stock tower, with its config.json alone, and with neither, where the checkpoint's
    own config has a vision part.
    """
    state = trained()
    source = folder(tmp_path / "source", state, form, **FLAGS["frozen, everything at once"])
    sources: list[str | Path] = [source]
    if beside == "stock tower":
        sources.append(f"vision_tower={CLIP}")
    else:
        (tmp_path / "config").mkdir()
        shutil.copy(CLIP / "config.json", tmp_path / "config")
        sources.append(
            f"{'vision_tower' if beside != 'nothing' else 'language_model'}={tmp_path / 'config'}"
        )
    apply("llava-v1.5", sources, "out", verify="full")
    assert_kept(state)


def test_a_few_numbers_are_enough(run: Run, tmp_path: Path) -> None:
    """Two tensors that differ, one of them in a single bit: told by name; a dry run tells
    without looking that it is kept.
    """
    state: Tensors = torch.load(FULL / "model_state_dict.bin", weights_only=True)
    stock = load_file(CLIP / "model.safetensors")
    for name in stock:
        if name.startswith("vision_model."):
            state[PREFIX + name] = stock[name].clone()
    state[PREFIX + "vision_model.post_layernorm.bias"].view(torch.int32)[0] ^= 1
    state[PREFIX + "vision_model.encoder.layers.1.mlp.fc1.weight"] *= 1.5
    source = folder(tmp_path / "source", state, "bin", unfreeze_mm_vision_tower=False)
    command = [
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    ]
    dry = run(*command, "--dry-run")
    assert "so `vision_tower` is not used" in dry.out
    assert "differ from those of" not in dry.out
    ran = run(*command, "--format", "json")
    assert ran.code == 0
    [note] = [note for note in ran.json["notes"] if "differ" in note["message"]]
    assert "2 of 55 tensors differ from those of `vision_tower`" in note["message"]
    assert {name.removeprefix("vision_model.") for name in note["names"]} == {
        "post_layernorm.bias",
        "encoder.layers.1.mlp.fc1.weight",
    }
    assert_kept(state)
    assert {origin["source"] for entry in ran.json["mapped"] for origin in entry["from"]} == {
        "model"
    }


def test_an_equal_tower_is_told_to_be(tmp_path: Path) -> None:
    """Of another dtype: it is the values that are compared, and the checkpoint's dtype that is
    kept.
    """
    state: Tensors = torch.load(FULL / "model_state_dict.bin", weights_only=True)
    stock = load_file(CLIP / "model.safetensors")
    for name in stock:
        if name.startswith("vision_model."):
            state[PREFIX + name] = stock[name].double()
    result = apply(
        "llava-v1.5", [folder(tmp_path / "source", state, "bin"), f"vision_tower={CLIP}"], "out"
    )
    assert "0 of 55 tensors differ from those of `vision_tower`." in [
        note.cause for note in result.notes
    ]
    assert_kept(state)


def test_a_tower_of_another_shape_beside_it(tmp_path: Path) -> None:
    """Without its last layer and for larger pictures: nothing of it is taken, and the plan says
    how many tensors are others.
    """
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    (tower / "pytorch_model.bin").unlink()
    tensors = load_file(tower / "model.safetensors")
    tensors["vision_model.embeddings.position_embedding.weight"] = torch.zeros(17, 32)
    tensors["vision_model.encoder.layers.3.mlp.fc1.weight"] = torch.zeros(64, 32)
    save_file(tensors, tower / "model.safetensors", {"format": "pt"})
    state = trained()
    source = folder(tmp_path / "source", state, "bin")
    job = plan("llava-v1.5", [source, f"vision_tower={tower}"], "out")
    assert told(job) == [
        "`model` has these tensors itself, so `vision_tower` is not used. 2 of its 56 tensors have "
        "another shape there, or are missing there."
    ]
    result = apply("llava-v1.5", [source, f"vision_tower={tower}"], "out")
    assert "54 of 54 tensors differ from those of `vision_tower`." in [
        note.cause for note in result.notes
    ]
    assert_kept(state)


@pytest.mark.parametrize("beside", [True, False])
def test_half_a_tower_is_not_made_whole_with_another(beside: bool, tmp_path: Path) -> None:
    state = trained()
    for name in [name for name in state if ".layers.2." in name and name.startswith(PREFIX)]:
        del state[name]
    for name in [name for name in state if ".layers.1.mlp." in name and name.startswith(PREFIX)]:
        del state[name]
    source = folder(tmp_path / "source", state, "bin")
    job = plan("llava-v1.5", [source, *[f"vision_tower={CLIP}"] * beside], "out")
    assert not job.plan.complete
    assert {problem.code for problem in job.plan.problems} <= {"LR302", "LR309", "LR112"}
    assert not any(
        origin.source == "vision_tower" for entry in job.plan.mapped for origin in entry.origins
    )


@pytest.mark.parametrize("flags", ["not unfrozen", "only the projector tuned", "loaded late"])
def test_siglip(flags: str, tmp_path: Path) -> None:
    """A family whose checkpoints always have a tower: the given one serves for its config."""
    source = tmp_path / "source"
    shutil.copytree(QWEN2, source)
    state = load_file(source / "model.safetensors")
    for name in [name for name in state if name.startswith(PREFIX)]:
        state[name] = state[name] * 1.25 + 0.5
    save_file(state, source / "model.safetensors", {"format": "pt"})
    said = {
        **json.loads((source / "config.json").read_text()),
        "image_aspect_ratio": "anyres",
        **FLAGS[flags],
    }
    (source / "config.json").write_text(json.dumps(said))
    apply("llava-interleave", [source, f"vision_tower={SIGLIP}"], "out")
    assert_kept(state)


@pytest.mark.parametrize(
    "change", [lambda name: name, lambda name: name.replace("encoder", "trunk")]
)
def test_a_tower_under_names_that_no_rule_knows(
    change: Callable[[str], str], tmp_path: Path
) -> None:
    """It is told, and no other one is taken in its place."""
    state = {
        change(name).replace(PREFIX, "model.vision_tower.own."): tensor
        for name, tensor in trained().items()
    }
    job = plan(
        "llava-v1.5", [folder(tmp_path / "source", state, "bin"), f"vision_tower={CLIP}"], "out"
    )
    assert not job.plan.complete
    assert "LR301" in {problem.code for problem in job.plan.problems}
    assert not any(
        origin.source == "vision_tower" for entry in job.plan.mapped for origin in entry.origins
    )
