"""The rooms of the package: each imports only from the rooms above it, at the top of a module
and inside of functions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llava_remap

PACKAGE = Path(llava_remap.__file__).parent
#: From the ground floor up.
ROOMS = (
    "core",
    "rulefile",
    "rewrite",
    "checkpoint",
    "source",
    "target_model",
    "routing",
    "post_load",
    "planning",
    "execute",
    "folder",
    "verification",
    "jobs",
    "authoring",
    "report",
    "cli",
)
#: Rooms that may import transformers, torch and numpy.
ASK_TRANSFORMERS = {"target_model", "folder", "verification", "jobs", "authoring"}


def imported(module: Path) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_no_module_lies_loose() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_above_it(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    upwards = {
        f"{module.relative_to(PACKAGE)} imports {name}"
        for module in (PACKAGE / room).rglob("*.py")
        for name in imported(module)
        if name.startswith("llava_remap.") and name.split(".")[1] not in allowed
    }
    assert not upwards


def test_no_code_of_a_problem_decides_what_happens() -> None:
    """What a program needs of a problem is in its fields, or in the class of the exception."""
    deciding = {
        f"{module.relative_to(PACKAGE)}:{node.lineno}"
        for module in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Attribute) and side.attr == "code"
    }
    assert not deciding


@pytest.mark.parametrize("room", ROOMS)
def test_only_some_rooms_import_transformers(room: str) -> None:
    asking = {
        f"{module.relative_to(PACKAGE)} imports {name}"
        for module in (PACKAGE / room).rglob("*.py")
        for name in imported(module)
        if name.split(".")[0] == "transformers"
    }
    assert room in ASK_TRANSFORMERS or not asking - {"core/libraries.py imports transformers"}
