"""`llava-remap revert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llava_remap.cli.common import Format, refusals
from llava_remap.cli.progress import progress


def revert_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="A folder that `apply` wrote.")
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="The folder to write; new or empty.")
    ],
    output_format: Annotated[
        Format, typer.Option("--format", help="How the report is printed.")
    ] = Format.human,
) -> None:
    """Take a converted folder back.

    The original names, bytes and configs, from the folder's record. Of several sources each gets a
    folder of its name inside the output. Nothing is written unless every file is as it was written.
    """
    with refusals(output_format, "reversion"):
        import json

        from llava_remap.jobs.revert import plan_revert, revert_job
        from llava_remap.report import print_reverted

        job = plan_revert(folder, output)
        with progress("comparing digests", job.nbytes_to_handle) as shown:
            done = revert_job(job, shown.advance, shown.phase)
        if output_format is Format.json:
            print(json.dumps(done.to_json(), indent=2))
        else:
            print_reverted(Console(soft_wrap=True), done)
