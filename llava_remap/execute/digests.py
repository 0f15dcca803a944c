"""Digests of whole files, two files at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from llava_remap.checkpoint import unreadable

#: Bytes read at once: larger ones leave the processor's cache between reading and digesting.
_BLOCK_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and SHA-256 (hexadecimal) of a file."""

    nbytes: int
    sha256: str


def digest_files(paths: Iterable[Path], on_progress: Callable[[int], None] = lambda nbytes: None) -> dict[Path, FileDigest]:
    """Digest files. hashlib lets go of the interpreter's lock, so two threads keep two cores busy.

    Args:
        on_progress: called with the number of bytes read since the last call, from any thread.

    Raises:
        RemapError: LR100 or LR102 for a file that can't be read.
    """
    stop = Event()

    def digest(path: Path) -> FileDigest:
        state, nbytes = hashlib.sha256(), 0
        try:
            with path.open("rb", buffering=0) as file:
                while (block := file.read(_BLOCK_NBYTES)) and not stop.is_set():
                    state.update(block)
                    nbytes += len(block)
                    on_progress(len(block))
        except OSError as error:
            raise unreadable(error, path) from None
        return FileDigest(nbytes, state.hexdigest())

    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            futures = {path: pool.submit(digest, path) for path in paths}
            return {path: future.result() for path, future in futures.items()}
        except BaseException:  # on Ctrl-C too, the threads end before the files that they read go away
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
