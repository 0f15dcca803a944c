"""Video-LLaVA's two towers: inside the checkpoint, or from those that its config names; computed
alike, or refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.authoring.shrink import shrink
from tests.conftest import CLIP, MANIFESTS, Run
from tests.source.test_parts import Hub, applied, hub, notes, told

__all__ = ["hub"]
IMAGE, VIDEO = "LanguageBind/LanguageBind_Image", "LanguageBind/LanguageBind_Video_merge"

Made = Callable[..., Path]


@pytest.fixture
def video_llava(tmp_path: Path) -> Made:
    """A small Video-LLaVA, without the towers that are named, and with other values in its
    config.
    """

    def make(*without: str, **config: Any) -> Path:
        shrink(MANIFESTS / "video-llava-7b.json", Path("in"))
        tensors = load_file(Path("in") / "model.safetensors")
        kept = {
            name: t
            for name, t in tensors.items()
            if not any(f".{part}." in name for part in without)
        }
        save_file(kept, Path("in") / "model.safetensors", {"format": "pt"})
        said = {**json.loads((Path("in") / "config.json").read_text()), **config}
        (Path("in") / "config.json").write_text(
            json.dumps({key: value for key, value in said.items() if value is not None})
        )
        tower("image", "LanguageBind_Image", tensors)
        tower("video", "LanguageBind_Video_merge", tensors)
        return Path("in")

    return make


def tower(kind: str, name: str, model: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """A tower as LanguageBind releases it: its half of CLIP under `vision_model.`, the text half
    beside it.
    """
    path, prefix = Path(name), f"model.{kind}_tower.{kind}_tower."
    shutil.copytree(Path("in") / "vision_tower", path)
    tensors = {
        "vision_model." + key.removeprefix(prefix): t
        for key, t in model.items()
        if key.startswith(prefix)
    }
    tensors |= {"text_model.final_layer_norm.weight": torch.ones(8), "logit_scale": torch.ones(())}
    save_file(
        {key: value.clone() for key, value in tensors.items()},
        path / "model.safetensors",
        {"format": "pt"},
    )
    said = json.loads((path / "config.json").read_text())
    said["vision_config"] |= config
    (path / "config.json").write_text(json.dumps(said))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}


def same_as_whole(run: Run) -> None:
    """What `out` has is what the checkpoint with both towers inside gives."""
    shutil.move("out", "apart")
    shutil.rmtree("in")
    shrink(MANIFESTS / "video-llava-7b.json", Path("in"))
    assert applied(run, "video-llava", "in", "vision_tower=LanguageBind_Image").code == 0
    apart, whole = weights(Path("apart")), weights(Path("out"))
    assert apart.keys() == whole.keys()
    assert all(torch.equal(apart[name], whole[name]) for name in whole)
    assert (Path("apart") / "config.json").read_text() == (Path("out") / "config.json").read_text()


@pytest.mark.parametrize(
    "without", [("image_tower", "video_tower"), ("image_tower",), ("video_tower",)]
)
def test_towers_apart_are_those_that_the_config_names(
    without: tuple[str, ...], video_llava: Made, run: Run, hub: Hub
) -> None:
    path = video_llava(*without)
    hub({IMAGE: Path("LanguageBind_Image"), VIDEO: Path("LanguageBind_Video_merge")})
    ran = applied(run, "video-llava", path)
    assert ran.code == 0, ran.out
    assert "LR316" not in ran.out
    same_as_whole(run)


def test_towers_apart_given_by_hand(video_llava: Made, run: Run) -> None:
    path = video_llava("image_tower", "video_tower")
    names = {"vision_tower": "Image", "image_tower": "Image", "video_tower": "Video_merge"}
    ran = applied(
        run,
        "video-llava",
        path,
        *(f"{name}=LanguageBind_{folder}" for name, folder in names.items()),
    )
    assert ran.code == 0, ran.out
    assert "LR316" not in ran.out
    same_as_whole(run)


@pytest.mark.parametrize(("name", "repository"), [("image_tower", IMAGE), ("video_tower", VIDEO)])
def test_a_tower_that_can_not_be_had_is_refused(
    name: str, repository: str, video_llava: Made, run: Run, hub: Hub
) -> None:
    path = video_llava(name)
    hub({})
    ran = applied(run, "video-llava", path, "vision_tower=LanguageBind_Image")
    assert (ran.code != 0, repository in told(ran), f"--source {name}=DIR" in told(ran)) == (
        True,
        True,
        True,
    )


def test_another_image_tower_by_hand_is_told(video_llava: Made, run: Run) -> None:
    """Its config alone is taken, which tells how the tower inside is computed."""
    path = video_llava(mm_image_tower="/data/ours")
    assert (
        "names `/data/ours`, but"
        in notes(run, "video-llava", path, "vision_tower=LanguageBind_Image")["LR316"]
    )


def test_another_video_tower_is_asked_for(video_llava: Made, run: Run) -> None:
    path = video_llava(mm_video_tower="/data/ours")
    ran = applied(run, "video-llava", path, "vision_tower=LanguageBind_Image")
    assert (ran.code, "LR112" in ran.out, "mm_video_tower: `/data/ours`" in told(ran)) == (
        3,
        True,
        True,
    )
    assert "--source video_tower=DIR" in told(ran)
    assert (
        applied(
            run,
            "video-llava",
            path,
            "vision_tower=LanguageBind_Image",
            "video_tower=LanguageBind_Video_merge",
        ).code
        == 0
    )


@pytest.mark.parametrize(
    "config", [{"num_attention_heads": 8}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-6}]
)
def test_towers_that_are_not_computed_alike_are_refused(
    config: dict[str, Any], video_llava: Made, run: Run
) -> None:
    path = video_llava()
    tower("video", "other", load_file(path / "model.safetensors"), **config)
    ran = applied(run, "video-llava", path, "vision_tower=LanguageBind_Image", "video_tower=other")
    assert (ran.code, "LR309" in ran.out, next(iter(config)) in told(ran)) == (1, True, True)


def test_a_family_with_one_tower_takes_no_model_of_two(video_llava: Made, run: Run) -> None:
    ran = applied(
        run, "llava-v1.5", video_llava("image_tower", "video_tower"), f"vision_tower={CLIP}"
    )
    assert (ran.code, "LR314" in ran.out, "mm_video_tower" in told(ran)) == (1, True, True)


def test_a_key_that_names_a_further_tower_is_refused(video_llava: Made, run: Run) -> None:
    path = video_llava(
        "image_tower",
        "video_tower",
        mm_image_tower=None,
        mm_video_tower=None,
        mm_vision_tower_aux="/data/ours",
    )
    ran = applied(run, "llava-v1.5", path, f"vision_tower={CLIP}")
    assert (ran.code, "LR112" in ran.out, "mm_vision_tower_aux" in told(ran)) == (3, True, True)
    head = "schema: 1\nname: own\nversion: 1.0.0\nsummary: own\nextends: [llava-v1.5.yaml]\n"
    Path("own.yaml").write_text(head + "config_keys: {mm_vision_tower_aux: unused}\n")
    shrink(MANIFESTS / "clip-vit-large-patch14-336.json", Path("clip"))
    assert applied(run, "own.yaml", path, "vision_tower=clip").code == 0
