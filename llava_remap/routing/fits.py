"""How well each shipped rule file fits a checkpoint, by its names and its config."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.fold import fold_names
from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing.commands import draft_command
from llava_remap.routing.route import Routed, route
from llava_remap.rulefile import (
    Condition,
    Requirement,
    RuleFile,
    Template,
    Wrapper,
    load_rule_file,
    shipped_rule_files,
)
from llava_remap.source.sources import other_than_default

_NUMBER = re.compile(r"[0-9]+")
#: Folded names in a sentence.
_SHOWN = 2
#: Stands for the first source where only another one is looked at.
EMPTY = Checkpoint(Path(), "", {}, None, None)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a rule file fits a checkpoint.

    Attributes:
        mapped, total: of the `total` names that it doesn't drop it maps so many.
        unknown: the names that it neither maps nor drops.
        contradictions: why it isn't for the checkpoint, in words.
        guard: what of the rule file refuses the config, `detect` or `requires`; empty where names
            contradict it, or nothing does.
        source: what it calls the checkpoint: its first source.
        summary: what it is for.
        also: sources that it needs besides.
        other_default: whether the config names another one for some of these than the rule file's
            default.
        agreeing: how many values of the config are those that its `detect` asks for.
        class_name: its target; empty where that is the source's own class.
        remedy: what would help, where that is known of the contradictions; empty otherwise.
        refusals: what a plan from the same headers finds; empty before there is one.
        needs: what that plan finds and a further source (`also`) settles.
    """

    rules: str
    source: str
    mapped: int
    total: int
    unknown: tuple[str, ...]
    contradictions: tuple[str, ...]
    guard: str
    also: tuple[str, ...]
    other_default: bool
    summary: str
    agreeing: int = 0
    class_name: str = ""
    remedy: str = ""
    refusals: tuple[Problem, ...] = ()
    needs: tuple[Problem, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """All that speaks against it."""
        unknown = (
            [f"it has no rule for {_some(self.unknown)}"]
            if self.unknown and not self.contradictions
            else []
        )
        refusals = [
            f"{problem.code} {problem.placed_cause} {problem.fix}".strip()
            for problem in self.refusals
        ]
        return [*self.contradictions, *unknown, *refusals]

    @property
    def is_near(self) -> bool:
        """Whether it knows more of the names than chance has it: a tower may have more names
        than all the rest.
        """
        return 10 * self.mapped >= self.total > 0

    @property
    def fits(self) -> bool:
        return (
            self.mapped > 0
            and self.mapped == self.total
            and not self.contradictions
            and not self.refusals
        )


def fits(checkpoint: Checkpoint) -> list[Fit]:
    """Every shipped rule file compared with a checkpoint's names and config, the nearest first.

    Those that fit come first, of two of them that one whose default tower is the one that the
    config names; then those that keep more of the names, that less contradicts, and of which the
    config says more, such as their architecture.
    """
    groups = names_alike(checkpoint)
    found = [
        _fit(rules, checkpoint, groups) for rules in _loaded(tuple(shipped_rule_files().values()))
    ]

    def order(fit: Fit) -> tuple[object, ...]:
        near = (
            (fit.other_default,)
            if fit.fits
            else (-fit.mapped, len(fit.contradictions), -fit.agreeing)
        )
        return (not fit.fits, near, fit.rules)

    return sorted(found, key=order)


def _fit(rules: RuleFile, checkpoint: Checkpoint, groups: Mapping[str, Sequence[str]]) -> Fit:
    """One rule file compared with a checkpoint. Of each of the `groups` of its names that no
    rule tells apart, one is tried.
    """
    few = replace(checkpoint, catalog={name: checkpoint.catalog[name] for name in groups}, pairs=())
    routes = route(rules, compile_rules(rules, few.catalog, few.config), {rules.first_source: few})
    taken, detect = routes.taken, rules.text.detect
    names = [r.rewrite.prepared for r in taken]
    reasons = contradictions(detect, names, checkpoint.config)
    problems = [*unmet(rules, names, checkpoint.config)]
    if other_tower := other_tower_problem(rules, taken, checkpoint, checkpoint.config):
        every = [
            replace(r, tensor=checkpoint.catalog[name])
            for r in taken
            for name in groups[r.tensor.name]
        ]
        other_tower = (
            other_tower_problem(rules, every, checkpoint, checkpoint.config) or other_tower
        )
        problems.insert(0, other_tower)
    if (
        contradictions(detect.model_copy(update={"config": {}, "config_not": {}}), names, None)
        or other_tower
    ):
        guard = ""
    else:
        guard = "detect" if reasons else "requires" if problems else ""
    causes = [problem.placed_cause.removesuffix(".") for problem in problems]
    reasons = [
        reason for reason in reasons if not any(cause.startswith(reason) for cause in causes)
    ] + causes
    left = [r.tensor.name for r in taken if r.rewrite.target is None and r.rewrite.reason is None]
    unknown = tuple(name for one in left for name in groups[one])
    mapped = sum(len(groups[r.tensor.name]) for r in taken if r.rewrite.target is not None)
    return Fit(
        rules.name,
        rules.first_source,
        mapped,
        mapped + len(unknown),
        unknown,
        tuple(reasons),
        guard,
        routes.not_given,
        any(
            other_than_default(rules.text.sources[name], checkpoint.config) is not None
            for name in routes.not_given
        ),
        rules.text.summary or "",
        _agreeing(detect, checkpoint.config or {}),
        rules.target.class_ or "",
        other_tower.fix if other_tower else "",
    )


def _agreeing(detect: Condition, config: Mapping[str, Any]) -> int:
    """How many values of a config are those that a rule file asks for."""
    said = {key: wanted for key, wanted in detect.config.items() if config.get(key) is not None}
    return sum(
        not contradictions(Condition(config={key: wanted}), (), config)
        for key, wanted in said.items()
    )


def unmet(
    rules: RuleFile,
    names: Sequence[str],
    config: Mapping[str, Any] | None,
    whose: str = "its config",
) -> list[Problem]:
    """LR314 for each of a rule file's requirements that a checkpoint doesn't meet; `names` as
    `prepare` left them.
    """
    return [
        Problem(
            "LR314",
            f"{'; '.join(reasons)}. {requirement.else_}",
            _allowing(rules, name, requirement, config or {}),
        )
        for name, requirement in rules.text.requires.items()
        if not contradictions(Condition(config=requirement.when), (), config)
        and (reasons := contradictions(requirement, names, config, whose=whose))
    ]


def _allowing(
    rules: RuleFile, name: str, requirement: Requirement, config: Mapping[str, Any]
) -> str:
    """How to convert all the same: lines for a rule file, where the config's values can stand in
    one.
    """
    values = {key: config.get(key) for key in requirement.config}
    if not values or any(isinstance(value, (list, dict)) for value in values.values()):
        return "Mend the config.json, if the message says so."
    allowed = {
        key: [*(said if isinstance(said, tuple) else (said,)), values[key]]
        for key, said in requirement.config.items()
    }
    lines = ", ".join(
        f"{key}: {json.dumps(list(dict.fromkeys(entries)))}" for key, entries in allowed.items()
    )
    return (
        "If that doesn't matter for what you want to do, write a rule file with "
        f"`extends: [{rules.name}.yaml]` and `requires: {{{name}: {{config: {{{lines}}}}}}}`."
    )


def names_alike(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The names that no shipped rule tells apart, by the first of them: names by the ten thousand
    are to be refused soon, too.

    Two names are alike if they differ in nothing but segments that no template spells out, and if
    these are numbers in both or in none. The matrices of an adapter's pairs are left out.
    """
    spelt, partly = _spelt_segments()
    matrices = {name for pair in checkpoint.pairs for name in (pair.a, pair.b)}
    kinds: dict[str, str] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in checkpoint.catalog:
        if name in matrices:
            continue
        key = []
        for segment in name.split("."):
            if (kind := kinds.get(segment)) is None:
                told = segment in spelt or partly.fullmatch(segment) is not None or not segment
                kind = kinds[segment] = (
                    segment if told else "{int}" if _NUMBER.fullmatch(segment) else "{x}"
                )
            key.append(kind)
        groups.setdefault(tuple(key), []).append(name)
    return {names[0]: names for names in groups.values()}


@cache
def _loaded(paths: tuple[Path, ...]) -> tuple[RuleFile, ...]:
    """Rule files that stay as they are while a process runs: the shipped ones."""
    return tuple(map(load_rule_file, paths))


@cache
def _spelt_segments() -> tuple[frozenset[str], re.Pattern[str]]:
    """The segments that templates of the shipped rule files spell out, and a regex for those
    that they spell out in part.
    """
    templates: list[Template] = []
    texts: list[str] = []
    partly: set[str] = set()
    for rules in _loaded(tuple(shipped_rule_files().values())):
        text, sources = rules.text, rules.text.sources.values()
        every = [
            *text.prepare,
            *text.names,
            *(rule for layout in rules.layouts for rule in layout.text.names),
        ]
        conditions = [
            text.detect,
            *text.requires.values(),
            *(rule.when for rule in every if rule.when is not None),
        ]
        for condition in conditions:
            templates += [*condition.present, *condition.absent]
        templates += [source.used_if_absent for source in sources if source.used_if_absent]
        templates += [template for source in sources for template in source.selected]
        for pattern in (rule.kind.pattern for rule in every):
            if isinstance(pattern, Template):
                templates.append(pattern)
            elif isinstance(pattern, Wrapper):
                texts.append(pattern.text)
            else:
                partly.add(".*")  # a regex may ask for anything
        texts += [
            *(source.prefix for source in sources),
            *(text.target.towers if text.target is not None else ()),
        ]
    partly.update(regex for template in templates for regex in template.partial_segments)
    spelt = {segment for text in texts for segment in text.split(".")}
    spelt.update(segment for template in templates for segment in template.segments)
    return frozenset(spelt), re.compile("|".join(partly))


def other_tower_problem(
    rules: RuleFile,
    routed: Sequence[Routed],
    checkpoint: Checkpoint,
    config: Mapping[str, Any] | None,
) -> Problem | None:
    """LR301 where the checkpoint has a tower inside of which the rule file takes no name."""
    for prefix, named in rules.target.towers.items():
        segment = prefix.split(".")[0]
        inside = [
            r
            for r in routed
            if segment in r.rewrite.prepared.split(".") and r.rewrite.reason is None
        ]
        if inside and not any(r.rewrite.target is not None for r in inside):
            return _tower_problem(rules, inside, checkpoint, config or {}, str(named.from_))
    return None


def _tower_problem(
    rules: RuleFile,
    inside: Sequence[Routed],
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    key: str,
) -> Problem:
    said = config.get(key)
    if rules.target.as_ is not None and isinstance(part := config.get("vision_config"), Mapping):
        said = part.get("model_type")
    kind = f", which its config calls {said!r}," if isinstance(said, str) else ""
    names = tuple(r.tensor.name for r in inside)
    return Problem(
        "LR301",
        f"{checkpoint.location} has a tower inside{kind} of a kind that {rules.name} doesn't know: "
        f"{_some(names)}.",
        "Another tower in its place would see other features. If a class of transformers has this "
        "one, infer a rule file for it: "
        f"{draft_command('CLASS', checkpoint.location)}",
        names,
    )


def _some(names: Collection[str]) -> str:
    folded = fold_names(names)
    more = ", …" if len(folded) > _SHOWN else ""
    return (
        f"{', '.join(f'`{line}`' for line in folded[:_SHOWN])}{more} "
        f"({counted(len(names), 'tensor')})"
    )
