"""Rule file to a compiled program; the program takes names to new names, and back. Pure: no files,
no tensors.

A name goes through every rule of `prepare` in turn (wrappers off, buffers dropped), each at most
once, and then to the first rule of `names` that matches. Only a name that a rule of `names` matched
counts as mapped.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from llava_remap.core.problem import RemapError, refuse
from llava_remap.rewrite.conditions import contradictions
from llava_remap.rulefile import (
    Condition,
    Drop,
    Mark,
    Rule,
    RuleFile,
    RuleKind,
    RunawayError,
    TimeSpent,
)

#: Rules that are asked one by one.
_MOST_ASKED = 8


class Step(NamedTuple):
    """One rule that matched: `rule` is `prepare/ID` or `names/ID`; `after` is None for a drop."""

    rule: str
    before: str
    after: str | None


class Rewrite(NamedTuple):
    """What became of a name.

    Attributes:
        source: the name that went in.
        target: the name that came out, or None if it was dropped or no rule of `names` matched it.
        reason: why it was dropped, or None.
        prepared: the name after `prepare`; for a dropped one, as it stood before the drop.
        trace: the rules that matched, in order.
    """

    source: str
    target: str | None
    reason: str | None
    prepared: str
    trace: tuple[Step, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(step.rule for step in self.trace)


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule of a program.

    Attributes:
        label: `prepare/ID` or `names/ID`; for a layout, its name and the ID.
        kind: what the rule does.
        mark: the place of the rule in its file.
        when: the checkpoints for which the rule counts; None for all.
        optional: whether a checkpoint may have no name for it.
        spent: the time that the regexes of the rule file took.
    """

    label: str
    kind: RuleKind
    mark: Mark
    when: Condition | None
    optional: bool
    spent: TimeSpent = field(compare=False, repr=False)

    @property
    def id(self) -> str:
        return self.label.partition("/")[2]

    def __call__(self, name: str) -> str | None:
        """The new name (for a drop: the name), or None where the rule doesn't take the name.

        Raises:
            RemapError: LR206 if a regex hit its time limit.
        """
        try:
            return self.kind.apply(name, self.spent)
        except RunawayError as error:
            raise self._refusal(error) from None

    def lead_back(self, target: str) -> str | None:
        """The name from which the rule makes `target`; None where it doesn't lead back.

        Raises:
            RemapError: LR206 if a regex hit its time limit.
        """
        try:
            return self.kind.back(target, self.spent)
        except RunawayError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: RunawayError) -> RemapError:
        return refuse(
            "LR206",
            f"{self.mark} the regex of `{self.label}` {error.why}.",
            "Write it as a template, or without nested repetition.",
            [str(error)],
        )


@dataclass(frozen=True)
class Program:
    """Compiled rules, in order.

    Attributes:
        layouts: rules of layouts. Those of one of them stand behind `names` in the program for a
            checkpoint (`given`).
    """

    prepare: tuple[CompiledRule, ...]
    names: tuple[CompiledRule, ...]
    layouts: tuple[tuple[CompiledRule, ...], ...] = ()

    def rewrite(self, name: str, without: str = "") -> Rewrite:
        """Take one name through the rules.

        Args:
            without: the label of a rule that is passed over, to see what the rule keeps from
                happening.

        Raises:
            RemapError: LR206 if a regex of the rule file hit its time limit on this name.
        """
        trace: list[Step] = []
        prepared = name
        start = 0
        while (found := self._prepare.first(prepared, start, without)) is not None:
            start, rule, after = found
            if isinstance(rule.kind, Drop):
                trace.append(Step(rule.label, prepared, None))
                return Rewrite(name, None, rule.kind.reason, prepared, tuple(trace))
            trace.append(Step(rule.label, prepared, after))
            prepared = after
        if (found := self._names.first(prepared, 0, without)) is None:
            return Rewrite(name, None, None, prepared, tuple(trace))
        _, rule, after = found
        target, reason = (None, rule.kind.reason) if isinstance(rule.kind, Drop) else (after, None)
        trace.append(Step(rule.label, prepared, target))
        return Rewrite(name, target, reason, prepared, tuple(trace))

    def inverse(self, target: str) -> str | None:
        """The one name, after `prepare`, that `names` takes to `target`; None where no rule leads
        back, or rules to several.

        What comes back is held against the way there: `rewrite` of it gives `target`.

        Raises:
            RemapError: LR206 if a regex of the rule file hit its time limit on the way.
        """
        candidates = {
            name
            for rule in self.leading_back(target)
            if (name := rule.lead_back(target)) is not None
        }
        found = [name for name in candidates if self.rewrite(name).target == target]
        return found[0] if len(found) == 1 else None

    def leading_back(self, target: str) -> list[CompiledRule]:
        """The rules of `names` whose way back may take a target, in their order."""
        return [self.names[number] for number in self._backs.asked(target)]

    def asked(self, name: str) -> list[CompiledRule]:
        """Every rule that may take a name, if it is asked alone."""
        return [*self._prepare.asked(name), *self._names.asked(name)]

    def without(self, label: str) -> Program:
        """The same program without one rule."""
        return self._only(lambda rule: rule.label != label)

    def given(self, names: Collection[str], config: Mapping[str, Any] | None) -> Program:
        """The program for a checkpoint: of the rules with a `when` only those whose `when` holds
        for it, of the layouts one.
        """
        if not self.layouts and all(rule.when is None for rule in self.rules):
            return self
        prepare = tuple(rule for rule in self.prepare if _holds(rule.when, names, config))
        first = Program(prepare, ())
        prepared = [first.rewrite(name).prepared for name in names]
        own = tuple(rule for rule in self.names if _holds(rule.when, prepared, config))
        layout = max(self.layouts, key=lambda rules: _taken(rules, prepared), default=())
        return Program(prepare, (*own, *layout) if _taken(layout, prepared) else own)

    def assuming(self, condition: Condition | None) -> Program:
        """The program in which, of the rules with a `when`, only those with this one count."""
        return self._only(lambda rule: rule.when is None or rule.when == condition)

    def _only(self, wanted: Callable[[CompiledRule], bool]) -> Program:
        return Program(
            tuple(filter(wanted, self.prepare)), tuple(filter(wanted, self.names)), self.layouts
        )

    @property
    def rules(self) -> tuple[CompiledRule, ...]:
        """Those of `prepare` and of `names`, in order."""
        return (*self.prepare, *self.names)

    @cached_property
    def _prepare(self) -> _Sequence:
        return _Sequence(self.prepare)

    @cached_property
    def _names(self) -> _Sequence:
        return _Sequence(self.names)

    @cached_property
    def _backs(self) -> _Index:
        return _Index([rule.kind.back_segments for rule in self.names])


