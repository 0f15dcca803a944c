"""Pages that are made from the code are up to date, and the code has what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava_remap.core.codes import CODES, Exit
from tests.test_rooms import ROOMS
from tools.docs.pages import ROOT, name_of
from tools.docs.reference import EXITS, code_table, command_line_page, made, rule_file_page
from tools.docs.rooms_picture import SAYS, imports


@pytest.mark.parametrize("path", made(), ids=name_of)
def test_it_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == made()[path], "make reference writes it anew"


def test_every_code_is_in_the_page_once() -> None:
    tables = "".join(code_table(f"LR{digit}") for digit in "123456")
    assert re.findall(r"`(LR\d{3})` \|", tables) == list(CODES)


def test_every_code_is_used_and_every_used_code_is_known() -> None:
    source = "".join(
        path.read_text() for path in (ROOT / "llava_remap").rglob("*.py") if path.name != "codes.py"
    )
    assert set(re.findall(r'"(LR\d{3})"', source)) == set(CODES)


def test_exit_codes() -> None:
    assert set(EXITS) == {*map(int, Exit), 130}


def test_commands_and_fields_are_there() -> None:
    page = command_line_page()
    for command in (
        "apply",
        "verify",
        "revert",
        "shrink",
        "inspect",
        "rules list",
        "rules new",
        "rules lint",
    ):
        assert f"\n## {command}\n" in page
    assert "`--max-shard-size SIZE`" in page
    assert "\n## Rule\n" in rule_file_page()


def test_the_picture_has_every_room_and_no_dot_above_the_diagonal() -> None:
    assert tuple(SAYS) == ROOMS
    for row, room in enumerate(ROOMS):
        assert all(ROOMS.index(other) < row for other in imports()[room])
