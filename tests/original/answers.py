"""Every version of transformers asked about every family, once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path

from tests.compat.run import ROOT, VERSIONS, missing, place
from tests.forks import HANGS
from tests.original.answer import FolderAnswer, read
from tests.original.convert import Target, convert

INSTALLED = version_of("transformers")
#: Those of `make compat`, and the installed one.
ALL_VERSIONS = (*VERSIONS, INSTALLED)


@dataclass(frozen=True)
class Answers:
    """What all versions made of all targets.

    Attributes:
        failed: targets that weren't converted, and what the command line said.
        given: by version and the target's name.
    """

    failed: dict[Target, str]
    given: dict[str, dict[str, FolderAnswer]]

    def of(self, target: Target, version: str) -> FolderAnswer | str:
        """What a version made of a target, or why it made nothing of it."""
        if target in self.failed:
            return self.failed[target]
        if version not in self.given:
            return missing(version) or f"transformers {version} was not asked"
        answer = self.given[version][target.name]
        return answer if answer.error is None else f"the folder doesn't open: {answer.error}"


def ask_all(targets: Iterable[Target], versions: Iterable[str], work: Path) -> Answers:
    """Convert all targets, and ask all versions that are there."""
    work.mkdir(exist_ok=True)
    made = {target: convert(target, work) for target in targets}
    folders = [folder for folder in made.values() if isinstance(folder, Path)]
    given = run_in_all("tests.original.ask", versions, folders, work)
    failed = {target: said for target, said in made.items() if isinstance(said, str)}
    return Answers(failed, {version: read(path) for version, path in given.items()})


def run_in_all(
    module: str, versions: Iterable[str], folders: Sequence[Path], work: Path
) -> dict[str, Path]:
    """By version, of those that are there, the file that a module wrote of these folders.

    A module is run as `python -m MODULE OUT FOLDER…`, in a process for each version, two at a time.
    """
    there = [version for version in versions if version == INSTALLED or missing(version) is None]
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda version: _run(module, version, folders, work), there)
        return dict(zip(there, made, strict=True))


def _run(module: str, version: str, folders: Sequence[Path], work: Path) -> Path:
    out = work / f"{version}.json"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if version != INSTALLED:
        environment["PYTHONPATH"] = str(place(version).resolve())
    command = [sys.executable, "-m", module, str(out), *map(str, folders)]
    ran = subprocess.run(
        command,
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert ran.returncode == 0, f"transformers {version}: {ran.stderr}"
    return out
