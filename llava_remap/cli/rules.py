"""`llava-remap rules …`: to read, test and write rule files."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_remap.cli.common import Format, refusals
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


from llava_remap.cli import lint  # noqa: E402, F401  (its command registers itself)
