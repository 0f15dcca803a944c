"""How names that stand in a file are put into a message: short, on one line, harmless to a
terminal.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from llava_remap.core.escaped import printable
from llava_remap.core.limits import limit_reached
from llava_remap.core.problem import Problem, RemapError


def quoted(text: str) -> str:
    """`text` in backticks; control characters escaped and at most 120 characters of it, as a file
    may hold any text.

    >>> quoted("a\\nb")
    '`a\\\\nb`'
    """
    text = printable(text)
    return f"`{text if len(text) <= 120 else text[:117] + '...'}`"


def several(names: Iterable[str], most: int = 3) -> str:
    """The first `most` names and how many there are besides, e.g. "`a`, `b`, `c` and 4 more"."""
    every = list(names)
    rest = len(every) - most
    return ", ".join(map(quoted, every[:most])) + (f" and {rest} more" if rest > 0 else "")


class UnreadableError(RemapError):
    """Something is there, and can't be read."""


def unreadable(error: OSError, path: Path) -> RemapError:
    """LR102 for what the disk fails to read, LR100 for what isn't there or mustn't be read,
    LR511 where no file can be opened.
    """
    if (reached := limit_reached(error)) is not None:
        return reached
    code = "LR102" if error.errno == errno.EIO else "LR100"
    where = str(error.filename or path)
    where = where if len(where) <= 120 else "..." + where[-117:]  # its end names the file
    cause = f"{quoted(where)} can't be read: {printable(error.strerror or str(error))}."
    fix = (
        "Check the path and its permissions. What isn't to count, take away; links need what "
        "they lead to (`cp -rL` copies it)."
    )
    return UnreadableError(Problem(code, cause, fix))
