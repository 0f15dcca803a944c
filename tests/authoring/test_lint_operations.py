"""What lint finds of tensor operations with the target's class and with a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_remap.authoring.lint import lint_files
from tests.conftest import CLIP
from tests.fused import RULES


@pytest.mark.parametrize(
    ("key", "cause"),
    [
        ("text_config.num_attention_head", "`num_attention_head` isn't a key"),
        ("text_config", "is a group of values"),
        ("heads", "`heads` isn't a key"),
        ("text_config.num_attention_heads", ""),
        ("vision_config.num_attention_heads", ""),
    ],
)
def test_a_size_that_the_targets_class_doesnt_know(tmp_path: Path, key: str, cause: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RULES.replace("text_config.num_key_value_heads", key))
    findings = [finding for linted in lint_files([path]) for finding in linted.findings]
    of_sizes = [finding for finding in findings if finding.problem.code == "LR201"]
    assert [cause in finding.problem.cause for finding in of_sizes] == [True] * bool(cause)
    if cause:
        assert of_sizes[0].problem.fix
        assert of_sizes[0].mark is not None
        assert of_sizes[0].mark.line == 11


@pytest.mark.parametrize(
    ("key", "cause"),
    [
        ("text_config.numm_heads", "`numm_heads` isn't a key of the config of any class"),
        ("text_config", "is a group of values"),
        ("text_config.num_key_value_heads", ""),
    ],
)
def test_a_size_of_a_part_that_no_class_knows(tmp_path: Path, key: str, cause: str) -> None:
    path = tmp_path / "part.yaml"
    operations = RULES.split("tensors:")[1].replace("text_config.num_key_value_heads", key)
    path.write_text(f"schema: 1\ntensors:{operations}")
    [linted] = lint_files([path])
    found = [finding for finding in linted.findings if finding.problem.code == "LR201"]
    assert [cause in finding.problem.cause for finding in found] == [True] * bool(cause)
    if cause:
        assert found[0].mark is not None
        assert found[0].mark.line == 7


def test_sizes_that_dont_add_up_for_a_checkpoint(tmp_path: Path, fused_source: Path) -> None:
    """`apply` refuses the same; lint has it at the operation's place."""
    path = tmp_path / "r.yaml"
    path.write_text(RULES.replace("split: 1", "split: 0"))
    sources = [str(fused_source), f"vision_tower={CLIP}"]
    [linted] = lint_files([path], sources)
    [finding] = [f for f in linted.findings if f.problem.code == "LR321"]
    assert finding.mark is not None
    assert (finding.mark.line, "`tensors/qkv`" in finding.problem.cause) == (7, True)
    path.write_text(RULES)
    [linted] = lint_files([path], sources)
    assert {finding.problem.code for finding in linted.findings} <= {"LR205", "LR213"}
