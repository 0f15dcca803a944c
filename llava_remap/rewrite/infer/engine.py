"""The steps of an inference: form groups, match them, make rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from llava_remap.rewrite.infer.groups import INDEX, Group, Segments, Shape, fill, fold, unfold
from llava_remap.rewrite.infer.joins import (
    FoundOperation,
    adding_up,
    find_operations,
    operation_lines,
    squares_beside,
)
from llava_remap.rewrite.infer.match import Match, Matching, match
from llava_remap.rewrite.infer.rules import DROPPED, InferredRule, make_rules, rule_line

#: The most pairs of groups to compare for a suggestion, which takes a second or two.
_MOST_PAIRS = 40_000


@dataclass(frozen=True, slots=True)
class Inference(Matching):
    """The matched groups, and the rules for them.

    Attributes:
        unplaced: source groups that fit nothing in the target and aren't dropped; no rule takes
            them.
        rules: in their order; the first that matches a name counts.
        dropped: source groups that fit nothing in the target, although it is complete.
        inside: unplaced groups in the source's module for `whole`; they are never dropped.
        operations: tensor operations that make several parameters of one tensor, or one of several.
        squares: unplaced square groups beside transposed ones, with the groups that they may be.
    """

    rules: tuple[InferredRule, ...]
    dropped: tuple[Group, ...]
    inside: tuple[Group, ...]
    operations: tuple[FoundOperation, ...] = ()
    squares: tuple[tuple[Group, Group], ...] = ()

    @property
    def operation_lines(self) -> list[tuple[str, FoundOperation]]:
        """A line of `tensors` for each operation, or for several alike."""
        others = [
            name
            for pair in self.matches
            if pair.how != "by an operation"
            for name in pair.target.names
        ]
        others += [name for group in self.missing for name in group.names]
        return operation_lines(self.operations, others, moved=True)

    @property
    def adding_up(self) -> list[str]:
        """Tensors left over that may be operations, in words: as large as several others, and
        neither names nor shapes tell it; or square beside transposed ones.
        """
        left = [*self.unplaced, *(question.source for question in self.questions)]
        sums = []
        for whole, parts, ways in adding_up(_shapes(left), _shapes(self.missing)):
            along = " or, transposed, ".join(f"along axis {axis}" for axis, _ in ways)
            if [turned for _, turned in ways] == [True]:
                along = f"transposed, {along}"
            sums.append(
                f"{whole.folded} {list(whole.shape)} is as large as "
                f"{' and '.join(part.folded for part in parts)} together, {along}. "
                f"{'Names' if len(ways) == 1 else 'Names and sizes'} don't show whether they "
                "belong together, and in which order"
            )
        return sums + [
            f"{source.folded} {list(source.shape)} is square, and matrices beside it are "
            f"transposed: sizes don't tell whether it is too. It becomes {target.folded} as it is "
            f"(--map {source.names[0]}={target.names[0]}), or by an operation with "
            "`how: {axes: [1, 0]}`"
            for source, target in self.squares
        ]

    def unsure(self, rule: InferredRule) -> str:
        """Why a person should check a rule; empty if the rule is sure."""
        if rule.to is None:
            return DROPPED
        alone = any(pair.how == "by shape alone" for pair in self._behind(rule))
        return "by shape alone, names don't decide" if alone else ""

    def names_of(self, rule: InferredRule) -> list[tuple[str, str | None]]:
        """The names that a rule was made for, each with its new name (None: dropped)."""
        patterns = set(rule.patterns)
        dropped = (group for group in self.dropped if _patterns(group) & patterns)
        return [
            *(
                names
                for pair in self._behind(rule)
                for names in zip(pair.source.names, pair.target.names, strict=True)
            ),
            *((name, None) for group in dropped for name in group.names),
        ]

    def _behind(self, rule: InferredRule) -> list[Match]:
        patterns = set(rule.patterns)
        return [pair for pair in self.matches if _patterns(pair.source) & patterns]


def infer(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    *,
    tied: Collection[str] = (),
    answers: Mapping[Segments, Segments] | None = None,
    drop: bool = False,
    whole: str = "",
) -> Inference:
    """Find the rules that take the source names to the target names.

    Args:
        source: name (after `prepare`) → shape.
        target: name → shape.
        tied: target names that need no source.
        answers: source pattern → target pattern, from a person.
        drop: whether to drop groups that fit nothing in the target, if the target is complete
            without them. Only a person knows whether a model computes with them: LLaVA-1.6, for
            example, is complete without the tiles' `image_newline`.
        whole: a module of the target. Groups in the corresponding source module are never dropped,
            since the model computes with them.
    """
    found, operations = with_operations(match(source, target, tied, answers))
    found, squares = _without_squares(found, operations)
    inside = _inside(found, whole)
    dropped = (
        tuple(group for group in found.unplaced if group not in inside)
        if drop and not found.missing
        else ()
    )
    unplaced = inside if dropped else found.unplaced
    return Inference(
        found.matches,
        found.questions,
        unplaced,
        found.missing,
        rules=tuple(_rules(found, dropped, unplaced)),
        dropped=dropped,
        inside=inside,
        operations=operations,
        squares=squares,
    )


def _without_squares(
    found: Matching, operations: Sequence[FoundOperation]
) -> tuple[Matching, tuple[tuple[Group, Group], ...]]:
    """A matching in which square matrices beside transposed ones have no partner, unless a person
    gave it; and these groups.
    """
    pairs = [(one.source, one.target) for one in found.matches if one.how != "asked"]
    squares = squares_beside(pairs, operations)
    sources, targets = ([pair[side] for pair in squares] for side in (0, 1))
    return (
        Matching(
            tuple(one for one in found.matches if one.source not in sources),
            found.questions,
            (*found.unplaced, *sources),
            (*found.missing, *targets),
        ),
        tuple(squares),
    )


def with_operations(found: Matching) -> tuple[Matching, tuple[FoundOperation, ...]]:
    """A matching with partners for groups that have none of their own, if operations give them
    one; and the operations.
    """
    left = [*found.unplaced, *(question.source for question in found.questions)]
    operations = find_operations(_shapes(left), _shapes(found.missing))
    used = {name for one in operations for group in one.sources for name in group.names}
    made = {name for one in operations for group in one.targets for name in group.names}
    matches = [
        Match(source, Group(one.taken_as(source), source.members), "by an operation")
        for one in operations
        for source in one.sources
    ]
    return (
        Matching(
            (*found.matches, *matches),
            tuple(q for q in found.questions if used.isdisjoint(q.source.names)),
            tuple(group for group in found.unplaced if used.isdisjoint(group.names)),
            tuple(group for group in found.missing if made.isdisjoint(group.names)),
        ),
        tuple(operations),
    )


def _shapes(groups: Collection[Group]) -> dict[str, Shape]:
    return {
        fill(group.pattern, numbers): shape
        for group in groups
        for numbers, shape in group.members.items()
    }


def _inside(found: Matching, module: str) -> tuple[Group, ...]:
    """The unplaced groups in source modules that become parts of this target module only."""
    taken = [pair.source.pattern for pair in found.matches if pair.target.pattern[0] == module]
    lists = {
        pattern[:at]
        for pattern in taken
        for at, part in enumerate(pattern)
        if part == INDEX or part.isdecimal()
    }
    modules = {*lists, *(pattern[:-1] for pattern in taken)} - {()}
    around = {parent[:-1] for parent in lists} - {()}
    others = (pair.source.pattern for pair in found.matches if pair.target.pattern[0] != module)
    elsewhere = {pattern[:at] for pattern in others for at in range(1, len(pattern))}

    def is_inside(pattern: Segments) -> bool:
        parents = [pattern[:at] for at in range(1, len(pattern))]
        beside = any(one in around and other not in elsewhere for one, other in pairwise(parents))
        return beside or not modules.isdisjoint(parents)

    return tuple(group for group in found.unplaced if is_inside(group.pattern))


def suggest_operations(
    unmapped: Mapping[str, Shape],
    missing: Mapping[str, Shape],
    turned: Mapping[str, Shape] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Lines of `tensors` that make parameters without a source of names without a parameter, and
    that turn matrices.

    Args:
        unmapped: source name, as `names` or else `prepare` leaves it → shape.
        missing: parameter → shape.
        turned: matrices that the checkpoint has transposed → shape there.
    """
    if len(fold(unmapped)) * len(fold(missing)) > _MOST_PAIRS:
        return ()
    found = find_operations(unmapped, missing)
    found += [FoundOperation("turn", one, (one,), 0, turned=True) for one in fold(turned)]
    return tuple(line for line, _ in operation_lines(found, (), moved=False))


