"""The output of commands: plans and results of jobs, other results, refusals."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TextIO

import typer

from llava_remap.cli.given import command_without
from llava_remap.cli.options import Format, Verify
from llava_remap.cli.progress import progress
from llava_remap.core import Exit, Problem, RemapError, refuse
from llava_remap.core.escaped import UnprintedError, raw
from llava_remap.core.limits import UNWRITTEN, limit_reached

if TYPE_CHECKING:
    from rich.console import Console

    from llava_remap.jobs.job import Job
    from llava_remap.jobs.run import Result

_Values = ParamSpec("_Values")


class Ended(typer.Exit):
    """The end of a command, or of one of its jobs.

    Attributes:
        problems: why it ended; empty after success.
    """

    def __init__(self, code: int, problems: Sequence[Problem] = ()) -> None:
        super().__init__(code)
        self.problems = tuple(problems)


class Unreported(Ended):
    """The end of a job that was carried out, but whose report can't be written.

    Attributes:
        result: what the job wrote.
    """

    def __init__(self, code: int, problems: Sequence[Problem], result: Result) -> None:
        super().__init__(code, problems)
        self.result = result


class _ReportedError(RemapError):
    """A refusal that was also written to a report."""

    def __init__(self, problems: Sequence[Problem], report: Path) -> None:
        super().__init__(problems)
        self.report = report


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
        as_text(console(), *values, **options)


def exit_code(problems: Iterable[Problem]) -> Exit:
    """The gravest exit code of these problems."""
    return max((problem.exit for problem in problems), default=Exit.DONE)


@contextlib.contextmanager
def refusals(output_format: Format, kind: str = "plan", *, lines: bool = False) -> Iterator[None]:
    """Show a refusal and end with its exit code.

    Args:
        kind: the kind of the command's JSON document: `plan`, `verification`, …
        lines: whether the document is one line of several.

    Raises:
        Ended: after a refusal.
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
    except (MemoryError, ImportError, OSError, RuntimeError) as error:
        if (reached := limit_reached(error)) is not None:
            refusal = reached
        elif isinstance(error, OSError) and error.errno in UNWRITTEN:
            file = error.filename or "a file that was being written"
            refusal, output_format = refuse("LR508", f"{file}: {error.strerror or error}."), "human"
        else:
            raise  # unforeseen: it may have nothing to do with the output
    print_refusal(refusal.problems, output_format, kind, lines=lines)
    if isinstance(refusal, _ReportedError):
        _print_place(refusal.report, output_format)
    raise Ended(refusal.exit, refusal.problems)


def print_refusal(
    problems: Sequence[Problem], output_format: Format, kind: str, *, lines: bool = False
) -> None:
    """Show on stderr why a command has no result, and also on stdout if JSON was asked for."""
    from llava_remap.report import print_problems, refusal_json

    if output_format == "json":
        print_json(refusal_json(problems, kind), lines=lines)
    print_problems(console(sys.stderr), problems)


