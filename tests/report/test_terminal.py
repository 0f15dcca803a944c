"""Lines and sections of a report: what is left out, and what a terminal is kept from obeying."""

from __future__ import annotations

import re
import subprocess
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from llava_remap.core import quote
from llava_remap.report.terminal import (
    console_for,
    more,
    names_by_fact,
    write,
    write_command,
    write_section,
)


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=20, soft_wrap=True)


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


TABLE: list[str | Text] = [
    Text.assemble(("model       ", "bold"), "  ./a/folder  twenty-seven tensors of 14.1 GB, taken"),
    "  language_model.model.layers.{0..31}.self_attn.{k,o,q,v}_proj.weight  a fact of it",
    Text("    a fact that is dim and long, from which several lines are made", "dim"),
    "\n图图图图图图图图 图图图图图图图图 图图图图图图图图 图图图图图图图图 图图图图图图图图",
]


@pytest.mark.parametrize("width", [24, 60, 80, 200])
def test_a_terminal_of_any_width_shows_the_same_words_whole(width: int) -> None:
    """A line is longer than the terminal only if one word is."""
    log, terminal = (
        Console(
            file=StringIO(), width=width, soft_wrap=soft, force_terminal=not soft, no_color=True
        )
        for soft in (True, False)
    )
    write(log, *TABLE)
    write(terminal, *TABLE)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in printed(terminal).split("\n")]
    assert " ".join(lines).split() == printed(log).split()
    assert all(cell_len(line) <= width or len(line.split()) == 1 for line in lines)


def test_what_is_wrapped_stands_under_its_column() -> None:
    console = Console(file=StringIO(), width=40)
    write(
        console,
        "  model  two words and more words than fit",
        "a paragraph of some more words in it",
    )
    assert printed(console) == (
        "  model  two words and more words than\n         fit\n"
        "a paragraph of some more words in it\n"
    )


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_command_can_be_copied_from_any_terminal(width: int) -> None:
    words = ["llava-remap", "apply", "--source", "a  b 'c'", "-o", 'x\\y"', "--dry-run", "esc\x1b"]
    command = " ".join(map(quote, words))
    console = Console(file=StringIO(), width=width)
    write_command(console, command)
    assert len(printed(console).splitlines()) > 1
    ran = subprocess.run(
        ["bash", "-c", f"f() {{ printf '%s\\0' \"$@\"; }}; f {printed(console)}"],
        capture_output=True,
        check=True,
    )
    assert ran.stdout.decode().split("\0")[:-1] == words


@pytest.mark.parametrize(
    ("tty", "environment", "wraps", "styled"),
    [
        (True, {}, True, True),
        (True, {"NO_COLOR": "1"}, True, False),
        (True, {"TERM": "dumb"}, False, False),
        (False, {}, False, False),
        (False, {"COLUMNS": "60"}, False, False),
    ],
)
def test_where_lines_are_wrapped_and_styled(
    tty: bool,
    environment: dict[str, str],
    wraps: bool,
    styled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class File(StringIO):
        def isatty(self) -> bool:
            return tty

    for name, value in {"TERM": "xterm-256color", "COLUMNS": "60", **environment}.items():
        monkeypatch.setenv(name, value)
    console = console_for(File())
    write(console, Text.assemble(("word", "bold red"), " word" * 20))
    assert (printed(console).count("\n") > 1, "\x1b" in printed(console)) == (wraps, styled)


def test_names_of_one_fact_stand_together_in_order_of_first_appearance() -> None:
    facts = [("a", "one"), ("b", "two"), ("c", "one")]
    assert names_by_fact(facts) == {"one": ["a", "c"], "two": ["b"]}
