"""`llava-remap rules new`: a rule file inferred from names and shapes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llava_remap.cli.common import OFFLINE, Format, refusals
from llava_remap.core.codes import Exit


def rules_new(
    sources: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="[NAME=]SRC",
            help="A checkpoint: folder, file, manifest or hub id; names will do, in an index "
            "without its shards or a .txt file, "
            "one a line. Further ones with a name: vision_tower=SRC.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="What it is to become: a class of transformers, a config.json that names one, a "
            "manifest, or a converted "
            "checkpoint of the same size.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="The rule file to write; a new one.")
    ],
    answers: Annotated[
        list[str],
        typer.Option(
            "--map",
            metavar="FROM=TO",
            help="Answers a question: a source name and what it becomes, folded or not.",
        ),
    ] = [],  # noqa: B006
    drop_rest: Annotated[
        bool,
        typer.Option(
            "--drop-rest",
            help="Drop what nothing in the target takes: you know that the model doesn't compute "
            "with it. What lies in the "
            "language model is never dropped.",
        ),
    ] = False,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Infer a rule file from names and shapes.

    What neither names nor shapes tell is asked on a terminal; elsewhere it is left out and told,
    with exit code 1.
    """
    with refusals(Format.human):
        from llava_remap.authoring.draft import draft_rules
        from llava_remap.report.inferred import ask_on_terminal, print_draft

        on_terminal = sys.stdin.isatty() and sys.stderr.isatty()
        asking = Console(stderr=True, soft_wrap=True)
        draft = draft_rules(
            sources,
            target,
            output,
            answers,
            ask=lambda question: ask_on_terminal(asking, question) if on_terminal else None,
            drop_rest=drop_rest,
            offline=offline,
        )
        print_draft(Console(soft_wrap=True), draft)
        if draft.problems:
            raise typer.Exit(Exit.PROBLEMS)
