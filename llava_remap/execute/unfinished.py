"""The claim: a file in a folder while a job fills it. It keeps other jobs away, and tells
`--resume` which files are finished.

Its first line of JSON describes the job; each further line has the name, size and digest of a file
that was flushed to disk. The system releases a killed process's lock on the claim, so whether a job
still runs is never guessed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from llava_remap.core import counted, refuse
from llava_remap.core.files import is_foreign, is_regular_file, write_all
from llava_remap.execute.digests import FileDigest

CLAIM = "llava_remap.partial"
_FORMAT = "llava-remap/unfinished"
_FORMAT_VERSION = 1
#: The most bytes read of a claim. The claims of the largest jobs have a few hundred kB.
_LARGEST = 32 << 20

#: The fact that is reported only if no other fact has changed.
PLAN = "plan"

Facts = Mapping[str, Any]
"""All that the bytes of a job's weight files depend on, by its name in messages; plain JSON."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The content of a claim.

    Attributes:
        facts: the facts of the job.
        weights: names of all weight files of the job.
        files: the files that are finished, by name.
    """

    facts: Facts
    weights: tuple[str, ...]
    files: Mapping[str, FileDigest]

    @property
    def finished(self) -> dict[str, FileDigest]:
        """The weight files that are finished, by name."""
        return {name: digest for name, digest in self.files.items() if name in self.weights}

    def __str__(self) -> str:
        total = len(self.weights)
        return (
            f"{len(self.finished)} of {counted(total, 'weight file')} "
            f"{'is' if total == 1 else 'are'} finished"
        )

    def changed(self, facts: Facts) -> list[str]:
        """The facts that have changed, in words."""
        now = json.loads(json.dumps(facts))
        changed = [
            name
            for name in sorted(self.facts.keys() | now.keys())
            if self.facts.get(name) != now.get(name)
        ]
        reported = [name for name in changed if name != PLAN] or changed
        return [_difference(name, self.facts.get(name), now.get(name)) for name in reported]


class Claim:
    """A claim on a folder, held until its release or the end of the process. Entries may come from
    several threads.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder.

        Raises:
            RemapError: LR503 where another job has it.
            OSError: if the claim can't be written.
        """
        self.path = folder / CLAIM
        self.is_new = not self.path.exists()
        self._lock = Lock()
        self._file = _open(self.path)
        try:
            if not _lock(self._file) or os.fstat(self._file.fileno()).st_nlink == 0:
                raise refuse(
                    "LR503",
                    f"another job writes into {folder}.",
                    "Give another --output, or wait for it.",
                )
        except BaseException:
            self._file.close()
            raise

    def begin(self, facts: Facts, weights: Sequence[str]) -> None:
        """Start anew, with no file finished."""
        self._file.truncate(0)
        self._append(
            {
                "format": _FORMAT,
                "format_version": _FORMAT_VERSION,
                "weights": list(weights),
                "facts": facts,
            }
        )

    def enter(self, name: str, digest: FileDigest) -> None:
        """Note that a file is complete and on the disk. The file gets its name only after this."""
        self._append({"file": name, "nbytes": digest.nbytes, "xxh3_128": digest.xxh3_128})

    def release(self, *, remove: bool) -> None:
        """Release the folder. A claim that isn't removed tells `--resume` how far the job came."""
        if remove:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._file.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = b"\n" + json.dumps(entry).encode()  # the line before may have been cut off
        with self._lock:
            write_all(self._file, line)
            os.fsync(self._file.fileno())


def read_claim(folder: Path) -> Unfinished | None:
    """The content of a claim in a folder; None if there is no claim, or if its job was killed
    before the first line was written.

    Raises:
        OSError: if the claim can't be read.
    """
    path = folder / CLAIM
    if not _is_there(path):
        return None
    entries: list[dict[str, Any]] = []
    with path.open("rb") as file:
        content = file.read(_LARGEST)
    for line in content.split(b"\n"):
        # A line may have been cut off, or be somebody else's.
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(entry := json.loads(line), dict):
                entries.append(entry)
    if not entries or (entries[0].get("format"), entries[0].get("format_version")) != (
        _FORMAT,
        _FORMAT_VERSION,
    ):
        return None
    try:
        files = {
            str(e["file"]): FileDigest(int(e["nbytes"]), str(e["xxh3_128"])) for e in entries[1:]
        }
        # A file is entered before it gets its name, and may never have got it.
        named = {name: file for name, file in files.items() if (folder / name).exists()}
        return Unfinished(dict(entries[0]["facts"]), tuple(map(str, entries[0]["weights"])), named)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def refuse_foreign_claim(folder: Path) -> None:
    """LR504 for a claim that another user can have written: the files that it lists as finished may
    not be ours.
    """
    path = folder / CLAIM
    if is_foreign(path.lstat()):
        raise refuse(
            "LR504",
            f"{path} belongs to another user, or others may write to it, so its list of "
            "finished files isn't trusted.",
            "Delete the folder and start again.",
        )


def _is_there(path: Path) -> bool:
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, but a job writes a file there", str(path))
    return is_regular_file(path)


def is_held(folder: Path) -> bool:
    """Whether a job that still runs has a claim on a folder.

    Raises:
        OSError: if the claim can't be read.
    """
    path = folder / CLAIM
    if not _is_there(path):
        return False
    with FileIO(path) as file:  # closing the file releases the lock
        # Over NFS, a file that is opened for reading can't be locked exclusively.
        return not _lock(file, fcntl.LOCK_SH)


def _open(path: Path) -> FileIO:
    # A link would lead to somebody else's file; the mode keeps others from writing to it.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return FileIO(os.open(path, flags, 0o644), "r+")


def _lock(file: FileIO, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock a file, and return whether that worked; without locks, a file counts as locked."""
    try:
        fcntl.flock(file.fileno(), kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        parts = [
            part for part in sorted(then.keys() | now.keys()) if then.get(part) != now.get(part)
        ]
        return f"{name}: {', '.join(parts)}"
    if isinstance(then, str) and isinstance(now, str):
        return f"{name}: {then} then, {now} now"
    return name
