"""The nearest names on the other side, for what is unmapped or missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from llava_remap.rewrite.infer.groups import Group, Segments, Shape, ending, fill, fold

#: Names shown for one that has no counterpart.
LIMIT = 3
#: Groups of names that are compared, on each side. Where more are left over, it is the wrong rule
#: file, and nobody reads what each is like.
_MOST_GROUPS = 300


def nearest(names: Mapping[str, Shape], others: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """For each name up to three of the others, of the same shape, the most alike first.

    Names that differ in the number of a layer alone are compared once, and each has the names of
    its own layer. Names of tensors differ in front and agree at the end, so what counts first is
    the number of last segments in common, then the share of all.

    Args:
        names, others: name → shape.
    """
    found: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    if not names or not others:
        return found
    of_shape: dict[Shape, list[Group]] = defaultdict(list)
    for other in fold(others):
        for shape in dict.fromkeys(other.members.values()):
            of_shape[shape].append(other)
    for group in fold(names)[:_MOST_GROUPS]:
        for shape in dict.fromkeys(group.members.values()):
            ranked = _ranked(group.pattern, of_shape[shape][:_MOST_GROUPS])
            elsewhere = tuple(islice(_of_any_layer(ranked, shape), LIMIT))
            for numbers in (numbers for numbers, own in group.members.items() if own == shape):
                own_layer = (
                    fill(o.pattern, numbers) for o in ranked if o.members.get(numbers) == shape
                )
                found[fill(group.pattern, numbers)] = tuple(islice(own_layer, LIMIT)) or elsewhere
    return found


def _ranked(pattern: Segments, others: Sequence[Group]) -> list[Group]:
    """Those of the groups that have something in common with a pattern, the most alike first."""
    scored = sorted((_distance(pattern, other.pattern), other.pattern, other) for other in others)
    return [other for distance, _, other in scored if distance != (0, 0)]


def _of_any_layer(groups: Sequence[Group], shape: Shape) -> Iterator[str]:
    """Of each group the first name that has the shape."""
    for group in groups:
        yield fill(
            group.pattern, min(numbers for numbers, own in group.members.items() if own == shape)
        )


def _distance(one: Segments, other: Segments) -> tuple[int, float]:
    """Less for names that are more alike; (0, 0) for those with nothing in common."""
    return -ending(one, other), -len(set(one) & set(other)) / len(set(one) | set(other))
