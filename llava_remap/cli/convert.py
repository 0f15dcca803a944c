"""`llava-remap convert`: from checkpoints alone to converted folders."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llava_remap.cli.log import Log, open_log
from llava_remap.cli.options import (
    READING,
    SHOWING,
    VERIFY,
    WRITING,
    CheckValues,
    DryRun,
    Dtype,
    Format,
    Jobs,
    MaxShardSize,
    NameLayout,
    Offline,
    ProjectorForm,
    Report,
    ReportFormat,
    Resume,
    Verify,
    Vocab,
    shipped_rules,
    source_values,
)
from llava_remap.cli.output import (
    Ended,
    Unreported,
    carry_out,
    console,
    print_json,
    refusals,
    refuse_other_reports,
    reported,
    resumable,
)
from llava_remap.cli.progress import Progress, progress
from llava_remap.core import Exit, Problem, refuse
from llava_remap.core.version import __version__

if TYPE_CHECKING:
    from llava_remap.jobs.conversions import Converted, State
    from llava_remap.jobs.further_sources import Ask
    from llava_remap.jobs.run import Result

#: Stands in `--report` for the name of each of several outputs.
_NAME = "{name}"


@dataclass(frozen=True, slots=True)
class _Options:
    """The options for every checkpoint of the command.

    Attributes:
        plan: options of `plan`.
        lines: whether JSON documents are lines, as there are several checkpoints.
    """

    rules: str | None
    sources: Sequence[str]
    plan: dict[str, Any]
    output_format: Format
    dry_run: bool
    check_values: bool
    verify: Verify
    jobs: int
    resume: bool
    offline: bool
    lines: bool


def convert_command(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC [OUT]",
            help="A checkpoint, an adapter, a projector or a folder with parts: folder, file, "
            "manifest, or ORG/NAME[@REVISION] on the hub; and the folder to write, by default "
            "./<last part of SRC>-hf. With --output-dir, any number of SRC.",
        ),
    ],
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            rich_help_panel=READING,
            metavar="RULES",
            autocompletion=shipped_rules,
            help="A rule file, or the name of a shipped one. By default the shipped one that fits.",
        ),
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            rich_help_panel=READING,
            metavar="NAME=SRC",
            autocompletion=source_values,
            help="Another source that the checkpoint needs: vision_tower=DIR, model=BASE for an "
            "adapter, language_model=DIR for a tokenizer. Can be given several times. Other needed "
            "sources are looked for beside the checkpoint, then where its own files say.",
        ),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            rich_help_panel=WRITING,
            help="The folder to write, instead of OUT.",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            rich_help_panel=WRITING,
            metavar="DIR",
            help="Convert every SRC into a folder with its name in DIR, with the plan as JSON "
            "beside the folder.",
        ),
    ] = None,
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
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            rich_help_panel=SHOWING,
            metavar="FILE",
            help="Also add plain lines to a file: what was done and when, and every problem.",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint by the rule file that fits it.

    The checkpoint is recognised as by `inspect`. Other sources that it needs are found or asked
    for. If several rule files fit, or none, nothing is written. With --output-dir, several
    checkpoints are converted one after another; if one is refused, the others are still converted.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(refusals(output_format, lines=output_dir is not None))
        sources, outputs = _outputs(checkpoints, output, output_dir)
        opened = stack.enter_context(open_log(_logged(log, sources, outputs, source)))
        reports = _reports(report, outputs, output_dir, dry_run)
        options = _Options(
            rules=rules,
            sources=source,
            plan={
                "layout": layout,
                "dtype": dtype,
                "vocab": vocab,
                "max_shard_nbytes": max_shard_size,
                "projector_form": projector_form,
            },
            output_format=output_format,
            dry_run=dry_run,
            check_values=check_values,
            verify=verify,
            jobs=jobs,
            resume=resume,
            offline=offline,
            lines=output_dir is not None,
        )
        opened.write(f"llava-remap {__version__} convert: {' '.join(sources)}")
        if output_dir is None:
            done = _convert(sources[0], outputs[0], reports[0], options, opened)
            raise Ended(done.exit, done.problems)
        _convert_all(sources, outputs, reports, options, opened)


def _outputs(
    arguments: Sequence[str], output: Path | None, output_dir: Path | None
) -> tuple[list[str], list[Path | None]]:
    """The SRC of each checkpoint, and the folder to write it to; None for the default.

    Raises:
        RemapError: LR211 for arguments that contradict each other.
    """
    from llava_remap.jobs.conversions import outputs_in
    from llava_remap.jobs.output import holds_others, output_folder

    if output_dir is not None:
        if output is not None:
            raise refuse(
                "LR211",
                "--output is the folder of one checkpoint, --output-dir that of several.",
                "Give one of them.",
            )
        return [*arguments], [*outputs_in(output_folder(output_dir), arguments)]
    first, *others = arguments
    if len(others) == 1 and output is not None:
        raise refuse(
            "LR211",
            f"the folder to write is given twice: {others[0]} and --output {output}.",
            "Give it once. Other sources of the checkpoint are given with --source, such as "
            "--source vision_tower=DIR. To convert several checkpoints: --output-dir DIR.",
        )
    places: list[str | Path] = [*others, *([output] if output is not None else [])]
    if len(places) > 1 or (others and holds_others(output_folder(others[0]))):
        raise refuse(
            "LR211",
            f"{' '.join(arguments)}: a checkpoint and the folder to write are wanted"
            + (f", and {others[0]} holds other files." if len(places) < 2 else "."),
            "Give other sources of the checkpoint with --source, such as --source "
            "vision_tower=DIR. To convert several checkpoints: --output-dir DIR.",
        )
    return [first], [output_folder(place) for place in places] or [None]


def _logged(
    log: Path | None,
    sources: Sequence[str],
    outputs: Sequence[Path | None],
    further: Sequence[str],
) -> Path | None:
    """The log, unless it is a file of a source or of an output.

    Raises:
        RemapError: LR508.
    """
    from llava_remap.jobs.convert import default_output
    from llava_remap.jobs.output import refuse_report_unopened

    if log is not None:
        for source, output in zip(sources, outputs, strict=True):
            place = output or default_output(source)
            refuse_report_unopened(log, place, [source, *further], "--log")
    return log


def _reports(
    report: Path | None,
    outputs: Sequence[Path | None],
    output_dir: Path | None,
    dry_run: bool,
) -> list[Path | None]:
    """The report of each checkpoint; None for none."""
    if output_dir is None:
        refuse_other_reports(report)
        return [report]
    if report is None:
        # A dry run writes only what was asked for.
        return [None if dry_run or output is None else _report_beside(output) for output in outputs]
    if _NAME not in str(report):
        raise refuse(
            "LR211",
            f"--report {report}: each checkpoint has a report of its own.",
            f"Write {_NAME} in place of the output's name: --report 'reports/{_NAME}.json'.",
        )
    refuse_other_reports(report)
    return [
        None if output is None else Path(str(report).replace(_NAME, output.name))
        for output in outputs
    ]


def _report_beside(output: Path) -> Path | None:
    """The report that is written by default; None if the output is finished and has the report of
    the run that wrote it.
    """
    from llava_remap.verification.record import is_finished

    report = output.with_name(f"{output.name}.json")
    return None if report.exists() and is_finished(output) else report


def _convert(
    source: str,
    output: Path | None,
    report: Path | None,
    options: _Options,
    log: Log,
) -> Converted:
    """Convert one checkpoint, and show its plan and result or its refusal."""
    from llava_remap.jobs.apply import plan
    from llava_remap.jobs.conversions import Converted
    from llava_remap.jobs.convert import choose, default_output

    started = time.monotonic()
    given = [source, *options.sources]
    done = Converted(source, output or default_output(source), "refused")
    try:
        with refusals(options.output_format, lines=options.lines):
            if report is not None and options.lines:
                _make_folder(report.parent)
            with resumable(done.output if options.resume and not options.dry_run else None):
                with progress("recognising") as shown, reported(report, done.output, given):
                    choice = choose(
                        source,
                        rules=options.rules,
                        sources=options.sources,
                        offline=options.offline,
                        ask=_asking(shown, options),
                    )
                log.write(f"{source}: {choice.rules}, as it {choice.reason}")
                with progress("planning"), reported(report, done.output, given):
                    job = plan(
                        choice.rules,
                        choice.sources,
                        done.output,
                        resume=options.resume,
                        dry_run=options.dry_run,
                        offline=options.offline,
                        **options.plan,
                    )
            job = replace(job, choice=choice)
            for name, how in job.found.items():
                place = job.checkpoints[name].location
                log.write(f"{source}: source {name}: {place} ({how})")
            done = replace(done, rules=job.plan.rules_name)
            result = carry_out(
                job,
                output_format=options.output_format,
                report=report,
                dry_run=options.dry_run,
                verify=options.verify,
                jobs=options.jobs,
                check_values=options.check_values,
                resume=options.resume,
                lines=options.lines,
            )
            done = replace(done, state=_state(result), result=result)
    except Unreported as ended:
        result, code = ended.result, ended.exit_code
        done = replace(
            done, state=_state(result), result=result, exit=code, problems=ended.problems
        )
        report = None
    except Ended as ended:
        state: State = "refused" if ended.exit_code else "planned"
        done = replace(done, state=state, exit=ended.exit_code, problems=ended.problems)
    except typer.Exit as ended:
        done = replace(done, state="interrupted", exit=ended.exit_code)
    done = replace(done, seconds=time.monotonic() - started, report=report)
    log.write(f"{source}: {done.state}, exit {done.exit}, {done.seconds:.1f} s, {done.output}")
    log.problems((*(done.result.notes if done.result is not None else ()), *done.problems))
    return done


def _state(result: Result) -> State:
    """How a conversion that was carried out ended."""
    return "converted" if result.nbytes or not result.reused else "nothing to do"


def _make_folder(folder: Path) -> None:
    """Make a folder for reports.

    Raises:
        RemapError: LR508.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse("LR508", f"{folder}: {error.strerror}.", "Give another folder.") from None


