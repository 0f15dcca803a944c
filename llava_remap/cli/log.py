"""The log file of a command: plain lines with the time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from llava_remap.core import Problem, printable, refuse


class Log:
    """Lines with the time in UTC, added to a file. Without a file, they go nowhere."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if self._file is not None:
            time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            with contextlib.suppress(OSError):  # a full disk ends no job
                self._file.write(f"{time} {printable(text)}\n")
                self._file.flush()

    def problems(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.write(" ".join(f"{problem.code} {problem.message}".splitlines()))


@contextlib.contextmanager
def open_log(path: Path | None) -> Iterator[Log]:
    """Open a log; lines are added to an existing one.

    Raises:
        RemapError: LR508 if it can't be written.
    """
    if path is None:
        yield Log(None)
        return
    try:
        file = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise refuse("LR508", f"--log {path}: {error.strerror}.", "Give another --log.") from None
    with file:
        yield Log(file)
