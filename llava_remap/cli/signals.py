"""Ctrl-C, SIGTERM, SIGHUP: the first signal ends the job. While the job cleans up, later signals
are ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from llava_remap.core.problem import EndedBySignal

#: The received signals.
_came: list[int] = []


def listen() -> None:
    """Let signals end the job by an exception, `KeyboardInterrupt` or `SystemExit`, so that
    everything is cleaned up.

    A signal that the process was started to ignore (`nohup`, a shell's background) stays ignored.
    SIGHUP is sent when the terminal is closed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _end)


def asked_to_end() -> bool:
    """Whether a signal has come."""
    return bool(_came)


def end_if_asked() -> None:
    """Raise a signal's exception again; a library may have caught it or replaced it by an error
    of its own.
    """
    if _came:
        _raise()


def leave(code: object) -> NoReturn:
    """End the process at once, after everything was cleaned up: unloading torch would take another
    second or two.

    Args:
        code: the exit code; if it is no number, the code that a shell reports for the signal.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the terminal is closed
            stream.flush()
    os._exit(code if isinstance(code, int) else 128 + (_came or [signal.SIGINT])[0])


def _end(number: int, frame: Any) -> None:
    handled = with_contexts(sys.exc_info()[1])
    if _came and any(isinstance(error, (KeyboardInterrupt, SystemExit)) for error in handled):
        return  # the job is clearing up after an earlier signal
    _came.append(number)
    if _came == [signal.SIGTERM]:
        # RuntimeError: the signal came while something was being printed.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print("Terminated.", file=sys.stderr)
    _raise()


def _raise() -> NoReturn:
    if _came[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise EndedBySignal(128 + _came[0])


def with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and the errors that were being handled when it was raised, the latest first."""
    while error is not None:
        yield error
        error = error.__context__
