"""What is there and can't be read."""

from __future__ import annotations

import errno
from pathlib import Path

from llava_remap.core.escaped import printable
from llava_remap.core.limits import limit_reached
from llava_remap.core.problem import RemapError, refuse
from llava_remap.core.wording import quoted


class AbsentError(RemapError):
    """No checkpoint is where one was named."""


class UnreadableError(RemapError):
    """Something is there, and can't be read."""


class DamagedError(UnreadableError):
    """The disk fails to read it, or other files beside it have faults of their own."""


def unreadable(error: OSError, path: Path) -> RemapError:
    """LR102 for what the disk fails to read, LR100 for what isn't there or mustn't be read,
    LR511 where no file can be opened.
    """
    if (reached := limit_reached(error)) is not None:
        return reached
    where = str(error.filename or path)
    where = where if len(where) <= 120 else "..." + where[-117:]  # its end names the file
    cause = f"{quoted(where)} can't be read: {printable(error.strerror or str(error))}."
    fix = (
        "Check the path and its permissions. What isn't to count, take away; links need what "
        "they lead to (`cp -rL` copies it)."
    )
    if error.errno == errno.EIO:
        return DamagedError.of("LR102", cause, fix)
    return UnreadableError.of("LR100", cause, fix)


def corrupt(file: Path, why: str, *names: str) -> RemapError:
    """LR102 for a file that contradicts itself."""
    return refuse(
        "LR102", f"{quoted(file.name)} is corrupt: {why}.", "Download or copy it again.", names
    )
