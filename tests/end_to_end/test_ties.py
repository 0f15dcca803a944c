"""`lm_head` in every way in which a checkpoint can have it or lack it: in plan, output and
config.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.conftest import CLIP, MANIFESTS, RELEASED, Run, Tensors

HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def other(state: Tensors) -> None:
    """As in most checkpoints: a head of its own."""


def copy(state: Tensors) -> None:
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()


def one_tensor(state: Tensors) -> None:
    state["lm_head.weight"] = state["model.embed_tokens.weight"]


def two_views(state: Tensors) -> None:
    """One storage, and yet two tensors."""
    both = torch.cat([state["model.embed_tokens.weight"], state["lm_head.weight"]])
    state["model.embed_tokens.weight"], state["lm_head.weight"] = both[:320], both[320:]


def absent(state: Tensors) -> None:
    del state["lm_head.weight"]


def checkpoint(folder: Path, head: Any, tie: bool | None) -> Path:
    shutil.copytree(RELEASED / "bin", folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    head(state)
    torch.save(state, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    if tie is not None:
        config["tie_word_embeddings"] = tie
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def convert(run: Run, folder: Path) -> Any:
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        folder,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
        "--format",
        "json",
    )
    return ran.code, ran.json


@pytest.mark.parametrize(
    ("head", "tie", "tied"),
    [
        (other, None, False),
        (other, False, False),
        (copy, None, False),
        (copy, False, False),
        (copy, True, True),
        (one_tensor, None, True),
        (one_tensor, False, True),
        (one_tensor, True, True),
        (two_views, False, False),
        (absent, True, True),
    ],
)
def test_plan_output_and_config(
    head: Any, tie: bool | None, tied: bool, run: Run, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "source", head, tie)
    code, plan = convert(run, source)
    assert code == 0
    expanded = {
        entry["target"]
        for entry in plan["mapped"]
        for step in entry["then"]
        if step.get("post_load", {}).get("use") == "expand_embeddings"
    }
    wanted = plan["target"]["tensors"]
    sources = ("--source", source, "--source", f"vision_tower={CLIP}")
    again = run("apply", "llava-v1.5", *sources, "--dry-run").out
    assert f"Plan complete: {wanted} of {wanted} parameters" in again
    ties = {alias["target"]: alias["of"] for alias in plan["aliases"]}
    assert EMBEDDING in expanded
    assert (HEAD in expanded) == (head is not absent and not tied)
    assert ties == ({HEAD: EMBEDDING} if head is not absent and tied else {})
    checks = {check["check"] for check in plan["value_checks"]}
    assert ("equal" in checks) == (head is copy and tied)
    written = {
        name: t for file in Path("out").glob("*.safetensors") for name, t in load_file(file).items()
    }
    assert (HEAD in written) != tied
    config = json.loads(Path("out/config.json").read_text())
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is tied
    model, info = AutoModelForImageTextToText.from_pretrained(
        "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    embedding = model.get_input_embeddings().weight
    assert (model.lm_head.weight is embedding) == tied
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    wanted = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight[:320], wanted.float())
    assert torch.equal(embedding[:320], state["model.embed_tokens.weight"].float())


@pytest.mark.parametrize(
    ("head", "tie", "told"),
    [
        (
            one_tensor,
            True,
            [
                "2 names are one tensor in the checkpoint; the model ties them, so one tensor is "
                "written"
            ],
        ),
        (
            one_tensor,
            False,
            [
                "its config doesn't tie them",
                "2 names are one tensor in the checkpoint; the model ties them, so one tensor is "
                "written",
            ],
        ),
        (
            two_views,
            None,
            [
                "2 names are views of one storage in the checkpoint; the model doesn't tie them, "
                "so each is written"
            ],
        ),
        (copy, None, []),
    ],
)
def test_what_is_told_of_shared_storage(
    head: Any, tie: bool | None, told: list[str], run: Run, tmp_path: Path
) -> None:
    _, plan = convert(run, checkpoint(tmp_path / "source", head, tie))
    notes = [note["message"] for note in plan["notes"] if note["code"] == "LR506"]
    assert len(notes) == len(told)
    assert all(text in note for text, note in zip(told, notes, strict=True))


@pytest.mark.parametrize("tie", [None, False])
def test_no_head_and_no_tie(tie: bool | None, run: Run, tmp_path: Path) -> None:
    """Nothing says that the embedding serves as a head: it is asked for, not invented."""
    code, plan = convert(run, checkpoint(tmp_path / "source", absent, tie))
    assert code == 1
    [problem] = plan["problems"]
    assert (problem["code"], problem["names"]) == ("LR302", [HEAD])
    assert "its config.json has to say tie_word_embeddings: true" in problem["message"]
    assert not Path("out").exists()


def test_a_tie_and_another_head(run: Run, tmp_path: Path) -> None:
    code, plan = convert(run, checkpoint(tmp_path / "source", other, True))
    assert code == 1
    [problem] = plan["problems"]
    assert (problem["code"], problem["names"]) == (
        "LR405",
        ["lm_head.weight", "model.embed_tokens.weight"],
    )
    assert (
        "set tie_word_embeddings to false in the source's config.json, and in its text_config"
        in problem["message"]
    )
    assert not Path("out").exists()


def test_aliases_of_a_manifest(run: Run) -> None:
    """A manifest has no bytes, and says itself which names are one tensor: nothing is left to
    compare.
    """
    content = json.loads((MANIFESTS / "llava-interleave-qwen-0.5b.released.json").read_text())
    content["tensors"]["lm_head.weight"] = content["tensors"]["model.embed_tokens.weight"]
    content["aliases"] = [["model.embed_tokens.weight", "lm_head.weight"]]
    content["config"]["tie_word_embeddings"] = False
    Path("tied.json").write_text(json.dumps(content))
    plan = run(
        "apply", "llava-interleave", "--source", "tied.json", "--dry-run", "--format", "json"
    ).json
    assert plan["complete"]
    [head] = plan["aliases"]
    assert (head["target"], head["shape"][0]) == (HEAD, 151936)
    assert [check["check"] for check in plan["value_checks"]] == ["norms", "finite"]
    assert sum(note["code"] == "LR506" for note in plan["notes"]) == 2
