"""Why a name became what it became, rule by rule; and where no rule took it, which came nearest
and why they didn't match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llava_remap.rewrite.conditions import contradictions
from llava_remap.rewrite.program import Program, Rewrite, compile_all
from llava_remap.rulefile import RuleFile

#: Rules told for a name that none took.
MOST_NEAREST = 3
_WORD = re.compile(r"[A-Za-z0-9_]+")


class ExplainedStep(NamedTuple):
    """A rule that took a name.

    Attributes:
        rule: `prepare/ID` or `names/ID`.
        pattern, makes: as the rule file has them; `makes` is None for a drop, empty for what is
            taken out.
        after: what it left; None for a drop.
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
    """What became of a name.

    Attributes:
        nearest: for an unmapped name the rules that came nearest, the nearest first.
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
        found: dict[str, Any] = {
            "outcome": self.outcome,
            "target": self.rewrite.target,
            "reason": self.rewrite.reason,
        }
        found["steps"] = [step._asdict() for step in self.steps]
        found["nearest"] = [near._asdict() for near in self.nearest]
        return found


class Explainer:
    """The rules of a file for one checkpoint, to be asked about its names.

    Args:
        names, config: of the first source, as in `compile_rules`.
    """

    def __init__(
        self, rules: RuleFile, names: Collection[str], config: Mapping[str, Any] | None
    ) -> None:
        self._all = compile_all(rules)
        self.program = self._all.given(names, config)
        self.left_out = tuple(_left_out(self._all, self.program, names, config))
        # Of the program those of a layout, too.
        self._names = tuple(
            {rule.label: rule for rule in (*self._all.names, *self.program.names)}.values()
        )
        self._described = {
            rule.label: rule.kind.describe() for rule in (*self._all.prepare, *self._names)
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
        unmapped = rewrite.target is None and rewrite.reason is None
        return Explanation(rewrite, steps, self._nearest(rewrite.prepared) if unmapped else ())

    def _nearest(self, name: str) -> tuple[NearRule, ...]:
        """Rules with anything in common with the name, by how far they match it and then by how
        many of their words it has.
        """
        held_back = {left.rule: left.why for left in self.left_out}
        found = []
        for rule in self._names:
            pattern = rule.kind.pattern
            words = set(_WORD.findall(pattern.literals))
            shared = len(words & set(_WORD.findall(name))) / max(len(words), 1)
            mismatch = None if rule(name) is not None else pattern.mismatch(name)
            matched, why = mismatch or (
                len(name),
                f"it matches, but its `when` doesn't hold: {'; '.join(held_back[rule.label])}",
            )
            if shared or "." in pattern.literals[:matched]:
                found.append((matched, shared, NearRule(rule.label, pattern.text, why)))
        found.sort(key=lambda entry: entry[:2], reverse=True)
        return tuple(near for _, _, near in found[:MOST_NEAREST])


def _left_out(
    everything: Program, program: Program, names: Collection[str], config: Mapping[str, Any] | None
) -> list[LeftOut]:
    prepared = [program.rewrite(name).prepared for name in names]
    counting = {rule.label for rule in program.rules}
    return [
        LeftOut(
            rule.label,
            tuple(contradictions(rule.when, names if stored else prepared, config, stored=stored)),
        )
        for rules, stored in ((everything.prepare, True), (everything.names, False))
        for rule in rules
        if rule.when is not None and rule.label not in counting
    ]
