"""The commands. A result goes to stdout, everything else to stderr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_remap.cli.app import App, Commands, examples
from llava_remap.cli.convert import convert_command
from llava_remap.cli.diff import diff_command
from llava_remap.cli.options import (
    READING,
    VERIFY,
    WRITING,
    Checkpoint,
    CheckValues,
    DryRun,
    Dtype,
    Jobs,
    MaxShardSize,
    NameLayout,
    Offline,
    Output,
    ProjectorForm,
    Report,
    ReportFormat,
    ResultFormat,
    Resume,
    Rules,
    Sources,
    Verify,
    Vocab,
)
from llava_remap.cli.output import (
    carry_out,
    console,
    exit_code,
    refusals,
    refuse_other_reports,
    reported,
    resumable,
    show_result,
    write_text,
)
from llava_remap.cli.progress import progress
from llava_remap.cli.rules import rules_app
from llava_remap.core import refuse
from llava_remap.core.version import __version__

app = App(
    help="Turn research LLaVA checkpoints into ones that transformers, vLLM and SGLang load and "
    "that llama.cpp converts.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # The help is as wide as the terminal.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 200},
)
app.add_typer(rules_app, name="rules")

Form = Literal["safetensors", "sharded_safetensors", "bin", "sharded", "legacy"]


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


app.command(
    "convert",
    epilog=examples(
        "llava-remap convert ./llava-v1.5-7b",
        "llava-remap convert ./lora ./merged \\",
        "  --source model=./vicuna-7b-v1.5",
    ),
)(convert_command)


@app.command(
    "apply",
    epilog=examples(
        "llava-remap apply llava-v1.5 --source ./llava-v1.5-7b",
        "llava-remap apply llava-v1.5 --source ./base \\",
        "  --source adapter=./lora --output merged --dry-run",
    ),
)
def apply_command(
    rules: Rules,
    source: Sources = [],  # noqa: B006
    output: Output = None,
    dtype: Dtype = "keep",
    vocab: Vocab = "pad",
    projector_form: ProjectorForm = None,
    dry_run: DryRun = False,
    check_values: CheckValues = False,
    output_format: ReportFormat = "human",
    layout: NameLayout = "classic",
    report: Report = None,
    max_shard_size: MaxShardSize = None,
    jobs: Jobs = 2,
    resume: Resume = False,
    verify: Annotated[Verify, VERIFY] = "meta",
    offline: Offline = False,
) -> None:
    """Convert a checkpoint by a rule file.

    The conversion is planned, written if the plan is complete, and loaded strictly. Nothing is
    written unless every tensor and every parameter has its place.
    """
    with refusals(output_format):
        with resumable(output if resume and not dry_run else None):
            refuse_other_reports(report)
            from llava_remap.jobs.apply import plan
            from llava_remap.jobs.convert import refuse_checkpoint

            with progress("planning"), reported(report, output, source):
                refuse_checkpoint(rules, source, offline)
                job = plan(
                    rules,
                    source,
                    output,
                    layout=layout,
                    dtype=dtype,
                    vocab=vocab,
                    max_shard_nbytes=max_shard_size,
                    resume=resume,
                    dry_run=dry_run,
                    offline=offline,
                    projector_form=projector_form,
                )
        carry_out(
            job,
            output_format=output_format,
            report=report,
            dry_run=dry_run,
            verify=verify,
            jobs=jobs,
            check_values=check_values,
            resume=resume,
        )


@app.command(
    "verify",
    epilog=examples(
        "llava-remap verify ./llava-v1.5-7b-hf",
        "llava-remap verify ./llava-v1.5-7b-hf \\",
        "  --against ./llava-v1.5-7b",
    ),
)
def verify_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="A folder that `apply` wrote.")
    ],
    against: Annotated[
        list[str],
        typer.Option(
            "--against",
            metavar="[NAME=]SRC",
            rich_help_panel=READING,
            help="A source of the folder, given as with --source of `apply`: every tensor is "
            "compared, bit by bit.",
        ),
    ] = [],  # noqa: B006
    output_format: ReportFormat = "human",
    offline: Offline = False,
) -> None:
    """Check a converted folder.

    The files are compared with the digests in the folder's record, transformers loads names and
    shapes strictly, and, with --against, every value is compared with what the sources give.
    """
    with refusals(output_format, "verification"):
        from llava_remap.jobs.verify import open_recorded
        from llava_remap.report import print_verification
        from llava_remap.verification import Verification, verify_folder

        record, sources = open_recorded(folder, against, offline=offline)
        nbytes_to_read = record.nbytes_to_read(compared=sources is not None)
        with progress("comparing digests", nbytes_to_read) as shown:
            verification = verify_folder(folder, record, sources, shown.advance, shown.phase)
        show_result(output_format, Verification.to_json, print_verification, verification)
        raise typer.Exit(exit_code(verification.problems))


@app.command(
    "revert",
    epilog=examples(
        "llava-remap revert ./llava-v1.5-7b-hf --output back",
        "llava-remap revert ./tuned-hf --rules llava-v1.5",
    ),
)
def revert_command(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="A folder that `apply` wrote. With --rules, a checkpoint in a layout of "
            "transformers: a folder, a file or ORG/NAME[@REVISION].",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            rich_help_panel=WRITING,
            help="The folder to write; new or empty. With --rules, the default is ./<last part of "
            "DIR>-original.",
        ),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            metavar="RULES",
            help="Use a rule file instead of the record: restores the original names of any "
            "checkpoint in a layout of transformers. The record restores more.",
        ),
    ] = None,
    dry_run: DryRun = False,
    output_format: ReportFormat = "human",
    report: Report = None,
    jobs: Jobs = 2,
    verify: Annotated[Verify | None, VERIFY] = None,
    offline: Offline = False,
) -> None:
    """Restore the original checkpoint from a converted folder.

    The original names, bytes and configs are restored by the folder's record. Each of several
    sources gets a folder with its name inside the output. Nothing is written unless every file is
    unchanged. With --rules, only weights are written, under the names that the rule file leads
    back to; --dry-run, --report, --verify and --offline are only for that way.
    """
    with refusals(output_format, "reversion" if rules is None else "plan"):
        if rules is not None:
            refuse_other_reports(report)
            from llava_remap.jobs.reverse import plan_reverse

            with progress("planning"), reported(report, output, [folder]):
                job = plan_reverse(rules, folder, output, dry_run=dry_run, offline=offline)
            carry_out(
                job,
                output_format=output_format,
                report=report,
                dry_run=dry_run,
                verify=verify or "meta",
                jobs=jobs,
            )
            return
        given = {
            "--dry-run": dry_run,
            "--report": report,
            "--offline": offline,
            "--verify": verify,
        }
        if unfit := [name for name, value in given.items() if value]:
            raise refuse(
                "LR211",
                f"{unfit[0]} is only for a reversal by a rule file.",
                f"Give --rules RULES, or leave {unfit[0]} out.",
            )
        from llava_remap.jobs.revert import Reversion, plan_revert
        from llava_remap.jobs.run import run
        from llava_remap.report import print_reverted

        planned = plan_revert(Path(folder), output)
        with progress("comparing digests", planned.nbytes_to_handle) as shown:
            done = run(planned, shown.advance, shown.phase, verify="none", jobs=jobs)
        show_result(output_format, Reversion.to_json, print_reverted, planned, done)


@app.command("shrink", epilog=examples("llava-remap shrink ./llava-v1.5-7b --output small"))
def shrink_command(
    source: Checkpoint,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="The folder to write; new or empty."),
    ],
    form: Annotated[
        Form,
        typer.Option(
            "--form",
            metavar="FORM",
            help="How the weights are stored: safetensors, sharded_safetensors, bin, sharded "
            "(torch files) or legacy (torch's format before 1.6).",
        ),
    ] = "safetensors",
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other values.")] = 0,
    layers: Annotated[
        int, typer.Option("--layers", metavar="N", help="Layers of the language model that stay.")
    ] = 2,
    tower_layers: Annotated[
        int | None,
        typer.Option(
            "--tower-layers",
            metavar="N",
            help="Layers of the vision tower that stay; by default 3, or as many as the features "
            "need.",
        ),
    ] = None,
    offline: Offline = False,
) -> None:
    """Write a small twin of a checkpoint.

    The twin has the same names, dtypes and ties, but fewer layers, small sizes and made-up values.
    Use it to try a rule file, to test programs, or to attach it to a bug report. Only headers and
    config of the checkpoint are read; a manifest is enough.
    """
    with refusals("human"):
        from llava_remap.authoring.shrink import shrink
        from llava_remap.report import print_shrunk

        with progress("making values and writing"):
            done = shrink(
                source,
                output,
                form=form,
                seed=seed,
                layers=layers,
                tower_layers=tower_layers,
                offline=offline,
            )
        print_shrunk(console(), done)


@app.command(epilog=examples("llava-remap inspect ./llava-v1.5-7b --format json"))
def inspect(
    source: Checkpoint,
    output_format: ResultFormat = "human",
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="FILE.json",
            help="Also write the checkpoint's manifest: names, dtypes, shapes and config, without "
            "weights. An existing file is replaced.",
        ),
    ] = None,
    offline: Offline = False,
) -> None:
    """Say what a checkpoint is.

    The output has the components with kinds and sizes, unusual things, the rule files that fit, and
    the command to run. SRC may also be an adapter, a projector, a tower or a language model alone.
    """
    with refusals(output_format, "inspection"):
        from llava_remap.jobs.inspect_parts import inspect as inspect_source
        from llava_remap.jobs.inspection import Inspection
        from llava_remap.jobs.output import refuse_inside
        from llava_remap.report import print_inspection

        with progress("planning"):
            inspection = inspect_source(source, offline=offline)
        if manifest is not None:
            checkpoints = {
                facts.checkpoint.location: facts.checkpoint for facts in inspection.facts
            }
            refuse_inside(manifest, checkpoints, "--manifest")
            write_text(manifest, inspection.manifest(), "--manifest")
        show_result(output_format, Inspection.to_json, print_inspection, inspection)


app.command("diff", epilog=examples("llava-remap diff ./llava-v1.5-7b ./llava-v1.5-7b-hf"))(
    diff_command
)
