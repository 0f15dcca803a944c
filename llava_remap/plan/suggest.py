"""The nearest names on the other side, for what is unmapped or missing."""

from __future__ import annotations

from collections.abc import Iterable

#: Names shown for one that has no counterpart.
LIMIT = 3


def nearest(name: str, shape: tuple[int, ...], others: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """Up to three of `others` (name, shape) of the same shape that share segments with `name`, the best first.

    Names of tensors differ in front and agree at the end, so what counts first is the number of last segments in common, then the
    share of all segments.
    """
    segments = name.split(".")
    scored = []
    for other, other_shape in others:
        if other_shape != shape:
            continue
        theirs = other.split(".")
        ending = 0
        while ending < min(len(segments), len(theirs)) and segments[-1 - ending] == theirs[-1 - ending]:
            ending += 1
        common = len(set(segments) & set(theirs)) / len(set(segments) | set(theirs))
        if ending or common:
            scored.append((-ending, -common, other))
    return tuple(other for _, _, other in sorted(scored)[:LIMIT])
