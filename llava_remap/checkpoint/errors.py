"""What is there and can't be read."""

from __future__ import annotations

import errno
from pathlib import Path

from llava_remap.core.escaped import printable
from llava_remap.core.limits import limit_reached
from llava_remap.core.problem import Problem, RemapError
from llava_remap.core.wording import quoted


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
