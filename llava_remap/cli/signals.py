"""Ctrl-C, SIGTERM, SIGHUP: the first ends the job, which clears up behind itself undisturbed by
those that come meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any, NoReturn

#: Beside Ctrl-C. SIGHUP comes when the terminal is closed.
_OTHERS = (signal.SIGTERM, signal.SIGHUP)
#: The signals that came.
_came: list[int] = []


def listen() -> None:
    """Have the signals end the job by an exception, `KeyboardInterrupt` or `SystemExit`, from which
    everything clears up.

    One that whoever started the process wants to be ignored (`nohup`, a shell's background) still
    is.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    for number in _OTHERS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def asked_to_end() -> bool:
    """Whether a signal came."""
    return bool(_came)


def end_if_asked() -> None:
    """Raise again what a signal raised; a library may have caught it, or made an error of its
    own of it.
    """
    if _came:
        _raise()


def leave(code: object) -> NoReturn:
    """End the process now that everything is cleared up. Taking torch down by the book would last
    another second or two.

    Args:
        code: the exit code; where it is no number, what a shell reports for the signal that came.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a terminal that is closed
            stream.flush()
    os._exit(code if isinstance(code, int) else 128 + (_came or [signal.SIGINT])[0])


def _end(number: int, frame: Any) -> None:
    if _came and _clearing_up():
        return
    _came.append(number)
    if _came == [signal.SIGTERM]:
        with contextlib.suppress(
            OSError, ValueError, RuntimeError
        ):  # the last: it may come while something is printed
            print("Terminated.", file=sys.stderr)
    _raise()


def _raise() -> NoReturn:
    if _came[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + _came[0])


def _clearing_up() -> bool:
    """Whether what an earlier signal raised is being handled at this moment, by code that it was
    raised through.
    """
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        error = error.__context__
    return False
