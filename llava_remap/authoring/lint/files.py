"""The order of a lint, once, for the command line and the Python API alike: rule file → real
names, where given → findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llava_remap.authoring.lint import Finding, Linted, Names, lint
from llava_remap.core.problem import Problem, RemapError, RunawayRuleError
from llava_remap.post_load.run import load_post_load_rule
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_folder
from llava_remap.target_model import TEXT_KIND, unknown_target


def lint_files(rules: Sequence[str | Path] = (), sources: Sequence[str] = ()) -> list[Linted]:
    """Lint rule files; without any, all that are shipped, parts and layouts too.

    Args:
        sources: `SRC` or `NAME=SRC` each, as `apply` takes them: real names to hold every file
            against. Only headers are read, and what isn't given isn't downloaded.

    Raises:
        RemapError: for a source that can't be read. What is wrong with a rule file is in its
            findings, whatever it is.
    """
    return [_linted(file, sources) for file in rules or sorted(shipped_folder().rglob("*.yaml"))]


def _linted(file: str | Path, sources: Sequence[str]) -> Linted:
    try:
        rules = load_rule_file(file)
    except RemapError as error:
        return Linted(str(file), tuple(map(Finding.of, error.problems)), loaded=False)
    unfit = [*_plug_ins(rules), *_unsaid(rules), *map(Finding.of, unknown_target(rules))]
    try:
        linted = lint(rules, _real_names(rules, sources) if sources and not unfit else None)
    except RunawayRuleError as error:
        # A real name makes a regex run away, so none can be routed.
        linted, unfit = lint(rules), [*unfit, *map(Finding.of, error.problems)]
    found = sorted((*unfit, *linted.findings), key=lambda finding: finding.place(linted.file))
    return replace(linted, findings=tuple(found))


def _plug_ins(rules: RuleFile) -> list[Finding]:
    """LR212 for each plug-in of `post_load` that isn't installed or doesn't take its options:
    `apply` refuses the same.
    """
    found: list[Finding] = []
    for number, post_load in enumerate(rules.text.post_load):
        try:
            with rules.placed("post_load", number):
                load_post_load_rule(post_load.use, post_load.with_)
        except RemapError as error:
            found += map(Finding.of, error.problems)
    return found


def _unsaid(rules: RuleFile) -> list[Finding]:
    """LR201 for a language model whose kind a draft leaves to its author."""
    value = rules.target_config.get(TEXT_KIND)
    if value is None or "const" not in value.model_fields_set or value.const is not None:
        return []
    return [
        Finding(
            rules.tree.locate(("target", "config", TEXT_KIND)).mark,
            Problem(
                "LR201",
                f"`{TEXT_KIND}` says nothing.",
                "Write the model_type of the language model in transformers there, or take the "
                "line out "
                "if the source's config tells it.",
            ),
        )
    ]


def _real_names(rules: RuleFile, given: Sequence[str]) -> Names:
    """The names of the sources that are given, as the rules see them; for a file with a target
    class also its parameters.
    """
    from llava_remap.authoring.name_set import read_names
    from llava_remap.authoring.names_alone import open_names
    from llava_remap.jobs.apply import HEADERS_ALONE, plan_mapping
    from llava_remap.source.sources import name_sources

    if not rules.text.sources:  # a part, for which the names are as they are
        checkpoint = open_names(
            "model", name_sources(["model"], given)["model"], ("tensors", "config"), first=True
        )
        return Names(tuple(checkpoint.catalog), tuple(checkpoint.catalog), checkpoint.config)
    found = read_names(rules, given)
    taken = tuple(
        rules.text.sources[source].prefix + name
        for source, names in found.names.items()
        for name in names
    )
    names = Names(taken, tuple(found.stored), found.config)
    if rules.text.target is None or not rules.text.target.is_said:
        return names
    if found.names_alone:
        return replace(names, unknown="only names are known of the checkpoint")
    names = replace(names, complete=True)
    plan = plan_mapping(rules.path, given, HEADERS_ALONE).plan
    if plan.target_names:
        return replace(names, wanted=frozenset(plan.target_names))
    return replace(
        names, unknown=", ".join(f"{problem.code} {problem.title}" for problem in plan.problems)
    )
