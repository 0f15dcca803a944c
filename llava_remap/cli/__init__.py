"""The command line: arguments in, exit code out. Everything else is elsewhere and imported when
a command runs.
"""

from __future__ import annotations

import io
import os
import platform
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from llava_remap.cli.signals import asked_to_end, leave, listen
from llava_remap.core.escaped import UnprintedError, escaped_output, printable_lines

if TYPE_CHECKING:
    from llava_remap.core.problem import Problem


def main() -> None:
    """Entry point of the console script. No traceback reaches the user, unless
    LLAVA_REMAP_TRACEBACK is set.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not os.environ.get("COLUMNS", "1").strip("0"):
        del os.environ["COLUMNS"]  # rich takes a width of 0 at its word, and prints nothing
    os.environ.setdefault(
        "PYDANTIC_DISABLE_PLUGINS", "__all__"
    )  # else every installed package is asked for some at the start
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _fill_streams()
    sys.stdout, sys.stderr = _sturdy(sys.stdout), _sturdy(sys.stderr)
    listen()
    try:
        from llava_remap.cli.commands import app

        with escaped_output():
            try:
                app(standalone_mode=True)
            finally:
                # here, where a failure can be told; at the end of Python it would be a traceback
                sys.stdout.flush()
    except BaseException as error:  # what a library's Rust code raises is no `Exception`
        if asked_to_end() or isinstance(
            error, KeyboardInterrupt
        ):  # whatever a library may have made of it
            leave(error.code if isinstance(error, SystemExit) else None)
        if isinstance(error, SystemExit):
            raise
        if os.environ.get("LLAVA_REMAP_TRACEBACK"):
            raise
        _tell(error)


def _tell(error: BaseException) -> NoReturn:
    """End the process with an error that no command foresees: a library's that can't be
    imported, or one of our own.
    """
    from llava_remap.core.codes import Exit
    from llava_remap.core.libraries import broken, imported, raised_in
    from llava_remap.core.version import __version__

    if isinstance(error, UnprintedError):
        _tell_unprinted(error)
    if (module := imported(error)) is not None:
        [problem] = broken(module, error).problems
        _show(problem)
        sys.exit(Exit.LIBRARY)
    print(printable_lines(f"Internal error: {type(error).__name__}: {error}"), file=sys.stderr)
    whose = "This is a fault of llava-remap, not of the checkpoint."
    if (found := raised_in(error)) is not None:
        library, install = found
        whose = (
            f"It came from {library}, which llava-remap called. If that library is damaged, "
            f"{install} mends it. "
            "If it isn't, this is a fault of llava-remap, not of the checkpoint."
        )
    versions = (
        f"llava-remap {__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    report = (
        "Please report it with the command and what it prints under LLAVA_REMAP_TRACEBACK=1 "
        f"({versions})."
    )
    print(whose, report, file=sys.stderr)
    sys.exit(Exit.INTERNAL)


def _tell_unprinted(error: UnprintedError) -> NoReturn:
    """End the process where the last of what it printed is lost; what it had refused before
    stays its exit code.
    """
    from llava_remap.core.codes import Exit
    from llava_remap.core.problem import Problem

    _show(
        Problem(
            "LR508",
            f"standard output: {error.strerror}. What was to be printed there is lost.",
            "What was asked for may be done all the same; look at what is there before you give "
            "the command again.",
        )
    )
    before: BaseException | None = error
    while before is not None and not isinstance(before, SystemExit):
        before = before.__context__
    sys.exit((before and before.code) or Exit.RESOURCES)


def _show(problem: Problem) -> None:
    """A problem without the help of a library, as one that shows problems may be what doesn't
    work.
    """
    fix = f"\n  → {problem.fix}" if problem.fix else ""
    print(
        printable_lines(f"{problem.code} {problem.title}\n  {problem.placed_cause}{fix}"),
        file=sys.stderr,
    )


def _sturdy(stream: TextIO) -> TextIO:
    """A stream that takes whatever is printed: not every terminal has every letter, and not
    every file name is text.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    stream.reconfigure(errors="backslashreplace")
    try:
        raw = io.BufferedWriter(_Piped(stream))
    except io.UnsupportedOperation:  # it is no file
        return stream
    return io.TextIOWrapper(
        raw, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering
    )


_STDERR = 2


class _Piped(io.FileIO):
    """A stream that can fail under a job.

    Its reader may go away (`| head -1`): the job goes on, as what it prints isn't the job. Any
    other failure of stdout is told once, that of stderr to nobody; what is printed after it goes
    nowhere.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._open = stream  # else its file would be closed with it

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            number = self.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            if isinstance(error, BrokenPipeError) or number == _STDERR:
                return len(data)
            raise UnprintedError(error.errno, error.strerror) from None


def _fill_streams() -> None:
    """Let a closed stream lead nowhere (`2>&-`): else the next file to be opened would get its
    number, and what is printed.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