def console(file: TextIO | None = None) -> Console:
    """The console that reports are written to: stdout, unless another file is given."""
    from llava_remap.report.terminal import console_for

    return console_for(raw(file or sys.stdout))


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
    """If an interruption or an error ends a job, say what is kept of it and of earlier runs.

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


def _print_place(report: Path, output_format: Format) -> None:
    """Tell a person where the report is."""
    from llava_remap.report import shown
    from llava_remap.report.terminal import DETAIL

    if output_format == "human" and DETAIL.get() != "quiet":
        print(f"\nReport: {shown(report)}", file=sys.stderr)


def write_report(path: Path, content: dict[str, Any] | str) -> None:
    """Write a report as a whole, as JSON or a page; if that fails, an earlier report stays."""
    text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
    write_text(path, text, "--report")


def write_text(path: Path, text: str, option: str) -> None:
    """Write a file as a whole; if that fails, an earlier file stays.

    Args:
        option: the option that named the file.
    """
    from llava_remap.core.files import replace_file

    fix = f"Give another {option}."
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe, or /dev/stdout
            path.write_text(text, encoding="utf-8")
            return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise refuse("LR508", f"{path}: {error.strerror}.", fix) from None
    replace_file(path, text.encode(), fix)


def print_json(content: dict[str, Any], *, lines: bool = False) -> None:
    """Print a document; with `lines`, on one line."""
    print(json.dumps(content, indent=None if lines else 2))


def refuse_other_reports(report: Path | None) -> None:
    """LR211 for a report that is neither a page nor JSON."""
    if report is not None and report.suffix not in (".html", ".json"):
        raise refuse(
            "LR211",
            f"--report {report}: the name has to end in .html or .json.",
            "Write --report NAME.html or --report NAME.json.",
        )


@contextlib.contextmanager
def reported(report: Path | None, output: Path | None, given: Iterable[str]) -> Iterator[None]:
    """If a job is refused before there is a plan, write the refusal to the report.

    Args:
        given: the sources as the user names them.
    """
    try:
        yield
    except RemapError as error:
        if report is None:
            raise
        from llava_remap.jobs.output import refuse_report_unopened
        from llava_remap.report import refusal_json
        from llava_remap.report.html import refusal_html

        in_page = report.suffix == ".html"
        try:
            refuse_report_unopened(report, output, given)
            write_report(
                report, (refusal_html if in_page else refusal_json)(error.problems, "plan")
            )
        except RemapError as unwritten:
            error.problems += unwritten.problems
            raise error from None
        raise _ReportedError(error.problems, report) from error


def _content(report: Path, job: Job, result: Result | None = None) -> dict[str, Any] | str:
    """The content of a report, in the form that its name asks for."""
    from llava_remap.report.html import plan_html

    return plan_html(job, result) if report.suffix == ".html" else job.to_json(result)


def command_that_writes(job: Job) -> str:
    """The command that carries out the job of a dry run."""
    from llava_remap.jobs.output import output_notes

    manifests = {source.location for source in job.checkpoints.values() if source.is_manifest}
    free = ""
    if output_notes(job.output, job.facts() if job.resume else None):
        names = (f"{job.output}-{number}" for number in itertools.count(2))
        free = next(name for name in names if not os.path.lexists(name))
    flags = ("--dry-run", "--check-values")
    return command_without(*flags, taken=job.output, free=free, manifests=manifests)


def carry_out(
    job: Job,
    *,
    output_format: Format,
    report: Path | None,
    dry_run: bool,
    verify: Verify,
    jobs: int,
    check_values: bool = False,
    resume: bool = False,
    lines: bool = False,
) -> Result:
    """Check a job's values and show its plan. Unless only the plan was asked for, carry the job out
    and show the result.

    Args:
        lines: whether a JSON document is one line of several.

    Raises:
        Ended: if the job isn't carried out, with the exit code that says why.
        Unreported: if the job is carried out, but the report can't be written.
    """
    from llava_remap.jobs.job import check_values as checked
    from llava_remap.jobs.job import refused
    from llava_remap.jobs.output import refuse_report
    from llava_remap.jobs.resources import memory_problems
    from llava_remap.report import (
        print_next,
        print_plan,
        print_problems,
        print_result,
        print_short_plan,
        shown,
    )

    in_json, result = output_format == "json", None
    with resumable(job.output if resume and not dry_run else None):
        if job.plan.complete:
            job = replace(job, predicted=(predicted := job.predict(verify, jobs)))
            if not job.from_manifest:
                job = refused(job, memory_problems(predicted))
        if check_values or not dry_run:
            with progress("checking values", job.nbytes_to_check) as bar:
                try:
                    job = checked(job, bar.advance)
                except RemapError as error:  # a source can't be read, or changed
                    job = refused(job, error.problems)
        if not in_json:
            (print_plan if job.choice is None else print_short_plan)(console(), job)
            if job.plan.complete and not (dry_run and lines):
                print_next(console(), job, command_that_writes(job) if dry_run else "")
        if report is not None:
            refuse_report(report, job.output, job.checkpoints)
            write_report(report, _content(report, job))
        if dry_run or not job.plan.complete:
            if in_json:
                print_json(job.to_json(), lines=lines)
            if report is not None:
                _print_place(report, output_format)
            raise Ended(exit_code(job.plan.problems), job.plan.problems)
    with resumable(job.output):
        with progress("writing", job.nbytes_to_handle(verify)) as bar:
            try:
                result = job.run(bar.advance, bar.phase, verify=verify, jobs=jobs)
            except RemapError as error:  # found since the plan was shown
                job = refused(job, error.problems)
        if in_json:
            print_json(job.to_json(result), lines=lines)
        elif result is not None:
            print_result(console(), result, job)
        if result is None:
            print_problems(console(sys.stderr), job.plan.problems)
            print(f"\n{kept(job.output) or 'No output remains.'}", file=sys.stderr)
        unreported: Sequence[Problem] = ()
        if report is not None:
            try:
                write_report(report, _content(report, job, result))
                _print_place(report, output_format)
            except RemapError as error:
                unreported = error.problems
                print_problems(console(sys.stderr), unreported)
        if result is None:
            problems = (*job.plan.problems, *unreported)
            raise Ended(exit_code(problems), problems)
        if unreported:
            print(f"\n{shown(job.output)} is finished, but has no report.", file=sys.stderr)
            raise Unreported(exit_code(unreported), unreported, result)
        return result