def _convert_all(
    sources: Sequence[str],
    outputs: Sequence[Path | None],
    reports: Sequence[Path | None],
    options: _Options,
    log: Log,
) -> NoReturn:
    """Convert several checkpoints, and show how each ended.

    Raises:
        Ended: with the gravest exit code.
        BaseException: the first error that no command foresees, or the error of a signal.
    """
    from llava_remap.jobs.conversions import Converted
    from llava_remap.report import print_heading, print_summary, summary_json
    from llava_remap.source.hub import downloading_once

    done: list[Converted] = []
    fault: BaseException | None = None
    with downloading_once():
        for source, output, report in zip(sources, outputs, reports, strict=True):
            assert output is not None
            if options.output_format == "human":
                print_heading(console(), source, len(done) + 1, len(sources))
            try:
                done.append(_convert(source, output, report, options, log))
            except BaseException as error:  # the others' results are shown first
                fault = fault or error
                ended = not isinstance(error, Exception)
                state: State = "interrupted" if ended else "refused"
                by_signal = getattr(error, "code", None)
                exit_ = by_signal if isinstance(by_signal, int) else Exit.INTERNAL
                done.append(Converted(source, output, state, exit_))
                log.write(f"{source}: {type(error).__name__}: {error}")
            if done[-1].state == "interrupted":
                break
    left = list(zip(sources, outputs, strict=True))[len(done) :]
    done += [Converted(source, output or Path(), "not begun") for source, output in left]
    code = max(one.exit for one in done)
    if options.output_format == "json":
        print_json(summary_json(done, code), lines=True)
    else:
        print_summary(console(), done)
    log.write(f"exit {code}: {sum(one.is_well for one in done)} of {len(done)} without a problem")
    if fault is not None:
        raise fault
    raise Ended(code)


def _asking(shown: Progress, options: _Options) -> Ask | None:
    """The function that asks for a source on the terminal; None if nobody would see it ask."""
    if options.lines or options.output_format == "json":
        return None
    if not _is_terminal():
        return None

    def ask(name: str, problems: Sequence[Problem]) -> str:
        from llava_remap.report import print_problems

        shown.clear()
        print_problems(console(sys.stderr), problems)
        print(f"{name} (a folder, a file or ORG/NAME; Enter for none): ", end="", file=sys.stderr)
        sys.stderr.flush()
        return _answer()

    return ask


def _is_terminal() -> bool:
    """Whether a person can read a question and answer it."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _answer() -> str:
    """The line that a person types; empty at the end of the input."""
    return sys.stdin.readline()
