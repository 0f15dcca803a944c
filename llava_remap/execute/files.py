"""Files that are either complete or absent: written under another name, flushed to disk, renamed.
A folder that is either filled or left as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from threading import Condition, get_ident

from llava_remap.core import Exit, RemapError, refuse
from llava_remap.core.files import sync_folder, write_all, write_whole
from llava_remap.core.limits import limit_reached
from llava_remap.execute.digests import FileDigest, digest_files
from llava_remap.execute.unfinished import (
    CLAIM,
    Claim,
    Facts,
    Unfinished,
    read_claim,
    refuse_foreign_claim,
)


class Gate:
    """A gate that every thread enters to write a file. After a thread has failed, no other thread
    gets in. After `close`, all threads have left.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self._inside: set[int] = set()  # numbers of threads
        self._changes = Condition()

    def __enter__(self) -> None:
        with self._changes:
            self.check()
            self._inside.add(get_ident())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The failing thread closes the gate itself. Otherwise it might begin the next file before
        # other threads hear of the failure.
        if kind is not None:
            self.is_closed = True
        with self._changes:
            self._inside.discard(get_ident())
            self._changes.notify_all()

    def check(self) -> None:
        """Raise `Closed` if nothing may be written any more. Called often while a file is
        written.
        """
        if self.is_closed:
            raise Closed

    def close(self) -> None:
        """Let no thread begin a file any more, and wait until the other threads have left."""
        self.is_closed = True
        with self._changes:
            # The closing thread may have been interrupted on its own way out.
            self._changes.wait_for(lambda: self._inside <= {get_ident()})


