"""Questions about tokenizers for several versions of transformers: the installed one in this
process, each of the others in one of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pytest

from tests.compat.run import VERSIONS, missing, place
from tests.folder.ask import answer
from tests.forks import HANGS

INSTALLED = version_of("transformers")
ALL_VERSIONS = (*VERSIONS, INSTALLED)

Question = tuple[Path, str, Sequence[str]]


def of_version(version: str, *others: object) -> Any:
    """A case of a test that asks this version: its values, and the mark `compat` if the version
    isn't the installed one.
    """
    marks = () if version == INSTALLED else pytest.mark.compat
    return pytest.param(version, *others, marks=marks, id="-".join(map(str, (version, *others))))


def chosen_versions(request: pytest.FixtureRequest) -> set[str]:
    """The versions that the chosen tests name."""
    named = [getattr(item, "callspec", None) for item in request.session.items]
    return {found.params["version"] for found in named if found and "version" in found.params}


def ask_versions(
    questions: Mapping[str, Sequence[Question]], work: Path
) -> dict[str, list[dict[str, Any]]]:
    """The answers to each version's questions, in their order; none of a version that isn't
    there.
    """
    there = [version for version in questions if version == INSTALLED or missing(version) is None]
    with ThreadPoolExecutor(2) as pool:
        given = pool.map(lambda version: _ask(version, questions[version], work), there)
    return dict(zip(there, given, strict=True))


def _ask(version: str, questions: Sequence[Question], work: Path) -> list[dict[str, Any]]:
    if version == INSTALLED:
        return [answer(str(folder), way, list(texts)) for folder, way, texts in questions]
    asked, given = work / f"asked-{version}.json", work / f"given-{version}.json"
    asked.write_text(
        json.dumps([[str(folder), way, list(texts)] for folder, way, texts in questions]),
        encoding="utf-8",
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(place(version).resolve()),
    }
    command = [sys.executable, str(Path(__file__).with_name("ask.py")), str(asked), str(given)]
    ran = subprocess.run(
        command, env=environment, cwd=work, capture_output=True, text=True, timeout=HANGS
    )
    assert ran.returncode == 0, f"transformers {version}: {ran.stderr}"
    answers: list[dict[str, Any]] = json.loads(given.read_text(encoding="utf-8"))
    return answers
