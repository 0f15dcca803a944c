"""The commands. A result goes to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from llava_remap.cli.common import (
    OFFLINE,
    Format,
    kept,
    nbytes,
    refusals,
    resumable,
    write_last_report,
    write_report,
)
from llava_remap.cli.progress import progress
from llava_remap.cli.revert import revert_command
from llava_remap.cli.rules import rules_app
from llava_remap.cli.shrink import shrink_command
from llava_remap.core.codes import Exit
from llava_remap.core.problem import Problem, RemapError
from llava_remap.core.version import __version__

app = typer.Typer(
    help="Turn research LLaVA checkpoints into ones that transformers, vLLM, SGLang and llama.cpp "
    "load.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(rules_app, name="rules")


class Verify(str, Enum):
    meta = "meta"
    full = "full"
    none = "none"


class Dtype(str, Enum):
    keep = "keep"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("apply")
def apply_command(
    rules: Annotated[
        str, typer.Argument(help="A rule file, or the name of a shipped one: llava-v1.5.")
    ],
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="[NAME=]SRC",
            help="A checkpoint: folder, file, manifest, or ORG/NAME[@REVISION] on the hub. Without "
            "NAME the rule file's first "
            "source; can be given several times. What isn't given is downloaded as the rule file "
            "says.",
        ),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="The folder to write; new or empty. By default ./<last part of the first "
            "source>-hf, with --reverse -original.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            "--dtype",
            help="What every weight is written in; keep: each in the dtype that it is stored in. "
            "Values are rounded to nearest; "
            "those that don't fit are found before anything is written. What was rounded, revert "
            "can't give back.",
        ),
    ] = Dtype.keep,
    vocab: Annotated[
        str,
        typer.Option(
            "--vocab",
            metavar="keep|pad|N",
            help="How many rows the vocabulary will have. pad: as the rule file says, mostly as "
            "many as new tokens need and on "
            "to a multiple of 64; keep: as many as there are, so new tokens have to fit; N: so "
            "many.",
        ),
    ] = "pad",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only plan, from headers: print what would be done or why not."
        ),
    ] = False,
    check_values: Annotated[
        bool,
        typer.Option(
            "--check-values", help="With --dry-run: also run the checks that read tensors."
        ),
    ] = False,
    output_format: Annotated[
        Format, typer.Option("--format", help="How the report is printed.")
    ] = Format.human,
    reverse: Annotated[
        bool,
        typer.Option(
            "--reverse",
            help="The way back by the rules alone: from a checkpoint in a layout of transformers "
            "to the original names. With a "
            "folder's record, `revert` does it better.",
        ),
    ] = False,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="LAYOUT",
            help="The names that are written. classic: those that every transformers loads; "
            "module-4.52, module-5.6: the module "
            "names of transformers 4.52 to 5.5 and of 5.6 and later, for programs that want those.",
        ),
    ] = "classic",
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.json",
            help="Also write the plan as JSON to a file; one that is there is replaced.",
        ),
    ] = None,
    max_shard_size: Annotated[
        int | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            parser=nbytes,
            help="Bytes of tensors that a weight file may have (5GB, 500MB; one that is larger "
            "alone has a file to itself). "
            "Without it, weight files are divided as the sources' are.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            metavar="N",
            min=1,
            max=64,
            help="How many weight files are written at a time.",
        ),
    ] = 2,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a job that was interrupted or killed: weight files that are finished "
            "are kept.",
        ),
    ] = False,
    verify: Annotated[
        Verify,
        typer.Option(
            "--verify",
            help="What is checked after writing. meta: transformers loads names and shapes "
            "strictly; full: also every tensor is "
            "read back and compared with what its source gives; none: nothing.",
        ),
    ] = Verify.meta,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Convert a checkpoint.

    It is planned, written if the plan is complete, and loaded strictly. Nothing is written unless
    every tensor and every parameter has its place.
    """
    goes_on = resume and not (reverse or dry_run)
    begun = output if goes_on else None  # the folder whose unfinished job is this one
    with refusals(output_format), resumable(lambda: begun):
        if report is not None and report.suffix != ".json":
            raise RemapError(
                Problem(
                    "LR211",
                    f"--report {report}: the name has to end in .json.",
                    "Write --report NAME.json.",
                )
            )
        from llava_remap.jobs.apply import apply_job, check_values as run_checks, plan_job, refused  # noqa: I001
        from llava_remap.jobs.output import refuse_report
        from llava_remap.jobs.reverse import plan_reverse, reverse_job
        from llava_remap.jobs.resources import memory_problems, predict
        from llava_remap.report import plan_json, print_plan, print_problems, print_result

        if not reverse:
            rows: Any = (
                int(vocab) if vocab.isascii() and vocab.isdecimal() and len(vocab) < 10 else vocab
            )
            with progress("planning"):
                job = plan_job(
                    rules,
                    source,
                    output,
                    layout=layout,
                    dtype=dtype.value,
                    vocab=rows,
                    max_shard_nbytes=max_shard_size,
                    resume=resume,
                    dry_run=dry_run,
                    offline=offline,
                )
        elif layout != "classic":
            raise RemapError(
                Problem(
                    "LR211",
                    f"--layout {layout} is a layout of transformers, and --reverse writes "
                    "original names.",
                    "Give one of the two. A checkpoint in any layout can be taken back.",
                )
            )
        elif resume or max_shard_size is not None:
            raise RemapError(
                Problem(
                    "LR211",
                    f"{'--resume' if resume else '--max-shard-size'} is for the way forward, and "
                    "--reverse goes back.",
                    "Leave it out.",
                )
            )
        elif (dtype.value, vocab) == ("keep", "pad"):
            with progress("planning"):
                job = plan_reverse(rules, source, output, dry_run=dry_run, offline=offline)
        else:
            raise RemapError(
                Problem(
                    "LR211",
                    "--reverse gives back what is there, in its own dtype and with all its rows.",
                    "Leave --dtype and --vocab out; they are for the way forward.",
                )
            )
        begun = job.output if goes_on else None
        carry_out = reverse_job if reverse else apply_job
        predicted = predict(job, verify.value, jobs) if job.plan.complete else None
        if predicted is not None and not job.from_manifest:
            job = refused(job, memory_problems(predicted))
        if check_values or not dry_run:
            with progress("checking values", job.nbytes_to_check) as shown:
                job = run_checks(job, shown.advance)
        if output_format is Format.human:
            print_plan(Console(soft_wrap=True), job, predicted)
        if report is not None:
            refuse_report(report, job.output, job.checkpoints)
            write_report(report, plan_json(job, predicted=predicted))
        if dry_run or not job.plan.complete:
            if output_format is Format.json:
                print(plan_json(job, predicted=predicted))
            raise typer.Exit(
                max((problem.exit for problem in job.plan.problems), default=Exit.DONE)
            )
        begun = job.output
        with progress("writing", job.nbytes_to_handle(verify.value)) as shown:
            try:
                result = carry_out(job, shown.advance, shown.phase, verify=verify.value, jobs=jobs)
            except (
                RemapError
            ) as error:  # found while it was written, so the plan that was shown didn't have it
                job = refused(job, error.problems)
        if not job.plan.complete:
            if output_format is Format.json:
                print(plan_json(job, predicted=predicted))
            print_problems(Console(stderr=True, soft_wrap=True), job.plan.problems)
            print(f"\n{kept(job.output) or 'Nothing of it is left.'}", file=sys.stderr)
            if report is not None:
                write_last_report(report, plan_json(job, predicted=predicted))
            raise typer.Exit(max(problem.exit for problem in job.plan.problems))
        if output_format is Format.json:
            print(plan_json(job, result, predicted))
        else:
            print_result(Console(soft_wrap=True), result, job.plan)
        if report is not None:
            write_last_report(report, plan_json(job, result, predicted))


