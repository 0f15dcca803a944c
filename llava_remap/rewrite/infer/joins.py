"""Finds tensor operations for tensors without a partner: a tensor with the rows of several tensors,
or a list of tensors that equals one tensor with another axis.

Shapes show which sums are possible, and names show which sum is meant: q, k and v spell `qkv`,
which also gives their order. If names spell none of the sums, or several, nothing is inferred.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

from llava_remap.rewrite.infer.groups import INDEX, Group, Segments, Shape, fold
from llava_remap.rulefile import Template
from llava_remap.rulefile.yaml_write import flow, quoted

Kind = Literal["split", "concat", "stack", "unstack", "turn"]
_OF_ROWS = (
    "sizes and names show which tensors belong together, but only the code that wrote them shows "
    "whether their rows follow one another or alternate (by head, by group)"
)
_OF_LISTS = (
    "sizes and names show which tensors belong together; check whether the code reorders their axes"
)
#: Why a person should check an operation: shapes don't distinguish these cases.
UNSURE: Mapping[Kind, str] = {
    "split": _OF_ROWS,
    "concat": _OF_ROWS,
    "stack": _OF_LISTS,
    "unstack": _OF_LISTS,
    "turn": "the sizes show that the checkpoint has these matrices transposed",
}
#: The most parts of a tensor, and the most neighbouring tensors that are tried.
_MOST_PARTS, _MOST_BESIDE = 3, 8
_FIELDS = ("n", "m", "k")
#: Words of a fused tensor's name that don't stand for its parts.
_GENERAL = {"proj", "weight", "bias", "w", "layer", "linear", "attn"}
#: Names that torch.nn.MultiheadAttention gives to the rows of query, key and value.
_SPELT: Mapping[tuple[str, ...], tuple[str, ...]] = {("in",): ("q", "k", "v")}


@dataclass(frozen=True, slots=True)
class FoundOperation:
    """An operation that fits its tensors. No other operation fits them.

    Attributes:
        kind: the kind of operation, from the sources to the target.
        whole: the single tensor, of each layer; a source for `split` and `unstack`.
        parts: the other tensors, in order. If they are lists, the number in the list is a further
            INDEX in their names, at segment `at`; it numbers the first axis of the whole.
        axis: the axis along which the parts follow one another, or which numbers them.
        at: the segment with the number in a list; -1 if the parts aren't lists.
        turned: whether the last two axes of the whole are exchanged.
    """

    kind: Kind
    whole: Group
    parts: tuple[Group, ...]
    axis: int
    at: int = -1
    turned: bool = False

    @property
    def divides(self) -> bool:
        return self.kind in ("split", "unstack", "turn")

    @property
    def sources(self) -> tuple[Group, ...]:
        return (self.whole,) if self.divides else self.parts

    @property
    def targets(self) -> tuple[Group, ...]:
        return self.parts if self.divides else (self.whole,)

    @property
    def how(self) -> str:
        """The operation's `how`, as written in a rule file."""
        rank = len(self.whole.shape)
        axes = [*range(rank - 2), rank - 1, rank - 2]
        words = [f"axes: {axes}"] if self.turned else []
        if self.at >= 0 and (lists := {"split": "unstack", "concat": "stack"}.get(self.kind)):
            words.append(f"{lists}: 0")
        if self.kind != "turn":
            words.append(f"{self.kind}: {self.axis}")
        return f"{{{', '.join(words)}}}"

    @property
    def module(self) -> Segments:
        """The target's module that has the tensors."""
        if self.at >= 0:
            return self.parts[0].pattern[: self.at] if self.divides else self.whole.pattern[:-1]
        return self.targets[0].pattern[:-2] if self.divides else _owner(self.whole.pattern)

    def taken_as(self, source: Group) -> Segments:
        """The name of a source in the target's module, as `names` makes it for the operation."""
        tail = source.pattern[self.at :] if self.at >= 0 and not self.divides else ()
        if not tail:
            tail = source.pattern[len(_owner(source.pattern)) :]
        return (*self.module, *tail)


def _owner(pattern: Segments) -> Segments:
    """The module around the module of a parameter. For a parameter that stands directly in that
    module (`in_proj_weight`), its own module.
    """
    return pattern[:-2] if pattern[-1] in ("weight", "bias") else pattern[:-1]


