"""The programs of `.ci/programs.txt`: where they are installed, and how they are asked.

Each program has a virtual environment of its own, made by `make programs`. A test asks a program
through a script `ask_PROGRAM.py`, which the program's own Python runs: questions and answers are
JSON files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.forks import HANGS

ROOT = Path(__file__).parents[2]
#: What `make programs` installs, by the program's name: the requirements, separated by spaces.
PROGRAMS: dict[str, str] = {
    name: requirements
    for line in (ROOT / ".ci" / "programs.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for name, requirements in [line.split(maxsplit=1)]
}
#: With the value `required`, a program that is not installed is a failure; else a skipped test.
SWITCH = "LLAVA_REMAP_PROGRAMS"
#: Has a sitecustomize.py, by which a program's Python can import torchvision without CUDA.
ON_PATH = Path(__file__).with_name("on_path")
#: How much of a failed program's output a test shows.
_SHOWN = 8000


def place(program: str) -> Path:
    """The virtual environment of a program."""
    return ROOT / ".venv" / program


def missing(program: str) -> str | None:
    """Why a program cannot be asked, or None."""
    installed = place(program) / "installed"
    if not installed.is_file():
        return f"{program} is not in {place(program)}: run `make programs`, which installs it."
    if installed.read_text().strip() != PROGRAMS[program]:
        return f"{program} has other versions than .ci/programs.txt says: run `make programs`."
    return None


def demand(program: str) -> None:
    """Skip the test if a program is not installed; fail if LLAVA_REMAP_PROGRAMS=required."""
    if why := missing(program):
        (pytest.fail if os.environ.get(SWITCH) == "required" else pytest.skip)(why)


def ask(program: str, script: Path, questions: Any, work: Path) -> Any:
    """Let a program's own Python run `script QUESTIONS.json ANSWERS.json`.

    Args:
        program: the program, which has to be installed.
        script: the script. It can import nothing of llava_remap and nothing of the tests.
        questions: what the script reads, as JSON.
        work: an existing folder for the files; the script runs in it.

    Returns:
        What the script wrote, as JSON.

    Raises:
        AssertionError: the script failed; the end of its output is the message.
    """
    return _run(place(program) / "bin" / "python", "", script, questions, work)


def ask_transformers(script: Path, questions: Any, work: Path) -> Any:
    """`ask`, with the transformers beside which llava-remap is installed, and torchvision."""
    (packages,) = place("torchvision").glob("lib/python*/site-packages")
    return _run(Path(sys.executable), f":{packages}", script, questions, work)


def _run(python: Path, packages: str, script: Path, questions: Any, work: Path) -> Any:
    given, answered, printed = (
        work / f"{script.stem}.{part}" for part in ("questions.json", "answers.json", "log")
    )
    given.write_text(json.dumps(questions))
    answered.unlink(missing_ok=True)
    more = {"PYTHONPATH": f"{ON_PATH}{packages}", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    command = [python, script.resolve(), given, answered]
    with printed.open("wb") as log:
        ended = subprocess.run(
            list(map(str, command)),
            env={**os.environ, **more},
            cwd=work,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=HANGS,
        )
    said = printed.read_text(errors="replace")[-_SHOWN:]
    assert ended.returncode == 0, f"{script.name} ended with {ended.returncode}:\n{said}"
    return json.loads(answered.read_text())
