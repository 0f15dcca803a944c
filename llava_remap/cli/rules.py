"""`llava-remap rules …`: to read, test and write rule files."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llava_remap.cli.common import OFFLINE, Format, refusals
from llava_remap.cli.lint import rules_lint
from llava_remap.cli.new import rules_new
from llava_remap.core.codes import Exit
from llava_remap.core.problem import refuse

if TYPE_CHECKING:
    from llava_remap.rulefile import RuleFile

rules_app = typer.Typer(help="Look at rule files and test them.", no_args_is_help=True)


class As(str, Enum):
    key_mapping = "key-mapping"


_FORMAT = typer.Option("--format", help="How the result is printed.")


@rules_app.command("list")
def rules_list(output_format: Annotated[Format, _FORMAT] = Format.human) -> None:
    """List the shipped rule files.

    With name, version, what each is for, and what it extends.
    """
    with refusals(output_format, "rule-files"):
        from llava_remap.report.rules import list_json, print_list
        from llava_remap.rulefile import shipped_list

        if output_format is Format.json:
            print(list_json(shipped_list()))
        else:
            print_list(Console(soft_wrap=True), shipped_list())


@rules_app.command("test")
def rules_test(
    rules: Annotated[list[str], typer.Argument(help="Rule files, or names of shipped ones.")],
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="[NAME=]SRC",
            help="A checkpoint, as in `apply`: a snapshot has to be there of what becomes of its "
            "names.",
        ),
    ] = [],  # noqa: B006
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Write what is missing: tests for rules that have none, and with --source a "
            "snapshot.",
        ),
    ] = False,
    output_format: Annotated[Format, _FORMAT] = Format.human,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Run the tests of rule files.

    Those in the file, and the snapshots beside it: those of mine.yaml are the files in the folder
    mine.snapshots. Each says what becomes of every name of a checkpoint, and is run without it.
    Exit code 1 if a test or a snapshot fails, or the snapshot that --source asks for is missing.
    What is there already is never overwritten.
    """
    with refusals(output_format, "tests"):
        from llava_remap.authoring.rule_tests import run_rule_tests
        from llava_remap.report.rules import print_tests, tests_json
        from llava_remap.rulefile import load_rule_file

        files = [(name, load_rule_file(name)) for name in rules]
        tested = [
            run_rule_tests(file, name, source, update=update, offline=offline)
            for name, file in files
        ]
        if output_format is Format.json:
            print(tests_json(tested))
        else:
            for result in tested:
                print_tests(Console(soft_wrap=True), result)
        if not all(result.passed for result in tested):
            raise typer.Exit(Exit.PROBLEMS)


@rules_app.command("explain")
def rules_explain(
    rules: Annotated[
        str, typer.Argument(help="A rule file, or the name of a shipped one: llava-v1.5.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Names of tensors; by default all of --source."),
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="[NAME=]SRC",
            help="A checkpoint, as in `apply`: its names, and what the `when` of a rule asks for.",
        ),
    ] = [],  # noqa: B006
    output_format: Annotated[Format, _FORMAT] = Format.human,
    printed_as: Annotated[
        As | None,
        typer.Option(
            "--as",
            help="Print the rules for another tool; key-mapping: from_pretrained(key_mapping=…) of "
            "transformers.",
        ),
    ] = None,
    offline: Annotated[bool, OFFLINE] = False,
) -> None:
    """Say what becomes of names, rule by rule.

    For a name that no rule takes: which rules come nearest, and why they don't match. The exit code
    is 0 whatever becomes of the names.
    """
    with refusals(output_format, "explanation" if printed_as is None else As.key_mapping.value):
        from llava_remap.rulefile import load_rule_file

        if printed_as is not None:
            _print_key_mapping(load_rule_file(rules), names or [], source, offline=offline)
            return
        from llava_remap.authoring.explain import explain_names
        from llava_remap.report.rules import explanation_json, print_explanation

        explained = explain_names(load_rule_file(rules), names or [], source, offline=offline)
        if output_format is Format.json:
            print(explanation_json(explained))
        else:
            print_explanation(Console(soft_wrap=True), explained)


@rules_app.command("schema")
def rules_schema() -> None:
    """Print the rule language as JSON Schema.

    With it an editor checks a rule file and explains every field: save it, and start the rule file
    with the line # yaml-language-server: $schema=PATH
    """
    with refusals(Format.human):
        from llava_remap.rulefile.json_schema import schema_json

        print(schema_json(), end="", flush=True)


def _print_key_mapping(
    rules: RuleFile, names: list[str], source: list[str], *, offline: bool
) -> None:
    """The dict to stdout; to stderr what it can't say."""
    import json

    from llava_remap.authoring.explain import explainer_for
    from llava_remap.authoring.key_mapping import key_mapping

    if names:
        raise refuse(
            "LR211",
            "--as key-mapping is about the whole rule file, not about names.",
            "Leave the names out.",
        )
    explainer = explainer_for(rules, source, offline=offline)
    found = key_mapping(rules, explainer.program)
    print(json.dumps(found.patterns, indent=2))
    for left in explainer.left_out:
        print(
            f"`{left.rule}` is left out, since its `when` doesn't hold: {'; '.join(left.why)}.",
            file=sys.stderr,
        )
    for remark in found.remarks:
        print(remark, file=sys.stderr)


rules_app.command("lint")(rules_lint)
rules_app.command("new")(rules_new)
