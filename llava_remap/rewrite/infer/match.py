"""Finds the target group of each source group: by shape and layer numbers, by name, and by the
targets of other groups in its module. Never by order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, product
from typing import Literal, get_args

from llava_remap.rewrite.infer.groups import (
    INDEX,
    Group,
    Segments,
    Shape,
    ending,
    fold,
    tokens,
    unfold,
)

How = Literal[
    "asked",
    "by the same name",
    "by name and shape",
    "with its module",
    "by an operation",
    "by shape alone",
]
#: How a match was found, the surest first.
HOWS: tuple[How, ...] = get_args(How)

#: The most pairs of fitting groups to compare. With more of them, names don't decide.
MOST_PAIRS = 250_000
#: The most candidates of a question.
MOST_CANDIDATES = 12
#: The most rows that a target's vocabulary may have more: converters pad it to a multiple of 64,
#: trainers to a multiple of at most 512.
MOST_NEW_ROWS = 512


#: Two groups may fit each other if they have the same key. None: the group fits no other.
Key = Callable[[Group], Hashable]


@dataclass(frozen=True, slots=True)
class Match:
    """A source group, the target group that it becomes, and how it was found. For an operation,
    the target group has the names by which the operation takes the source.
    """

    source: Group
    target: Group
    how: How


@dataclass(frozen=True, slots=True)
class Question:
    """A source group that could become one of several target groups, or one target group with which
    it shares only the shape.

    Attributes:
        candidates: the first `MOST_CANDIDATES` of these target groups.
    """

    source: Group
    candidates: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Matching:
    """The result for all groups.

    Attributes:
        matches: source groups with the target groups that they become.
        questions: source groups that could become several target groups; no rule takes them.
        unplaced: source groups that fit no unmatched target group.
        missing: necessary target groups that no source group becomes.
    """

    matches: tuple[Match, ...]
    questions: tuple[Question, ...]
    unplaced: tuple[Group, ...]
    missing: tuple[Group, ...]


def match(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    tied: Collection[str] = (),
    answers: Mapping[Segments, Segments] | None = None,
    most_pairs: int = MOST_PAIRS,
) -> Matching:
    """Find the partner of every group.

    Args:
        source, target: name → shape.
        tied: target names that need no source.
        answers: source pattern → target pattern, from a person; for groups or single names.
    """
    state = _State(_by_pattern(fold(source)), _by_pattern(fold(target)), most_pairs)
    for one, other in (answers or {}).items():
        state.answer(one, other)
    state.settle(_members)
    state.settle(_columns, more_rows=True)
    if state.sources and any(not set(group.names) <= set(tied) for group in state.targets.values()):
        state.settle_unfolded()
    questions, unplaced = [], []
    same, longer = (_by_key(state.targets.values(), key) for key in (_members, _columns))
    for group in state.sources.values():
        tables = longer[_columns(group)]
        few = len(state.sources) * len(tables) <= most_pairs
        larger = (other for other in tables if few and grows(group.shape, other.shape))
        fits = chain(same[_members(group)], larger)
        if candidates := tuple(islice(fits, MOST_CANDIDATES)):
            questions.append(Question(group, candidates))
        else:
            unplaced.append(group)
    missing = [group for group in state.targets.values() if not set(group.names) <= set(tied)]
    if not missing:  # a tied parameter needs no source, so nobody has to be asked for one
        unplaced, questions = [*unplaced, *(question.source for question in questions)], []
    return Matching(tuple(state.matches), tuple(questions), tuple(unplaced), tuple(missing))


def _by_pattern(groups: Iterable[Group]) -> dict[Segments, Group]:
    return {group.pattern: group for group in groups}


def _by_key(groups: Iterable[Group], key: Key) -> dict[Hashable, list[Group]]:
    """The groups that have a key."""
    keyed: dict[Hashable, list[Group]] = defaultdict(list)
    for group in groups:
        if (own := key(group)) is not None:
            keyed[own].append(group)
    return keyed


def _members(group: Group) -> Hashable:
    """A key that groups with equal members share."""
    return frozenset(group.members.items())


def _columns(group: Group) -> Hashable:
    """A key that tables with the same columns share; None for anything but a table."""
    return group.shape[1:] if [*group.members] == [()] and len(group.shape) == 2 else None


def grows(one: Shape, other: Shape) -> bool:
    """Whether `other` is the shape of the table `one` with somewhat more rows: the vocabulary of a
    converted checkpoint has room for new tokens.

    A vocabulary has more rows than columns, unlike a table of positions.
    """
    return (
        len(one) == len(other) == 2
        and one[1] == other[1] < one[0] < other[0] <= one[0] + MOST_NEW_ROWS
    )


@dataclass(slots=True)
class _State:
    """Unmatched groups of both sides, by pattern, and the matches found so far."""

    sources: dict[Segments, Group]
    targets: dict[Segments, Group]
    most_pairs: int
    matches: list[Match] = field(default_factory=list)
    #: Pairs of a source module and a target module: a group of the first was matched with a group
    #: of the second.
    kin: set[tuple[Segments, Segments]] = field(default_factory=set)
    words: dict[Segments, frozenset[str]] = field(default_factory=dict)
    #: All segments of each side.
    ours: set[str] = field(default_factory=set)
    theirs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._read_words()
        self.ours, self.theirs = set(chain(*self.sources)), set(chain(*self.targets))

    def _read_words(self) -> None:
        self.words |= tokens(self.sources.values()) | tokens(self.targets.values())

    def answer(self, source: Segments, target: Segments) -> None:
        self.sources, self.targets = _with(self.sources, source), _with(self.targets, target)
        self._read_words()
        self._add([(self.sources[source], self.targets[target])], "asked")

    def settle_unfolded(self) -> None:
        """Match single members of groups that equal no other group. Groups without such matches
        are restored.
        """
        sources, targets = self._without_equal()
        self.sources, self.targets = (
            _unfolded(self.sources, sources),
            _unfolded(self.targets, targets),
        )
        self._read_words()
        self.settle(_members)
        lonely, unwanted = self._without_equal()
        self.sources, self.targets = (
            _refolded(self.sources, sources, lonely),
            _refolded(self.targets, targets, unwanted),
        )

    def _without_equal(self) -> tuple[dict[Segments, Group], dict[Segments, Group]]:
        """For each side, the groups that equal no group of the other side."""
        there, wanted = (
            {_members(group) for group in side.values()} for side in (self.sources, self.targets)
        )
        return (
            _by_pattern(group for group in self.sources.values() if _members(group) not in wanted),
            _by_pattern(group for group in self.targets.values() if _members(group) not in there),
        )

    def settle(self, key: Key, *, more_rows: bool = False) -> None:
        """Match groups, the surest first, until no more can be matched.

        Args:
            more_rows: whether a target must also be the source with more rows; otherwise, the same
                key is enough.
        """
        while any(self._add(self._pairs(key, more_rows, how), how) for how in HOWS[1:]):
            pass

    def _pairs(self, key: Key, more_rows: bool, how: How) -> list[tuple[Group, Group]]:
        """Pairs of groups in which each is the only best partner of the other, judged by `how`."""
        if how == "by the same name":
            there = ((group, self.targets.get(pattern)) for pattern, group in self.sources.items())
            return [
                (one, other)
                for one, other in there
                if other is not None
                and key(one) is not None
                and key(one) == key(other)
                and (not more_rows or grows(one.shape, other.shape))
            ]
        scores: dict[Segments, dict[Segments, tuple[int, ...]]] = defaultdict(dict)
        back: dict[Segments, dict[Segments, tuple[int, ...]]] = defaultdict(dict)
        targets = _by_key(self.targets.values(), key)
        for of_key, ones in _by_key(self.sources.values(), key).items():
            if len(ones) * len(targets[of_key]) > self.most_pairs:
                continue
            for one, other in product(ones, targets[of_key]):
                if not more_rows or grows(one.shape, other.shape):
                    score = self._score(one, other, how)
                    scores[one.pattern][other.pattern] = back[other.pattern][one.pattern] = score
        wanted_by = {pattern: _only_best(scored) for pattern, scored in back.items()}
        pairs = []
        for pattern in (pattern for pattern in self.sources if pattern in scores):
            scored = scores[pattern]
            best = _only_best(scored)
            if best is not None and wanted_by[best] == pattern:
                source, target = self.sources[pattern], self.targets[best]
                if self._tells(source, target, how, len(scored) == len(back[best]) == 1):
                    pairs.append((source, target))
        return pairs

    def _score(self, source: Group, target: Group, how: How) -> tuple[int, ...]:
        shared = len(self.words[source.pattern] & self.words[target.pattern])
        same_end = ending(source.pattern, target.pattern)
        return (
            (shared, self._kinship(source.pattern, target.pattern), same_end)
            if how == "with its module"
            else (shared, same_end)
        )

    def _tells(self, source: Group, target: Group, how: How, alone: bool) -> bool:
        """Whether two groups that are each other's best partners can be matched for that reason.

        Args:
            alone: whether neither group fits any other group.
        """
        if self._contradict(source.pattern, target.pattern):
            return False
        # `weight`, `bias`, `model` and a layer's number are in almost every name.
        shared = self.words[source.pattern] & self.words[target.pattern] - {
            source.pattern[-1].lower(),
            "model",
            INDEX,
        }
        if how == "by name and shape":
            return bool(shared)
        if how == "with its module":
            return self._kinship(source.pattern, target.pattern) >= -2
        # Equal lengths of vectors prove nothing.
        return alone and len(source.shape) > 1 and source.members == target.members

    def _kinship(self, source: Segments, target: Segments) -> int:
        """Minus the number of levels up to the nearest parent modules that are in `kin`."""
        most = min(len(source), len(target))
        near = (up for up in range(1, most) if (source[:-up], target[:-up]) in self.kin)
        return -next(near, max(len(source), len(target)))

    def _contradict(self, source: Segments, target: Segments) -> bool:
        """Whether the names differ first, from the end, in two segments that both sides have:
        `q_proj` doesn't become `k_proj`.
        """
        same_end = ending(source, target)
        if same_end >= 2 or same_end == min(len(source), len(target)):
            return False
        return source[-1 - same_end] in self.theirs and target[-1 - same_end] in self.ours

    def _add(self, pairs: Sequence[tuple[Group, Group]], how: How) -> bool:
        for one, other in pairs:
            self.matches.append(Match(one, other, how))
            del self.sources[one.pattern], self.targets[other.pattern]
            self.kin |= {
                (one.pattern[:i], other.pattern[:j])
                for i in range(1, len(one.pattern))
                for j in range(1, len(other.pattern))
            }
        return bool(pairs)


def _with(groups: Mapping[Segments, Group], pattern: Segments) -> dict[Segments, Group]:
    """The groups, with one of them unfolded if that is necessary for a group with this pattern."""
    if pattern in groups:
        return dict(groups)
    name = ".".join(pattern)
    return _unfolded(groups, {key for key, group in groups.items() if name in group.names})


def _unfolded(
    groups: Mapping[Segments, Group], which: Collection[Segments]
) -> dict[Segments, Group]:
    """The groups. For the patterns in `which`, each member is a group of its own."""
    return _by_pattern(
        single
        for pattern, group in groups.items()
        for single in (unfold(group) if pattern in which else [group])
    )


def _refolded(
    left: Mapping[Segments, Group], groups: Mapping[Segments, Group], lonely: Collection[Segments]
) -> dict[Segments, Group]:
    """The unmatched groups. A group whose members are all in `lonely` is restored."""
    whole = [
        group
        for group in groups.values()
        if all(single.pattern in lonely for single in unfold(group))
    ]
    covered = {single.pattern for group in whole for single in unfold(group)}
    return _by_pattern(
        [*whole, *(group for pattern, group in left.items() if pattern not in covered)]
    )


def _only_best(scores: Mapping[Segments, tuple[int, ...]]) -> Segments | None:
    best = max(scores.values(), default=None)
    names = [name for name, score in scores.items() if score == best]
    return names[0] if len(names) == 1 else None