@app.command("verify")
def verify_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="A folder that `apply` wrote.")
    ],
    against: Annotated[
        list[str],
        typer.Option(
            "--against",
            metavar="[NAME=]SRC",
            help="The source that it was made from: every tensor is compared, bit by bit. As "
            "--source of `apply`.",
        ),
    ] = [],  # noqa: B006
    output_format: Annotated[
        Format, typer.Option("--format", help="How the report is printed.")
    ] = Format.human,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Check a converted folder.

    The files are compared with the digests in the folder's record, transformers loads names and
    shapes strictly, and with --against every value is compared with what the sources give.
    """
    with refusals(output_format, "verification"):
        import json

        from llava_remap.report import print_verification
        from llava_remap.source.sources import open_again
        from llava_remap.verify import verify_folder
        from llava_remap.verify.record import read_record

        record = read_record(folder)
        sources = (
            open_again(record.locations, against, unused=record.unused, offline=offline)
            if against
            else None
        )
        with progress(
            "comparing digests", record.nbytes_to_read(compared=sources is not None)
        ) as shown:
            found = verify_folder(folder, record, sources, shown.advance, shown.phase)
        if output_format is Format.json:
            print(json.dumps(found.to_json(), indent=2))
        else:
            print_verification(Console(soft_wrap=True), found)
        raise typer.Exit(max((problem.exit for problem in found.problems), default=Exit.DONE))


app.command("revert")(revert_command)
app.command("shrink")(shrink_command)


@app.command()
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint: folder, file, manifest or hub id.")
    ],
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Say what a checkpoint is.

    Also which rule files fit it, and the command to run.
    """
    with refusals(Format.human):
        from llava_remap.jobs.inspect_parts import inspect_source
        from llava_remap.report import print_inspection
        from llava_remap.target_model import CLASSIC

        with progress("planning"):
            found = inspect_source(source, offline=offline)
        if found.problems and (found.layout == CLASSIC or not found.fits[0].fits):
            raise RemapError(found.problems)
        print_inspection(Console(soft_wrap=True), found)
        if not found.fits[0].fits:
            raise typer.Exit(Exit.PROBLEMS)
