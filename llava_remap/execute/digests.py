"""Digests of files: XXH3, taken while a file is written, or of files that are there, two at a time.

A digest tells damage, not malice: who can change a file can change the record beside it as well. So
it need not be a cryptographic one, and XXH3 takes a tenth of the time of SHA-256, which older
records have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal, Protocol

from xxhash import xxh3_128

from llava_remap.checkpoint import unreadable
from llava_remap.core.threads import result

#: Bytes read at once: larger ones leave the processor's cache between reading and digesting.
_BLOCK_NBYTES = 1 << 20

#: Kinds of digest, as they are called in a record: the one that is taken, and the one of records of
#: an earlier day.
Kind = Literal["xxh3_128", "sha256"]


class _State(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


_KINDS: dict[Kind, Callable[[], _State]] = {"xxh3_128": xxh3_128, "sha256": hashlib.sha256}


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size of a file in bytes and its digest, in hexadecimal."""

    nbytes: int
    kind: Kind
    digest: str

    @classmethod
    def of(cls, content: bytes, kind: Kind = "xxh3_128") -> FileDigest:
        """That of a file with this content."""
        state = _KINDS[kind]()
        state.update(content)
        return cls(len(content), kind, state.hexdigest())


def digest_files(
    paths: Iterable[Path],
    on_progress: Callable[[int], None] = lambda nbytes: None,
    kind: Kind = "xxh3_128",
) -> dict[Path, FileDigest]:
    """Digest files. The libraries let go of the interpreter's lock, so two threads keep two cores
    busy.

    Args:
        on_progress: called with the number of bytes read since the last call, from any thread.

    Raises:
        RemapError: LR100 or LR102 for a file that can't be read.
    """
    stop = Event()

    def digest(path: Path) -> FileDigest:
        state, nbytes = _KINDS[kind](), 0
        try:
            with path.open("rb", buffering=0) as file:
                while (block := file.read(_BLOCK_NBYTES)) and not stop.is_set():
                    state.update(block)
                    nbytes += len(block)
                    on_progress(len(block))
        except OSError as error:
            raise unreadable(error, path) from None
        return FileDigest(nbytes, kind, state.hexdigest())

    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            futures = {path: pool.submit(digest, path) for path in paths}
            return {path: result(future) for path, future in futures.items()}
        except (
            BaseException
        ):  # on Ctrl-C too, the threads end before the files that they read go away
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
