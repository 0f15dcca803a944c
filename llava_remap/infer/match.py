"""Source groups to target groups: by shape and layer numbers, by name, by what went there before. Never by order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llava_remap.infer.groups import INDEX, Group, Segments, Shape, fold, tokens, unfold

How = Literal["asked", "by the same name", "by name and shape", "with its module", "by shape alone"]
#: How a match was found, the surest first.
HOWS: tuple[How, ...] = ("asked", "by the same name", "by name and shape", "with its module", "by shape alone")

#: Rows that a vocabulary may have more in the target: converters pad it to a multiple of 64, trainers of 512 at most.
MOST_NEW_ROWS = 512


@dataclass(frozen=True, slots=True)
class Match:
    """A source group, the target group that it becomes, and what told so."""

    source: Group
    target: Group
    how: How


@dataclass(frozen=True, slots=True)
class Question:
    """A source group that could become any of several target groups, or one that only its length speaks for."""

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
) -> Matching:
    """Find the partner of every group.

    Args:
        source, target: name → shape.
        tied: target names that need no source.
        answers: source pattern → target pattern, as told by a person; of groups, or of single names.
    """
    state = _State(fold(source), fold(target))
    for one, other in (answers or {}).items():
        state.answer(one, other)
    state.settle(_equal)
    state.settle(_longer)
    if state.sources and any(not set(group.names) <= set(tied) for group in state.targets):
        state.settle_unfolded(_equal)
    questions, unplaced = [], []
    for group in state.sources:
        fits = tuple(other for other in state.targets if _equal(group, other) or _longer(group, other))
        if fits:
            questions.append(Question(group, fits))
        else:
            unplaced.append(group)
    missing = [group for group in state.targets if not all(name in tied for name in group.names)]
    if not missing:  # a tied parameter needs no source, so nobody has to be asked for one
        unplaced, questions = [*unplaced, *(question.source for question in questions)], []
    return Matching(tuple(state.matches), tuple(questions), tuple(unplaced), tuple(missing))


def _equal(source: Group, target: Group) -> bool:
    return source.members == target.members


def _longer(source: Group, target: Group) -> bool:
    return [*source.members] == [*target.members] == [()] and grows(source.shape, target.shape)


def grows(one: Shape, other: Shape) -> bool:
    """Whether the other is a table with somewhat more rows: a converted checkpoint's vocabulary has room for new tokens.

    A vocabulary has more rows than columns, which tells it from a table of positions.
    """
    return len(one) == len(other) == 2 and one[1] == other[1] < one[0] < other[0] <= one[0] + MOST_NEW_ROWS


@dataclass(slots=True)
class _State:
    """What is left on both sides, and what was found."""

    sources: list[Group]
    targets: list[Group]
    matches: list[Match] = field(default_factory=list)
    #: Pairs of modules, one of each side, of which the first had something that went into the second.
    kin: set[tuple[Segments, Segments]] = field(default_factory=set)
    words: dict[Segments, frozenset[str]] = field(default_factory=dict)
    #: All segments of each side.
    ours: set[str] = field(default_factory=set)
    theirs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._read_words()
        self.ours = {segment for group in self.sources for segment in group.pattern}
        self.theirs = {segment for group in self.targets for segment in group.pattern}

    def _read_words(self) -> None:
        self.words |= tokens(self.sources) | tokens(self.targets)

    def answer(self, source: Segments, target: Segments) -> None:
        self.sources, self.targets = _with(self.sources, source), _with(self.targets, target)
        self._read_words()
        one = next(group for group in self.sources if group.pattern == source)
        other = next(group for group in self.targets if group.pattern == target)
        self._add([(one, other)], "asked")

    def settle_unfolded(self, fits: Callable[[Group, Group], bool]) -> None:
        """What fits nothing as a list of layers may fit as single modules; what doesn't is a list again."""
        sources = [group for group in self.sources if not any(fits(group, other) for other in self.targets)]
        targets = [group for group in self.targets if not any(fits(other, group) for other in self.sources)]
        self.sources = [single for group in self.sources for single in (unfold(group) if group in sources else [group])]
        self.targets = [single for group in self.targets for single in (unfold(group) if group in targets else [group])]
        self._read_words()
        self.settle(fits)
        lonely = [group for group in self.sources if not any(fits(group, other) for other in self.targets)]
        unwanted = [group for group in self.targets if not any(fits(other, group) for other in self.sources)]
        self.sources, self.targets = _refolded(self.sources, sources, lonely), _refolded(self.targets, targets, unwanted)

    def settle(self, fits: Callable[[Group, Group], bool]) -> None:
        """Match what can be, the surest first, until nothing more can."""
        while any(self._add(self._pairs(fits, how), how) for how in HOWS[1:]):
            pass

    def _pairs(self, fits: Callable[[Group, Group], bool], how: How) -> list[tuple[Group, Group]]:
        """Pairs of groups each of which is the other's only best partner, as far as `how` tells."""
        scores: dict[Segments, dict[Segments, tuple[int, ...]]] = defaultdict(dict)
        back: dict[Segments, dict[Segments, tuple[int, ...]]] = defaultdict(dict)
        by_key: dict[object, list[Group]] = defaultdict(list)
        for group in self.targets:
            by_key[_key(group)].append(group)
        for one in self.sources:
            for other in by_key[_key(one)]:
                if fits(one, other):
                    score = self._score(one, other, how)
                    scores[one.pattern][other.pattern] = back[other.pattern][one.pattern] = score
        targets = {group.pattern: group for group in self.targets}
        found = []
        for group in self.sources:
            best = _only_best(scores[group.pattern])
            if best is not None and _only_best(back[best]) == group.pattern:
                pair = (group, targets[best])
                if self._tells(pair, how, alone=len(scores[group.pattern]) == len(back[best]) == 1):
                    found.append(pair)
        return found

    def _score(self, source: Group, target: Group, how: How) -> tuple[int, ...]:
        shared = len(self.words[source.pattern] & self.words[target.pattern])
        ending = _ending(source.pattern, target.pattern)
        if how == "by the same name":
            return (int(source.pattern == target.pattern),)
        return (shared, self._kinship(source.pattern, target.pattern), ending) if how == "with its module" else (shared, ending)

    def _tells(self, pair: tuple[Group, Group], how: How, *, alone: bool) -> bool:
        """Whether that two groups are each other's best is reason enough."""
        source, target = pair
        if how == "by the same name":
            return source.pattern == target.pattern
        if self._contradict(source, target):
            return False
        # `weight` and `bias` agree everywhere, and so do `model` and a layer's number.
        shared = self.words[source.pattern] & self.words[target.pattern] - {source.pattern[-1].lower(), "model", INDEX}
        if how == "by name and shape":
            return bool(shared)
        if how == "with its module":
            return self._kinship(source.pattern, target.pattern) >= -2
        return alone and len(source.shape) > 1 and source.members == target.members  # that vectors are as long says nothing

    def _kinship(self, source: Segments, target: Segments) -> int:
        """Minus the levels up to the nearest pair of modules that hold them and have gone together before."""
        most = min(len(source), len(target))
        near = (up for up in range(1, most) if (source[:-up], target[:-up]) in self.kin)
        return -next(near, max(len(source), len(target)))

    def _contradict(self, source: Group, target: Group) -> bool:
        """Whether their modules have two words each of which both sides know: `q_proj` doesn't become `k_proj`."""
        ending = _ending(source.pattern, target.pattern)
        one, other = source.pattern[: len(source.pattern) - ending], target.pattern[: len(target.pattern) - ending]
        return ending < 2 and bool(one and other) and one[-1] in self.theirs and other[-1] in self.ours

    def _add(self, pairs: Sequence[tuple[Group, Group]], how: How) -> bool:
        for one, other in pairs:
            self.matches.append(Match(one, other, how))
            self.sources.remove(one)
            self.targets.remove(other)
            self.kin |= {
                (one.pattern[:i], other.pattern[:j]) for i in range(1, len(one.pattern)) for j in range(1, len(other.pattern))
            }
        return bool(pairs)


def _with(groups: Sequence[Group], pattern: Segments) -> list[Group]:
    """The groups, unfolded as far as it takes for one of them to have this pattern."""
    if any(group.pattern == pattern for group in groups):
        return list(groups)
    name = ".".join(pattern)
    return [single for group in groups for single in (unfold(group) if name in group.names else [group])]


def _refolded(left: Sequence[Group], groups: Sequence[Group], lonely: Sequence[Group]) -> list[Group]:
    """What is left, with those groups whole again of which every member is left and fits nothing."""
    names = {group.pattern for group in lonely}
    whole = [group for group in groups if all(single.pattern in names for single in unfold(group))]
    covered = {single.pattern for group in whole for single in unfold(group)}
    return [*whole, *(group for group in left if group.pattern not in covered)]


def _key(group: Group) -> object:
    """What two groups that fit have in common, so that not every pair needs a look."""
    shape = group.shape
    return (len(group.members), len(shape), shape[-1] if len(shape) == 2 else shape)


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
