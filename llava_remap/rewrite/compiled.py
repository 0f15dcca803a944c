"""Compiled rules, and searches for the first rule that takes a name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from llava_remap.core.problem import Mark, RemapError, RunawayRuleError
from llava_remap.rulefile import (
    Condition,
    Operation,
    RuleKind,
    RunawayError,
    Taken,
    TimeSpent,
)

#: The most rules to try one by one.
_MOST_ASKED = 8


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
            raise self._runaway(error) from None

    def lead_back(self, target: str) -> str | None:
        """The name from which the rule makes `target`; None if the rule has no way back for it.

        Raises:
            RemapError: LR206 if a regex hit its time limit.
        """
        try:
            return self.kind.back(target, self.spent)
        except RunawayError as error:
            raise self._runaway(error) from None

    def _runaway(self, error: RunawayError) -> RemapError:
        return RunawayRuleError.of(
            "LR206",
            f"the regex of `{self.label}` {error.why}.",
            "Write it as a template, or without nested repetition.",
            [str(error)],
            place=self.mark,
        )


@dataclass(frozen=True, slots=True)
class CompiledOperation:
    """A tensor operation of a program.

    Attributes:
        label: `tensors/ID`.
        operation: what it does.
        mark, when, optional: as in `CompiledRule`.
    """

    label: str
    operation: Operation
    mark: Mark
    when: Condition | None
    optional: bool

    @property
    def id(self) -> str:
        return self.label.partition("/")[2]


class OperationIndex:
    """Tensor operations in order, to find the first that takes a name."""

    def __init__(self, operations: Sequence[CompiledOperation]) -> None:
        self._entries = [
            (number, segments)
            for number, compiled in enumerate(operations)
            for segments in compiled.operation.segments
        ]
        self._operations = operations
        self._index = Index([segments for _, segments in self._entries])

    def first(self, name: str, without: str = "") -> tuple[CompiledOperation, Taken] | None:
        """The first operation that takes a name, and the name's role in it. The operation with the
        label `without` is left out.
        """
        asked = dict.fromkeys(self._entries[at][0] for at in self._index.asked(name))
        for number in asked:
            compiled = self._operations[number]
            if compiled.label != without and (taken := compiled.operation.take(name)) is not None:
                return compiled, taken
        return None


class Index:
    """An index of patterns, so that few of them have to be tried on a name. Every matching name has
    certain segments; each pattern is filed under the rarest of these.
    """

    def __init__(self, segments: Sequence[frozenset[str]]) -> None:
        counts = Counter(segment for of_one in segments for segment in of_one)
        self._always: list[int] = []
        self._having: dict[str, list[int]] = defaultdict(list)
        for number, of_one in enumerate(segments):
            rarest = min(of_one, key=lambda segment: (counts[segment], segment), default=None)
            (self._always if rarest is None else self._having[rarest]).append(number)
        # By a name's segments in `_having`: many names share one such set.
        self._asked: dict[frozenset[str], list[int]] = {}

    def asked(self, name: str) -> list[int]:
        """The numbers of the patterns that may take a name, in their order."""
        counting = frozenset([one for one in name.split(".") if one in self._having])
        if (found := self._asked.get(counting)) is None:
            having = (self._having[segment] for segment in counting)
            found = self._asked[counting] = sorted(chain(self._always, *having))
        return found


class RuleSequence:
    """Rules in order, to find the first that matches.

    If many rules may match, one regex tries them all at once and finds the first candidate. This is
    several times faster than trying them one by one, if few rules take a name.
    """

    def __init__(self, rules: tuple[CompiledRule, ...]) -> None:
        self._rules = rules
        self._index = Index([rule.kind.pattern.segments for rule in rules])
        self._at_once: dict[tuple[int, ...], re.Pattern[str]] = {}

    def asked(self, name: str) -> list[CompiledRule]:
        """Every rule that may take a name."""
        return [self._rules[number] for number in self._index.asked(name)]

    def first(
        self, name: str, start: int, without: str = ""
    ) -> tuple[int, CompiledRule, str] | None:
        """The first rule from `start` on that matches, except the rule with the label `without`.

        Returns:
            The number of the next rule, the rule, and the new name.
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
