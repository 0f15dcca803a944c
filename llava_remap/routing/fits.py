"""Measures how well each shipped rule file fits a checkpoint, by names and config."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.core import Problem, counted, fold_names, quote
from llava_remap.rewrite import compile_rules, contradictions
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
from llava_remap.source.defaults import other_than_default

_NUMBER = re.compile(r"[0-9]+")
#: The most folded names in a sentence.
_SHOWN = 2
#: Stands for the first source if only another source is examined.
EMPTY = Checkpoint(Path(), "", {}, None, None)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a rule file fits a checkpoint.

    Attributes:
        source: the name of the checkpoint's source: the rule file's first source.
        mapped: the number of names that it maps.
        total: the number of names that it doesn't drop.
        unknown: the names that it neither maps nor drops.
        contradictions: why it isn't for the checkpoint, in words.
        guard: the field of the rule file that refuses the config, `detect` or `requires`; empty if
            names contradict it, or nothing does.
        also: further sources that it needs.
        other_default: whether the config names another default than the rule file for a source of
            `also`.
        summary: the rule file's summary.
        agreeing: the number of config values that `detect` asks for, minus those that it refuses.
        class_name: its target class; empty if that is the source's own class.
        remedy: the advice on the contradictions; empty if none is known.
        refusals: the problems of a plan from the same headers; empty before planning.
        needs: problems of that plan that a further source (`also`) settles.
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
        """All reasons against the rule file."""
        unknown = [f"it has no rule for {_some(self.unknown)}"] if self.unknown else []
        refusals = [
            " ".join(f"{problem.code} {problem.placed_cause} {problem.fix}".split("\n")).strip()
            for problem in self.refusals
        ]
        return [*(self.contradictions or unknown), *refusals]

    @property
    def is_near(self) -> bool:
        """Whether it knows more names than by chance. A tower may have more names than all other
        parts together.
        """
        return 10 * self.mapped >= self.total > 0

    @property
    def fits(self) -> bool:
        return self.mapped == self.total > 0 and not (self.contradictions or self.refusals)


def fits(checkpoint: Checkpoint) -> list[Fit]:
    """Every shipped rule file compared with a checkpoint's names and config, the nearest first.

    Rule files that fit come first, beginning with those whose default tower the config names. The
    others are sorted by the number of mapped names, of contradictions, and of agreeing config
    values, such as the architecture.
    """
    groups = names_alike(checkpoint)

    def order(fit: Fit) -> tuple[object, ...]:
        near = (-fit.mapped, len(fit.contradictions), -fit.agreeing)
        return (not fit.fits, (fit.other_default,) if fit.fits else near, fit.rules)

    return sorted((_fit(rules, checkpoint, groups) for rules in shipped().values()), key=order)


def _fit(rules: RuleFile, checkpoint: Checkpoint, groups: Mapping[str, Sequence[str]]) -> Fit:
    """One rule file compared with a checkpoint.

    Args:
        groups: from `names_alike`; only the first name of each group is tried.
    """
    config, detect = checkpoint.config, rules.text.detect
    few = replace(checkpoint, catalog={name: checkpoint.catalog[name] for name in groups}, pairs=())
    routes = route(rules, compile_rules(rules, few.catalog, config), {rules.first_source: few})
    taken = routes.taken
    names = [r.rewrite.prepared for r in taken]
    reasons = contradictions(detect, names, config)
    problems = unmet(rules, names, config)
    guard = "detect" if reasons else "requires" if problems else ""
    if contradictions(detect.model_copy(update={"config": {}, "config_not": {}}), names, None):
        guard = ""
    other_tower = other_tower_problem(rules, taken, checkpoint, config)
    if rules.target.as_ is not None and reasons:  # another model, whatever its tower
        other_tower = None
    if other_tower is not None:
        guard = ""
        every = [
            replace(r, tensor=checkpoint.catalog[name])
            for r in taken
            for name in groups[r.tensor.name]
        ]
        other_tower = other_tower_problem(rules, every, checkpoint, config) or other_tower
        problems.insert(0, other_tower)
    causes = [problem.placed_cause.removesuffix(".") for problem in problems]
    unknown = tuple(
        name
        for r in taken
        if r.rewrite.target is None and r.rewrite.reason is None
        for name in groups[r.tensor.name]
    )
    mapped = sum(len(groups[r.tensor.name]) for r in taken if r.rewrite.target is not None)
    return Fit(
        rules=rules.name,
        source=rules.first_source,
        mapped=mapped,
        total=mapped + len(unknown),
        unknown=unknown,
        contradictions=(
            *(reason for reason in reasons if not any(c.startswith(reason) for c in causes)),
            *causes,
        ),
        guard=guard,
        also=routes.not_given,
        other_default=any(
            other_than_default(rules.text.sources[name], config) is not None
            for name in routes.not_given
        ),
        summary=rules.text.summary or "",
        agreeing=agreeing(rules, config or {}),
        class_name=rules.target.class_ or "",
        remedy=other_tower.fix if other_tower else "",
    )


def agreeing(rules: RuleFile, config: Mapping[str, Any]) -> int:
    """The number of config values that a rule file's `detect` asks for, minus those that it
    refuses.
    """
    detect = rules.text.detect
    agree = sum(
        not contradictions(Condition(config={key: wanted}), (), config)
        for key, wanted in detect.config.items()
        if config.get(key) is not None
    )
    conditions = Condition(config=detect.config, config_not=detect.config_not)
    return agree - len(contradictions(conditions, (), config))


def unmet(
    rules: RuleFile,
    names: Sequence[str],
    config: Mapping[str, Any] | None,
    whose: str = "its config",
) -> list[Problem]:
    """LR314 for each requirement of a rule file that a checkpoint doesn't meet.

    Args:
        names: the names after `prepare`.
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
    """How to convert nevertheless: lines for a rule file, if it can hold the config's values."""
    values = {key: config.get(key) for key in requirement.config}
    if not values or any(isinstance(value, (list, dict)) for value in values.values()):
        return "Correct the config.json, if the message says so."
    allowed = {
        key: [*(wanted if isinstance(wanted, tuple) else (wanted,)), values[key]]
        for key, wanted in requirement.config.items()
    }
    lines = ", ".join(
        f"{key}: {json.dumps(list(dict.fromkeys(entries)))}" for key, entries in allowed.items()
    )
    return (
        "If this difference doesn't matter for your use, write a rule file with `extends: "
        f"[{rules.name}.yaml]` and `requires: {{{name}: {{config: {{{lines}}}}}}}`."
    )


