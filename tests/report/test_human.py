"""What a person reads: counts of one, and names that are not all told."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from llava_remap.core.problem import Problem
from llava_remap.jobs.apply import plan
from llava_remap.jobs.resources import Used
from llava_remap.jobs.run import Result
from llava_remap.report import print_result
from tests.conftest import CLIP, MANIFESTS, RELEASED, Changed, Run


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (1, " (n.{0..1}.a)"),
        (4, ", n.{0..1}.d)"),
        (5, ", n.{0..1}.d and 1 more)"),
        (6, "d and 2 more)"),
    ],
)
def test_names_in_a_sentence(number: int, told: str) -> None:
    """Four lines of folded names, and how many more there are."""
    job = plan("llava-v1.5", [MANIFESTS / "llava-v1.5-7b.json"], "out", dry_run=True)
    note = Problem(
        "LR312",
        "the facts.",
        names=tuple(f"n.{layer}.{'abcdef'[at]}" for at in range(number) for layer in range(2)),
    )
    text = StringIO()
    print_result(
        Console(file=text, soft_wrap=True),
        Result(job, Path("out"), {}, 0, 0.0, "meta", (note,), Used(0, 0)),
        job,
    )
    [line] = [line for line in text.getvalue().splitlines() if "LR312" in line]
    assert line.endswith(told)


def test_value_checks_of_a_refused_plan(run: Run, changed: Changed) -> None:
    """They are run in no way, so none is named; the dry run of a plan that is complete names
    one.
    """
    source = changed(tensors=lambda tensors: tensors.update({"stray": torch.ones(1)}))
    for more in (("--dry-run",), ("--dry-run", "--check-values"), ("--output", "out")):
        ran = run(
            "apply", "llava-v1.5", "--source", source, "--source", f"vision_tower={CLIP}", *more
        )
        assert ran.code == 1
        [line] = [line for line in ran.out.splitlines() if line.startswith("Value checks")]
        assert line.endswith(": not run")
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "safetensors",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
    )
    assert "1 finite, 1 norms: not run (in a dry run, --check-values does)" in ran.out


def test_one_is_singular(run: Run) -> None:
    source = Path("source")
    source.mkdir()
    head = load_file(RELEASED / "safetensors" / "model.safetensors")["lm_head.weight"]
    save_file({"lm_head.weight": head}, source / "model-00001-of-00001.safetensors")
    (source / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}'
    )
    (source / "config.json").write_text((RELEASED / "safetensors" / "config.json").read_text())
    ran = run("inspect", source)
    assert "safetensors, 1 shard (model.safetensors.index.json); 1 tensor; " in ran.out
