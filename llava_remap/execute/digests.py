"""Digests of files by XXH3, computed while a file is written, or of existing files, two at a time.

A digest shows damage, not malice: whoever can change a file can change the record beside it as
well. So the digest need not be cryptographic, and XXH3 takes a tenth of the time of SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from xxhash import xxh3_128

from llava_remap.checkpoint import readable
from llava_remap.core.threads import result

#: Bytes read at once. Larger blocks leave the processor's cache between reading and digesting.
_BLOCK_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size of a file in bytes, and its digest by XXH3 with 128 bits, in hexadecimal."""

    nbytes: int
    xxh3_128: str

    @classmethod
    def of(cls, content: bytes) -> FileDigest:
        """The digest of a file with this content."""
        return cls(len(content), xxh3_128(content).hexdigest())


def digest_files(
    paths: Iterable[Path],
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[Path, FileDigest]:
    """Digest files. The libraries release the interpreter's lock, so two threads keep two cores
    busy.

    Args:
        on_progress: called with the number of bytes read since the last call, from any thread.

    Raises:
        RemapError: LR100 or LR102 for a file that can't be read.
    """
    stop = Event()

    def digest(path: Path) -> FileDigest:
        state, nbytes = xxh3_128(), 0
        with readable(path), path.open("rb", buffering=0) as file:
            while (block := file.read(_BLOCK_NBYTES)) and not stop.is_set():
                state.update(block)
                nbytes += len(block)
                on_progress(len(block))
        return FileDigest(nbytes, state.hexdigest())

    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            futures = {path: pool.submit(digest, path) for path in paths}
            return {path: result(future) for path, future in futures.items()}
        except BaseException:  # on Ctrl-C too: the threads must end before their files go away
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
