"""Tensor operations on shapes: the boxes of every tensor that an operation takes or makes. Pure.

The whole and its parts are compared after their views and orders of axes. Axes into which a view
divided an axis count as one axis in this comparison, so a part may have that axis undivided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

from llava_remap.planning.boxes import Box, Shape
from llava_remap.rulefile import REST, Join, Seen, Size


class MisfitError(ValueError):
    """Sizes that don't add up, in words that a user reads."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The place of a part in the whole: a region of each, with equal sizes.

    Attributes:
        in_part, in_whole: the regions; `in_part` is None for a dropped part.
    """

    in_part: Box | None
    in_whole: Box


@dataclass(frozen=True, slots=True)
class Viewed:
    """A tensor after its view and its order of axes.

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

    @property
    def is_in_order(self) -> bool:
        """Whether the axes are in the order of the view."""
        return self.box.axes == tuple(range(self.rank))

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


@dataclass(frozen=True, slots=True)
class PartOfWhole:
    """A part whose place in the whole is wanted.

    Attributes:
        viewed: the part; None for a dropped part.
        number: the part's number in a list; otherwise 0.
        extent: the size of a dropped part along the axis; None for the remaining size.
    """

    viewed: Viewed | None
    number: int = 0
    extent: int | None = None

    @classmethod
    def dropped(cls, size: Size, sizes: Mapping[str, int]) -> PartOfWhole:
        return cls(None, extent=None if size == REST else _value(size, sizes))

    @property
    def called(self) -> str:
        """The part in messages."""
        return f"`{self.viewed.box.name}`" if self.viewed else "a dropped part"


def place(whole: Viewed, join: Join, parts: Sequence[Sequence[PartOfWhole]]) -> list[list[Placed]]:
    """The place of every part in the whole.

    Args:
        parts: in order; each is a list of tensors if they are stacked by number, else one tensor.

    Raises:
        MisfitError: sizes don't add up.
    """
    name = whole.box.name
    for axis in (join.stacked, join.along):
        if axis is not None and axis >= whole.rank:
            raise MisfitError(
                f"`{name}` has {whole.rank} axes after its view, so it has no axis {axis}"
            )
    numbered = join.stacked is not None and join.along is None and len(parts) > 1
    extents = _extents(whole, join, parts)
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
                        f"`{name}` has room for {count} tensors, and {tensor.called} is one more"
                    )
                start[join.stacked], stop[join.stacked] = index, index + 1
            region = Box(name, whole.box.view, whole.box.axes, tuple(start), tuple(stop))
            placed.append(_placed(region, whole, join, tensor.viewed))
        result.append(placed)
    return result


def viewed(name: str, shape: Shape, seen: Seen, sizes: Mapping[str, int]) -> Viewed:
    """Apply a view and an order of axes to a shape.

    Args:
        sizes: the values of the names in views.

    Raises:
        MisfitError: the view doesn't divide the axis, or the tensor has no such axis.
    """
    view, groups = shape, [*range(len(shape))]
    if seen.view:
        if seen.axis >= len(shape):
            raise MisfitError(f"`{name}` has the shape {list(shape)} and no axis {seen.axis}")
        divided = _divided(name, shape[seen.axis], seen.view, sizes)
        view = (*shape[: seen.axis], *divided, *shape[seen.axis + 1 :])
        groups[seen.axis : seen.axis + 1] = [seen.axis] * len(divided)
    if len(seen.axes) > len(view):
        raise MisfitError(
            f"`{name}` has the shape {list(view)} after its view, but `axes` names "
            f"{len(seen.axes)} axes"
        )
    axes = (*seen.axes, *range(len(seen.axes), len(view)))
    inside = tuple(view[axis] for axis in axes)
    ordered = [groups[axis] for axis in axes]
    counted, number = [0], 0
    for one, other in pairwise(ordered):
        number += one != other
        counted.append(number)
    box = Box(name, view, axes, (0,) * len(view), inside)
    return Viewed(box, tuple(counted[: len(view)]))


def _divided(name: str, size: int, view: Sequence[Size], sizes: Mapping[str, int]) -> Shape:
    known = [_value(entry, sizes) for entry in view if entry != REST]
    rest, left = divmod(size, prod(known)) if prod(known) else (0, 1)
    if left or (REST not in view and rest != 1):
        spelt = " × ".join(str(_value(entry, sizes)) if entry != REST else REST for entry in view)
        raise MisfitError(f"the {size} rows of `{name}` can't be divided as {spelt}")
    return tuple(rest if entry == REST else _value(entry, sizes) for entry in view)


