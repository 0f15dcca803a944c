"""`llava-remap rules …`: to read, test and write rule files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_remap.cli.app import App, examples
from llava_remap.cli.options import Offline, ResultFormat, RuleFiles, Rules, shipped_rules
from llava_remap.cli.output import console, print_json, refusals, show_result
from llava_remap.core import Exit, refuse

rules_app = App(help="Look at rule files and test them.", no_args_is_help=True)


@rules_app.command("list")
def rules_list(output_format: ResultFormat = "human") -> None:
    """List the shipped rule files.

    Each with name, version and purpose; with -v, also with the files that it extends.
    """
    with refusals(output_format, "rule-files"):
        from llava_remap.report.rules import list_json, print_list
        from llava_remap.rulefile import shipped_list

        show_result(output_format, list_json, print_list, shipped_list())


@rules_app.command(
    "test",
    epilog=examples(
        "llava-remap rules test mine.yaml",
        "llava-remap rules test mine.yaml --source ./ckpt --update",
    ),
)
def rules_test(
    rules: Annotated[list[str], RuleFiles],
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="[NAME=]SRC",
            help="A checkpoint, as in `apply`. Its names have to have a snapshot.",
        ),
    ] = [],  # noqa: B006
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Write tests for rules that have none and, with --source, a missing snapshot.",
        ),
    ] = False,
    output_format: ResultFormat = "human",
    offline: Offline = False,
) -> None:
    """Run the tests of rule files.

    Tests stand in the file, and snapshots beside it: those of mine.yaml are the files in the folder
    mine.snapshots. A snapshot says what becomes of every name of a checkpoint, and is run without
    the checkpoint. The exit code is 1 if a test or a snapshot fails, or if the snapshot that
    --source asks for is missing. Existing tests and snapshots are never overwritten.
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
        show_result(output_format, tests_json, print_tests, tested)
        if not all(result.passed for result in tested):
            raise typer.Exit(Exit.PROBLEMS)


@rules_app.command(
    "explain",
    epilog=examples(
        "llava-remap rules explain llava-v1.5 model.norm.weight",
        "llava-remap rules explain llava-v1.5 --as key-mapping",
    ),
)
def rules_explain(
    rules: Rules,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Names of tensors; by default all of --source."),
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="[NAME=]SRC",
            help="A checkpoint, as in `apply`: for its names, and for the `when` of rules.",
        ),
    ] = [],  # noqa: B006
    output_format: ResultFormat = "human",
    printed_as: Annotated[
        Literal["key-mapping"] | None,
        typer.Option(
            "--as",
            help="Print the rules for another tool; key-mapping: from_pretrained(key_mapping=…) of "
            "transformers, or, for rules with operations, Python that registers them there.",
        ),
    ] = None,
    offline: Offline = False,
) -> None:
    """Say what becomes of names, rule by rule.

    For a name that no rule takes, the nearest rules are shown, and why they don't match. The exit
    code is 0 for unmapped names too.
    """
    with refusals(output_format, printed_as or "explanation"):
        from llava_remap.authoring.explain import explain_names, explainer_for
        from llava_remap.rulefile import load_rule_file

        file = load_rule_file(rules)
        if printed_as is None:
            from llava_remap.report.rules import explanation_json, print_explanation

            explained = explain_names(file, names or [], source, offline=offline)
            show_result(output_format, explanation_json, print_explanation, explained)
            return
        if names:
            raise refuse(
                "LR211",
                "--as key-mapping is about the whole rule file, not about names.",
                "Leave the names out.",
            )
        from llava_remap.authoring.key_mapping import key_mapping

        explainer = explainer_for(file, source, offline=offline)
        mapping = key_mapping(file, explainer.program)
        if mapping.converters:
            print(mapping.python, end="", flush=True)
        else:
            print_json(mapping.patterns)
        left_out = (
            f"`{left.rule}` is left out, since its `when` doesn't hold: {'; '.join(left.why)}."
            for left in explainer.left_out
        )
        for remark in (*left_out, *mapping.remarks):
            print(remark, file=sys.stderr)


@rules_app.command("schema", epilog=examples("llava-remap rules schema > rules.schema.json"))
def rules_schema() -> None:
    """Print the rule language as JSON Schema.

    With the schema, an editor checks a rule file and explains every field. Save the schema, and
    start the rule file with the line # yaml-language-server: $schema=PATH
    """
    with refusals("human"):
        from llava_remap.rulefile.json_schema import schema_json

        print(schema_json(), end="", flush=True)


