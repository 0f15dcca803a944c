"""Files that are whole or not there: written under another name, flushed to disk, renamed. A folder filled or left as it was."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

from llava_remap.errors import RemapError, refuse

#: Lies in a folder while a job fills it, so that no other one does.
CLAIM = "llava_remap.partial"


@contextlib.contextmanager
def fresh_folder(folder: Path, inside: Sequence[str] = ()) -> Iterator[list[Path]]:
    """Fill an empty folder, made with its parents where it isn't there; no other job can meanwhile.

    Args:
        inside: names of folders to be made in it.

    Gives the list for `whole_file` to enter files into.

    Whatever fails or interrupts: the files in the list and the folders that were made go again.

    Raises:
        RemapError: LR503 where the folder isn't empty or another job writes into it, LR508 where it can't be made or a file in
            it can't be written, LR502 for a full disk.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    written: list[Path] = []
    claim = folder / CLAIM
    ours: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            cause = f"another job writes into {folder}, or one was killed in it."
            raise refuse("LR503", cause, "Give another --output, or wait; delete it if no job is running.") from None
        ours.append(claim)
        if any(path != claim for path in folder.iterdir()):
            raise refuse("LR503", f"{folder} isn't empty any more.", "Give another --output, or empty it.")
        for name in inside:
            made.insert(0, folder / name)
            (folder / name).mkdir()
        yield written
        claim.unlink()
    except BaseException as error:
        for path in (*written, *ours):
            with contextlib.suppress(OSError):  # what is told is why it failed
                path.unlink()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise _write_error(error, folder) from error
        raise


@contextlib.contextmanager
def whole_file(path: Path, written: list[Path]) -> Iterator[FileIO]:
    """A file opened as `*.partial`, without a buffer; flushed to disk, entered into `written` and renamed at the end.

    If anything fails, it is removed.

    Raises:
        RemapError: as `fresh_folder`.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        file = partial.open("xb", buffering=0)  # one that is there already is somebody else's, and stays
    except OSError as error:
        raise _write_error(error, path) from error
    try:
        with file:
            yield file
            os.fsync(file.fileno())
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "it is there, and no job of ours wrote it", str(path))
        written.append(path)  # first: an interruption may come between the two
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_error(error, path) from error
        raise


def write_all(file: FileIO, data: bytes) -> None:
    """Write the whole of `data`; a file without a buffer may take only a part of it at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(error: OSError, path: Path) -> RemapError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return refuse("LR502", f"the disk filled up while {path} was written.", "Free some, or give another --output.")
    return refuse("LR508", f"{error.filename or path}: {error.strerror or error}.", "Give another --output.")
