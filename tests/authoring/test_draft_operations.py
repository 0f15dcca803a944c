"""A draft for a checkpoint with fused matrices: its operations give the plain one's tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_remap import apply
from llava_remap.rulefile import load_rule_file
from tests.conftest import CLIP, Run, Tensors
from tests.fused import PLAIN, changed_checkpoint, same, sources, weights


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


def test_transposed_matrices_are_suggested_to_be_turned(tmp_path: Path, run: Run) -> None:
    def turn(tensors: Tensors) -> None:
        for name in tensors:
            if "down_proj" in name or "up_proj" in name:
                tensors[name] = tensors[name].T

    folder = changed_checkpoint(tmp_path / "turned", turn)
    arguments = ("--source", folder, "--source", f"vision_tower={CLIP}")
    ran = run("apply", "llava-v1.5", *arguments, "--dry-run", "--format", "json")
    assert ran.code == 1
    lines = ran.json["suggested_operations"]
    assert len(lines) == 2
    assert all("how: {axes: [1, 0]}" in line for line in lines)
    assert "Square matrices beside them" in ran.json["problems"][0]["fix"]
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: turned\nextends: [llava-v1.5]\ntensors:\n"
        + "".join(f"  {line}\n" for line in lines)
    )
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply("mine.yaml", sources(folder), "made")
    assert same(weights(Path("plain")), weights(Path("made")))


STORED: dict[str, Callable[[Tensors], None]] = {}


def stored_as(change: Callable[[Tensors], None]) -> Callable[[Tensors], None]:
    STORED[change.__name__] = change
    return change


def fuse(tensors: Tensors, to: str, parts: Sequence[str], dim: int = 0) -> None:
    """Join the tensors whose names differ in these parts, in layers of the language model."""
    for name in [name for name in tensors if "model.layers" in name and parts[0] in name]:
        values = [tensors.pop(name.replace(parts[0], part)) for part in parts]
        tensors[name.replace(parts[0], to)] = torch.cat(values, dim)


@stored_as
def in_proj(tensors: Tensors) -> None:
    """As torch.nn.MultiheadAttention."""
    fuse(tensors, "in_proj_weight", [f"{kind}_proj.weight" for kind in "qkv"])


@stored_as
def grouped(tensors: Tensors) -> None:
    """Of grouped sizes: the rows of v are parted into two."""
    fuse(tensors, "kv.weight", ["k_proj.weight", "v_proj.weight"])


@stored_as
def gate_up_turned(tensors: Tensors) -> None:
    """As a Conv1D: inputs by outputs."""
    fuse(tensors, "gate_up.weight", ["gate_proj.weight", "up_proj.weight"])
    for name in tensors:
        if "gate_up" in name:
            tensors[name] = tensors[name].T


@pytest.mark.parametrize("form", STORED)
def test_a_suggestion_works_when_it_is_pasted(form: str, tmp_path: Path, run: Run) -> None:
    folder = changed_checkpoint(tmp_path / "source", STORED[form])
    arguments = ("--source", folder, "--source", f"vision_tower={CLIP}")
    ran = run("apply", "llava-v1.5", *arguments, "--dry-run", "--format", "json")
    [line] = ran.json["suggested_operations"]
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: fused\nextends: [llava-v1.5]\n"
        f"tensors:\n  {line}\n"
    )
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply("mine.yaml", sources(folder), "made")
    assert same(weights(Path("plain")), weights(Path("made")))
    # And `rules new` finds the same. It asks whether square matrices are turned as well.
    class_name = "LlavaForConditionalGeneration"
    given = ("--from", folder, "--from", f"vision_tower={CLIP}", "--to", class_name)
    squares = [f"model.layers.{{0..1}}.self_attn.{kind}_proj.weight" for kind in "qkvo"]
    answers = [f"--map={name}=language_model.{name}" for name in squares]
    if form == "gate_up_turned":
        ran = run("rules", "new", *given, "--output", "asked.yaml")
        assert ran.code == 1
        assert ran.out.count("is square, and matrices beside it are transposed") == 4
    else:
        answers = []
    ran = run("rules", "new", *given, *answers, "--output", "new.yaml")
    assert ran.code == 0, ran.out + ran.err
    assert run("rules", "test", "new.yaml").code == 0
    apply("new.yaml", sources(folder), "new")
    assert same(weights(Path("plain")), weights(Path("new")))


def test_an_order_that_sizes_dont_tell_is_asked_about(tmp_path: Path, run: Run) -> None:
    """Square matrices side by side: a Conv1D's, or columns."""

    def fused_by_columns(tensors: Tensors) -> None:
        fuse(tensors, "qkv.weight", [f"{kind}_proj.weight" for kind in "qkv"], 1)

    folder = changed_checkpoint(tmp_path / "source", fused_by_columns)
    given = ("--from", folder, "--from", f"vision_tower={CLIP}")
    class_name = "LlavaForConditionalGeneration"
    ran = run("rules", "new", *given, "--to", class_name, "--output", "new.yaml")
    assert ran.code == 1
    text = " ".join(Path("new.yaml").read_text().replace("\n  #", "").split())
    assert "along axis 1 or, transposed, along axis 0. Names and sizes don't show" in text
    assert "tensors:" not in text
