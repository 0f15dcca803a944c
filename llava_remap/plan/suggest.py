"""The nearest names on the other side, for what is unmapped or missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from llava_remap.infer import Group, Segments, Shape, fill, fold

#: Names shown for one that has no counterpart.
LIMIT = 3
#: Groups of names that are compared. Where more are left over, nobody reads what each is like: it is the wrong rule file.
_MOST_GROUPS = 300


def nearest(names: Mapping[str, Shape], others: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """For each name up to three of the others, of the same shape, the most alike first.

    Names that differ in the number of a layer alone are compared once, and each has the names of its own layer. Names of tensors
    differ in front and agree at the end, so what counts first is the number of last segments in common, then the share of all.

    Args:
        names, others: name → shape.
    """
    groups: dict[tuple[int, Shape], list[Group]] = defaultdict(list)
    singles: dict[Shape, list[Segments]] = defaultdict(list)
    for other in fold(others):
        for key in {(len(numbers), shape) for numbers, shape in other.members.items()}:
            groups[key].append(other)
    for name, shape in others.items():
        singles[shape].append(tuple(name.split(".")))
    found: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    for group in fold(names)[:_MOST_GROUPS]:
        for numbers, shape in group.members.items():
            own = [other.pattern for other in groups[len(numbers), shape] if other.members.get(numbers) == shape]
            near = [fill(pattern, numbers) for pattern in _best(group.pattern, own)]
            name = fill(group.pattern, numbers)
            found[name] = tuple(near or (".".join(single) for single in _best(tuple(name.split(".")), singles[shape])))
    return found


def _best(pattern: Segments, others: Sequence[Segments]) -> list[Segments]:
    """The most alike of those that have something in common."""
    scored = sorted((_distance(pattern, other), other) for other in others)
    return [other for distance, other in scored if distance != (0, 0)][:LIMIT]


def _distance(one: Segments, other: Segments) -> tuple[int, float]:
    """Less for names that are more alike; (0, 0) for those with nothing in common."""
    ending = 0
    while ending < min(len(one), len(other)) and one[-1 - ending] == other[-1 - ending]:
        ending += 1
    return -ending, -len(set(one) & set(other)) / len(set(one) | set(other))