def suggest_rules(
    unmapped: Mapping[str, Shape], missing: Mapping[str, Shape], untouched: Collection[str] = ()
) -> tuple[str, ...]:
    """Lines to paste in front of `names`. They map names without a rule to parameters without a
    source. Empty if nothing is sure.

    Args:
        unmapped, missing: name → shape; source names as `prepare` leaves them.
        untouched: source names that other rules take; the lines must not take them.
    """
    if not unmapped or not missing or len(fold(unmapped)) * len(fold(missing)) > _MOST_PAIRS:
        return ()
    found = match(unmapped, missing, most_pairs=_MOST_PAIRS)
    others = fold(dict.fromkeys(untouched, ()))
    if len(found.matches) * len(others) > _MOST_PAIRS:
        return ()
    return tuple(rule_line(rule) for rule in _rules(found, (), found.unplaced, others))


def _rules(
    found: Matching,
    dropped: Collection[Group],
    unplaced: Collection[Group],
    untouched: Collection[Group] = (),
) -> list[InferredRule]:
    """The rules for all matched and dropped groups. They take no name of any other group, nor of
    the untouched groups.
    """
    pairs: list[tuple[Group, Group | None]] = [(pair.source, pair.target) for pair in found.matches]
    pairs += [(group, None) for group in dropped]
    left = [*(question.source for question in found.questions), *unplaced, *untouched]
    mixed = _mixed([*(group for group, _ in pairs), *left])
    moves: dict[Segments, Segments | None] = {}
    for group, target in pairs:
        if not mixed & _lists(group):
            moves[group.pattern] = target.pattern if target else None
        else:
            singles = [None] * len(group.members) if target is None else unfold(target)
            moves |= {
                one.pattern: other.pattern if other else None
                for one, other in zip(unfold(group), singles, strict=True)
            }
    others = [
        single.pattern
        for group in left
        for single in (unfold(group) if mixed & _lists(group) else [group])
    ]
    return make_rules(moves, others)


def _mixed(groups: Collection[Group]) -> set[Segments]:
    """Modules below which one group has a layer's number and another group a plain number. The
    names of such groups overlap.
    """
    lists = {parent for group in groups for parent in _lists(group)}
    plain = {
        group.pattern[:at]
        for group in groups
        for at, part in enumerate(group.pattern)
        if part.isdecimal()
    }
    return lists & plain


def _lists(group: Group) -> set[Segments]:
    """The modules of a group that are lists of layers."""
    return {group.pattern[:at] for at, part in enumerate(group.pattern) if part == INDEX}


def _patterns(group: Group) -> set[Segments]:
    return {group.pattern, *(single.pattern for single in unfold(group))}
