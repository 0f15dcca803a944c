"""Sources on the command line that can't be, and names that are no text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import CLIP, RELEASED, TINY, Run, beside_progress


def test_sources_that_cannot_be(run: Run) -> None:
    assert run("apply", "llava-v1.5", "--source", "x" * 300).code == 3
    assert run("apply", "llava-v1.5", "--source", "x=" + "y" * 300).code in (2, 3)
    assert run("apply", "llava-v1.5", "--source", "").code == 2
    assert run("apply", "llava-v1.5", "--source", "~no-such-user/x").code == 2


def test_names_and_terminals_that_are_not_text() -> None:
    """A source, an output and a report whose names are no UTF-8, on a terminal that has ASCII
    alone.
    """
    odd = os.fsdecode(b"\xff")
    shutil.copytree(RELEASED / "bin", odd)
    program = "from llava_remap.cli import main; main()"
    sources = ("--source", odd, "--source", f"vision_tower={CLIP}")
    files = ("--output", f"out{odd}", "--report", f"{odd}.json")
    command = [
        sys.executable,
        "-c",
        program,
        "apply",
        "llava-v1.5",
        *sources,
        *files,
        "--verify",
        "none",
        "--format",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for form, words in (("human", "\\udcff written in"), ("json", '"output": "out\\udcff"')):
        ran = subprocess.run(
            [*command, form], capture_output=True, text=True, check=False, env=environment
        )
        told = "\nReport: ./\\udcff.json\n" if form == "human" else ""
        assert (ran.returncode, beside_progress(ran.stderr)) == (0, told)
        assert words in ran.stdout
        for made in (f"{odd}.json", f"out{odd}/llava_remap.json"):
            assert json.loads(Path(made).read_text())["sources"]["model"]["location"] == odd
        shutil.rmtree(f"out{odd}")


def test_inspect_one_shard_of_several(run: Run) -> None:
    shard = TINY / "llava-v1.5" / "released" / "sharded" / "pytorch_model-00002-of-00002.bin"
    assert run("inspect", shard).code == 0
