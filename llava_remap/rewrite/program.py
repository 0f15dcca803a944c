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

from llava_remap.core.problem import Mark, RunawayRuleError
from llava_remap.rewrite.conditions import contradictions
from llava_remap.rulefile import (
    Condition,
    PatternError,
    Regex,
    Rule,
    RuleFile,
    RunawayError,
    Template,
    TimeSpent,
    Wrapper,
    reversed_template,
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
    """A rule, ready to run.

    Attributes:
        label: `prepare/ID` or `names/ID`; of a layout, its name and the ID.
        rule: as the rule file has it.
        mark: where that is.
        candidates: a regex of whole names that every name matches which the rule takes, and perhaps
            others.
        segments: segments that every name has which the rule takes.
        back_segments: segments that every name has which `back` takes.
        run: gives the new name (for a drop: the name) or None where it doesn't match.
        back: takes a name that `run` made back; None for one that can't be reversed.
        spent: the time that the regexes of its rule file took.
    """

    label: str
    rule: Rule
    mark: Mark
    candidates: str
    segments: frozenset[str]
    back_segments: frozenset[str]
    run: Callable[[str], str | None]
    back: Callable[[str], str | None] | None
    spent: TimeSpent = field(default_factory=TimeSpent, compare=False, repr=False)

    def __call__(self, name: str) -> str | None:
        return self._limited(self.run, name)

    def lead_back(self, target: str) -> str | None:
        """The name that `back` makes of a target; None where it doesn't match or there is no way
        back.
        """
        return None if self.back is None else self._limited(self.back, target)

    def _limited(self, run: Callable[[str], str | None], name: str) -> str | None:
        try:
            return run(name)
        except RunawayError as error:
            raise RunawayRuleError.of(
                "LR206",
                f"the regex of `{self.label}` {error.why}.",
                "Write it as a template, or without nested repetition.",
                [name],
                place=self.mark,
            ) from None


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
            if rule.rule.drop is not None:
                trace.append(Step(rule.label, prepared, None))
                return Rewrite(name, None, rule.rule.drop, prepared, tuple(trace))
            trace.append(Step(rule.label, prepared, after))
            prepared = after
        if (found := self._names.first(prepared, 0, without)) is None:
            return Rewrite(name, None, None, prepared, tuple(trace))
        _, rule, after = found
        target = None if rule.rule.drop is not None else after
        trace.append(Step(rule.label, prepared, target))
        return Rewrite(name, target, rule.rule.drop, prepared, tuple(trace))

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

    def without(self, label: str) -> Program:
        """The same program without one rule."""
        return self._only(lambda rule: rule.label != label)

    def given(self, names: Collection[str], config: Mapping[str, Any] | None) -> Program:
        """The program for a checkpoint: of the rules with a `when` only those whose `when` holds
        for it, of the layouts one.
        """
        if not self.layouts and all(
            rule.rule.when is None for rule in (*self.prepare, *self.names)
        ):
            return self
        prepare = tuple(rule for rule in self.prepare if _holds(rule.rule.when, names, config))
        first = Program(prepare, ())
        prepared = [first.rewrite(name).prepared for name in names]
        own = tuple(rule for rule in self.names if _holds(rule.rule.when, prepared, config))
        layout = max(self.layouts, key=lambda rules: _taken(rules, prepared), default=())
        return Program(prepare, (*own, *layout) if _taken(layout, prepared) else own)

    def assuming(self, condition: Condition | None) -> Program:
        """The program in which, of the rules with a `when`, only those with this one count."""
        return self._only(lambda rule: rule.rule.when is None or rule.rule.when == condition)

    def _only(self, wanted: Callable[[CompiledRule], bool]) -> Program:
        return Program(
            tuple(filter(wanted, self.prepare)), tuple(filter(wanted, self.names)), self.layouts
        )

    @cached_property
    def _prepare(self) -> _Sequence:
        return _Sequence(self.prepare)

    @cached_property
    def _names(self) -> _Sequence:
        return _Sequence(self.names)

    @cached_property
    def _backs(self) -> _Index:
        return _Index([rule.back_segments for rule in self.names])


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
                replace(rule, label=f"{layout.name}/{rule.rule.id}")
                for rule in compile_all(layout).names
            )
            for layout in rules.layouts
        ),
    )


def _compile(label: str, rule: Rule, file: RuleFile, spent: TimeSpent) -> CompiledRule:
    back_segments, back = _NO_WAY_BACK if one_way(rule) else _back(rule, spent)
    mark = file.marks[label]
    if rule.unwrap is not None:
        wrapper = Wrapper(rule.unwrap)
        return CompiledRule(
            label,
            rule,
            mark,
            wrapper.candidates,
            wrapper.segments,
            frozenset(),
            wrapper.take_off,
            None,
        )
    if rule.match is not None:
        regex = Regex(rule.match, rule.replace, spent)
        return CompiledRule(
            label,
            rule,
            mark,
            regex.candidates,
            regex.segments,
            back_segments,
            regex.search,
            back,
            spent,
        )
    source = Template(str(rule.from_))
    run = _between(source, Template(rule.to) if rule.to is not None else source)
    return CompiledRule(label, rule, mark, source.regex, source.segments, back_segments, run, back)


def one_way(rule: Rule) -> str:
    """Why a rename of `names` can't be reversed, in words; empty for one that can, and for a
    drop, which has none to miss.
    """
    if rule.drop is not None:
        return ""
    if rule.one_way:
        return "it says `one_way: true`"
    if rule.match is not None:
        return "" if rule.reverse is not None else "a regex has no way back without `reverse:`"
    source, target = Template(str(rule.from_)), Template(str(rule.to))
    if lost := [name for name in source.fields if name not in target.fields]:
        return f"`to` leaves out the field `{{{lost[0]}}}`"
    try:
        reversed_template(source, target)
    except PatternError as error:
        return str(error)
    return ""


#: Segments that names have which the way back takes, and the way back.
_Back = tuple[frozenset[str], Callable[[str], str | None] | None]
_NO_WAY_BACK: _Back = (frozenset(), None)


def _back(rule: Rule, spent: TimeSpent) -> _Back:
    if rule.reverse is not None:
        regex = Regex(rule.reverse.match, rule.reverse.replace, spent)
        return regex.segments, regex.search
    if rule.to is None:
        return _NO_WAY_BACK
    source, target = Template(str(rule.from_)), Template(rule.to)
    return target.segments, _between(reversed_template(source, target), source)


def _between(source: Template, target: Template) -> Callable[[str], str | None]:
    def run(name: str) -> str | None:
        fields = source.match(name)
        return None if fields is None else target.fill(fields)

    return run


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
        self._index = _Index([rule.segments for rule in rules])
        self._at_once: dict[tuple[int, ...], re.Pattern[str]] = {}

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
                f"(?P<r{number}>{self._rules[number].candidates})" for number in numbers
            )
            self._at_once[numbers] = re.compile(candidates, re.DOTALL)
        return self._at_once[numbers]
