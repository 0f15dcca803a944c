"""`llava-remap rules …`: to read, test and write rule files."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_remap.cli.common import Format, refusals
from llava_remap.cli.lint import rules_lint
from llava_remap.cli.new import rules_new
from llava_remap.codes import Exit

rules_app = typer.Typer(help="Look at rule files and test them.", no_args_is_help=True)


@rules_app.command("list")
def rules_list() -> None:
    """List the shipped rule files: name, version, what each is for."""
    with refusals(Format.human):
        from llava_remap.rulefile import load_rule_file, shipped_rule_files

        for path in shipped_rule_files().values():
            text = load_rule_file(path).text
            print(f"{text.name} {text.version}  {text.summary}")


@rules_app.command("test")
def rules_test(
    rules: Annotated[list[str], typer.Argument(help="Rule files, or names of shipped ones.")],
) -> None:
    """Run the tests that stand in rule files; exit code 1 if one fails."""
    with refusals(Format.human):
        from llava_remap.rewrite import run_tests
        from llava_remap.rulefile import load_rule_file

        failed = 0
        for name in rules:
            results = run_tests(load_rule_file(name))
            for result in results:
                if result.status == "failed":
                    print(f"FAILED {name}: {result.name}\n  wanted {result.wanted}\n  got    {result.got}")
            bad = sum(result.status == "failed" for result in results)
            failed += bad
            print(f"{name}: {len(results) - bad} passed, {bad} failed")
        if failed:
            raise typer.Exit(Exit.PROBLEMS)


@rules_app.command("schema")
def rules_schema() -> None:
    """Print the rule language as JSON Schema.

    With it an editor checks a rule file and explains every field: save it, and start the rule file with the line
    # yaml-language-server: $schema=PATH
    """
    from llava_remap.rulefile.json_schema import schema_json

    print(schema_json(), end="")


rules_app.command("lint")(rules_lint)
rules_app.command("new")(rules_new)
