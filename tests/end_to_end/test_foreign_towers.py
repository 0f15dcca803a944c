"""Towers that other code than transformers' trained: small towers of the original classes are
converted, and transformers computes their features from the same pixels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_remap import apply, plan, revert
from llava_remap.core.problem import RemapError
from tests.conftest import DATA, RELEASED, Tensors

ORIGINALS = DATA / "operations"
INSIDE = "model.vision_tower.vision_tower."
#: The largest difference of features, as a share of the largest one.
NEAR = 1e-5
HEADS = "target: {config: {vision_config.num_attention_heads: {const: 4}}}"
#: By tower: the part of its rule file, what a file of one's own says beside it, and how LLaVA's
#: code names it inside the checkpoint.
TOWERS = {
    "openai-clip": ("tower-openai-clip", "", INSIDE),
    "open-clip": ("tower-open-clip", "", INSIDE),
    "timm-siglip": ("tower-timm-siglip", HEADS, INSIDE + "trunk."),
    "timm-clip": ("tower-timm-clip", HEADS, INSIDE + "trunk."),
    "timm-vit": ("tower-timm-vit", HEADS, INSIDE + "trunk."),
    "timm-dinov2": ("tower-timm-dinov2", "", INSIDE + "trunk."),
}


def weights(folder: Path) -> Tensors:
    return {
        name: tensor
        for file in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def rules_for(part: str, more: str = "") -> Path:
    path = Path("mine.yaml")
    path.write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: LLaVA-1.5 with a tower of other code\n"
        f"extends: [llava-v1.5.yaml, parts/{part}.yaml]\n{more}\n"
    )
    return path


def llava(folder: Path, width: int, beside: Tensors | None = None, **config: Any) -> Path:
    """LLaVA-1.5 with a projector for a tower of this width, and the names that LLaVA's code gives a
    tower that it doesn't know.
    """
    shutil.copytree(RELEASED / "safetensors", folder, ignore=shutil.ignore_patterns("*.safet*"))
    tensors = weights(RELEASED / "safetensors")
    table = torch.randn(64, width, generator=torch.Generator().manual_seed(3)) * 0.1
    tensors["model.mm_projector.0.weight"] = table.to(tensors["model.mm_projector.0.weight"].dtype)
    save_file(tensors | (beside or {}), folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said |= {"mm_vision_tower": "somebody/own-tower", **config}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def far(folder: str, original: Path) -> float:
    """The largest difference between the features of transformers and of the original class, of
    all layers.
    """
    said = load_file(original / "features.safetensors")
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        out = model.eval().model.vision_tower(said["pixels"], output_hidden_states=True)
    features, wanted = torch.stack(out.hidden_states[1:]), said["features"]
    assert features.shape == wanted.shape
    return float((features - wanted).abs().max() / wanted.abs().max())


def width_of(original: Path) -> int:
    return int(load_file(original / "features.safetensors")["features"].shape[-1])


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_apart_gives_the_features_of_its_own_code(name: str, tmp_path: Path) -> None:
    part, more, _ = TOWERS[name]
    original = ORIGINALS / name
    select = "cls_patch" if "siglip" in name else "patch"
    source = llava(tmp_path / "source", width_of(original), mm_vision_select_feature=select)
    apply(rules_for(part, more), [source, f"vision_tower={original}"], "out", verify="full")
    assert far("out", original) < NEAR


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_inside_gives_the_features_of_its_own_code(name: str, tmp_path: Path) -> None:
    part, more, prefix = TOWERS[name]
    original = ORIGINALS / name
    tower = {
        prefix + tensor.removeprefix("visual."): value
        for tensor, value in weights(original).items()
        if tensor.startswith("visual.") or "timm" in name
    }
    select = "cls_patch" if "siglip" in name else "patch"
    source = llava(tmp_path / "source", width_of(original), tower, mm_vision_select_feature=select)
    given = [f"vision_tower={original}"] if (original / "config.json").exists() else []
    apply(rules_for(part, more), [source, *given], "out")
    assert far("out", original) < NEAR
    revert("out", "back")
    [restored] = [path.parent for path in Path("back").rglob("model.safetensors*")][:1]
    back, before = weights(restored), weights(source)
    dropped = {n for n in before if n.endswith((".proj", "inv_freq"))}
    assert back.keys() == before.keys() - dropped
    assert all(torch.equal(back[n], before[n]) for n in back)


def test_without_their_part_the_way_to_it_is_told(tmp_path: Path) -> None:
    source = llava(tmp_path / "source", 128)
    given = [str(source), f"vision_tower={ORIGINALS / 'openai-clip'}"]
    [problem] = plan("llava-v1.5", given, dry_run=True).plan.problems
    assert problem.code == "LR305"
    assert "`extends: [llava-v1.5.yaml, parts/tower-open-clip.yaml]`" in problem.fix
    assert "or parts/tower-openai-clip.yaml" in problem.fix


def test_a_tower_without_a_norm_before_its_layers_is_refused(tmp_path: Path) -> None:
    """timm's plain ViT, as BiomedCLIP has it."""
    source = llava(tmp_path / "source", 32)
    given = [str(source), f"vision_tower={ORIGINALS / 'timm-vit'}"]
    found = plan(rules_for("tower-timm-clip", HEADS), given, dry_run=True).plan.problems
    lacking = {name for problem in found if problem.code == "LR302" for name in problem.names}
    assert lacking == {f"vision_tower.vision_model.pre_layrnorm.{p}" for p in ("weight", "bias")}


