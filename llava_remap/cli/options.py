"""Arguments and options of the commands."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

#: Headings of options in the help. Options without one stand under "Options".
READING, WRITING, SHOWING = "What is read", "What is written", "What is shown"

Format = Literal["human", "json"]
Verify = Literal["meta", "full", "none"]


def shipped_rules(incomplete: str) -> list[tuple[str, str]]:
    """Names of shipped rule files with their summaries, for a shell that completes a word."""
    from llava_remap.rulefile import shipped_list

    return [(f.name, f.summary) for f in shipped_list() if f.name.startswith(incomplete)]


def source_values(ctx: typer.Context, incomplete: str) -> list[str]:
    """Completions of `--source`: `NAME=` for each source of the given rule file, or of all shipped
    ones; after `NAME=`, the paths that begin with the typed text.
    """
    from llava_remap.core import RemapError
    from llava_remap.rulefile import load_rule_file, shipped_rule_files

    name, equals, path = incomplete.partition("=")
    if equals:
        folder, _, begin = path.rpartition("/")
        above = folder or ("/" if path.startswith("/") else ".")
        with contextlib.suppress(OSError):
            return [
                f"{name}={path.removesuffix(begin)}{entry.name}{'/' if entry.is_dir() else ''}"
                for entry in sorted(Path(above).expanduser().iterdir())
                if entry.name.startswith(begin) and (begin or not entry.name.startswith("."))
            ]
        return []
    given = ctx.params.get("rules")
    try:
        files = map(load_rule_file, [given] if given else shipped_rule_files().values())
        names = {name for file in files for name in file.text.sources}
    except RemapError:
        return []
    return sorted(f"{name}=" for name in names if name.startswith(incomplete))


Rules = Annotated[
    str,
    typer.Argument(
        metavar="RULES",
        help="A rule file, or the name of a shipped one: llava-v1.5.",
        autocompletion=shipped_rules,
    ),
]
RuleFiles = typer.Argument(
    metavar="RULES...",
    help="Rule files, or names of shipped ones.",
    autocompletion=shipped_rules,
)
Checkpoint = Annotated[
    str, typer.Argument(metavar="SRC", help="A checkpoint: folder, file, manifest or hub id.")
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Take from the hub only what was downloaded before.",
        rich_help_panel=READING,
    ),
]
ReportFormat = Annotated[
    Format, typer.Option("--format", help="How the report is printed.", rich_help_panel=SHOWING)
]
ResultFormat = Annotated[
    Format, typer.Option("--format", help="How the result is printed.", rich_help_panel=SHOWING)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only plan, from headers: print what would be done or why not.",
        rich_help_panel=WRITING,
    ),
]
VERIFY = typer.Option(
    "--verify",
    help="The check after writing. meta: transformers loads names and shapes strictly; full: every "
    "tensor is also read back and compared with what its source gives; none: no check.",
    rich_help_panel=WRITING,
)
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write plan and result to a file: FILE.html as a page for a browser, FILE.json "
        "for programs. An existing file is replaced.",
        rich_help_panel=SHOWING,
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        metavar="N",
        min=1,
        max=64,
        help="How many weight files are written at a time.",
        rich_help_panel=WRITING,
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


def vocabulary_rows(text: str) -> int | str:
    """`keep`, `pad`, or a number of rows."""
    if text in ("keep", "pad"):
        return text
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise typer.BadParameter(f"{text!r} is not one of 'keep', 'pad' or a number of rows.")
    return int(text)


Sources = Annotated[
    list[str],
    typer.Option(
        "--source",
        rich_help_panel=READING,
        metavar="[NAME=]SRC",
        autocompletion=source_values,
        help="A checkpoint: folder, file, manifest, or ORG/NAME[@REVISION] on the hub. Without "
        "NAME, the rule file's first source. Can be given several times. A needed source that "
        "isn't given is downloaded, as a config or the rule file names it.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        rich_help_panel=WRITING,
        metavar="DIR",
        help="The folder to write; new or empty. By default ./<last part of the first source>-hf.",
    ),
]
Dtype = Annotated[
    Literal["keep", "bfloat16", "float16", "float32"],
    typer.Option(
        "--dtype",
        rich_help_panel=WRITING,
        help="The dtype of every written weight; keep: the dtype in which each is stored. Values "
        "are rounded to nearest; values that don't fit are found before anything is written. "
        "`revert` can't restore rounded values.",
    ),
]
Vocab = Annotated[
    Any,
    typer.Option(
        "--vocab",
        rich_help_panel=WRITING,
        metavar="keep|pad|N",
        parser=vocabulary_rows,
        autocompletion=lambda: ["keep", "pad"],
        help="How many rows the vocabulary will have. pad: as the rule file says, mostly as "
        "many as new tokens need, rounded up to a multiple of 64; keep: the present number, so "
        "new tokens have to fit; N: this number.",
    ),
]
ProjectorForm = Annotated[
    Literal["identity", "gelu"] | None,
    typer.Option(
        "--projector-form",
        rich_help_panel=WRITING,
        help="How a projector of one linear layer is written (LLaVA 1.0). identity: for "
        "programs that take the activation from the config, such as transformers; gelu: for "
        "programs that always use a GELU, such as vLLM and llama.cpp. The default is the rule "
        "file's.",
        show_default=False,
    ),
]
CheckValues = Annotated[
    bool,
    typer.Option(
        "--check-values",
        rich_help_panel=WRITING,
        help="With --dry-run: also run the checks that read tensors.",
    ),
]
NameLayout = Annotated[
    Literal["classic", "module-4.52", "module-5.6"],
    typer.Option(
        "--layout",
        rich_help_panel=WRITING,
        help="The names to write. classic: names that every version of transformers loads; "
        "module-4.52, module-5.6: the module names of transformers 4.52 to 5.5, and of 5.6 and "
        "later, for programs that need these.",
    ),
]
MaxShardSize = Annotated[
    int | None,
    typer.Option(
        "--max-shard-size",
        rich_help_panel=WRITING,
        metavar="SIZE",
        parser=nbytes,
        help="The most bytes of tensors in a weight file (5GB, 500MB). A larger tensor gets a "
        "file of its own. By default, weight files are divided as the sources' are.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=WRITING,
        help="Continue a job that was interrupted or killed: finished weight files are kept. "
        "If the whole job is finished, nothing is written.",
    ),
]