def find_operations(
    source: Mapping[str, Shape], target: Mapping[str, Shape]
) -> list[FoundOperation]:
    """Find operations for source tensors and target tensors without partners.

    Args:
        source, target: name → shape.
    """
    ours, theirs = fold(source), fold(target)
    found = [
        *(FoundOperation("split", *sum_) for sum_ in _sums(ours, theirs)),
        *(FoundOperation("concat", *sum_) for sum_ in _sums(theirs, ours)),
        *(FoundOperation("unstack", *stack) for stack in _stacks(ours, theirs)),
        *(FoundOperation("stack", *stack) for stack in _stacks(theirs, ours)),
        *(FoundOperation("split", *sum_) for sum_ in _sums_of_lists(ours, theirs)),
        *(FoundOperation("concat", *sum_) for sum_ in _sums_of_lists(theirs, ours)),
        *(
            FoundOperation("turn", one, (other,), 0, turned=True)
            for one in ours
            for other in theirs
            if _is_same_name(one, other) and _are_turned(one, other)
        ),
    ]
    uses: dict[Segments, int] = defaultdict(int)
    for one in found:
        for group in (one.whole, *one.parts):
            uses[group.pattern] += 1
    return [one for one in found if all(uses[g.pattern] == 1 for g in (one.whole, *one.parts))]


def _is_same_name(one: Group, other: Group) -> bool:
    """Whether two groups are the same parameter of modules of one name."""
    return len(one.pattern) > 1 and one.pattern[-2:] == other.pattern[-2:]


def _are_turned(one: Group, other: Group) -> bool:
    """Whether the matrices of a group are those of another group transposed, as their sizes say.
    Sizes of square matrices don't say it.
    """
    swapped = _swapped(one)
    return swapped is not None and swapped != one and swapped.members == other.members


def _swapped(group: Group) -> Group | None:
    """A group with the last two axes in the other order; None if a member has fewer axes."""
    if any(len(shape) < 2 for shape in group.members.values()):
        return None
    shapes = {at: (*s[:-2], s[-1], s[-2]) for at, s in group.members.items()}
    return Group(group.pattern, shapes)


def squares_beside(
    matched: Iterable[tuple[Group, Group]], found: Sequence[FoundOperation]
) -> list[tuple[Group, Group]]:
    """Of matched groups, the square matrices in lists of layers where other matrices are
    transposed: sizes don't say whether these are too.
    """
    lists = {
        group.pattern[: group.pattern.index(INDEX)]
        for one in found
        if one.turned
        for group in one.sources
        if INDEX in group.pattern
    }
    return [
        (source, target)
        for source, target in matched
        if INDEX in source.pattern
        and source.pattern[: source.pattern.index(INDEX)] in lists
        and all(len(s) == 2 and s[0] == s[1] for s in source.members.values())
    ]


def _sums(
    wholes: Sequence[Group], parts: Sequence[Group]
) -> Iterator[tuple[Group, tuple[Group, ...], int, int, bool]]:
    """Each whole with the parts that spell its name and add up to its size; the axis, -1, and
    whether the whole is turned.
    """
    beside: dict[tuple[Segments, str], list[Group]] = defaultdict(list)
    for part in parts:
        if len(part.pattern) > 1:
            beside[part.pattern[:-2], part.pattern[-1]].append(part)
    for whole in wholes:
        kind = re.sub(r".*_", "", whole.pattern[-1])  # `weight`, also of in_proj_weight
        for (_, last), alike in beside.items():
            if last != kind or len(alike) > _MOST_BESIDE:
                continue
            for count in range(2, _MOST_PARTS + 1):
                for chosen in permutations(alike, count):
                    for axis, turned in _ways(whole, chosen) if _spells(whole, chosen) else ():
                        yield whole, chosen, axis, -1, turned


def adding_up(
    source: Mapping[str, Shape], target: Mapping[str, Shape]
) -> list[tuple[Group, tuple[Group, ...], list[tuple[int, bool]]]]:
    """Tensors as large as several neighbouring tensors together, if names don't spell the tensor's
    name or shapes allow several ways: the whole, the parts, and the ways. A way is an axis, and
    whether the whole is turned.

    Args:
        source, target: name → shape, of the tensors without partner and operation.
    """
    found = []
    for wholes, parts in ((fold(source), fold(target)), (fold(target), fold(source))):
        beside: dict[tuple[Segments, str], list[Group]] = defaultdict(list)
        for part in parts:
            if len(part.pattern) > 1:
                beside[part.pattern[:-2], part.pattern[-1]].append(part)
        found += [
            (whole, chosen, ways)
            for whole in wholes
            for alike in beside.values()
            if len(alike) <= _MOST_BESIDE
            for count in range(2, _MOST_PARTS + 1)
            for chosen in combinations(alike, count)
            if (ways := _ways(whole, chosen))
        ]
    return found


