"""Lines of a report on a terminal, with the paths and folded names in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from llava_remap.core.escaped import printable
from llava_remap.core.fold import fold_names


def shown(location: str | Path) -> str:
    """A path relative to the current folder, if it lies there; any other text, such as a hub id,
    unchanged. The result is printable and on one line.
    """
    path = Path(location)
    try:
        return printable(
            f"./{path.resolve().relative_to(Path.cwd())}" if path.exists() else str(location)
        )
    except (ValueError, OSError):  # it is elsewhere, or the current folder is gone
        return printable(str(location))


def write(console: Console, *texts: str | Text) -> None:
    """Write each text on a line of its own; empty texts are left out.

    Everything that reports print goes through this function. It escapes what a terminal would
    obey, and rich reads no markup. A text that starts with a line break has an empty line above it.
    """
    for text in filter(None, texts):
        plain = str(text)
        harmless = "\n" * plain.startswith("\n") + printable(plain.removeprefix("\n"))
        console.print(
            text if harmless == plain else harmless,
            soft_wrap=True,
            highlight=False,
            markup=False,
            emoji=False,
        )


def write_section(console: Console, title: str, texts: Iterable[str | Text]) -> None:
    """Write the texts that aren't empty below a heading; if all are, write nothing."""
    if lines := [text for text in texts if text]:
        write(console, Text(f"\n{title}", "bold"), *lines)


def more(count: int, what: str, indent: str = "    ") -> Text:
    """The line for `count` more lines than are shown; empty if there are none."""
    return Text(f"{indent}… and {count} more {what}" if count > 0 else "", "dim")


def names_by_fact(facts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Each fact with all names that it holds for; `facts` has a fact for each name."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, fact in facts:
        groups[fact].append(name)
    return groups


def folded_above(fact: str, names: Iterable[str], indent: str = "  ") -> list[str | Text]:
    """Folded names, and below them the fact that holds for them."""
    return [*(f"{indent}{line}" for line in fold_names(names)), Text(f"{indent}  {fact}", "dim")]
