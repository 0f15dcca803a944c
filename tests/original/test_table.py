"""The column of the table in docs/versions.md, which `make compat` writes."""

from __future__ import annotations

from tests.original.answers import Answers
from tests.original.faults import FAULTS
from tests.original.table import HEAD, cell, rules_of_row, with_column, without_column
from tools.compat_table import PAGE, parts


def test_the_column_says_what_the_versions_made(answers: Answers) -> None:
    _, written, _ = parts(PAGE.read_text())
    head, _, *rows = written.splitlines()
    assert head.endswith(f"| {HEAD} |")
    assert {row: row.split("|")[-2].strip() for row in rows} == {
        row: cell(rules_of_row(row), answers) for row in rows
    }
    assert with_column(without_column(written), answers) == written


def test_the_page_explains_every_fault() -> None:
    text = PAGE.read_text()
    assert [fault.name for fault in FAULTS if f"*{fault.name}*" not in text] == []
