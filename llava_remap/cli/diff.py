"""The command `diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_remap.cli.options import Offline, ReportFormat
from llava_remap.cli.output import refusals, show_result
from llava_remap.cli.progress import progress
from llava_remap.core import Exit

_SIDE = "A folder, file, manifest or hub id; or a plan: the JSON of --report, or llava_remap.json."


def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help=_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="As A.")],
    no_values: Annotated[
        bool,
        typer.Option("--no-values", help="Compare headers and small files; read no tensor."),
    ] = False,
    output_format: ReportFormat = "human",
    offline: Offline = False,
) -> None:
    """Compare two checkpoints, or two plans.

    Names, layouts, shapes, dtypes, ties, every value, configs, tokenizers and chat templates. The
    exit code is 0 if they are equal, and 1 if they differ.
    """
    with refusals(output_format, "diff"):
        from llava_remap.jobs.diff import prepare
        from llava_remap.report.diff import print_difference
        from llava_remap.verification.difference import Difference

        with progress("reading headers"):
            comparison = prepare(a, b, values=not no_values, offline=offline)
        with progress("comparing", comparison.nbytes or None) as shown:
            found = comparison.run(shown.advance, shown.phase)
        show_result(output_format, Difference.to_json, print_difference, found)
        raise typer.Exit(Exit.DONE if found.equal else Exit.PROBLEMS)