def compile_rules(
    rules: RuleFile, names: Collection[str] = (), config: Mapping[str, Any] | None = None
) -> Program:
    """Compile the rules of a validated rule file for a checkpoint; patterns were checked when it
    was loaded.

    Args:
        names, config: the names and the config of the first source, which a rule's `when` may ask
            for.
    """
    return compile_all(rules).given(names, config)


def compile_all(rules: RuleFile) -> Program:
    """Compile every rule of a rule file, whether its `when` holds or not: to look at the rules,
    not at a checkpoint.
    """
    text, spent = rules.text, TimeSpent()
    return Program(
        tuple(_compile(f"prepare/{rule.id}", rule, rules, spent) for rule in text.prepare),
        tuple(_compile(f"names/{rule.id}", rule, rules, spent) for rule in text.names),
        tuple(
            tuple(
                replace(rule, label=f"{layout.name}/{rule.id}")
                for rule in compile_all(layout).names
            )
            for layout in rules.layouts
        ),
    )


def _compile(label: str, rule: Rule, file: RuleFile, spent: TimeSpent) -> CompiledRule:
    return CompiledRule(label, rule.kind, file.marks[label], rule.when, rule.optional, spent)


def _holds(
    condition: Condition | None, names: Collection[str], config: Mapping[str, Any] | None
) -> bool:
    return condition is None or not contradictions(condition, names, config)


def _taken(rules: tuple[CompiledRule, ...], names: Collection[str]) -> int:
    """How many of the names some rule takes."""
    sequence = _Sequence(rules)
    return sum(sequence.first(name, 0) is not None for name in names)


class _Index:
    """Patterns by a segment that every name has which they take, the rarest: few are asked for a
    name, however many there are.
    """

    def __init__(self, segments: Sequence[frozenset[str]]) -> None:
        counts = Counter(segment for of_one in segments for segment in of_one)
        self._always: list[int] = []
        self._having: dict[str, list[int]] = defaultdict(list)
        for number, of_one in enumerate(segments):
            rarest = min(of_one, key=lambda segment: (counts[segment], segment), default=None)
            (self._always if rarest is None else self._having[rarest]).append(number)

    def asked(self, name: str) -> list[int]:
        """The numbers of the patterns that may take a name, in their order."""
        having = [
            self._having[segment] for segment in {*name.split(".")} if segment in self._having
        ]
        return sorted(chain(self._always, *having))


class _Sequence:
    """Rules in order, of which the first that matches is wanted.

    Many that may match are asked at once by one regex, which finds the first of them: where few
    take a name, that is several times faster than to ask one by one.
    """

    def __init__(self, rules: tuple[CompiledRule, ...]) -> None:
        self._rules = rules
        self._index = _Index([rule.kind.pattern.segments for rule in rules])
        self._at_once: dict[tuple[int, ...], re.Pattern[str]] = {}

    def asked(self, name: str) -> list[CompiledRule]:
        """Every rule that may take a name."""
        return [self._rules[number] for number in self._index.asked(name)]

    def first(
        self, name: str, start: int, without: str = ""
    ) -> tuple[int, CompiledRule, str] | None:
        """The first rule from `start` on that matches, but for the one with the label `without`.

        Returns:
            The number of the rule behind it, the rule, and what it makes of the name.
        """
        asked = self._index.asked(name)
        if start == 0 and len(asked) > _MOST_ASKED:
            if (found := self._regex(tuple(asked)).fullmatch(name)) is None:
                return None
            start = int(str(found.lastgroup)[1:])
        for number in asked:
            if number < start or self._rules[number].label == without:
                continue
            if (after := self._rules[number](name)) is not None:
                return number + 1, self._rules[number], after
        return None

    def _regex(self, numbers: tuple[int, ...]) -> re.Pattern[str]:
        if numbers not in self._at_once:
            candidates = "|".join(
                f"(?P<r{number}>{self._rules[number].kind.pattern.candidates})"
                for number in numbers
            )
            self._at_once[numbers] = re.compile(candidates, re.DOTALL)
        return self._at_once[numbers]
