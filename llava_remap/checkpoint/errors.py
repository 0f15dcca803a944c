"""Errors of files that are there and can't be read, or can't be used."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_remap.core import RemapError, printable, quoted, refuse
from llava_remap.core.limits import limit_reached


class AbsentError(RemapError):
    """No checkpoint is at the given place."""


class UnreadableError(RemapError):
    """Something is there, and can't be read."""


class DamagedError(UnreadableError):
    """The disk fails to read the file, or other files beside it have faults of their own."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Refuse a file that the block fails to read: LR102 if the disk fails, LR100 if the file isn't
    there or mustn't be read, LR511 if no more files can be opened.

    Args:
        path: the file, for errors that don't name it.
    """
    try:
        yield
    except OSError as error:
        raise limit_reached(error) or _unreadable(error, path) from None


def _unreadable(error: OSError, path: Path) -> RemapError:
    where = str(error.filename or path)
    where = where if len(where) <= 120 else "..." + where[-117:]  # its end names the file
    damaged = error.errno == errno.EIO
    return (DamagedError if damaged else UnreadableError).of(
        "LR102" if damaged else "LR100",
        f"{quoted(where)} can't be read: {printable(error.strerror or str(error))}.",
        "Check the path and its permissions. Remove files that don't belong to the checkpoint; "
        "copy links together with their targets (`cp -rL`).",
    )


def unknown_dtype(file: Path, name: str, dtype: str) -> RemapError:
    """LR106: a dtype that a language model, tower or projector is not trained in."""
    return refuse(
        "LR106",
        f"in {quoted(file.name)} the tensor {quoted(name)} has dtype {quoted(dtype)}, which "
        "can't be converted.",
        "Give the unquantised checkpoint, in F16, BF16 or F32.",
        [name],
    )


def corrupt(file: Path, why: str, *names: str) -> RemapError:
    """LR102 for a file that contradicts itself."""
    return refuse(
        "LR102", f"{quoted(file.name)} is corrupt: {why}.", "Download or copy it again.", names
    )