def _value(size: Size, sizes: Mapping[str, int]) -> int:
    return sizes[size] if isinstance(size, str) else size


def _extents(whole: Viewed, join: Join, parts: Sequence[Sequence[PartOfWhole]]) -> list[int]:
    """The size of each part along the axis of a split or concatenation.

    Raises:
        MisfitError: the sizes don't add up to the size of the whole.
    """
    if join.along is None:
        return []
    total = whole.box.sizes[join.along]
    extents: list[int | None] = []
    for tensors in parts:
        found = {_extent(whole, join, tensor) for tensor in tensors}
        if len(found) != 1:
            raise MisfitError(
                f"the tensors in the list of {tensors[0].called} have different sizes"
            )
        extents.append(found.pop())
    rest = total - sum(extent for extent in extents if extent is not None)
    if rest < 0 or (rest and None not in extents):
        those = " + ".join(
            f"{extent} of {tensors[0].called}"
            for tensors, extent in zip(parts, extents, strict=True)
            if extent is not None
        )
        raise MisfitError(f"{those} don't add up to the {total} of `{whole.box.name}`")
    return [rest if extent is None else extent for extent in extents]


def _extent(whole: Viewed, join: Join, part: PartOfWhole) -> int | None:
    """The size of a part along the axis; None for a part that gets the remaining size."""
    if part.viewed is None:
        return part.extent
    along = join.along
    assert along is not None
    group = whole.groups[along]
    # The part's own axis for `along`. Axes into which a view divided an axis count as one.
    counted = [g for axis, g in enumerate(whole.groups) if axis != join.stacked]
    at = list(dict.fromkeys(counted)).index(group)
    own = part.viewed.merged(part.viewed.box.sizes)
    if at >= len(own):
        raise MisfitError(f"{part.called} has the shape {list(own)}, which has too few axes")
    others = prod(
        size
        for axis, size in enumerate(whole.box.sizes)
        if whole.groups[axis] == group and axis not in (along, join.stacked)
    )
    extent, left = divmod(own[at], others) if others else (0, 1)
    if left:
        raise MisfitError(f"the {own[at]} rows of {part.called} can't be divided by {others}")
    return extent


def _placed(region: Box, whole: Viewed, join: Join, part: Viewed | None) -> Placed:
    """The place of a part in the whole, with both regions in axes of the same sizes.

    Axes into which a view divided an axis count as one, unless the part fits its place only if they
    count as they are. If an operation has a view and nothing else, they always count as they are,
    and axes of size 1 count too: the view says the other shape, and the way back has only that.

    Raises:
        MisfitError: the part has another shape than its place.
    """
    if part is None:
        return Placed(None, region)
    name, sizes = part.box.name, part.box.sizes
    if join == Join() and part.is_in_order and whole.is_in_order:
        if sizes != region.sizes:
            raise _misplaced(name, sizes, region.name, region.sizes)
        return Placed(part.box, region)
    wanted = whole.merged(region.sizes, join.stacked)
    own = part.merged(sizes)
    if _without_ones(own) != _without_ones(wanted):
        # The axes into which a view divides the one tensor may be axes of the other.
        if _without_ones(sizes) == _without_ones(_without(region.sizes, join.stacked)):
            return Placed(*_matched(part.box, region))
        raise _misplaced(name, own, region.name, wanted)
    ways = zip(
        filter(None, map(_without_ones, part.divided(sizes))),
        filter(None, map(_without_ones, whole.divided(region.sizes, join.stacked))),
        strict=True,
    )
    for ours, theirs in ways:
        # If both are divided, different sizes would put numbers in other places than the rule says.
        if len(ours) > 1 and len(theirs) > 1 and ours != theirs:
            raise MisfitError(
                f"the view of `{name}` divides an axis into {list(ours)}, but the view of "
                f"`{region.name}` divides it into {list(theirs)}"
            )
    return Placed(*_matched(part.box, region))


def _misplaced(part: str, own: Shape, whole: str, wanted: Shape) -> MisfitError:
    return MisfitError(
        f"`{part}` has the shape {list(own)}, but its place in `{whole}` has {list(wanted)}"
    )


def _without(sizes: Shape, axis: int | None) -> Shape:
    return tuple(size for at, size in enumerate(sizes) if at != axis)


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
            f"`{one.name}` doesn't fill whole rows of `{other.name}`: {error}"
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
