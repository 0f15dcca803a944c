"""Tensor operations on shapes: the boxes of every tensor that an operation takes or makes. Pure.

The whole and its parts are compared as they are seen: after their views and orders of axes. Axes
that a view divided count as one axis there, so a part may have that axis undivided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

from llava_remap.planning.boxes import Box, Shape
from llava_remap.rulefile import AS_STORED, REST, Join, Seen, Size


class MisfitError(ValueError):
    """Sizes that don't add up, in words that a user reads."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The place of a part in the whole: a region of each, with equal sizes.

    Attributes:
        in_part, in_whole: the regions; `in_part` is None for a part that is dropped.
    """

    in_part: Box | None
    in_whole: Box


@dataclass(frozen=True, slots=True)
class PartShape:
    """A part whose place is wanted.

    Attributes:
        number: in a list; else 0.
        shape: None for a part that is dropped.
        size: of a dropped part along the axis; `*` for the rest.
    """

    name: str
    shape: Shape | None
    number: int = 0
    seen: Seen = AS_STORED
    size: Size = REST


def place(
    name: str,
    shape: Shape,
    seen: Seen,
    join: Join,
    parts: Sequence[Sequence[PartShape]],
    sizes: Mapping[str, int],
) -> list[list[Placed]]:
    """The place of every part in the whole.

    Args:
        name, shape, seen: the whole.
        parts: in order; each is a list of tensors if they are stacked by number, else one tensor.
        sizes: the values of the names in views.

    Raises:
        MisfitError: sizes don't add up.
    """
    whole = as_seen(name, shape, seen, sizes)
    for axis in (join.stacked, join.along):
        if axis is not None and axis >= whole.rank:
            raise MisfitError(
                f"`{name}` has {whole.rank} axes as it is seen, and none of number {axis}"
            )
    numbered = join.stacked is not None and join.along is None and len(parts) > 1
    extents = _extents(whole, join, parts, sizes)
    starts = [0, *accumulate(extents)]
    result = []
    for number, tensors in enumerate(parts):
        placed = []
        for tensor in tensors:
            start, stop = list(whole.box.start), list(whole.box.stop)
            if join.along is not None:
                start[join.along], stop[join.along] = starts[number], starts[number + 1]
            if join.stacked is not None:
                index = number if numbered else tensor.number
                if index >= whole.box.sizes[join.stacked]:
                    count = whole.box.sizes[join.stacked]
                    raise MisfitError(
                        f"`{name}` has room for {count}, and `{tensor.name}` is one more"
                    )
                start[join.stacked], stop[join.stacked] = index, index + 1
            region = Box(name, whole.box.view, whole.box.axes, tuple(start), tuple(stop))
            placed.append(_placed(region, whole, join, tensor, sizes))
        result.append(placed)
    return result


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tensor as it is seen.

    Attributes:
        box: the whole tensor.
        groups: for each axis of the box, the number of its undivided axis. Neighbouring axes that
            a view divided have the same number.
    """

    box: Box
    groups: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.groups)

    def divided(self, sizes: Sequence[int], without: int | None = None) -> list[Shape]:
        """For each undivided axis, the sizes into which it is divided.

        Args:
            sizes: a region's sizes along the axes of the box.
            without: an axis of the box to leave out.
        """
        found: dict[int, Shape] = {}
        for axis, (group, size) in enumerate(zip(self.groups, sizes, strict=True)):
            if axis != without:
                found[group] = (*found.get(group, ()), size)
        return [*found.values()]

    def merged(self, sizes: Sequence[int], without: int | None = None) -> Shape:
        """Like `divided`, with the product of the sizes for each undivided axis."""
        return tuple(map(prod, self.divided(sizes, without)))


def as_seen(name: str, shape: Shape, seen: Seen, sizes: Mapping[str, int]) -> _Seen:
    """Apply a view and an order of axes to a shape.

    Raises:
        MisfitError: the view doesn't divide the axis, or there is no such axis.
    """
    view, groups = shape, [*range(len(shape))]
    if seen.view:
        if seen.axis >= len(shape):
            raise MisfitError(f"`{name}` is {list(shape)} and has no axis {seen.axis}")
        divided = _divided(name, shape[seen.axis], seen.view, sizes)
        view = (*shape[: seen.axis], *divided, *shape[seen.axis + 1 :])
        groups[seen.axis : seen.axis + 1] = [seen.axis] * len(divided)
    if len(seen.axes) > len(view):
        raise MisfitError(
            f"`{name}` is {list(view)} as it is seen; `axes` names {len(seen.axes)} axes"
        )
    axes = (*seen.axes, *range(len(seen.axes), len(view)))
    inside = tuple(view[axis] for axis in axes)
    ordered = [groups[axis] for axis in axes]
    counted, number = [0], 0
    for one, other in pairwise(ordered):
        number += one != other
        counted.append(number)
    box = Box(name, view, axes, (0,) * len(view), inside)
    return _Seen(box, tuple(counted[: len(view)]))


def _divided(name: str, size: int, view: Sequence[Size], sizes: Mapping[str, int]) -> Shape:
    known = [_value(entry, sizes) for entry in view if entry != REST]
    rest, left = divmod(size, prod(known)) if prod(known) else (0, 1)
    if left or (REST not in view and rest != 1):
        spelt = " × ".join(str(_value(entry, sizes)) if entry != REST else REST for entry in view)
        raise MisfitError(f"{size} rows of `{name}` aren't {spelt}")
    return tuple(rest if entry == REST else _value(entry, sizes) for entry in view)


