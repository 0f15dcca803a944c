"""What the commands share: options, refusals turned into exit codes."""

from __future__ import annotations

import contextlib
import re
import stat
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

import typer
from rich.console import Console

from llava_remap.core.codes import Exit
from llava_remap.core.escaped import UnprintedError
from llava_remap.core.limits import UNWRITTEN, limit_reached
from llava_remap.core.problem import Problem, RemapError


class Format(str, Enum):
    human = "human"
    json = "json"


OFFLINE = typer.Option("--offline", help="Take from the hub only what was downloaded before.")


@contextlib.contextmanager
def refusals(output_format: Format, kind: str = "plan") -> Iterator[None]:
    """Show a refusal and turn it into its exit code. `kind` is that of the JSON: `plan`,
    `verification`, …
    """
    try:
        yield
    except KeyboardInterrupt:
        print("\nInterrupted: this run leaves no unfinished output behind.", file=sys.stderr)
        raise typer.Exit(130) from None
    except UnprintedError:
        raise  # told where the process ends
    except (OSError, RuntimeError) as error:
        if (reached := limit_reached(error)) is not None:
            show(reached.problems, output_format, kind)
            raise typer.Exit(reached.exit) from None
        if not isinstance(error, OSError) or error.errno not in UNWRITTEN:
            raise  # nobody foresaw it: it isn't known to be the output's
        file = error.filename or "a file that was being written"
        show([Problem("LR508", f"{file}: {error.strerror or error}.")], Format.human, kind)
        raise typer.Exit(Exit.RESOURCES) from None
    except MemoryError:
        show(
            [
                Problem(
                    "LR501",
                    "the machine has not enough free memory.",
                    "Close other programs, or use a larger machine.",
                )
            ],
            output_format,
            kind,
        )
        raise typer.Exit(Exit.RESOURCES) from None
    except RemapError as error:
        show(error.problems, output_format, kind)
        raise typer.Exit(error.exit) from None


def kept(output: Path) -> str:
    """What of a job that broke off is left in its output, and how to go on; empty where nothing
    is.
    """
    from llava_remap.execute import is_held, read_claim
    from llava_remap.report import shown

    with contextlib.suppress(OSError):
        if (begun := read_claim(output)) is not None and begun.finished and not is_held(output):
            return (
                f"{begun} in {shown(str(output))}. The same command with --resume goes on from "
                "there."
            )
    return ""


@contextlib.contextmanager
def resumable(output: Callable[[], Path | None]) -> Iterator[None]:
    """Where a job is interrupted or ended, say what is kept of it, be it from an earlier try.

    Args:
        output: gives its folder, as soon as that is known.
    """

    def left() -> str:
        return "" if (folder := output()) is None else kept(folder)

    try:
        yield
    except KeyboardInterrupt:
        if not (there := left()):
            raise
        print(f"\nInterrupted: {there}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (typer.Exit, RemapError):
        raise
    except BaseException:
        if there := left():
            print(there, file=sys.stderr)
        raise


def nbytes(text: str) -> int:
    """The bytes of `5GB`, `500MB`, `5GiB` or `1000000`."""
    found = re.fullmatch(
        r"(\d{1,12}(?:\.\d{1,6})?) ?(?:([kMGT])(i?)B?)?", text.strip(), re.IGNORECASE
    )
    amount = (
        0
        if found is None
        else int(
            float(found[1])
            * (1024 if found[3] else 1000) ** " KMGT".index((found[2] or " ").upper())
        )
    )
    if not amount:
        raise typer.BadParameter(f"{text!r} is no size. Write 5GB or 500MB.")
    return amount


def show(problems: tuple[Problem, ...] | list[Problem], output_format: Format, kind: str) -> None:
    from llava_remap.report import print_problems, refusal_json

    if output_format is Format.json:
        print(refusal_json(problems, kind))
    print_problems(Console(stderr=True, soft_wrap=True), problems)


def write_report(path: Path, text: str) -> None:
    """Write a report as a whole: should it fail, an earlier one stays."""
    from llava_remap.core.files import replace_file

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe, or /dev/stdout
            path.write_text(text + "\n", encoding="utf-8")
            return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RemapError(
            Problem("LR508", f"{path}: {error.strerror}.", "Give another --report.")
        ) from None
    replace_file(path, (text + "\n").encode(), "Give another --report.")


def write_last_report(path: Path, text: str) -> None:
    """`write_report` behind a result that was printed: should it fail, that is told beside it,
    with an exit code of its own.
    """
    try:
        write_report(path, text)
    except RemapError as error:
        show(error.problems, Format.human, "plan")
        raise typer.Exit(error.exit) from None
