"""The commands. A result goes to stdout, everything else to stderr."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from llava_remap.cli.carry_out import (
    DRY_RUN,
    FORMAT,
    JOBS,
    REPORT,
    VERIFY,
    Asked,
    Verify,
    carry_out,
    refuse_other_reports,
)
from llava_remap.cli.common import (
    OFFLINE,
    Format,
    nbytes,
    refusals,
    resumable,
)
from llava_remap.cli.progress import progress
from llava_remap.cli.revert import revert_command
from llava_remap.cli.rules import rules_app
from llava_remap.cli.shrink import shrink_command
from llava_remap.core.codes import Exit
from llava_remap.core.problem import RemapError
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
            "source>-hf.",
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
    dry_run: Annotated[bool, DRY_RUN] = False,
    check_values: Annotated[
        bool,
        typer.Option(
            "--check-values", help="With --dry-run: also run the checks that read tensors."
        ),
    ] = False,
    output_format: Annotated[Format, FORMAT] = Format.human,
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
    report: Annotated[Path | None, REPORT] = None,
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
    jobs: Annotated[int, JOBS] = 2,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a job that was interrupted or killed: weight files that are finished "
            "are kept.",
        ),
    ] = False,
    verify: Annotated[Verify, VERIFY] = Verify.meta,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Convert a checkpoint.

    It is planned, written if the plan is complete, and loaded strictly. Nothing is written unless
    every tensor and every parameter has its place.
    """
    begun = output if resume and not dry_run else None  # the folder whose job is this one
    with refusals(output_format):
        with resumable(lambda: begun):
            refuse_other_reports(report)
            from llava_remap.jobs.apply import plan_job

            is_number = vocab.isascii() and vocab.isdecimal() and len(vocab) < 10
            rows: Any = int(vocab) if is_number else vocab
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
        asked = Asked(output_format, report, dry_run, verify, jobs, check_values, resume)
        carry_out(job, asked)


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
