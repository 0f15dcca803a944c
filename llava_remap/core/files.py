"""Checks whether a file exists and who may write it, and writes files completely or not at all.

A path that exists and can't be read as a file is an error, never an absent file.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TypeVar

from llava_remap.core.problem import refuse

T = TypeVar("T")

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: The system's errors for a path that doesn't exist, or can't exist.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def is_regular_file(path: Path) -> bool:
    """Whether a readable regular file is at `path`, after following links. False only if the path
    doesn't exist.

    Raises:
        OSError: for a broken or circular link, for anything but a file, and for a file without read
            permission. Its `strerror` describes the case.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:
            # Non-blocking, because a pipe may have been put there meanwhile.
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            return True
    except ValueError:  # a zero byte in the name
        return False
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        if not os.path.islink(path):  # noqa: PTH114 - `Path.is_symlink` fails on too long a name
            return False
        raise OSError(
            error.errno, f"it is a link to {path.readlink()}, which doesn't exist", str(path)
        ) from None
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a folder where a file should be", str(path))
    raise OSError(
        errno.EINVAL,
        f"it is {_KINDS.get(kind, 'something')}, neither a file nor a folder",
        str(path),
    )


def is_foreign(status: os.stat_result) -> bool:
    """Whether somebody else owns a file or folder, or may write to it."""
    return status.st_uid != os.geteuid() or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of `data`. One call of `write` on an unbuffered file may take only a part."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def write_whole(
    path: Path,
    partial: Path,
    fill: Callable[[FileIO], T],
    ready: Callable[[T], None] = lambda filled: None,
) -> None:
    """Write a file so that it is either complete or absent.

    The content is written to `partial`, flushed to disk and renamed to `path`. `partial` is removed
    if any step fails.

    Args:
        partial: a new file in the same folder as `path`.
        fill: writes the content into the unbuffered file.
        ready: called with the result of `fill` before the rename; an exception cancels the rename.

    Raises:
        OSError: if a step fails, or if `partial` exists.
    """
    try:
        with partial.open("xb", buffering=0) as file:
            filled = fill(file)
            os.fsync(file.fileno())
        ready(filled)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems give these errors for a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def unique_partial(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.partial")


def replace_file(
    path: Path, data: bytes, fix: str = "", check: Callable[[Path], None] = lambda partial: None
) -> None:
    """Write a file. An existing file is replaced only once the new content is complete on disk.

    Args:
        fix: the problem's fix if the file can't be written.
        check: called with the path of the complete new file before it replaces the old one. An
            exception keeps the old file.

    Raises:
        RemapError: LR508 if the file can't be written, or exists and is read-only.
    """
    place = path.resolve()  # a link stays a link
    partial = unique_partial(place)

    def fill(file: FileIO) -> None:
        if place.exists():
            shutil.copymode(place, partial)
        write_all(file, data)

    try:
        if place.exists() and not (os.access(place, os.W_OK) and place.stat().st_mode & 0o222):
            raise PermissionError(None, "it is read-only")
        write_whole(place, partial, fill, lambda _: check(partial))
    except OSError as error:
        raise refuse(
            "LR508",
            f"{path} can't be written: {error.strerror or error}.",
            fix
            or "Make the file writable, or work on a copy. A copy of a shipped file can extend "
            "the same files.",
        ) from None
