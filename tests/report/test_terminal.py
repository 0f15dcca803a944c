"""Lines and sections of a report: what is left out, and what a terminal is kept from obeying."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from llava_remap.report.terminal import more, names_by_fact, write, write_section


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=20)


def printed(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_section_without_lines_has_no_heading(console: Console) -> None:
    write_section(console, "Dropped", ())
    write_section(console, "Merged", ["", more(0, "lines")])
    write_section(console, "Notes", ["", "  a", more(2, "lines")])
    assert printed(console) == "\nNotes\n  a\n    … and 2 more lines\n"


def test_texts_are_neither_markup_nor_wrapped_nor_obeyed(console: Console) -> None:
    write(console, "[bold]a[/] :smile: longer than the console", "", Text("\nb\x1b[31mc\nd"))
    assert printed(console) == ("[bold]a[/] :smile: longer than the console\n\nb\\x1b[31mc\\nd\n")


def test_names_of_one_fact_stand_together_in_order_of_first_appearance() -> None:
    facts = [("a", "one"), ("b", "two"), ("c", "one")]
    assert names_by_fact(facts) == {"one": ["a", "c"], "two": ["b"]}
