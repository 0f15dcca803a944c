"""A planned job on the command line: its checks, the plan, the work, the result."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from llava_remap.cli.common import Format, kept, resumable, write_last_report, write_report
from llava_remap.cli.progress import progress
from llava_remap.core.codes import Exit
from llava_remap.core.problem import RemapError, refuse

if TYPE_CHECKING:
    from llava_remap.jobs.job import Job


class Verify(str, Enum):
    meta = "meta"
    full = "full"
    none = "none"


VERIFY = typer.Option(
    "--verify",
    help="What is checked after writing. meta: transformers loads names and shapes strictly; full: "
    "also every tensor is read back and compared with what its source gives; none: nothing.",
)
REPORT = typer.Option(
    "--report",
    metavar="FILE.json",
    help="Also write the plan as JSON to a file; one that is there is replaced.",
)
JOBS = typer.Option(
    "--jobs", metavar="N", min=1, max=64, help="How many weight files are written at a time."
)
DRY_RUN = typer.Option(
    "--dry-run", help="Only plan, from headers: print what would be done or why not."
)
FORMAT = typer.Option("--format", help="How the report is printed.")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a job once it is planned: options of the command line."""

    output_format: Format
    report: Path | None
    dry_run: bool
    verify: Verify
    jobs: int
    check_values: bool = False
    resume: bool = False


def refuse_other_reports(report: Path | None) -> None:
    """LR211 for a report that isn't JSON."""
    if report is not None and report.suffix != ".json":
        raise refuse(
            "LR211",
            f"--report {report}: the name has to end in .json.",
            "Write --report NAME.json.",
        )


def carry_out(job: Job, asked: Asked) -> None:
    """Check a job's values, show its plan, carry it out unless that isn't asked for, and show the
    result.

    Raises:
        typer.Exit: where the job isn't carried out, with the exit code that says why.
    """
    from llava_remap.jobs.job import check_values, refused
    from llava_remap.jobs.output import refuse_report
    from llava_remap.jobs.resources import memory_problems, predict
    from llava_remap.jobs.run import run
    from llava_remap.report import plan_json, print_plan, print_problems, print_result

    begun = job.output if asked.resume and not asked.dry_run else None
    in_json = asked.output_format is Format.json
    with resumable(lambda: begun):
        predicted = predict(job, asked.verify.value, asked.jobs) if job.plan.complete else None
        if predicted is not None and not job.from_manifest:
            job = refused(job, memory_problems(predicted))
        if asked.check_values or not asked.dry_run:
            with progress("checking values", job.nbytes_to_check) as shown:
                job = check_values(job, shown.advance)
        if not in_json:
            print_plan(Console(soft_wrap=True), job, predicted)
        if asked.report is not None:
            refuse_report(asked.report, job.output, job.checkpoints)
            write_report(asked.report, plan_json(job, predicted=predicted))
        if asked.dry_run or not job.plan.complete:
            if in_json:
                print(plan_json(job, predicted=predicted))
            raise typer.Exit(
                max((problem.exit for problem in job.plan.problems), default=Exit.DONE)
            )
        begun = job.output
        with progress("writing", job.nbytes_to_handle(asked.verify.value)) as shown:
            try:
                result = run(
                    job, shown.advance, shown.phase, verify=asked.verify.value, jobs=asked.jobs
                )
            except RemapError as error:  # found since the plan was shown
                job = refused(job, error.problems)
        if not job.plan.complete:
            if in_json:
                print(plan_json(job, predicted=predicted))
            print_problems(Console(stderr=True, soft_wrap=True), job.plan.problems)
            print(f"\n{kept(job.output) or 'Nothing of it is left.'}", file=sys.stderr)
            if asked.report is not None:
                write_last_report(asked.report, plan_json(job, predicted=predicted))
            raise typer.Exit(max(problem.exit for problem in job.plan.problems))
        if in_json:
            print(plan_json(job, result, predicted))
        else:
            print_result(Console(soft_wrap=True), result, job.plan)
        if asked.report is not None:
            write_last_report(asked.report, plan_json(job, result, predicted))