@pytest.mark.parametrize("said", [{"hidden_act": "quick_gelu"}, {}])
def test_a_config_that_contradicts_the_part_is_refused(
    said: dict[str, str], tmp_path: Path
) -> None:
    """A tower's own config without an activation means CLIP's default, quick_gelu."""
    source, tower = llava(tmp_path / "source", 32), tmp_path / "tower"
    shutil.copytree(ORIGINALS / "open-clip", tower)
    config = json.loads((tower / "config.json").read_text())
    del config["vision_config"]["hidden_act"]
    config["vision_config"] |= said
    (tower / "config.json").write_text(json.dumps(config))
    given = [str(source), f"vision_tower={tower}"]
    [problem] = plan(rules_for("tower-open-clip"), given, dry_run=True).plan.problems
    assert problem.code == "LR309"
    assert "hidden_act 'gelu' and 'quick_gelu'" in problem.cause


def test_the_number_of_heads_is_not_guessed(tmp_path: Path) -> None:
    source, tower = llava(tmp_path / "source", 32), tmp_path / "tower"
    shutil.copytree(ORIGINALS / "open-clip", tower, ignore=shutil.ignore_patterns("config.json"))
    with pytest.raises(RemapError, match="LR112"):
        apply(rules_for("tower-open-clip"), [source, f"vision_tower={tower}"], "out")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("open-clip", {"mm_vision_select_layer": 2}),
        ("timm-siglip", {"mm_vision_select_feature": "patch"}),
    ],
)
def test_other_features_than_the_research_codes_are_refused(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    part, more, _ = TOWERS[name]
    source = llava(tmp_path / "source", 32, **config)
    given = [str(source), f"vision_tower={ORIGINALS / name}"]
    found = plan(rules_for(part, more), given, dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR314"]


def open_clips_file(original: Path, file: Path) -> Path:
    """The checkpoint of a training by open_clip: a tower beside a text encoder, in a wrapper."""
    tower = {f"module.visual.trunk.{n}": tensor for n, tensor in weights(original).items()}
    text = {"module.text.proj.0.weight": torch.zeros(2, 2), "module.logit_scale": torch.ones(())}
    torch.save({"epoch": 3, "name": "biomedclip", "state_dict": tower | text}, file)
    return file


def test_llava_rads_tower_gives_the_projector_the_patches_of_its_last_but_one_layer(
    tmp_path: Path,
) -> None:
    """biomedclip_cxr_518 is a DINOv2 of timm that open_clip trained; LLaVA-Rad takes `patch` of
    layer -2.
    """
    original = ORIGINALS / "timm-dinov2"
    tower = open_clips_file(original, tmp_path / "biomedclipcxr_518_checkpoint.pt")
    source = llava(
        tmp_path / "source",
        width_of(original),
        mm_vision_tower_checkpoint=tower.name,
        mm_vision_tower_config="biomedclipcxr_518.json",
    )
    result = apply(rules_for("tower-timm-dinov2"), [source, f"vision_tower={tower}"], "out")
    assert any("mm_vision_tower_checkpoint" in note.cause for note in result.notes)
    model = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32).eval()
    said, own = load_file(original / "features.safetensors"), weights(source)
    x = said["features"][-2][:, 1:]
    for layer in ("0", "2"):
        name = f"model.mm_projector.{layer}"
        x = torch.nn.functional.linear(
            x, own[f"{name}.weight"].float(), own[f"{name}.bias"].float()
        )
        x = torch.nn.functional.gelu(x) if layer == "0" else x
    with torch.no_grad():
        found = torch.stack([*model.get_image_features(said["pixels"]).pooler_output])
    assert (found - x).abs().max() < NEAR * x.abs().max()


def test_registers_of_dinov2_are_refused(tmp_path: Path) -> None:
    """LLaVA's classes leave out one token, and four registers would be taken for patches."""
    source, tower = llava(tmp_path / "source", 64), tmp_path / "tower"
    tower.mkdir()
    tensors = weights(ORIGINALS / "timm-dinov2") | {"reg_token": torch.zeros(1, 4, 64)}
    save_file({f"visual.trunk.{n}": t for n, t in tensors.items()}, tower / "model.safetensors")
    given = [str(source), f"vision_tower={tower}"]
    found = plan(rules_for("tower-timm-dinov2"), given, dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR301"]
    assert found[0].names == ("visual.trunk.reg_token",)


def test_a_gate_in_dinov2s_mlp_is_refused(tmp_path: Path) -> None:
    source, tower = llava(tmp_path / "source", 64), tmp_path / "tower"
    tower.mkdir()
    tensors = weights(ORIGINALS / "timm-dinov2")
    for layer in range(3):  # SwiGLU of the giant model: two matrices in one
        tensors[f"blocks.{layer}.mlp.fc1.weight"] = torch.zeros(342, 64)
        tensors[f"blocks.{layer}.mlp.fc1.bias"] = torch.zeros(342)
        tensors[f"blocks.{layer}.mlp.fc2.weight"] = torch.zeros(64, 171)
    save_file(tensors, tower / "model.safetensors")
    given = [str(source), f"vision_tower={tower}"]
    [problem] = plan(rules_for("tower-timm-dinov2"), given, dry_run=True).plan.problems
    assert problem.code == "LR112"
    assert "SwiGLU" in problem.cause


@pytest.mark.parametrize(
    ("said", "code"),
    [({}, None), ({"num_attention_heads": 2}, "LR309"), ({"mlp_ratio": 4}, "LR309")],
)
def test_the_config_of_transformers_beside_a_dinov2_is_believed_or_contradicts(
    said: dict[str, int], code: str | None, tmp_path: Path
) -> None:
    source, tower = llava(tmp_path / "source", 64), tmp_path / "tower"
    shutil.copytree(ORIGINALS / "timm-dinov2", tower)
    config = {
        "model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 3, "image_size": 28,
        "num_attention_heads": 1, "mlp_ratio": 2, "patch_size": 14,
    }  # fmt: skip
    (tower / "config.json").write_text(json.dumps(config | said))
    given = [str(source), f"vision_tower={tower}"]
    found = plan(rules_for("tower-timm-dinov2"), given, dry_run=True).plan
    assert [problem.code for problem in found.problems] == ([code] if code else [])
    if code is None:
        assert not [note for note in found.notes if note.code == "LR309"]
