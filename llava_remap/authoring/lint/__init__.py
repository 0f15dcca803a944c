"""Finds mistakes in a rule file by trying its rules on names made from its templates, on the names
of its tests and on real names.

Every finding was observed on names, not inferred from the rules' text. A rule is shadowed if none
of the names made from its template reaches it. A regex runs away if it hits the time limit on a
name that was tried. No names can be made from a regex, so it is tried on the names of tests and on
real names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llava_remap.authoring.lint.checks import CHECKS
from llava_remap.authoring.lint.trial import Finding, Linted, Names, Trial
from llava_remap.core.problem import Problem, RemapError, RunawayRuleError
from llava_remap.post_load.run import load_post_load_rule
from llava_remap.rewrite import compile_all
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_folder
from llava_remap.target_model import TEXT_KIND, unknown_sizes, unknown_target

__all__ = ["Finding", "Linted", "Names", "lint", "lint_files"]


def lint(rules: RuleFile, names: Names | None = None) -> Linted:
    """Find all mistakes in a valid rule file. A regex that hits a time limit is a finding, too.

    Args:
        names: real names to try the rules on.
    """
    program = compile_all(rules)
    found: list[Finding] = []
    trial = None
    try:
        trial = Trial.of(rules, program, names)
        found += trial.runaways
        for check in CHECKS:
            found += check(trial)
    except RemapError as error:  # a regex ran away on a name that other rules had changed
        found += [
            finding for problem in error.problems if (finding := Finding.of(problem)) not in found
        ]
    lost = {name for finding in found for name in finding.lost}
    own = rules.tree.mark.file
    return Linted(
        file=own,
        findings=tuple(sorted(found, key=lambda finding: finding.place(own))),
        rules=len(program.rules) + len(program.tensors),
        tests=len(rules.text.tests),
        witnesses=len({name for some in trial.witnesses.values() for name in some}) if trial else 0,
        names=None if names is None else len(names.taken),
        targets=len(trial.led_back - lost) if trial else 0,
        one_way=(
            *((rule.label, why) for rule in program.names if (why := rule.kind.one_way)),
            *(
                (compiled.label, "it drops a part")
                for compiled in program.tensors
                if any(end.names is None for end in compiled.operation.targets)
            ),
        ),
        untried=(
            ()
            if trial is None
            else tuple(rule.label for rule in trial.rules if not trial.taken[rule.label])
        ),
        unknown=names.unknown if names is not None else "",
    )


def lint_files(rules: Sequence[str | Path] = (), sources: Sequence[str] = ()) -> list[Linted]:
    """Lint rule files. Without `rules`, lint all shipped files, including parts and layouts.

    Args:
        sources: checkpoints, each `SRC` or `NAME=SRC`, as `apply` takes them. Every file is tried
            on their names. Only headers are read, and default sources aren't downloaded.

    Raises:
        RemapError: if a source can't be read. Mistakes in a rule file become findings.
    """
    return [_linted(file, sources) for file in rules or sorted(shipped_folder().rglob("*.yaml"))]


def _linted(file: str | Path, sources: Sequence[str]) -> Linted:
    try:
        rules = load_rule_file(file)
    except RemapError as error:
        return Linted(str(file), tuple(map(Finding.of, error.problems)), loaded=False)
    has_class = rules.text.target is not None and rules.text.target.class_ is not None
    unknown = unknown_target(rules) if has_class else unknown_sizes(rules)
    unfit = [*_plug_ins(rules), *_unsaid(rules), *map(Finding.of, unknown)]
    try:
        linted = lint(rules, _real_names(rules, sources) if sources and not unfit else None)
    except RunawayRuleError as error:
        # A real name makes a regex run away, so none can be routed.
        linted, unfit = lint(rules), [*unfit, *map(Finding.of, error.problems)]
    found = sorted((*unfit, *linted.findings), key=lambda finding: finding.place(linted.file))
    return replace(linted, findings=tuple(found))


def _plug_ins(rules: RuleFile) -> list[Finding]:
    """LR212 for each plug-in of `post_load` that isn't installed or doesn't take its options.
    `apply` refuses such a file, too.
    """
    findings: list[Finding] = []
    for number, post_load in enumerate(rules.text.post_load):
        try:
            with rules.placed("post_load", number):
                load_post_load_rule(post_load.use, post_load.with_)
        except RemapError as error:
            findings += map(Finding.of, error.problems)
    return findings


def _unsaid(rules: RuleFile) -> list[Finding]:
    """LR201 for a draft whose author hasn't filled in the kind of the language model."""
    value = rules.target_config.get(TEXT_KIND)
    if value is None or "const" not in value.model_fields_set or value.const is not None:
        return []
    return [
        Finding(
            rules.tree.locate(("target", "config", TEXT_KIND)).mark,
            Problem(
                "LR201",
                f"`{TEXT_KIND}` has no value.",
                "Write the language model's model_type in transformers there, or remove the line "
                "if the source's config gives the type.",
            ),
        )
    ]


def _real_names(rules: RuleFile, given: Sequence[str]) -> Names:
    """The names of the given sources, as the rules see them. For a rule file with a target class,
    also the target's parameters.
    """
    from llava_remap.authoring.name_set import open_names, read_names
    from llava_remap.jobs.apply import HEADERS_ALONE, plan_mapping
    from llava_remap.source.sources import name_sources

    if not rules.text.sources:  # a part: it is tried on the names as they are stored
        text = name_sources(["model"], given)["model"]
        checkpoint = open_names("model", text, ("tensors", "config"), first=True)
        stored = tuple(checkpoint.catalog)
        return Names(stored, stored, checkpoint.config)
    read = read_names(rules, given)
    known = read.known(rules)
    names = Names(known.names, known.taken, known.config)
    if rules.text.target is None or not rules.text.target.is_said:
        return names
    if read.names_alone:
        return replace(names, unknown="only the checkpoint's names are known")
    plan = plan_mapping(rules.path, given, HEADERS_ALONE).plan
    why = ", ".join(f"{problem.code} {problem.title}" for problem in plan.problems)
    return replace(
        names,
        complete=True,
        misfits=tuple(problem for problem in plan.problems if problem.place is not None),
        wanted=frozenset(plan.target_names) or None,
        unknown="" if plan.target_names else why,
    )
