"""What a tower is: its own config, its sizes, its name; and what contradicts them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llava_remap.checkpoint import Tensor
from llava_remap.core.problem import RemapError
from llava_remap.target_model.tower import read_tower
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Run
from tests.small_llava import apply_v15

OPENAI_336 = "openai/clip-vit-large-patch14-336"


TOWER = "vision_tower.vision_model."


def clip_tensors(layers: int = 24, positions: int = 577) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1024,),
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (positions, 1024),
        **{f"encoder.layers.{n}.mlp.fc1.weight": (4096, 1024) for n in range(layers)},
    }
    return {
        TOWER + name: Tensor.of(TOWER + name, "F16", shape, None) for name, shape in shapes.items()
    }


def test_own_config_without_default_values_is_believed() -> None:
    """transformers writes only what differs from the defaults: a 224-px tower has no
    `image_size`.
    """
    own = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    tower = read_tower(TOWER, clip_tensors(positions=257), {**own, "hidden_act": "gelu"}, None)
    assert tower.config["hidden_act"] == "gelu"
    assert tower.config["image_size"] == 224
    assert tower.notes == ()


def test_a_tower_of_another_name_has_no_preset() -> None:
    """It has the sizes of a stock one, but may have another activation."""
    with pytest.raises(RemapError) as raised:
        read_tower(TOWER, clip_tensors(), None, "laion/CLIP-ViT-L-14-336")
    assert [p.code for p in raised.value.problems] == ["LR112"]
    cached = (
        "/root/.cache/huggingface/hub/models--openai--clip-vit-large-patch14-336/snapshots/0123abc"
    )
    for named in (
        OPENAI_336,
        "/models/clip-vit-large-patch14-336/",
        "C:\\models\\clip-vit-large-patch14-336",
        cached,
        None,
    ):
        assert read_tower(TOWER, clip_tensors(), None, named).config["hidden_act"] == "quick_gelu"


@pytest.mark.parametrize("named", [OPENAI_336, None])
def test_a_tower_that_lost_layers_is_no_stock_one(named: str | None) -> None:
    with pytest.raises(RemapError, match="LR112"):
        read_tower(TOWER, clip_tensors(layers=23), None, named)


def test_a_tower_that_lost_layers_contradicts_its_config(run: Run, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    state = {
        name: t
        for name, t in load_file(CLIP / "model.safetensors").items()
        if "vision_model.encoder.layers.2." not in name
    }
    save_file(state, tower / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(CLIP / name, tower / name)
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert ran.code == 1
    assert "LR309" in ran.out
    assert "num_hidden_layers 3" in ran.out
    assert "num_hidden_layers 2" in ran.out
    assert not Path("out").exists()


def test_a_layer_missing_inside_the_tower(run: Run, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    state = {
        name: t
        for name, t in load_file(CLIP / "model.safetensors").items()
        if "vision_model.encoder.layers.1." not in name
    }
    save_file(state, tower / "model.safetensors")
    shutil.copy(CLIP / "config.json", tower / "config.json")
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert "LR302" in ran.out
    assert "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight" in ran.out


def test_the_stock_tower_of_another_size_is_told(run: Run) -> None:
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--format",
        "json",
    )
    assert any(
        note["code"] == "LR309" and OPENAI_336 in note["message"] for note in ran.json["notes"]
    )


def test_a_config_alone_will_do_for_a_tower_that_is_there(run: Run, tmp_path: Path) -> None:
    """A folder with the tower's config and no weights; but not where its weights are wanted."""
    tower = tmp_path / "tower"
    tower.mkdir()
    shutil.copy(CLIP / "config.json", tower / "config.json")
    assert apply_v15(run, TINY / "llava-v1.5" / "full_state_dict", tower).code == 0
    shutil.rmtree("out")
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert ran.code == 1
    assert "no source has a tensor of the vision tower" in ran.out


def test_a_stock_tower_given_apart_has_to_be_the_one_that_is_named(
    run: Run, tmp_path: Path
) -> None:
    """LLaVA-1.5 was trained on 336 px; the 224-px tower has the same names, and the plan would
    be complete.
    """
    content = json.loads((MANIFESTS / "clip-vit-large-patch14-336.json").read_text())
    content["tensors"]["vision_model.embeddings.position_embedding.weight"]["shape"] = [257, 1024]
    content["config"]["vision_config"]["image_size"] = 224
    (tmp_path / "clip224.json").write_text(json.dumps(content))
    source = ("--source", MANIFESTS / "llava-v1.5-7b.released.json")
    ran = run("apply", "llava-v1.5", *source, "--source", "vision_tower=clip224.json", "--dry-run")
    assert ran.code == 1
    assert "LR309" in ran.out
    assert "has the sizes of clip-vit-large-patch14; " in ran.out


SIGLIP = "google/siglip-so400m-patch14-384"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (OPENAI_336, f"the config names `{OPENAI_336}`, a tower of other sizes"),
        (SIGLIP, f"the config names `{SIGLIP}`, a tower of another kind"),
        ("mine/tower", "`mine/tower` is none of the stock towers ("),
        (None, "none of the stock towers has these sizes ("),
    ],
)
def test_why_no_preset_counts(named: str | None, said: str) -> None:
    with pytest.raises(RemapError) as raised:
        read_tower(TOWER, clip_tensors(layers=23), None, named)
    [problem] = raised.value.problems
    assert said in problem.cause


def test_the_named_tower_of_another_kind_is_told_as_that() -> None:
    own = json.loads((MANIFESTS / "clip-vit-large-patch14-336.json").read_text())["config"]
    [note] = read_tower(TOWER, clip_tensors(), own["vision_config"], SIGLIP).notes
    assert note.code == "LR309"
    kinds = "(siglip_vision_model, not clip_vision_model)"
    assert (
        note.cause
        == f"the language model's config names {SIGLIP}, a tower of another kind {kinds}."
    )
