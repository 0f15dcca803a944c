"""Source groups to target groups: by shape and layer numbers, by name, by what went there
before. Never by order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, product
from typing import Literal

from llava_remap.rewrite.infer.groups import INDEX, Group, Segments, Shape, fold, tokens, unfold

How = Literal["asked", "by the same name", "by name and shape", "with its module", "by shape alone"]
#: How a match was found, the surest first.
HOWS: tuple[How, ...] = (
    "asked",
    "by the same name",
    "by name and shape",
    "with its module",
    "by shape alone",
)

#: Pairs of groups that are compared at most, of those that fit. Where more do, their names don't
#: tell them apart.
MOST_PAIRS = 250_000
#: What a question offers at most.
MOST_CANDIDATES = 12
#: Rows that a vocabulary may have more in the target: converters pad it to a multiple of 64,
#: trainers of 512 at most.
MOST_NEW_ROWS = 512


@dataclass(frozen=True, slots=True)
class Match:
    """A source group, the target group that it becomes, and what told so."""

    source: Group
    target: Group
    how: How


@dataclass(frozen=True, slots=True)
class Question:
    """A source group that could become any of several target groups, or one that only its length
    speaks for.

    Attributes:
        candidates: the first `MOST_CANDIDATES` of these target groups.
    """

    source: Group
    candidates: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Matching:
    """What became of all groups.

    Attributes:
        matches: those with a partner.
        questions: source groups that could become several.
        unplaced: source groups that fit nothing that is left of the target.
        missing: target groups that no source group became, and that have to be there.
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
        answers: source pattern → target pattern, as told by a person; of groups, or of single
            names.
    """
    state = _State(_by_pattern(fold(source)), _by_pattern(fold(target)), most_pairs)
    for one, other in (answers or {}).items():
        state.answer(one, other)
    state.settle(_members, _equal)
    state.settle(_columns, _longer)
    if state.sources and any(not set(group.names) <= set(tied) for group in state.targets.values()):
        state.settle_unfolded()
    questions, unplaced = [], []
    same, longer = (_by_key(state.targets.values(), key) for key in (_members, _columns))
    for group in state.sources.values():
        tables = longer[_columns(group)]
        few = len(state.sources) * len(tables) <= most_pairs
        fits = chain(
            same[_members(group)], (other for other in tables if few and _longer(group, other))
        )
        if candidates := tuple(islice(fits, MOST_CANDIDATES)):
            questions.append(Question(group, candidates))
        else:
            unplaced.append(group)
    missing = [
        group for group in state.targets.values() if not all(name in tied for name in group.names)
    ]
    if not missing:  # a tied parameter needs no source, so nobody has to be asked for one
        unplaced, questions = [*unplaced, *(question.source for question in questions)], []
    return Matching(tuple(state.matches), tuple(questions), tuple(unplaced), tuple(missing))


def _by_pattern(groups: Iterable[Group]) -> dict[Segments, Group]:
    return {group.pattern: group for group in groups}


def _by_key(
    groups: Iterable[Group], key: Callable[[Group], Hashable]
) -> dict[Hashable, list[Group]]:
    found: dict[Hashable, list[Group]] = defaultdict(list)
    for group in groups:
        found[key(group)].append(group)
    return found


def _members(group: Group) -> Hashable:
    """What two groups have in common that are `_equal`, and no others."""
    return frozenset(group.members.items())


def _columns(group: Group) -> Hashable:
    """What two groups have in common of which one is `_longer`."""
    return group.shape[1:] if [*group.members] == [()] and len(group.shape) == 2 else None


def _equal(source: Group, target: Group) -> bool:
    return source.members == target.members


def _longer(source: Group, target: Group) -> bool:
    return (
        _columns(source) is not None
        and _columns(target) is not None
        and grows(source.shape, target.shape)
    )


def grows(one: Shape, other: Shape) -> bool:
    """Whether the other is a table with somewhat more rows: a converted checkpoint's vocabulary has
    room for new tokens.

    A vocabulary has more rows than columns, which tells it from a table of positions.
    """
    return (
        len(one) == len(other) == 2
        and one[1] == other[1] < one[0] < other[0] <= one[0] + MOST_NEW_ROWS
    )


@dataclass(slots=True)
class _State:
    """What is left on both sides, by pattern, and what was found."""

    sources: dict[Segments, Group]
    targets: dict[Segments, Group]
    most_pairs: int
    matches: list[Match] = field(default_factory=list)
    #: Pairs of modules, one of each side, of which the first had something that went into the
    #: second.
    kin: set[tuple[Segments, Segments]] = field(default_factory=set)
    words: dict[Segments, frozenset[str]] = field(default_factory=dict)
    #: All segments of each side.
    ours: set[str] = field(default_factory=set)
    theirs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._read_words()
        self.ours = {segment for pattern in self.sources for segment in pattern}
        self.theirs = {segment for pattern in self.targets for segment in pattern}

    def _read_words(self) -> None:
        self.words |= tokens(self.sources.values()) | tokens(self.targets.values())

    def answer(self, source: Segments, target: Segments) -> None:
        self.sources, self.targets = _with(self.sources, source), _with(self.targets, target)
        self._read_words()
        self._add([(self.sources[source], self.targets[target])], "asked")

    def settle_unfolded(self) -> None:
        """What equals nothing as a list of layers may do so as single modules; what doesn't is a
        list again.
        """
        sources, targets = self._without_equal()
        self.sources, self.targets = (
            _unfolded(self.sources, sources),
            _unfolded(self.targets, targets),
        )
        self._read_words()
        self.settle(_members, _equal)
        lonely, unwanted = self._without_equal()
        self.sources, self.targets = (
            _refolded(self.sources, sources, lonely),
            _refolded(self.targets, targets, unwanted),
        )

    def _without_equal(self) -> tuple[dict[Segments, Group], dict[Segments, Group]]:
        """Of both sides the groups that equal none of the other."""
        there, wanted = (
            {_members(group) for group in side.values()} for side in (self.sources, self.targets)
        )
        sources = {
            pattern: group
            for pattern, group in self.sources.items()
            if _members(group) not in wanted
        }
        return sources, {
            pattern: group
            for pattern, group in self.targets.items()
            if _members(group) not in there
        }

    def settle(
        self, key: Callable[[Group], Hashable], fits: Callable[[Group, Group], bool]
    ) -> None:
        """Match what can be, the surest first, until nothing more can. Only groups of one key
        fit each other.
        """
        while any(self._add(self._pairs(key, fits, how), how) for how in HOWS[1:]):
            pass

    def _pairs(
        self, key: Callable[[Group], Hashable], fits: Callable[[Group, Group], bool], how: How
    ) -> list[tuple[Group, Group]]:
        """Pairs of groups each of which is the other's only best partner, as far as `how` tells."""
        if how == "by the same name":
            there = ((group, self.targets.get(pattern)) for pattern, group in self.sources.items())
            return [(one, other) for one, other in there if other is not None and fits(one, other)]
        scores: dict[Segments, dict[Segments, tuple[int, ...]]] = defaultdict(dict)
        back: dict[Segments, dict[Segments, tuple[int, ...]]] = defaultdict(dict)
        targets = _by_key(self.targets.values(), key)
        for of_key, ones in _by_key(self.sources.values(), key).items():
            if len(ones) * len(targets[of_key]) > self.most_pairs:
                continue
            for one, other in product(ones, targets[of_key]):
                if fits(one, other):
                    score = self._score(one, other, how)
                    scores[one.pattern][other.pattern] = back[other.pattern][one.pattern] = score
        wanted_by = {pattern: _only_best(scored) for pattern, scored in back.items()}
        found = []
        for pattern in (pattern for pattern in self.sources if pattern in scores):
            scored = scores[pattern]
            best = _only_best(scored)
            if best is not None and wanted_by[best] == pattern:
                pair = (self.sources[pattern], self.targets[best])
                if self._tells(pair, how, alone=len(scored) == len(back[best]) == 1):
                    found.append(pair)
        return found

    def _score(self, source: Group, target: Group, how: How) -> tuple[int, ...]:
        shared = len(self.words[source.pattern] & self.words[target.pattern])
        ending = _ending(source.pattern, target.pattern)
        return (
            (shared, self._kinship(source.pattern, target.pattern), ending)
            if how == "with its module"
            else (shared, ending)
        )

    def _tells(self, pair: tuple[Group, Group], how: How, *, alone: bool) -> bool:
        """Whether that two groups are each other's best is reason enough."""
        source, target = pair
        if self._contradict(source, target):
            return False
        # `weight` and `bias` agree everywhere, and so do `model` and a layer's number.
        shared = self.words[source.pattern] & self.words[target.pattern] - {
            source.pattern[-1].lower(),
            "model",
            INDEX,
        }
        if how == "by name and shape":
            return bool(shared)
        if how == "with its module":
            return self._kinship(source.pattern, target.pattern) >= -2
        return (
            alone and len(source.shape) > 1 and source.members == target.members
        )  # that vectors are as long says nothing

    def _kinship(self, source: Segments, target: Segments) -> int:
        """Minus the levels up to the nearest pair of modules that hold them and have gone
        together before.
        """
        most = min(len(source), len(target))
        near = (up for up in range(1, most) if (source[:-up], target[:-up]) in self.kin)
        return -next(near, max(len(source), len(target)))

    def _contradict(self, source: Group, target: Group) -> bool:
        """Whether their modules have two words each of which both sides know: `q_proj` doesn't
        become `k_proj`.
        """
        ending = _ending(source.pattern, target.pattern)
        one, other = (
            source.pattern[: len(source.pattern) - ending],
            target.pattern[: len(target.pattern) - ending],
        )
        return (
            ending < 2 and bool(one and other) and one[-1] in self.theirs and other[-1] in self.ours
        )

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
    """The groups, unfolded as far as it takes for one of them to have this pattern."""
    if pattern in groups:
        return dict(groups)
    name = ".".join(pattern)
    return _unfolded(groups, {key for key, group in groups.items() if name in group.names})


def _unfolded(
    groups: Mapping[Segments, Group], which: Collection[Segments]
) -> dict[Segments, Group]:
    """The groups, with every member of some as a group of its own."""
    return _by_pattern(
        single
        for pattern, group in groups.items()
        for single in (unfold(group) if pattern in which else [group])
    )


def _refolded(
    left: Mapping[Segments, Group], groups: Mapping[Segments, Group], lonely: Collection[Segments]
) -> dict[Segments, Group]:
    """What is left, with those groups whole again of which every member is left and fits
    nothing.
    """
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


def _ending(one: Segments, other: Segments) -> int:
    """Number of last segments in common."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count