def _sums_of_lists(
    wholes: Sequence[Group], parts: Sequence[Group]
) -> Iterator[tuple[Group, tuple[Group, ...], int, int]]:
    """As `_sums`, for parts that are lists. The last value is the segment of the list's number."""
    lists: dict[tuple[Segments, str], list[tuple[Group, Group]]] = defaultdict(list)
    for alike in parts:
        pattern = alike.pattern
        at = len(pattern) - 3  # module, number, matrix, weight
        if at > 0 and pattern[at] == INDEX and (stacked := _as_one(alike, at)) is not None:
            lists[pattern[:at], pattern[-1]].append((alike, stacked))
    for whole in wholes:
        for (module, _), alike_lists in lists.items():
            if len(alike_lists) > _MOST_BESIDE:
                continue
            for count in range(2, _MOST_PARTS + 1):
                for chosen in permutations(alike_lists, count):
                    stacked_parts = [stacked for _, stacked in chosen]
                    if _spells(whole, stacked_parts):
                        groups = tuple(group for group, _ in chosen)
                        for axis in _axes(whole, stacked_parts):
                            yield whole, groups, axis, len(module)


def _as_one(alike: Group, at: int) -> Group | None:
    """A list as one group of stacked tensors; None if numbers are missing or shapes differ."""
    place = sum(part == INDEX for part in alike.pattern[:at])
    shapes: dict[tuple[int, ...], dict[int, Shape]] = defaultdict(dict)
    for numbers, shape in alike.members.items():
        shapes[numbers[:place] + numbers[place + 1 :]][numbers[place]] = shape
    members: dict[tuple[int, ...], Shape] = {}
    for numbers, own in shapes.items():
        if [*sorted(own)] != [*range(len(own))] or len({*own.values()}) > 1:
            return None
        members[numbers] = (len(own), *own[0])
    return Group((*alike.pattern[:at], *alike.pattern[at + 1 :]), members)


def _spells(whole: Group, parts: Sequence[Group]) -> bool:
    """Whether the words of the parts, or their first letters, are the words of the whole."""
    name = whole.pattern[len(_owner(whole.pattern))]
    words = [word for word in _words(name) if word not in _GENERAL]
    each = [_words(part.pattern[-2])[:1] for part in parts]
    if not words or not all(each):
        return False
    spelt = "".join(word for [word] in each)
    said = _SPELT.get(tuple(words), tuple(words))
    written = {"".join(said), "".join(said).removeprefix("w"), "".join(word[0] for word in said)}
    initials = "".join(word[0] for [word] in each)
    return spelt in written or (len(initials) == len({*initials}) and initials in written)


