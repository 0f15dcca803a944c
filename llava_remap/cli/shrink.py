"""`llava-remap shrink`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llava_remap.cli.common import OFFLINE, Format, refusals
from llava_remap.cli.progress import progress


class Form(str, Enum):
    safetensors = "safetensors"
    sharded_safetensors = "sharded_safetensors"
    bin = "bin"
    sharded = "sharded"
    legacy = "legacy"


def shrink_command(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint: folder, file, manifest or hub id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="The folder to write; new or empty.")
    ],
    form: Annotated[
        Form,
        typer.Option(
            "--form",
            help="How the weights are stored; sharded: torch files, legacy: torch's format before "
            "1.6.",
        ),
    ] = Form.safetensors,
    seed: Annotated[int, typer.Option("--seed", help="Another one gives other values.")] = 0,
    layers: Annotated[
        int, typer.Option("--layers", metavar="N", help="Layers of the language model that stay.")
    ] = 2,
    tower_layers: Annotated[
        int | None,
        typer.Option(
            "--tower-layers",
            metavar="N",
            help="Layers of the vision tower that stay; by default 3, or as many as its features "
            "are taken from.",
        ),
    ] = None,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Write a small twin of a checkpoint.

    The same names, dtypes and ties, fewer layers, small sizes, and made-up values: to try a rule
    file on, to test programs with, to attach to a bug report. Of the checkpoint only headers and
    config are read; a manifest will do.
    """
    with refusals(Format.human):
        from llava_remap.authoring.shrink import shrink
        from llava_remap.report import print_shrunk

        with progress("making values and writing"):
            done = shrink(
                source,
                output,
                form=form.value,
                seed=seed,
                layers=layers,
                tower_layers=tower_layers,
                offline=offline,
            )
        print_shrunk(Console(soft_wrap=True), done)
