"""The pages of the documentation, and their fenced blocks of code.

A comment in the line above a block says how the block is tested:

| comment | test |
| --- | --- |
| `<!-- not run: REASON -->` | commands are only parsed |
| `<!-- shows: FILE -->` | the block is the content of a file |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<comment>.*?) -->\n *)?```(?P<language>[\w-]*)(?P<options>[^\n]*)\n"
    r"(?P<content>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_TITLE = re.compile(r'title="([^"]+)"')
#: The languages that a block may have. Those in `RUN` are run.
RUN = ("console", "sh", "yaml", "python")
SHOWN = ("text", "toml", "json", "jinja")


class PageError(AssertionError):
    """A page says something that isn't so."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        language: the word behind the fence.
        title: the file name that the block bears as its title, or "".
        content: the lines, without the block's indentation.
        not_run: why its commands are only parsed, or "".
        shows: the file whose content the block shows, or "".
    """

    language: str
    title: str
    content: str
    not_run: str
    shows: str


def pages() -> list[Path]:
    """Every page that a reader is meant to read, README and CONTRIBUTING included."""
    tops = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "rules" / "README.md"]
    return [*tops, *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """`docs/guide/convert.md`."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [_block(found) for found in _BLOCK.finditer(text)]


def prose(text: str) -> str:
    """The page without its blocks."""
    return _BLOCK.sub("", text)


def with_blocks(text: str, content: Callable[[Block], str]) -> str:
    """The page with the content of every block replaced."""

    new, end = "", 0
    for found in _BLOCK.finditer(text):
        start, stop = found.span("content")
        new += text[end:start] + _indented(content(_block(found)), found["indent"])
        end = stop
    return new + text[end:]


def _block(found: re.Match[str]) -> Block:
    comment = found["comment"] or ""
    kind, _, rest = comment.partition(": ")
    if comment.startswith(("not run", "show")) and (kind not in ("not run", "shows") or not rest):
        raise PageError(f"<!-- {comment} -->: there is no such comment")
    title = _TITLE.search(found["options"])
    indent = found["indent"]
    lines = [line.removeprefix(indent) for line in found["content"].splitlines(keepends=True)]
    return Block(
        found["language"],
        title[1] if title else "",
        "".join(lines),
        rest if kind == "not run" else "",
        rest if kind == "shows" else "",
    )


def _indented(content: str, indent: str) -> str:
    return "".join(
        indent + line if line.strip() else line for line in content.splitlines(keepends=True)
    )