class Closed(BaseException):
    """Writing was stopped early on request. Not an `Exception`, so that no plug-in, and no code
    that handles a plug-in's errors, catches it.
    """


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is being filled.

    Attributes:
        digests: digests of the written files, and of weight files that were there already, by path.
        gate: the gate for all threads that write into the folder.
    """

    path: Path
    digests: dict[Path, FileDigest] = field(default_factory=dict)
    _claim: Claim | None = None
    gate: Gate = field(default_factory=Gate)

    def inside(self, name: str) -> Folder:
        """A folder inside this one."""
        return replace(self, path=self.path / name)

    def put(self, name: str, content: bytes) -> None:
        """Write a small file.

        Raises:
            RemapError: as `fresh_folder`.
        """

        def fill(file: FileIO) -> FileDigest:
            write_all(file, content)
            return FileDigest.of(content)

        self.write(name, fill)

    def write(self, name: str, fill: Callable[[FileIO], FileDigest]) -> None:
        """Write a file as `*.partial`, flush it to disk and rename it; if anything fails, the file
        is removed.

        Args:
            fill: writes into a file that is opened without a buffer, and returns its digest.

        Raises:
            RemapError: as `fresh_folder`.
        """
        path, partial = self.path / name, self.path / f"{name}.partial"

        def enter(digest: FileDigest) -> None:
            _refuse_there(path)
            if self._claim is not None:
                self._claim.enter(path.name, digest)
            # Before the rename, because an interruption may come between the two.
            self.digests[path] = digest

        with self.gate:
            _refuse_there(partial)
            try:
                write_whole(path, partial, fill, enter)
                sync_folder(path.parent)
            except OSError as error:
                raise _write_error(error, path) from error


@dataclass(frozen=True, slots=True)
class Resumable:
    """A job that can be resumed.

    Attributes:
        facts: gives the facts of the job at the time of the call.
        weights: names of its weight files.
        others: names of its other files, in the order of writing.
        resume: whether to resume the job, if it was begun.
        on_progress: called with the number of bytes of finished files that were read since the last
            call, from any thread.
    """

    facts: Callable[[], Facts]
    weights: Sequence[str]
    others: Sequence[str]
    resume: bool
    on_progress: Callable[[int], None]


@contextlib.contextmanager
def fresh_folder(
    path: Path, inside: Sequence[str] = (), job: Resumable | None = None
) -> Iterator[Folder]:
    """Fill an empty folder, and keep other jobs out of it meanwhile. An absent folder is made, with
    its parents.

    After a failure or an interruption, the written files and the new folders are removed.
    Finished weight files stay if the job can be resumed with them, and so does the claim that lists
    them.

    Args:
        inside: names of folders to be made in the folder.
        job: the job, if it can be resumed.

    Raises:
        RemapError: LR503 if the folder isn't empty or another job writes into it, LR504 if another
            job was begun in it, LR505 if a job was begun in it and isn't to be resumed, LR508 if
            the folder can't be made or a file in it can't be written, LR502 for a full disk, LR501
            if no memory is left.
    """
    made = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    folder: Folder | None = None
    claim: Claim | None = None
    facts = job.facts() if job is not None else {}
    try:
        path.mkdir(parents=True, exist_ok=True)
        claim = Claim(path)
        begun = read_claim(path)
        finished: dict[Path, FileDigest] = {}
        if begun is not None and job is not None and job.resume:
            finished = _take_up(path, begun, facts, job)
        else:
            refuse_filled(path, begun, killed=not claim.is_new)
        folder = Folder(path, finished, claim if job is not None else None)
        if job is not None and not finished:
            claim.begin(facts, job.weights)
        for name in inside:
            made.insert(0, path / name)
            (path / name).mkdir()
        yield folder
    except BaseException as error:
        kept = True  # in case the clearing up is interrupted as well
        try:
            # An existing claim is kept, even if reading it failed.
            kept = (
                claim is not None and not claim.is_new
                if folder is None
                else _clear(folder, job, facts, error)
            )
        finally:
            if claim is not None:
                with contextlib.suppress(OSError):
                    claim.release(remove=not kept)
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        if isinstance(error, OSError):
            raise _write_error(error, path) from error
        raise
    try:
        claim.release(remove=True)
    except BaseException:  # a signal: the job is done, so no claim may say that it isn't
        claim.release(remove=True)
        raise


def refuse_filled(path: Path, begun: Unfinished | None, *, killed: bool) -> None:
    """LR505 for a folder in which a job was begun, LR503 for a folder that isn't empty.

    Args:
        killed: whether the folder has a claim, which may be empty.
    """
    if begun is not None:
        raise refuse(
            "LR505",
            f"{path} has an unfinished job: {begun}.",
            "Add --resume to the same command to continue, or delete the folder.",
        )
    if any(entry.name != CLAIM for entry in path.iterdir()):
        why = f": a job was killed in it (it has {CLAIM})" if killed else ""
        raise refuse(
            "LR503",
            f"{path} exists and isn't an empty folder{why}.",
            "Give another --output, or empty the folder.",
        )


def refuse_changed_job(path: Path, begun: Unfinished, facts: Facts) -> None:
    """LR504 if a job isn't the job that was begun, because its files wouldn't fit; or if other
    users may have written the claim.
    """
    refuse_foreign_claim(path)
    if changed := begun.changed(facts):
        raise refuse(
            "LR504",
            f"{path} has an unfinished job that is different. What has changed: "
            f"{'; '.join(changed)}.",
            "Run that job again as it was begun, or delete the folder and start again.",
        )


def _take_up(path: Path, begun: Unfinished, facts: Facts, job: Resumable) -> dict[Path, FileDigest]:
    """Return the finished weight files. Remove everything else that the job left, so that it is
    written again.
    """
    refuse_changed_job(path, begun, facts)
    weights = {name: path / name for name in job.weights}
    ours = {CLAIM, *begun.files, *(f"{name}.partial" for name in (*job.weights, *job.others))}
    there = {entry.name for entry in path.iterdir()}
    if foreign := sorted(name for name in there if name not in ours):
        raise refuse(
            "LR503",
            f"{path} has files that the job begun in it didn't write: {', '.join(foreign[:6])}.",
            "Move these files to another folder.",
        )
    digests = digest_files(
        (weights[name] for name in begun.finished if name in there), job.on_progress
    )
    whole = {file: digest for file, digest in digests.items() if digest == begun.files[file.name]}
    left = there - {CLAIM} - {file.name for file in whole}
    # The record first, the index next, so that the rest never looks complete.
    for name in (*reversed(job.others), *left):
        if name in left:
            (path / name).unlink(missing_ok=True)
    return whole


def _clear(folder: Folder, job: Resumable | None, facts: Facts, error: BaseException) -> bool:
    """Remove the written files, except finished weight files that a resumed job can use. Return
    whether such files stay.
    """
    folder.gate.close()
    weights = [folder.path / name for name in job.weights] if job is not None else []
    whole = {file for file in weights if file in folder.digests and file.exists()}
    kept = job is not None and bool(whole) and _is_good(error, job, facts)
    # The record first, the index next, so that the rest never looks complete.
    for file in reversed(folder.digests):
        if not kept or file not in whole:
            with contextlib.suppress(OSError):  # the first error is the one that is reported
                file.unlink()
    return kept


def _is_good(error: BaseException, job: Resumable, facts: Facts) -> bool:
    """Whether a resumed job can use the written files, for example after a full disk or Ctrl-C."""
    if isinstance(error, RemapError):
        if error.exit not in (Exit.INPUT, Exit.RESOURCES, Exit.LIBRARY):
            return False  # the files are wrong
    elif isinstance(error, Exception) and not isinstance(error, (OSError, MemoryError)):
        return False  # the files may be wrong
    with contextlib.suppress(OSError, RemapError):
        return job.facts() == facts
    return False


def _refuse_there(path: Path) -> None:
    """LR508 for an existing file, which isn't ours and is kept."""
    if os.path.lexists(path):
        raise refuse(
            "LR508",
            f"{path} exists already, and llava-remap didn't write it.",
            "Give another --output.",
        )


def _write_error(error: OSError, path: Path) -> RemapError:
    if (reached := limit_reached(error)) is not None:
        return reached
    if error.errno == errno.EFBIG:
        return refuse(
            "LR508",
            f"{path} became larger than its file system or `ulimit -f` allows.",
            "Give a smaller --max-shard-size, or another --output.",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return refuse(
            "LR502",
            f"the disk filled up while {path} was written.",
            "Free some space, or give another --output.",
        )
    return refuse(
        "LR508", f"{error.filename or path}: {error.strerror or error}.", "Give another --output."
    )
