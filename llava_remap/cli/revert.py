"""`llava-remap revert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from llava_remap.cli.common import OFFLINE, Format, refusals
from llava_remap.cli.progress import progress
from llava_remap.core.problem import refuse


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
            metavar="DIR",
            help="The folder to write; new or empty. With --rules by default ./<last part of "
            "DIR>-original.",
        ),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            metavar="RULES",
            help="Go back by a rule file alone, without a record: to the original names, from "
            "whatever saved the checkpoint. A record does it better.",
        ),
    ] = None,
    dry_run: Annotated[bool, DRY_RUN] = False,
    output_format: Annotated[Format, FORMAT] = Format.human,
    report: Annotated[Path | None, REPORT] = None,
    jobs: Annotated[int, JOBS] = 2,
    verify: Annotated[Verify | None, VERIFY] = None,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Take a converted folder back.

    The original names, bytes and configs, from the folder's record. Of several sources each gets a
    folder of its name inside the output. Nothing is written unless every file is as it was written.
    With --rules, weights alone, under the names that the rule file leads back to; --dry-run,
    --report, --verify and --offline are for that way.
    """
    if rules is not None:
        with refusals(output_format):
            refuse_other_reports(report)
            from llava_remap.jobs.reverse import plan_reverse

            with progress("planning"):
                job = plan_reverse(rules, folder, output, dry_run=dry_run, offline=offline)
            carry_out(job, Asked(output_format, report, dry_run, verify or Verify.meta, jobs))
        return
    with refusals(output_format, "reversion"):
        given: dict[str, object] = {"--dry-run": dry_run, "--report": report}
        given |= {"--offline": offline, "--verify": verify}
        if unfit := [name for name, value in given.items() if value]:
            raise refuse(
                "LR211",
                f"{unfit[0]} is for the way back by a rule file.",
                f"Give --rules RULES, or leave {unfit[0]} out.",
            )
        if output is None:
            raise refuse("LR211", "revert needs --output.", "Give the folder to write.")
        import json

        from llava_remap.jobs.revert import plan_revert
        from llava_remap.jobs.run import run
        from llava_remap.report import print_reverted

        planned = plan_revert(Path(folder), output)
        with progress("comparing digests", planned.nbytes_to_handle) as shown:
            done = run(planned, shown.advance, shown.phase, verify="none", jobs=jobs)
        if output_format is Format.json:
            print(json.dumps(planned.to_json(done), indent=2))
        else:
            print_reverted(Console(soft_wrap=True), planned, done)
