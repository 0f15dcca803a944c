"""All cases converted, and every version of transformers that is there asked to look at the
folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.compat.checkpoints import CASES, FAMILIES, ROPED, convert, convert_family, without_rope
from tests.forks import HANGS

ROOT = Path(__file__).parents[2]
#: Where `make versions` puts them, each in `transformers-VERSION`.
INSTALLED = Path(os.environ.get("LLAVA_REMAP_VERSIONS", ROOT / ".venv"))
VERSIONS = [
    line.split()[0]
    for line in (ROOT / ".ci" / "versions.txt").read_text().splitlines()
    if line[:1].isdigit()
]
#: float32 logits here are below 2. All versions gave the same bits on the machine where this was
#: written; one that adds in another order would be some 1e-6 away. A config that is understood
#: otherwise is 0.09 away at least (rope theta 10000 for 1e6).
LOGITS = 1e-5
#: Pixel values are about 2 at most; a few roundings of float32, and far below one step of an 8-bit
#: colour (0.015).
PIXELS = 1e-6
#: What a version says of itself, not of a folder.
ASIDE = ("warned", "closed")


@dataclass(frozen=True)
class Seen:
    """What a version made of the folders: what it said of each, and arrays by `folder/name`."""

    said: dict[str, Any]
    arrays: Mapping[str, Any]


Look = dict[str, Seen]


def convert_all(work: Path) -> dict[str, Path]:
    """All cases and families, converted, by name."""
    made = {name: work / "out" / name for name in (*CASES, *FAMILIES)}
    for name, case in CASES.items():
        convert(case, work / name, made[name])
    for name in FAMILIES:
        convert_family(name, work / name, made[name])
    for name in ROPED:
        made[f"{name}-without-rope"] = work / "out" / f"{name}-without-rope"
        without_rope(made[name], made[f"{name}-without-rope"])
    return made


def look_with_all(folders: Mapping[str, Path], work: Path) -> Look:
    """Every version that is there, and the installed one (``), has looked at all folders; each
    in one process.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = {}
    versions = ["", *(version for version in VERSIONS if missing(version) is None)]
    for pair in zip(versions[::2], [*versions[1::2], None], strict=False):
        running = {}
        for version in (version for version in pair if version is not None):
            path = {"PYTHONPATH": str(place(version).resolve())} if version else {}
            command = [
                sys.executable,
                str(Path(__file__).with_name("look.py")),
                str(work / f"v{version}"),
            ]
            with (work / f"v{version}.log").open("wb") as log:
                running[version] = subprocess.Popen(
                    [*command, *map(str, folders.values())],
                    env={**environment, **path},
                    cwd=work,
                    stdout=log,
                    stderr=log,
                )
        for version, process in running.items():
            code = process.wait(timeout=HANGS)
            assert code == 0, (work / f"v{version}.log").read_text()
            said = json.loads((work / f"v{version}.json").read_text())
            found[version] = Seen(said, dict(np.load(work / f"v{version}.npz")))
    return found


def differences(name: str, one: Seen, other: Seen) -> list[str]:
    """In what two versions disagree on a folder: what they said, and arrays; empty where they
    say and compute the same.
    """
    if errors := [seen.said[name]["error"] for seen in (one, other) if "error" in seen.said[name]]:
        return errors
    said, wanted = one.said[name], other.said[name]
    found = [key for key in wanted if key not in ASIDE and said.get(key) != wanted[key]]
    prefix = f"{name}/"
    for key in (key for key in other.arrays if key.startswith(prefix)):
        tolerance = PIXELS if key.endswith("pixel_values") else LOGITS
        same = key in one.arrays and one.arrays[key].shape == other.arrays[key].shape
        if not same or np.abs(one.arrays[key] - other.arrays[key]).max() > tolerance:
            found.append(key.removeprefix(prefix))
    return found


def place(version: str) -> Path:
    return INSTALLED / f"transformers-{version}"


@cache
def missing(version: str) -> str | None:
    """Why a version can't be asked, or None."""
    if (place(version) / "transformers" / "__init__.py").is_file():
        return None
    return (
        f"transformers {version} is not in {place(version)}: run `make versions`, which "
        "installs it there."
    )
