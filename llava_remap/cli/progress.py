"""How far a job is, on stderr: a line that is drawn over and over on a terminal, a line now and
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
from llava_remap.core.escaped import printable, raw

#: Seconds between two drawings on a terminal, and between two lines elsewhere (and before the first
#: one).
_REDRAWN, _LOGGED = 0.1, 10.0
#: The rate is that of the last so many seconds, since parts of a job are of different speed; of
#: fewer than the least, it is none.
_WINDOW, _LEAST = 15.0, 1.0


class Progress:
    """What is being done, and how much of it. May be told from any thread.

    Args:
        out: where it is shown.
        what: what is being done, as a participle: `writing`.
        nbytes: how much there is to do; None where that can't be said in bytes.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self, out: TextIO, what: str, nbytes: int | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._out, self._what, self._total, self._now = raw(out), printable(what), nbytes, now
        self._redraws = out.isatty() and os.environ.get("TERM") != "dumb"
        self._done, self._shown = 0, now()
        self._seen = deque([(now(), 0)])  # when how much was done, for the rate
        self._lock = Lock()
        if self._redraws:
            self._draw(self._now())

    def advance(self, nbytes: int) -> None:
        """So many bytes more are done.

        Raises:
            KeyboardInterrupt, SystemExit: where a signal asked the job to end and that was lost on
                the way.
        """
        end_if_asked()
        with self._lock:
            now = self._now()
            # what was damaged in an earlier try is read and then written, so this can pass the
            # total
            self._done += nbytes
            if now - self._seen[-1][0] >= _REDRAWN:
                self._seen.append((now, self._done))
            while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW:
                self._seen.popleft()
            if now - self._shown >= (_REDRAWN if self._redraws else _LOGGED):
                self._draw(now)

    def phase(self, what: str) -> None:
        """Something else is being done from now on."""
        end_if_asked()
        with self._lock:
            now = self._now()
            self._what, self._seen = printable(what), deque([(now, self._done)])
            if self._redraws:
                self._draw(now)

    def clear(self) -> None:
        """Leave the terminal as if nothing had been shown."""
        if self._redraws:
            self._write(f"\r{' ' * self._width()}\r")

    def _draw(self, now: float) -> None:
        self._shown = now
        if self._redraws:
            width = self._width()
            said = next((text for text in self._texts(now) if len(text) <= width), self._what)[
                :width
            ]
            self._write(f"\r{said.ljust(width)}\r{said}")
        else:
            self._write(self._texts(now)[0] + "\n")

    def _texts(self, now: float) -> list[str]:
        """All of it, then shorter and shorter."""
        if not self._total:
            return [f"{self._what} …"]
        from llava_remap.core.wording import amounts, size

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
        """Columns that can be written into without the terminal going on to the next line."""
        try:
            columns = os.get_terminal_size(self._out.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or 80) - 1

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is closed stops no job
            self._out.write(text)
            self._out.flush()


@contextlib.contextmanager
def progress(what: str, nbytes: int | None = None) -> Iterator[Progress]:
    """Show on stderr how far a job is, as long as it lasts; after it nothing of that is left on a
    terminal.

    In a log there is a line every ten seconds at most, and none of a job that is done in less.
    """
    end_if_asked()
    shown = Progress(sys.stderr, what, nbytes)
    try:
        yield shown
    finally:
        shown.clear()


def _duration(seconds: float) -> str:
    """Time as a person would say it, in one unit or two."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
