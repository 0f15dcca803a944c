"""What commands print and write: results, and refusals with their exit codes."""

from __future__ import annotations

import contextlib
import json
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import typer
from rich.console import Console

from llava_remap.cli.options import Format
from llava_remap.core.codes import Exit
from llava_remap.core.escaped import UnprintedError
from llava_remap.core.limits import UNWRITTEN, limit_reached
from llava_remap.core.problem import Problem, RemapError, refuse

_Values = ParamSpec("_Values")


def show_result(
    output_format: Format,
    as_json: Callable[_Values, dict[str, Any]],
    as_text: Callable[Concatenate[Console, _Values], None],
    *values: _Values.args,
    **options: _Values.kwargs,
) -> None:
    """Print a result to stdout, in the format that was asked for."""
    if output_format == "json":
        print_json(as_json(*values, **options))
    else:
        as_text(Console(soft_wrap=True), *values, **options)


def exit_code(problems: Iterable[Problem]) -> Exit:
    """The gravest exit code of these problems."""
    return max((problem.exit for problem in problems), default=Exit.DONE)


@contextlib.contextmanager
def refusals(output_format: Format, kind: str = "plan") -> Iterator[None]:
    """Show a refusal and end with its exit code.

    Args:
        kind: of the JSON document that the command prints: `plan`, `verification`, …
    """
    try:
        yield
        return
    except KeyboardInterrupt:
        print("\nInterrupted: this run leaves no unfinished output behind.", file=sys.stderr)
        raise typer.Exit(130) from None
    except UnprintedError:
        raise  # shown where the process ends
    except RemapError as error:
        refusal = error
    except MemoryError:
        refusal = refuse(
            "LR501",
            "the machine has not enough free memory.",
            "Close other programs, or use a larger machine.",
        )
    except (OSError, RuntimeError) as error:
        if (reached := limit_reached(error)) is not None:
            refusal = reached
        elif isinstance(error, OSError) and error.errno in UNWRITTEN:
            file = error.filename or "a file that was being written"
            refusal, output_format = refuse("LR508", f"{file}: {error.strerror or error}."), "human"
        else:
            raise  # nobody foresaw it: it isn't known to be the output's
    from llava_remap.report import print_problems, refusal_json

    if output_format == "json":
        print_json(refusal_json(refusal.problems, kind))
    print_problems(Console(stderr=True, soft_wrap=True), refusal.problems)
    raise typer.Exit(refusal.exit)


def kept(output: Path) -> str:
    """What an interrupted job left in its output, and how to go on; empty if nothing is left."""
    from llava_remap.execute import is_held, read_claim
    from llava_remap.report import shown

    with contextlib.suppress(OSError):
        if (begun := read_claim(output)) is not None and begun.finished and not is_held(output):
            again = "The same command with --resume goes on from there."
            return f"{begun} in {shown(output)}. {again}"
    return ""


@contextlib.contextmanager
def resumable(output: Path | None) -> Iterator[None]:
    """If a job is interrupted or ended by an error, say what is kept of it and of earlier tries.

    Args:
        output: the job's folder; None while it has none.
    """
    try:
        yield
    except (typer.Exit, RemapError):
        raise
    except BaseException as error:
        left = kept(output) if output is not None else ""
        if left and isinstance(error, KeyboardInterrupt):
            print(f"\nInterrupted: {left}", file=sys.stderr)
            raise typer.Exit(130) from None
        if left:
            print(left, file=sys.stderr)
        raise


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write a report as a whole; if that fails, an earlier one stays."""
    from llava_remap.core.files import replace_file

    text = json.dumps(content, indent=2) + "\n"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe, or /dev/stdout
            path.write_text(text, encoding="utf-8")
            return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise refuse("LR508", f"{path}: {error.strerror}.", "Give another --report.") from None
    replace_file(path, text.encode(), "Give another --report.")


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))
