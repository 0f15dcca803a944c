"""The progress of a job, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Lock, Timer
from typing import TYPE_CHECKING, TextIO

from llava_remap.cli.signals import end_if_asked
from llava_remap.core import amounts, printable, size
from llava_remap.core.escaped import raw

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn

#: Seconds between two lines in a log, and before the first line; and seconds before the first line
#: for a job of unknown size.
_LOGGED, _PATIENCE = 10.0, 1.0
#: The rate is measured over this many seconds, since parts of a job have different speeds.
_WINDOW = 15.0
#: Columns of a terminal that has room for everything, and for everything except bar and bytes.
_WIDE, _MEDIUM = 80, 60


class Progress:
    """The current phase, and the finished share. Any thread may call it.

    Args:
        out: where progress is shown.
        what: the phase, as a participle: `writing`.
        nbytes: the size of the phase in bytes; None if unknown.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self, out: TextIO, what: str, nbytes: int | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._out, self._what, self._now = raw(out), printable(what), now
        self._done, self._shown, self._began = 0, now(), now()
        self._bar = _bar(self._out, now)
        self._plain = self._bar.columns
        self._counting = _counting(self._bar.console.width) if nbytes else self._plain
        self._task = self._bar.add_task(self._what, total=nbytes)
        self._lock = Lock()
        self._first_line = Timer(_PATIENCE, self._log)
        self._first_line.daemon = True
        self.took: list[tuple[str, float]] = []

    def start(self) -> None:
        """Draw on a terminal. A log is told after a while, if the job's size isn't known."""
        if not self._bar.console.soft_wrap:
            self._bar.start()
        elif self._bar.tasks[0].total is None:
            self._first_line.start()

    def advance(self, nbytes: int) -> None:
        """Count bytes that are done.

        Raises:
            KeyboardInterrupt, SystemExit: if a signal asked the job to end, and its exception was
                lost.
        """
        end_if_asked()
        with self._lock:
            # A file that is damaged since an earlier try is read and then written, so the sum can
            # exceed the total.
            self._done += nbytes
            self._bar.columns = self._counting
            self._bar.update(self._task, completed=self._done)
            if self._bar.console.soft_wrap and self._now() - self._shown >= _LOGGED:
                self._log()

    def phase(self, what: str) -> None:
        """Begin another phase of the job, with a rate of its own. Numbers are shown as soon as it
        counts bytes; not every phase does.
        """
        end_if_asked()
        with self._lock:
            self._count()
            self._what = printable(what)
            total = self._bar.tasks[0].total
            self._bar.columns = self._plain
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(self._what, total=total, completed=self._done)

    def clear(self) -> None:
        """Remove the bar from the terminal."""
        self._first_line.cancel()
        if not self._bar.console.soft_wrap:
            with contextlib.suppress(OSError, ValueError):  # a closed terminal stops no job
                self._bar.stop()
        self._count()

    def _count(self) -> None:
        """Note how long the phase took."""
        now = self._now()
        self.took.append((self._what, now - self._began))
        self._began = now

    def _log(self) -> None:
        self._shown = self._now()
        task = self._bar.tasks[0]
        line = f"{self._what} …"
        if task.total:
            done, total = min(self._done, int(task.total)), int(task.total)
            line = f"{self._what}, {done * 100 // total} %: {amounts(done, total)}"
            line += f", {size(int(task.speed))}/s" if task.speed else ""
            if left := task.time_remaining:
                line += f", {timedelta(seconds=left)} left"
        with contextlib.suppress(OSError, ValueError):
            self._out.write(line + "\n")
            self._out.flush()


def _bar(out: TextIO, now: Callable[[], float]) -> Bar:
    """A line with the current phase and its duration."""
    from rich import progress as rich

    from llava_remap.report.terminal import console_for

    return rich.Progress(
        rich.SpinnerColumn("line"),
        rich.TextColumn("{task.description}", markup=False),
        rich.TimeElapsedColumn(),
        console=console_for(out),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=_WINDOW,
        get_time=now,
    )


def _counting(width: int) -> tuple[str | ProgressColumn, ...]:
    """The columns of a phase that counts bytes, as many as a terminal has room for."""
    from rich import progress as rich

    columns: list[ProgressColumn] = [
        rich.TextColumn("{task.description}", markup=False),
        rich.TaskProgressColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    ]
    if width >= _WIDE:
        columns.insert(1, rich.BarColumn(min(40, width - _WIDE + 10)))
    else:
        del columns[2 : 3 if width >= _MEDIUM else 4]
    return tuple(columns)


@contextlib.contextmanager
def progress(what: str, nbytes: int | None = None) -> Iterator[Progress]:
    """Show the progress of a job on stderr while it lasts; a terminal is clean afterwards.

    A log gets at most a line every ten seconds. With `-v`, the time of every phase is printed.
    """
    from llava_remap.report.terminal import DETAIL

    end_if_asked()
    shown = Progress(sys.stderr, what, nbytes)
    try:
        shown.start()
        yield shown
    finally:
        shown.clear()
        if DETAIL.get() == "verbose":
            for phase, seconds in shown.took:
                print(f"{phase}: {seconds:.1f} s", file=sys.stderr)
