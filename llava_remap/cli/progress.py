"""How far a job is, on stderr: one line that is drawn again and again on a terminal, a line now and
then in a log.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from threading import Lock
from typing import TextIO

from llava_remap.cli.signals import end_if_asked
from llava_remap.core import amounts, printable, size
from llava_remap.core.escaped import raw

#: Seconds between two drawings on a terminal; and between two lines elsewhere, and before the first
#: line.
_REDRAWN, _LOGGED = 0.1, 10.0
#: The rate is measured over the last seconds, since parts of a job have different speeds: over at
#: most the first number, and not at all over less than the second.
_WINDOW, _LEAST = 15.0, 1.0


class Progress:
    """What is being done, and how much of it is done. Any thread may call it.

    Args:
        out: where progress is shown.
        what: what is being done, as a participle: `writing`.
        nbytes: how much there is to do; None if that isn't known in bytes.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self, out: TextIO, what: str, nbytes: int | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._out, self._what, self._total, self._now = raw(out), printable(what), nbytes, now
        self._redraws = out.isatty() and os.environ.get("TERM") != "dumb"
        self._done, self._shown = 0, now()
        self._seen = deque([(now(), 0)])  # times, and how much was done by then
        self._lock = Lock()
        if self._redraws:
            self._draw(now())

    def advance(self, nbytes: int) -> None:
        """Count bytes that are done.

        Raises:
            KeyboardInterrupt, SystemExit: if a signal asked the job to end, and its exception was
                lost.
        """
        end_if_asked()
        with self._lock:
            now = self._now()
            # A file that is damaged since an earlier try is read and then written, so the sum can
            # exceed the total.
            self._done += nbytes
            if now - self._seen[-1][0] >= _REDRAWN:
                self._seen.append((now, self._done))
            while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW:
                self._seen.popleft()
            if now - self._shown >= (_REDRAWN if self._redraws else _LOGGED):
                self._draw(now)

    def phase(self, what: str) -> None:
        """Begin another phase of the job."""
        end_if_asked()
        with self._lock:
            now = self._now()
            self._what, self._seen = printable(what), deque([(now, self._done)])
            if self._redraws:
                self._draw(now)

    def clear(self) -> None:
        """Remove the line from the terminal."""
        if self._redraws:
            self._write(f"\r{' ' * self._width()}\r")

    def _draw(self, now: float) -> None:
        self._shown = now
        if self._redraws:
            width = self._width()
            fitting = (text for text in self._texts(now) if len(text) <= width)
            text = next(fitting, self._what)[:width]
            self._write(f"\r{text.ljust(width)}\r{text}")
        else:
            self._write(self._texts(now)[0] + "\n")

    def _texts(self, now: float) -> list[str]:
        """The whole line, then shorter and shorter ones."""
        if not self._total:
            return [f"{self._what} …"]
        then, before = self._seen[0]
        done = min(self._done, self._total)
        part = f"{self._what}, {done * 100 // self._total} %"
        rate = (self._done - before) / (now - then) if now - then >= _LEAST else 0.0
        speed = f", {size(int(rate))}/s" if rate > 0 else ""
        left = (
            f", {_duration((self._total - done) / rate)} left"
            if rate > 0 and done < self._total
            else ""
        )
        return [
            f"{part}: {amounts(done, self._total)}{speed}{left}",
            f"{part}{speed}{left}",
            f"{part}{left}",
            part,
        ]

    def _width(self) -> int:
        """Columns that can be filled without the terminal starting a new line."""
        try:
            columns = os.get_terminal_size(self._out.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or 80) - 1

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed terminal stops no job
            self._out.write(text)
            self._out.flush()


@contextlib.contextmanager
def progress(what: str, nbytes: int | None = None) -> Iterator[Progress]:
    """Show on stderr how far a job is, while it lasts; nothing is left on a terminal afterwards.

    A log gets a line every ten seconds at most, and none for a shorter job.
    """
    end_if_asked()
    shown = Progress(sys.stderr, what, nbytes)
    try:
        yield shown
    finally:
        shown.clear()


def _duration(seconds: float) -> str:
    """A time as a person would say it, in one or two units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
