"""How a report says a path, a heading, a line."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from llava_remap.core.escaped import printable


def shown(location: str) -> str:
    """A path as short as it can be said from here; anything else, a hub id for one, as it is. On
    one line, whatever it is.
    """
    path = Path(location)
    try:
        return printable(
            f"./{path.resolve().relative_to(Path.cwd())}" if path.exists() else location
        )
    except (ValueError, OSError):  # it is elsewhere, or the current folder is gone
        return printable(location)


def heading(console: Console, text: str) -> None:
    line(console, Text(f"\n{text}", "bold"))


def line(console: Console, text: str | Text) -> None:
    """One line, with nothing in it that a terminal would obey, and nothing that rich would read as
    a style.

    All that reports print goes through here. A text that begins with the end of a line has an empty
    one above it.
    """
    plain = text if isinstance(text, str) else text.plain
    above = "\n" if plain.startswith("\n") else ""
    harmless = above + printable(plain.removeprefix("\n"))
    if harmless != plain:
        text = harmless
    console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)