def _words(segment: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", segment.lower())


def _ways(whole: Group, parts: Sequence[Group]) -> list[tuple[int, bool]]:
    """The axes along which the parts make the whole, or the whole with its axes turned.

    Square matrices below one another make the whole both as they are and turned. Below one another
    they count as they are: training code that turns no other matrix doesn't turn these. Side by
    side both ways count, since most code that has them so is a Conv1D's.
    """
    plain = [(axis, False) for axis in _axes(whole, parts)]
    swapped = _swapped(whole)
    if (0, False) in plain or swapped is None or len(whole.shape) != 2:
        return plain
    return plain + [(axis, True) for axis in _axes(swapped, parts)]


def _axes(whole: Group, parts: Sequence[Group]) -> list[int]:
    """The axes along which the parts make the whole, in every layer."""
    if any(part.members.keys() != whole.members.keys() for part in parts):
        return []

    def fits(axis: int) -> bool:
        for numbers, shape in whole.members.items():
            shapes = [part.members[numbers] for part in parts]
            if any(len(own) != len(shape) or axis >= len(own) for own in shapes):
                return False
            if not shape[axis] or sum(own[axis] for own in shapes) != shape[axis]:
                return False  # a size of 0 stands for an unknown one
            if any(_without(own, axis) != _without(shape, axis) for own in shapes):
                return False
        return True

    return [axis for axis in range(len(whole.shape)) if fits(axis)]


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def _stacks(
    wholes: Sequence[Group], lists: Sequence[Group]
) -> Iterator[tuple[Group, tuple[Group, ...], int, int, bool]]:
    """Each whole with the only list whose tensors its first axis can number, the axis, the
    segment with the number in the list's names, and whether the whole is turned.
    """
    for whole in wholes:
        fits = [
            (alike, at, turned)
            for alike in lists
            for at, part in enumerate(alike.pattern)
            if part == INDEX
            for turned in (False, True)
            if _is_stacked(whole, alike, at, turned=turned)
        ]
        words = {*_words(".".join(whole.pattern[-2:]))} - _GENERAL
        near = [one for one in fits if words & {*_words(".".join(one[0].pattern[one[1] :]))}]
        if len(near) == 1 or len(fits) == 1:
            alike, at, turned = (near if len(near) == 1 else fits)[0]
            yield whole, (alike,), 0, at, turned


def _is_stacked(whole: Group, alike: Group, at: int, *, turned: bool) -> bool:
    stacked = _as_one(alike, at)
    if stacked is None or not turned:
        return stacked is not None and stacked.members == whole.members
    return len(stacked.shape) > 2 and _are_turned(whole, stacked)


def operation_lines(
    found: Sequence[FoundOperation], others: Collection[str], *, moved: bool
) -> list[tuple[str, FoundOperation]]:
    """A line of `tensors` for each operation, or for several operations that differ only in the
    parameter.

    Args:
        others: names that no operation may take.
        moved: whether `names` first moves the sources into the target's module.
    """
    merged: dict[object, list[FoundOperation]] = defaultdict(list)
    for one in found:
        ends = tuple(group.pattern[:-1] for group in (one.whole, *one.parts))
        last = frozenset(group.pattern[-1] for group in (one.whole, *one.parts))
        merged[one.kind, one.how, ends, last if len(last) > 1 else ""].append(one)
    lines: list[tuple[str, FoundOperation]] = []
    ids: set[str] = set()
    for alike in merged.values():
        one = alike[0]
        parameter = "{p}" if len(alike) > 1 else ""
        patterns = [one.taken_as(g) if moved else g.pattern for g in one.sources]
        froms = [_spelt(one, pattern, parameter) for pattern in patterns]
        tos = [_spelt(one, group.pattern, parameter, new=True) for group in one.targets]
        if moved and one.module:
            short = [_short(one, pattern, parameter) for pattern in patterns]
            if not any(Template(text).match(name) for text in short for name in others):
                froms = short
                tos = [_short(one, group.pattern, parameter, new=True) for group in one.targets]
        own_name = one.whole.pattern[len(_owner(one.whole.pattern))]
        name = "-".join(re.findall(r"[a-z0-9]+", own_name.lower())) or "operation"
        name = name if name not in ids else f"{name}-{len(ids)}"
        ids.add(name)
        texts = [
            quoted(entries[0]) if len(entries) == 1 else flow(entries) for entries in (froms, tos)
        ]
        text = f"- {{id: {name}, from: {texts[0]}, to: {texts[1]}, how: {one.how}}}"
        lines.append((text, one))
    return lines


def _spelt(one: FoundOperation, pattern: Segments, last: str, *, new: bool = False) -> str:
    """A template for all layers, with a field for each number."""
    fields, kind = iter(_FIELDS), "" if new else ":int"
    own = _each_at(one, pattern)
    texts = [
        part if part != INDEX else "{e:each}" if at == own else f"{{{next(fields)}{kind}}}"
        for at, part in enumerate((*pattern[:-1], last or pattern[-1]))
    ]
    return ".".join(texts)


def _each_at(one: FoundOperation, pattern: Segments) -> int:
    """The segment with the number of a list in a name; -1 without a list."""
    if one.at < 0 or sum(part == INDEX for part in pattern) == sum(
        part == INDEX for part in one.whole.pattern
    ):
        return -1
    return len(one.module) if pattern[: len(one.module)] == one.module else one.at


def _short(one: FoundOperation, pattern: Segments, last: str, *, new: bool = False) -> str:
    """A template for the tensors of any module."""
    tail = pattern[len(one.module) :]
    texts = ["{e:each}" if part == INDEX else part for part in (*tail[:-1], last or tail[-1])]
    return ".".join(["{m}" if new else "{m...}", *texts])
