"""Why names became what they became, rule by rule. For a name that no rule took: the nearest rules,
and why they don't match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llava_remap.authoring.name_set import NameSet, read_names
from llava_remap.core.problem import refuse
from llava_remap.rewrite import Rewrite, compile_all, contradictions
from llava_remap.rulefile import RuleFile

#: How many rules are named for a name that no rule took.
MOST_NEAREST = 3
_WORD = re.compile(r"[A-Za-z0-9_]+")


class ExplainedStep(NamedTuple):
    """A rule that took a name.

    Attributes:
        rule: `prepare/ID` or `names/ID`.
        pattern, makes: as the rule file has them; `makes` is None for a drop, empty for a wrapper.
        after: the name behind the rule; None for a drop.
    """

    rule: str
    pattern: str
    makes: str | None
    after: str | None


class NearRule(NamedTuple):
    """A rule of `names` that almost took a name, and why it didn't."""

    rule: str
    pattern: str
    why: str


class LeftOut(NamedTuple):
    """A rule whose `when` doesn't hold for the checkpoint, with the reasons."""

    rule: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The outcome of a name, and how it came about.

    Attributes:
        nearest: for an unmapped name, the rules that nearly match it, the nearest first.
    """

    rewrite: Rewrite
    steps: tuple[ExplainedStep, ...]
    nearest: tuple[NearRule, ...]

    @property
    def outcome(self) -> Literal["mapped", "dropped", "unmapped"]:
        if self.rewrite.target is not None:
            return "mapped"
        return "dropped" if self.rewrite.reason is not None else "unmapped"

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "target": self.rewrite.target,
            "reason": self.rewrite.reason,
            "steps": [step._asdict() for step in self.steps],
            "nearest": [near._asdict() for near in self.nearest],
        }


class Explainer:
    """The rules of a file for one checkpoint, to be asked about its names.

    Args:
        names, config: of the first source, as in `compile_rules`.
    """

    def __init__(
        self, rules: RuleFile, names: Collection[str], config: Mapping[str, Any] | None
    ) -> None:
        everything = compile_all(rules)
        self.program = everything.given(names, config)
        prepared = [self.program.rewrite(name).prepared for name in names]
        counting = {rule.label for rule in self.program.rules}
        self.left_out = tuple(
            LeftOut(
                rule.label,
                tuple(contradictions(rule.when, seen, config, where=where)),
            )
            for listed, seen, where in (
                (everything.prepare, names, "as it is stored"),
                (everything.names, prepared, "after `prepare`"),
            )
            for rule in listed
            if rule.when is not None and rule.label not in counting
        )
        # The program also has the rules of a layout.
        self._names = {rule.label: rule for rule in (*everything.names, *self.program.names)}
        self._described = {
            rule.label: rule.kind.describe()
            for rule in (*everything.prepare, *self._names.values())
        }

    def explain(self, rewrite: Rewrite) -> Explanation:
        """What the program made of a name, explained.

        Raises:
            RemapError: LR206 if a regex hit its time limit.
        """
        steps = tuple(
            ExplainedStep(step.rule, *self._described[step.rule], step.after)
            for step in rewrite.trace
        )
        is_unmapped = rewrite.target is None and rewrite.reason is None
        return Explanation(rewrite, steps, self._nearest(rewrite.prepared) if is_unmapped else ())

    def _nearest(self, name: str) -> tuple[NearRule, ...]:
        """Rules with anything in common with the name, by how far they match it and then by how
        many of their words it has.
        """
        held_back = {left.rule: left.why for left in self.left_out}
        scored = []
        for rule in self._names.values():
            pattern = rule.kind.pattern
            words = set(_WORD.findall(pattern.literals))
            shared = len(words & set(_WORD.findall(name))) / max(len(words), 1)
            mismatch = None if rule(name) is not None else pattern.mismatch(name)
            matched, why = mismatch or (
                len(name),
                f"it matches, but its `when` doesn't hold: {'; '.join(held_back[rule.label])}",
            )
            if shared or "." in pattern.literals[:matched]:
                scored.append((matched, shared, NearRule(rule.label, pattern.text, why)))
        scored.sort(key=lambda entry: entry[:2], reverse=True)
        return tuple(near for _, _, near in scored[:MOST_NEAREST])


@dataclass(frozen=True, slots=True)
class ExplainedName:
    """A name, as its source spells it; `source` is empty for a name in no given source."""

    source: str
    name: str
    explanation: Explanation

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source or None, "name": self.name, **self.explanation.to_json()}


@dataclass(frozen=True, slots=True)
class ExplainedNames:
    """The explanations of names.

    Attributes:
        left_out: rules whose `when` doesn't hold for these names and their config.
        aside: for a source from which not all names are taken: how many are, and why, in words.
    """

    rules: RuleFile
    names: tuple[ExplainedName, ...]
    left_out: tuple[LeftOut, ...]
    aside: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": {
                "name": self.rules.name,
                "version": self.rules.text.version,
                "sha256": self.rules.sha256,
            },
            "left_out": [{"rule": left.rule, "why": list(left.why)} for left in self.left_out],
            "aside": dict(self.aside),
            "names": [name.to_json() for name in self.names],
        }


def explainer_for(rules: RuleFile, given: Sequence[str], *, offline: bool = False) -> Explainer:
    """The rules for the checkpoints that `--source` arguments give; without any, for a checkpoint
    of which nothing is known.
    """
    known = _read(rules, given, (), offline)
    return Explainer(rules, known.stored, known.config)


def explain_names(
    rules: RuleFile, names: Sequence[str], given: Sequence[str], *, offline: bool = False
) -> ExplainedNames:
    """Explain names, or all names that are taken from checkpoints.

    Args:
        names: as their source spells them, or, where no source is given or none has them, as they
            are behind its prefix.
        given: `--source` arguments.

    Raises:
        RemapError: LR211 where neither is given or a name is empty, LR206, and as `read_names`.
    """
    if not names and not given:
        raise refuse(
            "LR211",
            "there is no name to explain.",
            "Give names of tensors, or --source SRC for all of a checkpoint.",
        )
    if "" in names:
        raise refuse(
            "LR211",
            "a name to explain is empty.",
            "Give the name of a tensor, as the checkpoint has it.",
        )
    wanted = list(dict.fromkeys(names))
    known = _read(rules, given, wanted, offline)
    explainer = Explainer(rules, known.stored, known.config)
    rewrites = list(known.rewrites(rules, explainer.program))
    if wanted:
        there = {name for _, name, _ in rewrites}
        rewrites = [entry for entry in rewrites if entry[1] in wanted]
        rewrites += [
            ("", name, explainer.program.rewrite(name)) for name in wanted if name not in there
        ]
    entries = tuple(
        ExplainedName(source, name, explainer.explain(rewrite))
        for source, name, rewrite in rewrites
    )
    return ExplainedNames(rules, entries, explainer.left_out, known.aside)


def _read(rules: RuleFile, given: Sequence[str], names: Sequence[str], offline: bool) -> NameSet:
    """The names of checkpoints; without any checkpoint, one with these names and no config."""
    if given:
        return read_names(rules, given, offline=offline)
    return NameSet({}, {}, names, None, {})
