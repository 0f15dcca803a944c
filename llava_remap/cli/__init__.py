"""The command line: arguments in, exit code out. Everything else is elsewhere and imported when a command runs."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from llava_remap.cli.signals import asked_to_end, leave, listen
from llava_remap.escaped import escaped_output, printable_lines


def main() -> None:
    """Entry point of the console script. No traceback reaches the user, unless LLAVA_REMAP_TRACEBACK is set."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else every installed package is asked for some at the start
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _fill_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has every letter, and not every file name is text
            stream.reconfigure(errors="backslashreplace")
    listen()
    try:
        from llava_remap.cli.commands import app

        with escaped_output():
            app(standalone_mode=True)
    except BaseException as error:  # what a library's Rust code raises is no `Exception`
        if asked_to_end() or isinstance(error, KeyboardInterrupt):  # whatever a library may have made of it
            leave(error.code if isinstance(error, SystemExit) else None)
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if os.environ.get("LLAVA_REMAP_TRACEBACK"):
            raise
        print(printable_lines(f"Internal error: {type(error).__name__}: {error}"), file=sys.stderr)
        print("Please report it, with what LLAVA_REMAP_TRACEBACK=1 shows.", file=sys.stderr)
        sys.exit(1)


def _fill_streams() -> None:
    """Let a closed stream lead nowhere (`2>&-`): else the next file to be opened would get its number, and what is printed."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