@rules_app.command("lint", epilog=examples("llava-remap rules lint mine.yaml --source ./ckpt"))
def rules_lint(
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RULES]...",
            help="Rule files, or names of shipped ones. By default, all shipped ones.",
            show_default=False,
            autocompletion=shipped_rules,
        ),
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="[NAME=]SRC",
            help="A checkpoint, as in `apply`: the rules are also tried on its names.",
        ),
    ] = [],  # noqa: B006
    output_format: Annotated[
        Literal["human", "json", "github"],
        typer.Option("--format", help="How findings are printed; github: as annotations."),
    ] = "human",
) -> None:
    """Find faults in rule files; the exit code is 2 if there are any.

    It finds rules that take each other's names or their own new ones, rules without a test, regexes
    that take more than they seem to, and drops of tensors that the target wants. It also says
    whether the renames can be reversed.
    """
    with refusals("json" if output_format == "json" else "human", "lint"):
        from llava_remap.authoring.lint import lint_files
        from llava_remap.report.lint import lint_github, lint_json, print_lint

        files = lint_files(rules or (), source)
        if output_format == "github":
            print(lint_github(files))
        else:
            show_result(output_format, lint_json, print_lint, files)
        if any(linted.failed for linted in files):
            raise typer.Exit(Exit.USAGE)


@rules_app.command(
    "new",
    epilog=examples(
        "llava-remap rules new --from ./ckpt \\",
        "  --to LlavaForConditionalGeneration --output mine.yaml",
    ),
)
def rules_new(
    sources: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="[NAME=]SRC",
            help="A checkpoint: folder, file, manifest or hub id. Names are enough: an index "
            "without its shards, or a .txt file with one name per line. Further sources have a "
            "name: vision_tower=SRC.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="The target: a class of transformers, a config.json that names one, a manifest, "
            "or a converted checkpoint of the same size.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The rule file to write; a new one."),
    ],
    answers: Annotated[
        list[str],
        typer.Option(
            "--map",
            metavar="FROM=TO",
            help="Answer a question: a source name and its new name, folded or not.",
        ),
    ] = [],  # noqa: B006
    drop_rest: Annotated[
        bool,
        typer.Option(
            "--drop-rest",
            help="Drop tensors without a counterpart in the target, since you know that the model "
            "doesn't compute with them. Tensors of the language model are never dropped.",
        ),
    ] = False,
    offline: Offline = False,
) -> None:
    """Infer a rule file from names and shapes.

    If neither names nor shapes decide, a question is asked on a terminal. Elsewhere the tensor is
    left out and reported, with exit code 1.
    """
    with refusals("human"):
        from llava_remap.authoring.draft import draft_rules
        from llava_remap.report.inferred import ask_on_terminal, print_draft

        on_terminal = sys.stdin.isatty() and sys.stderr.isatty()
        asking = console(sys.stderr)
        draft = draft_rules(
            sources,
            target,
            output,
            answers,
            ask=lambda question: ask_on_terminal(asking, question) if on_terminal else None,
            drop_rest=drop_rest,
            offline=offline,
        )
        print_draft(console(), draft)
        if draft.problems:
            raise typer.Exit(Exit.PROBLEMS)


@rules_app.command(
    "import",
    epilog=examples(
        "llava-remap rules import --model-type mixtral",
        "llava-remap rules import --model-type qwen2_vl --direction save --output mine.yaml",
    ),
)
def rules_import(
    model_type: Annotated[
        str,
        typer.Option(
            "--model-type",
            metavar="TYPE",
            help="The `model_type` of a config.json, or a class of transformers.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The rule file to write; a new one. By default it is printed.",
            show_default=False,
        ),
    ] = None,
    direction: Annotated[
        Literal["load", "save"],
        typer.Option(
            "--direction",
            help="load: from the checkpoint's names to those of the model's parameters; save: the "
            "way back.",
        ),
    ] = "load",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The config.json of the model. By default the class has its own values; layers "
            "or experts that a config turns on have names that only it shows.",
            show_default=False,
        ),
    ] = None,
    output_format: ResultFormat = "human",
) -> None:
    """Make a rule file from a conversion that the installed transformers has.

    The rules do what its loader does with the checkpoint of such a model: renames, and tensors that
    are split, joined, stacked or turned. They are tried on every name of the model, and have tests.
    What rules can't say is refused with the reason.
    """
    with refusals(output_format, "imported"):
        from llava_remap.authoring.import_rules import import_rules
        from llava_remap.authoring.new_file import refuse_existing, write_new
        from llava_remap.report.inferred import imported_json, print_imported

        if output is not None:
            refuse_existing(output)
        made = import_rules(model_type, config, direction)
        if output is not None:
            write_new(output, made.text)
        if output_format == "json":
            print_json(imported_json(made))
            return
        if output is None:
            print(made.text, end="", flush=True)
        print_imported(console(sys.stderr), made, output)
