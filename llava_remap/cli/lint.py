"""`llava-remap rules lint`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from llava_remap.cli.common import Format, refusals
from llava_remap.core.codes import Exit


class LintFormat(str, Enum):
    human = "human"
    json = "json"
    github = "github"


def rules_lint(
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            help="Rule files, or names of shipped ones. Without any, all that are shipped.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="[NAME=]SRC",
            help="A checkpoint whose names the rules are held against: as --source of `apply`.",
        ),
    ] = [],  # noqa: B006
    output_format: Annotated[
        LintFormat,
        typer.Option("--format", help="How it is printed; github: as annotations in a workflow."),
    ] = LintFormat.human,
) -> None:
    """Say what is wrong with rule files; exit code 2 if something is.

    Rules that take each other's names or their own new ones, rules without a test, regexes that
    take more than they seem to, drops of what the target wants; and whether what a file renames can
    be led back.
    """
    with refusals(Format.json if output_format is LintFormat.json else Format.human, "lint"):
        from llava_remap.authoring.lint.files import lint_files
        from llava_remap.report.lint import lint_github, lint_json, print_lint

        files = lint_files(rules or (), source)
        if output_format is LintFormat.json:
            print(lint_json(files))
        elif output_format is LintFormat.github:
            print(lint_github(files))
        else:
            print_lint(Console(soft_wrap=True), files)
        if any(linted.failed for linted in files):
            raise typer.Exit(Exit.USAGE)
