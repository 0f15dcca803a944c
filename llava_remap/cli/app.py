"""The common parts of all commands: `-q` and `-v`, help in groups, and wrong usage as a problem
with a code, in JSON if that was asked for.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn, TypeVar, cast

import typer
from typer.core import TyperCommand, TyperGroup

from llava_remap.cli.given import GIVEN
from llava_remap.cli.options import SHOWING
from llava_remap.core import Problem
from llava_remap.core.arguments import nearest_choice

_Function = TypeVar("_Function", bound=Callable[..., Any])
#: The parent class of all errors of a wrong command line.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])
#: The JSON document that a command prints, by the last words of its name.
_DOCUMENTS = {
    "apply": "plan",
    "convert": "plan",
    "verify": "verification",
    "revert": "reversion",
    "list": "rule-files",
    "import": "imported",
    "test": "tests",
    "explain": "explanation",
    "lint": "lint",
    "diff": "diff",
    "inspect": "inspection",
}

_LEVELS = {
    "quiet": ("-q", "Print only problems, notes and the last line."),
    "verbose": ("-v", "Print every name, unfolded, and the time that each phase took."),
}
#: Options of other programs, and their counterparts here.
_ELSEWHERE = {
    ("lora", "adapter", "peft", "lora-path"): "An adapter is a source: --source adapter=DIR.",
    ("model", "model-path", "input", "checkpoint"): "A checkpoint is a source: --source SRC.",
    ("base", "base-model", "model-base"): "A base is a source: --source model=DIR.",
    ("tower", "vision-tower", "mm-tower"): "A tower is a source: --source vision_tower=DIR.",
    ("projector", "mm-projector"): "A projector is a source: --source projector=DIR.",
    ("out", "output-dir", "outdir", "save-path", "to"): "The folder to write is --output DIR.",
    ("torch-dtype", "precision", "outtype", "type", "bf16", "fp16"): (
        "The dtype that is written: --dtype bfloat16."
    ),
    ("force", "overwrite", "yes"): (
        "Nothing is ever overwritten: give a new folder, or delete the old one."
    ),
    ("json",): "JSON is --format json.",
    ("debug", "log-level"): "For details: --verbose; for a traceback: LLAVA_REMAP_TRACEBACK=1.",
}


class App(typer.Typer):
    """A group of commands."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[_Function], _Function]:
        """As in typer. The command gets `-q` and `-v` too."""
        register = super().command(name, **{"cls": _Command, **options})

        def with_levels(function: _Function) -> _Function:
            @functools.wraps(function)
            def called(*, quiet: bool, verbose: bool, **given: Any) -> Any:
                from llava_remap.report.terminal import DETAIL

                DETAIL.set("quiet" if quiet else "verbose" if verbose else "normal")
                return function(**given)

            own = inspect.signature(function, eval_str=True)
            levels = [_level(name, *level) for name, level in _LEVELS.items()]
            parameters = [*own.parameters.values(), *levels]
            called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
            register(called)
            return function

        return with_levels


def _level(name: str, letter: str, about: str) -> inspect.Parameter:
    option = typer.Option(f"--{name}", letter, help=about, rich_help_panel=SHOWING)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


class _Command(TyperCommand):
    """A command whose help has its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or kind
            if (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(SHOWING if parameter.name == "help" else panel, []).append(record)
        most = 30 if formatter.width > 70 else 20
        width = min(most, max(len(name) for rows in groups.values() for name, _ in rows))
        for heading, [(first, about), *others] in groups.items():
            with formatter.section(heading):  # the column of names is as wide in every group
                formatter.write_dl([(first.ljust(width), about), *others], col_max=most)


def examples(*commands: str) -> str:
    """The end of a command's help. Lines of more than 58 columns don't fit everywhere."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {command}" for command in commands)


class Commands(TyperGroup):
    """The root of all commands."""

    def main(self, args: Sequence[str] | None = None, **options: Any) -> NoReturn:  # type: ignore[override]
        """As in typer, but a wrong command line is shown as a problem."""
        given = list(sys.argv[1:] if args is None else args)
        GIVEN.set(tuple(given))
        try:
            code = super().main(given, **{**options, "standalone_mode": False})
        except _UsageError as error:
            code = _refuse(error, given)
        except typer.Abort:
            code = 1
        sys.exit(code or 0)


def _refuse(error: Any, given: Sequence[str]) -> int:
    """Show a wrong command line, and return its exit code."""
    if error.ctx is not None and error.message == error.ctx.get_help():  # it had no arguments
        print(error.message, file=sys.stderr)
        return int(error.exit_code)
    from llava_remap.cli.output import print_refusal

    wanted = zip(given, [*given[1:], ""], strict=True)
    in_json = ("--format", "json") in wanted or "--format=json" in given
    command = "" if error.ctx is None else error.ctx.command.name
    kind = _DOCUMENTS.get(command, "usage")
    lines = any(word.partition("=")[0] == "--output-dir" for word in given)
    print_refusal([_problem(error, given)], "json" if in_json else "human", kind, lines=lines)
    return int(error.exit_code)


def _problem(error: Any, given: Sequence[str]) -> Problem:
    """A wrong command line as LR211, with what may have been meant."""
    message = " ".join(error.format_message().split()).replace("Value error, ", "")
    path, usage = " ".join(["llava-remap", *given[: 1 + (given[:1] == ["rules"])]]), ""
    if error.ctx is not None:
        path, usage = error.ctx.command_path, " ".join(error.ctx.get_usage().split()) + "; "
    fix = f"{usage}see {path} --help"
    if message.startswith("No such option"):
        message = f"{error.message.partition(' (')[0]}."
        fix = f"{_nearest_option(error.option_name, error.ctx)} All of them: {path} --help".strip()
    elif message.startswith("No such command"):
        fix = f"All of them: {path} --help"
    elif "'--format'" in message and "'html'" in message.partition(" is not one of ")[0]:
        fix = "A page for a browser is written by `convert` and `apply`, with --report FILE.html"
    elif near := _nearest_value(message):
        fix = f"Did you mean {near}?"
    return Problem("LR211", message, fix)


def _nearest_option(option: str, ctx: Any) -> str:
    """A sentence about an option that may have been meant; empty if none is near."""
    word = option.lstrip("-").replace("_", "-")
    parameters = ctx.command.get_params(ctx)
    known = [name for p in parameters for name in p.opts if name[:2] == "--"]
    told = next((text for words, text in _ELSEWHERE.items() if word in words), "")
    if told.endswith("--source SRC.") and any((p.metavar or "")[:3] == "SRC" for p in parameters):
        return "The checkpoint is given without an option."
    named = re.search(r"--[a-z-]+", told)
    if told and (named is None or named[0] in known):
        return told
    near = difflib.get_close_matches(f"--{word}", known, 1, 0.75)
    return f"Did you mean {near[0]}?" if near else ""


def _nearest_value(message: str) -> str:
    """The nearest of the choices that a message names; empty if none is near."""
    value, _, choices = message.partition(" is not one of ")
    word = value.rpartition(" ")[2].strip("'\"")
    return nearest_choice(word, re.findall(r"'([^']+)'", choices))
