"""How a report says a path, a number of bytes, a heading, a line."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from llava_remap.core.escaped import printable


def size(nbytes: int) -> str:
    """Bytes in the unit a person would choose (powers of 1000, as disks are sold)."""
    amount, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"


def amounts(part: int, whole: int) -> str:
    """Of how many bytes how many, in the unit of the whole: `3.1 of 14.1 GB`."""
    power, unit = next(
        (p, u)
        for p, u in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB"), (0, "B"))
        if whole >= 10**p or not p
    )
    digits = 1 if power else 0
    return f"{part / 10**power:.{digits}f} of {whole / 10**power:.{digits}f} {unit}"


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
