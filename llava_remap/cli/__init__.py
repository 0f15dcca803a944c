"""The command line: arguments in, exit code out. Everything else is elsewhere and imported when a command runs."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

#: What a shell reports for a process that a signal ended: 128 and the signal's number.
INTERRUPTED, TERMINATED = 130, 143
#: That to return for the signals that came. A library may make an error of its own of what a signal raises in it.
_asked_to_end: list[int] = []


def main() -> None:
    """Entry point of the console script. No traceback reaches the user, unless LLAVA_REMAP_TRACEBACK is set."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else every installed package is asked for some at the start
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has every letter, and not every file name is text
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started it wants it to be ignored
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from llava_remap.cli.commands import app

        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SystemExit:
        raise
    except BaseException as error:  # what a library's Rust code raises is no `Exception`
        if _asked_to_end:
            sys.exit(_asked_to_end[0])
        if os.environ.get("LLAVA_REMAP_TRACEBACK"):
            raise
        print(f"Internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("Please report it, with what LLAVA_REMAP_TRACEBACK=1 shows.", file=sys.stderr)
        sys.exit(1)


def _interrupted(number: int, frame: Any) -> None:
    _asked_to_end.append(INTERRUPTED)
    raise KeyboardInterrupt


def _terminated(number: int, frame: Any) -> None:
    """End as on Ctrl-C: what was written is removed on the way out."""
    _asked_to_end.append(TERMINATED)
    print("Terminated.", file=sys.stderr)
    sys.exit(TERMINATED)
