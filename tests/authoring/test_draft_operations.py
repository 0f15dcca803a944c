"""A draft for a checkpoint with fused matrices: its operations give the plain one's tensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_remap import apply
from llava_remap.rulefile import load_rule_file
from tests.conftest import CLIP, Run
from tests.fused import PLAIN, same, sources, weights


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    """LLaVA-1.5 with q, k and v, and gate and up, one behind the other as Phi-3 has them."""
    folder = tmp_path / "fused"
    shutil.copytree(PLAIN, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors, made = weights(PLAIN), {}
    for name, value in tensors.items():
        if name.startswith("model.layers.") and "q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            made[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif name.startswith("model.layers.") and "gate_proj" in name:
            up = tensors[name.replace("gate", "up")]
            made[name.replace("gate_proj", "gate_up_proj")] = torch.cat([value, up])
        elif not name.startswith("model.layers.") or not any(
            kind in name for kind in ("k_proj", "v_proj", "up_proj")
        ):
            made[name] = value
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_draft_infers_operations(fused: Path, run: Run) -> None:
    given = ("--from", fused, "--from", f"vision_tower={CLIP}")
    class_name = "LlavaForConditionalGeneration"
    ran = run("rules", "new", *given, "--to", class_name, "--output", "mine.yaml")
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.count("{id: qkv-proj, from: '{m...}.qkv_proj.weight'") == 1
    assert "4 by an operation" in ran.out
    text = Path("mine.yaml").read_text()
    assert "# unsure: sizes and names show which tensors belong together" in text
    assert [rule.id for rule in load_rule_file("mine.yaml").text.tensors] == [
        "gate-up-proj",
        "qkv-proj",
    ]
    assert run("rules", "test", "mine.yaml").code == 0
    assert run("rules", "lint", "mine.yaml").out.startswith("mine.yaml: clean")
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply("mine.yaml", sources(fused), "made")
    assert same(weights(Path("plain")), weights(Path("made")))


def test_operations_are_suggested_for_what_is_left_over(fused: Path, run: Run) -> None:
    """Pasted into `tensors`, what the plan says makes it complete."""
    arguments = ("--source", fused, "--source", f"vision_tower={CLIP}", "--dry-run")
    ran = run("apply", "llava-v1.5", *arguments)
    assert ran.code == 1
    lines = run("apply", "llava-v1.5", *arguments, "--format", "json").json["suggested_operations"]
    assert len(lines) == 2
    assert all(f"  {line}\n" in ran.out for line in lines)
    listed = "".join(f"  {line}\n" for line in lines)
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: fused\nextends: [llava-v1.5]\n"
        f"tensors:\n{listed}"
    )
    mended = run("apply", "mine.yaml", *arguments, "--format", "json")
    assert (mended.code, mended.json["suggested_operations"]) == (0, [])
