"""The command line: arguments in, exit code out. It imports other rooms when a command runs."""

from __future__ import annotations

import io
import os
import platform
import sys
from traceback import walk_tb
from typing import Any, NoReturn, TextIO

from llava_remap.cli.signals import asked_to_end, leave, listen, with_contexts
from llava_remap.core import Exit, Problem
from llava_remap.core.escaped import UnprintedError, escaped_output, printable_lines


def main() -> None:
    """Entry point of the console script. No traceback reaches the user, unless
    LLAVA_REMAP_TRACEBACK is set.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not os.environ.get("COLUMNS", "1").strip("0"):
        del os.environ["COLUMNS"]  # with a width of 0, rich prints nothing
    # Otherwise pydantic looks for plug-ins in every installed package at the start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    _fill_streams()
    sys.stdout, sys.stderr = _sturdy(sys.stdout), _sturdy(sys.stderr)
    listen()
    try:
        from llava_remap.cli.commands import app

        with escaped_output():
            try:
                app(standalone_mode=True)
            finally:
                # So a failure is shown as a message; at the end of Python it would be a traceback.
                sys.stdout.flush()
    except BaseException as error:  # a panic of a library's Rust code is no `Exception`
        # After a signal, a library may have raised another error.
        if asked_to_end() or isinstance(error, KeyboardInterrupt):
            leave(error.code if isinstance(error, SystemExit) else None)
        left = isinstance(error, SystemExit) and not _is_in_import(error)
        if left or os.environ.get("LLAVA_REMAP_TRACEBACK"):
            raise
        try:
            _end_unforeseen(error)
        except MemoryError:
            os.write(2, b"LR501 not enough memory: the process can take no more.\n")
            sys.exit(Exit.RESOURCES)


def _end_unforeseen(error: BaseException) -> NoReturn:
    """End the process with an error that no command foresees: a limit of the system, a library
    that can't be imported, or a fault of our own.
    """
    from llava_remap.core.libraries import broken, imported, raised_in
    from llava_remap.core.limits import limit_reached
    from llava_remap.core.version import __version__

    if isinstance(error, UnprintedError):
        _end_unprinted(error)
    refusal = limit_reached(error)
    if refusal is None and (module := imported(error)) is not None:
        refusal = broken(module, error)
    if refusal is not None:
        [problem] = refusal.problems
        _show(problem)
        sys.exit(problem.exit)
    print(printable_lines(f"Internal error: {type(error).__name__}: {error}"), file=sys.stderr)
    whose = "This is a fault of llava-remap, not of the checkpoint."
    if (raised := raised_in(error)) is not None:
        library, install = raised
        whose = (
            f"It came from {library}, which llava-remap called. If that library is damaged, "
            f"{install} repairs it. "
            "Otherwise, this is a fault of llava-remap, not of the checkpoint."
        )
    print(
        f"{whose} Please report it with the command and what it prints under "
        f"LLAVA_REMAP_TRACEBACK=1 (llava-remap {__version__}, Python {platform.python_version()}, "
        f"{platform.platform()}).",
        file=sys.stderr,
    )
    sys.exit(Exit.INTERNAL)


def _is_in_import(error: BaseException) -> bool:
    """Whether an error arose while a module was imported."""
    return any(f.f_code.co_name == "<module>" for f, _ in walk_tb(error.__traceback__))


def _end_unprinted(error: UnprintedError) -> NoReturn:
    """End the process after its last output was lost. If the command was refused before, its exit
    code stays.
    """
    _show(
        Problem(
            "LR508",
            f"standard output: {error.strerror}. The text to be printed there is lost.",
            "The command may have done its work nevertheless; look at its output before you run it "
            "again.",
        )
    )
    codes = (before.code for before in with_contexts(error) if isinstance(before, SystemExit))
    sys.exit(next(codes, None) or Exit.RESOURCES)


def _show(problem: Problem) -> None:
    """Print a problem without rich, which may be the library that doesn't work."""
    fix = f"\n  → {problem.fix}" if problem.fix else ""
    print(
        printable_lines(f"{problem.code} {problem.title}\n  {problem.placed_cause}{fix}"),
        file=sys.stderr,
    )


def _sturdy(stream: TextIO) -> TextIO:
    """A stream that takes any text: some terminals lack some letters, and some file names aren't
    text.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    stream.reconfigure(errors="backslashreplace")
    try:
        raw = io.BufferedWriter(_Piped(stream))
    except io.UnsupportedOperation:  # the stream is no file
        return stream
    return io.TextIOWrapper(
        raw, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering
    )


class _Piped(io.FileIO):
    """A stream whose failure doesn't end a job.

    If its reader goes away (`| head -1`), the job goes on without printing. Any other failure is
    raised once for stdout, and never for stderr; later output goes nowhere.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._open = stream  # otherwise its file would be closed with it

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            number = self.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            if isinstance(error, BrokenPipeError) or number == 2:  # stderr
                return len(data)
            raise UnprintedError(error.errno, error.strerror) from None


def _fill_streams() -> None:
    """Open a closed stream (`2>&-`) to nowhere. Otherwise the next opened file would get the
    stream's number, and receive the printed text.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