def names_alike(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Groups of names that no shipped rule distinguishes: first name → all names of the group. With
    them, even tens of thousands of names are compared quickly.

    Two names are alike if they differ only in segments that no template spells out, and if each of
    these segments is a number in both names or in neither. The matrices of an adapter's pairs are
    left out.
    """
    spelt, partly = _spelt_segments()

    @cache
    def kind(segment: str) -> str:
        if segment in spelt or partly.fullmatch(segment) or not segment:
            return segment
        return "{int}" if _NUMBER.fullmatch(segment) else "{x}"

    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in checkpoint.unpaired:
        groups[tuple(map(kind, name.split(".")))].append(name)
    return {names[0]: names for names in groups.values()}


@cache
def shipped() -> Mapping[str, RuleFile]:
    """Name → shipped rule file. Shipped files don't change while a process runs."""
    files = map(load_rule_file, shipped_rule_files().values())
    return {rules.name: rules for rules in files}


@cache
def _spelt_segments() -> tuple[frozenset[str], re.Pattern[str]]:
    """The segments that templates of the shipped rule files spell out; and a regex for the segments
    that they spell out in part.
    """
    templates: list[Template] = []
    texts: list[str] = []
    partly: set[str] = set()
    for rules in shipped().values():
        text, sources = rules.text, rules.text.sources.values()
        every = [
            *text.prepare,
            *text.names,
            *(rule for layout in rules.layouts for rule in layout.text.names),
        ]
        operated = [end.names for rule in text.tensors for end in rule.operation.sources]
        whens = [rule.when for rule in every] + [rule.when for rule in text.tensors]
        conditions = [text.detect, *text.requires.values(), *filter(None, whens)]
        patterns = [rule.kind.pattern for rule in every]
        templates += [
            *(template for one in conditions for template in (*one.present, *one.absent)),
            *(source.used_if_absent for source in sources if source.used_if_absent),
            *(template for source in sources for template in source.selected),
            *filter(None, operated),
            *(pattern for pattern in patterns if isinstance(pattern, Template)),
        ]
        texts += [
            *(pattern.text for pattern in patterns if isinstance(pattern, Wrapper)),
            *(source.prefix for source in sources),
            *(text.target.towers if text.target is not None else ()),
        ]
        if not all(isinstance(pattern, (Template, Wrapper)) for pattern in patterns):
            partly.add(".*")  # a regex may match anything
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
    """LR301 for a tower in the checkpoint, if the rule file takes none of its names."""
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
    named = config.get(key)
    if rules.target.as_ is not None and isinstance(part := config.get("vision_config"), Mapping):
        named = part.get("model_type")
    kind = f", which its config calls {named!r}," if isinstance(named, str) else ""
    names = tuple(r.tensor.name for r in inside)
    return Problem(
        "LR301",
        f"{checkpoint.location} has a tower inside{kind} of a kind that {rules.name} doesn't know: "
        f"{_some(names)}.",
        "Another tower in its place would give other features. If a class of transformers has "
        f"this tower, infer a rule file for it: {draft_command('CLASS', checkpoint.location)}",
        names,
    )


def _some(names: Collection[str]) -> str:
    folded = fold_names(names)
    more = ", …" if len(folded) > _SHOWN else ""
    return (
        f"{', '.join(f'`{line}`' for line in folded[:_SHOWN])}{more} "
        f"({counted(len(names), 'tensor')})"
    )


def draft_command(class_name: str, location: str, **parts: str) -> str:
    """The command that infers a rule file for a checkpoint whose names no rule file knows.

    Args:
        parts: further source → its location.
    """
    sources = {"model": location, **parts}
    given = [f"{name}={place}" for name, place in sources.items()] if parts else [location]
    return (
        f"llava-remap rules new {' '.join(f'--from {quote(text)}' for text in given)} --to "
        f"{class_name} --output mine.yaml"
    )
