"""One new file, written from front to back: one buffer is filled while the other is digested and
written.

If the file system allows, writing bypasses the page cache: nobody will read the file soon, and its
pages would drive out other files. Such writing takes a fraction of the kernel's time. It leaves
nothing for the flush at the end, so the job ends at once on Ctrl-C. On a file system that can share
blocks, runs of a source with the same offset within a block aren't written at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from mmap import mmap
from pathlib import Path

from xxhash import xxh3_128

from llava_remap.checkpoint import readable
from llava_remap.execute.digests import FileDigest
from llava_remap.execute.values import too_short

#: Bytes of each of the two buffers.
BUFFER_NBYTES = 1 << 20
#: Writes that bypass the page cache start and end at multiples of this; so do shared runs.
BLOCK = 4096
#: If writing can't bypass the cache: bytes after which the file is flushed, so that no flush takes
#: long.
_FLUSH_NBYTES = 32 << 20
#: Linux' FICLONERANGE, _IOW(0x94, 13, struct file_clone_range).
_CLONE_RANGE = 0x4020940D


class Writer:
    """Appends to an empty file (opened without a buffer). Used as a context manager; `finish`
    returns size and digest.

    Args:
        on_progress: called with the number of bytes that were handled since the last call, from any
            thread.
        on_buffer: called before every buffer that is written; an exception ends the writing.
    """

    def __init__(
        self,
        file: FileIO,
        on_progress: Callable[[int], None] = lambda nbytes: None,
        on_buffer: Callable[[], None] = lambda: None,
    ) -> None:
        self._file, self._on_progress, self._on_buffer = file.fileno(), on_progress, on_buffer
        self._direct = _past_the_cache(self._file)
        self._clones = sys.platform == "linux"
        self._digest = xxh3_128()
        self._buffer, self._other = mmap(-1, BUFFER_NBYTES), mmap(-1, BUFFER_NBYTES)
        # The offset in the file and the bytes so far of the buffer that is being filled.
        self._start = self._filled = 0
        self._since_flush = 0
        self._thread = ThreadPoolExecutor(1)
        self._emptied: Future[None] = Future()  # of the other buffer
        self._emptied.set_result(None)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # waits for at most one buffer

    @property
    def nbytes(self) -> int:
        """Bytes appended so far."""
        return self._start + self._filled

    def write(self, data: bytes) -> None:
        """Append bytes."""
        view = memoryview(data)
        while view:
            count = min(len(view), BUFFER_NBYTES - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._fill(count)
            view = view[count:]

    def copy(self, source: int, path: Path, offset: int, nbytes: int) -> None:
        """Append a run of another file.

        Args:
            source, path: the other file, opened, and its path.
            offset: where the run starts in the other file.

        Raises:
            RemapError: LR102 if the other file ends before the run does, or can't be read.
        """
        shared = self._share(source, offset, nbytes)
        self._read(source, path, offset, shared.start)
        if shared:
            self._flush()
            self._read(source, path, offset + shared.start, len(shared), write=False)
            self._flush(write=False)
        self._read(source, path, offset + shared.stop, nbytes - shared.stop)

    def finish(self) -> FileDigest:
        """Write the last buffer and set the file's length. The caller flushes the file to disk."""
        nbytes = self.nbytes
        self._flush()
        self._emptied.result()
        os.ftruncate(self._file, nbytes)  # the last block may have been written whole
        return FileDigest(nbytes, self._digest.hexdigest())

    def _share(self, source: int, offset: int, nbytes: int) -> range:
        """Share blocks of a run with the source. Return the shared part, counted from the start of
        the run; it may be empty.
        """
        first = -self.nbytes % BLOCK
        last = nbytes - (self.nbytes + nbytes) % BLOCK
        if not self._clones or first >= last or (offset - self.nbytes) % BLOCK:
            return range(0)
        run = struct.pack("qQQQ", source, offset + first, last - first, self.nbytes + first)
        try:
            fcntl.ioctl(self._file, _CLONE_RANGE, run)
        except OSError:  # another file system, or one that shares nothing
            self._clones = False
            return range(0)
        return range(first, last)

    def _read(
        self, source: int, path: Path, offset: int, nbytes: int, *, write: bool = True
    ) -> None:
        while nbytes:
            end = min(self._filled + nbytes, BUFFER_NBYTES)
            with readable(path), memoryview(self._buffer)[self._filled : end] as view:
                count = os.preadv(source, [view], offset)
            if count == 0:
                raise too_short(path, nbytes)
            self._fill(count, write=write)
            offset, nbytes = offset + count, nbytes - count

    def _fill(self, count: int, *, write: bool = True) -> None:
        self._filled += count
        self._on_progress(count)
        if self._filled == BUFFER_NBYTES:
            self._flush(write=write)

    def _flush(self, *, write: bool = True) -> None:
        """Hand the buffer over to the other thread; wait until the other buffer is emptied."""
        self._on_buffer()
        emptied, full = self._emptied, (self._buffer, self._start, self._filled, write)
        self._emptied = self._thread.submit(self._empty, *full)
        self._start, self._filled = self.nbytes, 0
        self._buffer, self._other = self._other, self._buffer
        emptied.result()

    def _empty(self, buffer: mmap, start: int, nbytes: int, write: bool) -> None:
        with memoryview(buffer) as view:
            self._digest.update(view[:nbytes])
            if not write:
                return
            # Whole blocks only; the excess is cut off at the end.
            end = -(-nbytes // BLOCK) * BLOCK if self._direct else nbytes
            done = 0
            while done < end:
                try:
                    done += os.pwrite(self._file, view[done:end], start + done)
                except OSError as error:
                    if not self._direct or error.errno != errno.EINVAL:
                        raise
                    _through_the_cache(self._file)  # the file system takes only the flag
                    self._direct = False
        self._since_flush += nbytes
        if not self._direct and self._since_flush >= _FLUSH_NBYTES:
            os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)
            self._since_flush = 0


def _past_the_cache(file: int) -> bool:
    """Let writes to a file bypass the page cache, and return whether its file system can."""
    if not hasattr(os, "O_DIRECT"):
        return False
    with contextlib.suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
        return True
    return False


def _through_the_cache(file: int) -> None:
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
