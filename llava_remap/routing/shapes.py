"""The shapes of tensors that operations make, as far as the old tensors alone determine them. The
parts of a divided tensor have the target's sizes, which are unknown until the target's config is
derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from math import prod

from llava_remap.rulefile import AS_STORED, REST, Operation, Seen

Shape = tuple[int, ...]


def made_shape(operation: Operation, shapes: Mapping[tuple[int, int], Shape]) -> Shape | None:
    """The shape of the tensor that an operation makes; None for several tensors, or if the shape is
    unknown.

    Args:
        shapes: the old tensors, by the index in `sources` and the number in a list.
    """
    parts, along, stacked = operation.parts, operation.join.along, operation.join.stacked
    if any(part.seen != AS_STORED for part in parts):
        return None
    if operation.divides:
        if len(parts) > 1 or parts[0].each:
            return None
        whole = next(iter(shapes.values()))
        if operation.only_views:
            return _divided(whole, operation.seen)
        seen = _merged(whole, operation.seen)
        return seen if seen is None or stacked is None else seen[:stacked] + seen[stacked + 1 :]
    first = shapes.get((0, 0))
    if operation.seen != AS_STORED or first is None:
        return None
    if along is None:
        return None if stacked is None else (*first[:stacked], len(shapes), *first[stacked:])
    if stacked is not None:
        return None
    total = sum(shape[along] for shape in shapes.values() if along < len(shape))
    return (*first[:along], total, *first[along + 1 :])


def _divided(shape: Shape, seen: Seen) -> Shape | None:
    """A shape after the view; None if the sizes of the view aren't known here or don't fit."""
    known = [size for size in seen.view if isinstance(size, int)]
    rest = seen.view.count(REST)
    if seen.axis >= len(shape) or len(known) + rest < len(seen.view):
        return None
    count, left = divmod(shape[seen.axis], prod(known))
    if left or (not rest and count != 1):
        return None
    sizes = tuple(size if isinstance(size, int) else count for size in seen.view)
    return (*shape[: seen.axis], *sizes, *shape[seen.axis + 1 :])


def _merged(shape: Shape, seen: Seen) -> Shape | None:
    """A shape after the view and order of axes. Axes into which the view divided an axis count as
    one. None if they are no longer neighbours, or if the tensor has too few axes.
    """
    counted = max(len(seen.view), 1)
    origins = [*range(seen.axis), *[seen.axis] * counted, *range(seen.axis + 1, len(shape))]
    if seen.axis >= len(shape) or len(seen.axes) > len(origins):
        return None
    axes = (*seen.axes, *range(len(seen.axes), len(origins)))
    merged = [origin for origin, _ in groupby(origins[axis] for axis in axes)]
    return tuple(shape[origin] for origin in merged) if len({*merged}) == len(merged) else None
