"""The command line: arguments in, exit code out. Everything else is elsewhere and imported when a command runs."""

from __future__ import annotations

import io
import os
import platform
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO

from llava_remap.cli.signals import asked_to_end, leave, listen
from llava_remap.escaped import escaped_output, printable_lines


def main() -> None:
    """Entry point of the console script. No traceback reaches the user, unless LLAVA_REMAP_TRACEBACK is set."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else every installed package is asked for some at the start
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _fill_streams()
    sys.stdout, sys.stderr = _sturdy(sys.stdout), _sturdy(sys.stderr)
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
        if os.environ.get("LLAVA_REMAP_TRACEBACK"):
            raise
        _tell(error)


def _tell(error: BaseException) -> NoReturn:
    """End the process with an error that no command foresees: a library's that can't be imported, or one of our own."""
    from llava_remap import __version__
    from llava_remap.codes import Exit
    from llava_remap.libraries import broken, imported

    if (module := imported(error)) is not None:
        [problem] = broken(module, error).problems
        print(printable_lines(f"{problem.code} {problem.title}\n  {problem.cause}\n  → {problem.fix}"), file=sys.stderr)
        sys.exit(Exit.LIBRARY)
    print(printable_lines(f"Internal error: {type(error).__name__}: {error}"), file=sys.stderr)
    print(
        "This is a fault of llava-remap, not of the checkpoint. Please report it with the command and what it prints under "
        f"LLAVA_REMAP_TRACEBACK=1 (llava-remap {__version__}, Python {platform.python_version()}, {platform.platform()}).",
        file=sys.stderr,
    )
    sys.exit(Exit.INTERNAL)


def _sturdy(stream: TextIO) -> TextIO:
    """A stream that takes whatever is printed: not every terminal has every letter, and not every file name is text."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    stream.reconfigure(errors="backslashreplace")
    try:
        raw = io.BufferedWriter(_Piped(stream))
    except io.UnsupportedOperation:  # it is no file
        return stream
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)


class _Piped(io.FileIO):
    """A stream whose reader may go away (`| head -1`): the job goes on, as what it prints isn't the job."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._open = stream  # else its file would be closed with it

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _fill_streams() -> None:
    """Let a closed stream lead nowhere (`2>&-`): else the next file to be opened would get its number, and what is printed."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
