"""A planned job on the command line: its checks, the plan, the work, the result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from llava_remap.cli.options import Format, Verify
from llava_remap.cli.output import (
    exit_code,
    kept,
    print_json,
    refusals,
    resumable,
    write_report,
)
from llava_remap.cli.progress import progress
from llava_remap.core.problem import RemapError, refuse

if TYPE_CHECKING:
    from llava_remap.jobs.job import Job


def refuse_other_reports(report: Path | None) -> None:
    """LR211 for a report that isn't JSON."""
    if report is not None and report.suffix != ".json":
        raise refuse(
            "LR211",
            f"--report {report}: the name has to end in .json.",
            "Write --report NAME.json.",
        )


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
) -> None:
    """Check a job's values and show its plan; unless only that was asked for, carry it out and
    show the result.

    Raises:
        typer.Exit: where the job isn't carried out, with the exit code that says why.
    """
    from llava_remap.jobs.job import check_values as checked
    from llava_remap.jobs.job import refused
    from llava_remap.jobs.output import refuse_report
    from llava_remap.jobs.resources import memory_problems, predict
    from llava_remap.jobs.run import run
    from llava_remap.report import plan_json, print_plan, print_problems, print_result

    in_json, predicted, result = output_format == "json", None, None
    with resumable(job.output if resume and not dry_run else None):
        if job.plan.complete:
            predicted = predict(job, verify, jobs)
            if not job.from_manifest:
                job = refused(job, memory_problems(predicted))
        if check_values or not dry_run:
            with progress("checking values", job.nbytes_to_check) as shown:
                job = checked(job, shown.advance)
        if not in_json:
            print_plan(Console(soft_wrap=True), job, predicted)
        if report is not None:
            refuse_report(report, job.output, job.checkpoints)
            write_report(report, plan_json(job, predicted=predicted))
        if dry_run or not job.plan.complete:
            if in_json:
                print_json(plan_json(job, predicted=predicted))
            raise typer.Exit(exit_code(job.plan.problems))
    with resumable(job.output):
        with progress("writing", job.nbytes_to_handle(verify)) as shown:
            try:
                result = run(job, shown.advance, shown.phase, verify=verify, jobs=jobs)
            except RemapError as error:  # found since the plan was shown
                job = refused(job, error.problems)
        if in_json:
            print_json(plan_json(job, result, predicted))
        elif result is not None:
            print_result(Console(soft_wrap=True), result, job.plan)
        if result is None:
            print_problems(Console(stderr=True, soft_wrap=True), job.plan.problems)
            print(f"\n{kept(job.output) or 'Nothing of it is left.'}", file=sys.stderr)
        if report is not None:
            with refusals("human"):
                write_report(report, plan_json(job, result, predicted))
        if result is None:
            raise typer.Exit(exit_code(job.plan.problems))
