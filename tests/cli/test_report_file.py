"""`--report`: what it doesn't replace, and a report that fails where a result is there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llava_remap.core import files
from tests.conftest import CLIP, MANIFESTS, RELEASED, Changed, Run, lose_last_byte


@pytest.mark.parametrize(
    "report", ["checkpoint/config.json", "checkpoint/plan.json", "manifest.json"]
)
def test_a_report_does_not_replace_a_source(report: str, run: Run, changed: Changed) -> None:
    shutil.copy(MANIFESTS / "llava-v1.5-7b.json", "manifest.json")
    source = changed() if report.startswith("checkpoint") else Path("manifest.json")
    before = {path: path.read_bytes() for path in Path().rglob("*.json")}
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--report",
        report,
    )
    assert ran.code == 4
    assert f"{report} is inside source `model`" in ran.err
    assert {path: path.read_bytes() for path in Path().rglob("*.json")} == before


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "pytorch_model.bin.index.json", "added_tokens.json"],
)
def test_a_report_does_not_replace_or_become_what_lies_beside_an_index(name: str, run: Run) -> None:
    shutil.copytree(RELEASED / "sharded", "checkpoint")
    source = "checkpoint/pytorch_model.bin.index.json"
    before = {path: path.read_bytes() for path in Path("checkpoint").iterdir()}
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--report",
        f"checkpoint/{name}",
    )
    assert ran.code == 4
    assert f"checkpoint/{name} is inside source `model`" in ran.err
    assert {path: path.read_bytes() for path in Path("checkpoint").iterdir()} == before


def test_a_report_through_a_link_that_leads_to_itself(run: Run) -> None:
    Path("plan.json").symlink_to("plan.json")
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--report",
        "plan.json",
    )
    assert ran.code == 4
    assert "plan.json: Too many levels of symbolic links" in ran.err


@pytest.mark.parametrize(
    ("output_format", "done"), [("human", True), ("json", True), ("human", False), ("json", False)]
)
def test_a_report_that_fails_at_the_end_hides_no_result(
    output_format: str, done: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = files.write_whole, []

    def failing(path: Path, *arguments: Any) -> None:
        written.extend([path] if path.name == "plan.json" else [])
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *arguments)

    monkeypatch.setattr(files, "write_whole", failing)
    if not done:
        lose_last_byte(monkeypatch)
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
        "--verify",
        "full",
        "--report",
        "plan.json",
        "--format",
        output_format,
    )
    assert ran.code == 4
    assert "plan.json can't be written: No space left on device" in ran.err
    if output_format == "json":
        assert ("result" in json.loads(ran.out)) is done
    else:
        assert ("Done: ./out written" in ran.out) is done
    assert "Report:" not in ran.err
    assert ("./out is finished, but has no report." in ran.err) is done
    if not done:
        assert "LR602" in ran.err
        assert "No output remains." in ran.err


@pytest.mark.parametrize("report", ["report.html", "reports/report.json"])
def test_the_end_says_where_the_report_is(report: str, run: Run) -> None:
    Path("reports").mkdir()
    told = f"\nReport: ./{report}\n"
    given = ("--source", f"vision_tower={CLIP}", "--verify", "none", "--report", report)
    for command in (
        ("convert", RELEASED / "bin", "--dry-run"),  # a plan
        ("convert", RELEASED / "bin", "out"),  # a result
        ("apply", "llava-v1.5", "--source", RELEASED / "bin", "-o", "out"),  # a refusal of a plan
        ("convert", CLIP),  # no plan
    ):
        assert run(*command, *given).err.endswith(told)
        assert "Report:" not in run(*command, *given, "--format", "json").err
    assert run("apply", "llava-v1.5", "--source", "nowhere", *given).err.endswith(told)
    assert "Report:" not in run("apply", "llava-v1.5", "--source", "nowhere", *given, "-q").err


def test_a_place_where_no_report_can_be_is_not_named(run: Run) -> None:
    given = ("--source", f"vision_tower={CLIP}", "--report", "gone/report.json")
    for command in (("convert", RELEASED / "bin", "--dry-run"), ("convert", CLIP)):
        ran = run(*command, *given)
        assert ("LR508" in ran.err, "Report:" in ran.err) == (True, False), ran.err
