"""Arguments and options of the commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

Format = Literal["human", "json"]
Verify = Literal["meta", "full", "none"]

Rules = Annotated[
    str, typer.Argument(help="A rule file, or the name of a shipped one: llava-v1.5.")
]
Checkpoint = Annotated[
    str, typer.Argument(metavar="SRC", help="A checkpoint: folder, file, manifest or hub id.")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Take from the hub only what was downloaded before.")
]
ReportFormat = Annotated[Format, typer.Option("--format", help="How the report is printed.")]
ResultFormat = Annotated[Format, typer.Option("--format", help="How the result is printed.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only plan, from headers: print what would be done or why not."),
]
VERIFY = typer.Option(
    "--verify",
    help="What is checked after writing. meta: transformers loads names and shapes strictly; full: "
    "also every tensor is read back and compared with what its source gives; none: nothing.",
)
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.json",
        help="Also write the plan as JSON to a file; an existing file is replaced.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", metavar="N", min=1, max=64, help="How many weight files are written at a time."
    ),
]


def nbytes(text: str) -> int:
    """The bytes of `5GB`, `500MB`, `5GiB` or `1000000`."""
    match = re.fullmatch(
        r"(\d{1,12}(?:\.\d{1,6})?) ?(?:([kMGT])(i?)B?)?", text.strip(), re.IGNORECASE
    )
    amount = 0
    if match is not None:
        power = " KMGT".index((match[2] or " ").upper())
        amount = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if not amount:
        raise typer.BadParameter(f"{text!r} is no size. Write 5GB or 500MB.")
    return amount