def _value(size: Size, sizes: Mapping[str, int]) -> int:
    return sizes[size] if isinstance(size, str) else size


def _extents(
    whole: _Seen, join: Join, parts: Sequence[Sequence[PartShape]], sizes: Mapping[str, int]
) -> list[int]:
    """The size of each part along the axis of a split or concatenation.

    Raises:
        MisfitError: the sizes don't add up to the size of the whole.
    """
    if join.along is None:
        return []
    whole_sizes = list(whole.box.sizes)
    total = whole_sizes[join.along]
    extents: list[int | None] = []
    for tensors in parts:
        found = {_extent(whole, join, tensor, sizes) for tensor in tensors}
        if len(found) != 1:
            raise MisfitError(
                f"the tensors of the list of `{tensors[0].name}` have different sizes"
            )
        extents.append(found.pop())
    rest = total - sum(extent for extent in extents if extent is not None)
    if rest < 0 or (rest and None not in extents):
        those = " + ".join(
            f"{extent} of `{tensors[0].name}`"
            for tensors, extent in zip(parts, extents, strict=True)
            if extent is not None
        )
        raise MisfitError(f"{those} don't make the {total} of `{whole.box.name}`")
    return [rest if extent is None else extent for extent in extents]


def _extent(whole: _Seen, join: Join, part: PartShape, sizes: Mapping[str, int]) -> int | None:
    """The size of a part along the axis; None for a part that gets the rest."""
    if part.shape is None:
        return None if part.size == REST else _value(part.size, sizes)
    seen = as_seen(part.name, part.shape, part.seen, sizes)
    whole_sizes = list(whole.box.sizes)
    along = join.along
    assert along is not None
    group = whole.groups[along]
    # The part's own axis for `along`, where axes that a view divided count as one.
    counted = [g for axis, g in enumerate(whole.groups) if axis != join.stacked]
    at = list(dict.fromkeys(counted)).index(group)
    own = seen.merged(seen.box.sizes)
    if at >= len(own):
        raise MisfitError(f"`{part.name}` is {list(part.shape)} and has too few axes")
    others = prod(
        size
        for axis, size in enumerate(whole_sizes)
        if whole.groups[axis] == group and axis not in (along, join.stacked)
    )
    extent, left = divmod(own[at], others) if others else (0, 1)
    if left:
        raise MisfitError(f"{own[at]} rows of `{part.name}` aren't divided by {others}")
    return extent


def _placed(
    region: Box, whole: _Seen, join: Join, part: PartShape, sizes: Mapping[str, int]
) -> Placed:
    """The place of a part in the whole, with both regions in axes of the same sizes.

    Raises:
        MisfitError: the part has another shape than its place.
    """
    if part.shape is None:
        return Placed(None, region)
    seen = as_seen(part.name, part.shape, part.seen, sizes)
    wanted = whole.merged(region.sizes, join.stacked)
    own = seen.merged(seen.box.sizes)
    if _without_ones(own) != _without_ones(wanted):
        raise MisfitError(
            f"`{part.name}` is {list(own)}, and its place in `{region.name}` is {list(wanted)}"
        )
    ways = zip(
        filter(None, map(_without_ones, seen.divided(seen.box.sizes))),
        filter(None, map(_without_ones, whole.divided(region.sizes, join.stacked))),
        strict=True,
    )
    for ours, theirs in ways:
        # If both are divided, different sizes would put numbers elsewhere than the rule says.
        if len(ours) > 1 and len(theirs) > 1 and ours != theirs:
            raise MisfitError(
                f"`{part.name}` is seen as {list(ours)}, and its place in `{region.name}` as "
                f"{list(theirs)}"
            )
    return Placed(*_matched(seen.box, region))


def _without_ones(sizes: Shape) -> Shape:
    """The sizes without axes of size 1, which don't change the place of any number."""
    return tuple(size for size in sizes if size != 1)


def _matched(one: Box, other: Box) -> tuple[Box, Box]:
    """Both boxes, with axes divided until all sizes are equal.

    Raises:
        MisfitError: no division makes the sizes equal.
    """
    at = 0
    try:
        while at < max(len(one.sizes), len(other.sizes)):
            ours, theirs = _size(one, at), _size(other, at)
            if ours is None or (theirs == 1 and ours != 1):
                one = _with_one(one, at)
            elif theirs is None or (ours == 1 and theirs != 1):
                other = _with_one(other, at)
            elif ours != theirs:
                if ours > theirs:
                    one = one.divided(at, (theirs, ours // theirs))
                else:
                    other = other.divided(at, (ours, theirs // ours))
            at += 1
    except ValueError as error:
        raise MisfitError(
            f"`{one.name}` doesn't lie in whole rows of `{other.name}`: {error}"
        ) from None
    return one, other


def _size(box: Box, at: int) -> int | None:
    return box.sizes[at] if at < len(box.sizes) else None


def _with_one(box: Box, at: int) -> Box:
    """The box with a new axis of size 1 before the axis `at`."""
    number = len(box.view)
    return Box(
        box.name,
        (*box.view, 1),
        (*box.axes[:at], number, *box.axes[at:]),
        (*box.start[:at], 0, *box.start[at:]),
        (*box.stop[:at], 1, *box.stop[at:]),
    )
