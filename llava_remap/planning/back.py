"""Reverses tensor operations: makes the original tensors from the new ones. Pure.

The shapes of the original tensors follow from the shapes of the new ones. The operation is placed
with these shapes, and then the boxes of each part are swapped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from llava_remap.checkpoint import Tensor
from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted
from llava_remap.planning.boxes import Part, Shape
from llava_remap.planning.operations import Operations, Provided, place_one
from llava_remap.planning.place import MisfitError, viewed
from llava_remap.rewrite import CompiledOperation, Rewrite
from llava_remap.routing import Applied, Routed
from llava_remap.rulefile import Join, Operation, Seen

#: The place of a tensor in an operation: its index in `sources` or `targets`, and its number in a
#: list.
Place = tuple[int, int]
_MOST_AXES = 8


@dataclass(frozen=True, slots=True)
class TakenBack:
    """An operation to reverse, with the new tensors of one application.

    Attributes:
        fields: values of the fields in the tensors' names.
        made: the new tensors.
        original: gives the name of the original tensor at a place; None if no single name is known.
    """

    rule: CompiledOperation
    fields: Mapping[str, str]
    made: Mapping[Place, Routed]
    original: Callable[[int, int], str | None]


class _LostError(Exception):
    """Why the original tensors of an operation can't be known, in words for the user."""


@dataclass(frozen=True, slots=True)
class Before:
    """The original tensors of operations.

    Attributes:
        operations: `provided` has the original tensors, `claimed` has the classic names of tensors
            whose operation can't be reversed, and `problems` has LR321 with the reasons.
        shapes: shapes of the original tensors.
        unfit: names of tensors with sizes that their operation can't make, so a rename made them.
    """

    operations: Operations
    shapes: Mapping[str, Shape]
    unfit: frozenset[str]


def take_back(
    operations: Iterable[TakenBack],
    renamed: Collection[str],
    tied: Collection[str],
    sizes: Mapping[str, int],
) -> Before:
    """Reverse operations.

    Args:
        renamed: tensors that a rename may have made as well.
        tied: parameters that share another parameter's tensor.
        sizes: key of the target's config → its value, for the names in views.
    """
    provided: dict[str, tuple[Provided, ...]] = {}
    claimed: set[str] = set()
    shapes: dict[str, Shape] = {}
    unfit: set[str] = set()
    stuck: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for operation in operations:
        try:
            made, own = _taken_back(operation, tied, sizes)
        except (MisfitError, _LostError) as error:
            names = [routed.tensor.name for routed in operation.made.values()]
            if isinstance(error, MisfitError) and {*names} <= {*renamed}:
                unfit |= {*names}
                continue
            claimed |= {routed.rewrite.prepared for routed in operation.made.values()}
            stuck[operation.rule.label] += [(name, str(error)) for name in names]
            continue
        shapes |= own
        for name, entry in made.items():
            provided[name] = (*provided.get(name, ()), entry)
    problems = tuple(
        Problem(
            "LR321",
            f"`{label}` can't be reversed for {counted(len(rows), 'tensor')}: {rows[0][1]}.",
            "For a folder that `apply` wrote, `llava-remap revert DIR` restores the original from "
            "the folder's record.",
            tuple(name for name, _ in rows),
            tuple(rows),
        )
        for label, rows in stuck.items()
    )
    taken = Operations(provided, (), frozenset(claimed), problems)
    return Before(taken, shapes, frozenset(unfit))


def _taken_back(
    back: TakenBack, tied: Collection[str], sizes: Mapping[str, int]
) -> tuple[dict[str, Provided], dict[str, Shape]]:
    """The original tensors, and their shapes.

    Raises:
        MisfitError: if the operation never makes tensors of these sizes and dtypes.
        _LostError: if the operation dropped a part, or the original tensors can't be known.
    """
    operation = back.rule.operation
    values = {name: sizes[key] for name, key in operation.sizes.items()}
    shapes = {routed.tensor.name: routed.tensor.shape for routed in back.made.values()}
    names = {place: routed.tensor.name for place, routed in back.made.items()}
    dtypes = {routed.tensor.dtype for routed in back.made.values()}
    if len(dtypes) > 1:
        raise MisfitError(f"its tensors have the dtypes {' and '.join(sorted(dtypes))}")
    _refuse_lacking(back)
    first = next(iter(back.made.values()))
    originals: dict[Place, Routed] = {}
    for place, shape in _taken_shapes(operation, names, shapes, values).items():
        if (name := back.original(*place)) is None:
            raise _LostError(
                f"no single original name leads to `{operation.took(place[0], back.fields)}`"
            )
        tensor = Tensor.of(name, first.tensor.dtype, shape, None)
        originals[place] = Routed(first.source, tensor, Rewrite(name, name, None, name, ()))
    sources = {place: (routed,) for place, routed in originals.items()}
    applied = Applied(back.rule, sources, back.fields)
    forward, _ = place_one(applied, names, shapes, tied, sizes)
    parts: dict[str, list[Part]] = defaultdict(list)
    for name, entry in forward.items():
        for part in entry.parts:
            parts[part.taken.name].append(part.swapped(first.source, shapes[name]))
    by_name = {routed.tensor.name: routed for routed in back.made.values()}
    provided = {
        name: Provided(
            tuple(found),
            tuple({part.taken.name: by_name[part.taken.name] for part in found}.values()),
            (back.rule.label,),
        )
        for name, found in parts.items()
    }
    return provided, {routed.tensor.name: routed.tensor.shape for routed in originals.values()}


def _refuse_lacking(back: TakenBack) -> None:
    operation = back.rule.operation
    if dropped := next((end for end in operation.targets if end.names is None), None):
        raise _LostError(f"it drops a part ({dropped.reason})")
    for number, end in enumerate(operation.targets):
        there = {at for each, at in back.made if each == number}
        absent = min({*range(len(there) + 1)} - there)
        if absent <= max(there, default=0):
            raise _LostError(
                f"the checkpoint has no `{operation.made(number, back.fields, absent)}`"
            )
        assert end.each or len(there) == 1


def _taken_shapes(
    operation: Operation,
    names: Mapping[Place, str],
    shapes: Mapping[str, Shape],
    values: Mapping[str, int],
) -> dict[Place, Shape]:
    """The shapes of the original tensors of an operation.

    Args:
        names: names of the new tensors.
        values: values of the names in views.

    Raises:
        MisfitError: if the operation never makes tensors of these shapes.
        _LostError: if the new shapes don't determine the original shapes.
    """
    join = operation.join
    if operation.divides:
        ends: list[list[Shape]] = [[] for _ in operation.parts]
        for place, name in sorted(names.items()):
            seen = viewed(name, shapes[name], operation.parts[place[0]].seen, values)
            own = seen.box.sizes if operation.only_views else seen.merged(seen.box.sizes)
            ends[place[0]].append(own)
        count = len(ends[0]) if operation.parts[0].each else len(ends)
        shape = _stored(operation.seen, join, ends, count, divided=operation.only_views)
        return {(0, 0): shape}
    if join.along is not None:
        raise _LostError("the sizes of the tensors that it joined are unknown")
    [name] = names.values()
    whole = viewed(name, shapes[name], operation.seen, values)
    if join.stacked is not None and join.stacked >= whole.rank:
        raise MisfitError(f"`{name}` has no axis {join.stacked} after its view")
    count = 1 if join.stacked is None else whole.box.sizes[join.stacked]
    if len(operation.parts) not in (1, count):
        raise MisfitError(f"`{name}` holds {count} tensors, not {len(operation.parts)}")
    own = whole.merged(whole.box.sizes, join.stacked)
    return {
        (number, at): _stored(end.seen, Join(), [[own]], 1, divided=False)
        for number, end in enumerate(operation.parts)
        for at in range(count if end.each else 1)
    }


def _stored(
    seen: Seen, join: Join, ends: Sequence[Sequence[Shape]], count: int, *, divided: bool
) -> Shape:
    """The stored shape of a tensor.

    Args:
        seen: the tensor's view and order of axes.
        ends: for each part, the sizes of its tensors after their views.
        count: number of tensors along the stacked axis.
        divided: whether the axes into which a view divided an axis count as they are; otherwise
            they count as one.
    """
    own = ends[0][0]
    needed = max((axis + 1 for axis in (join.along, join.stacked) if axis is not None), default=0)
    for rank in range(_MOST_AXES + 1):
        if (axes := _axes(rank, seen)) is None or len(axes) < needed:
            continue
        changes = (divided or one != other for one, other in pairwise(axes))
        groups = [*accumulate(changes, initial=0)][: len(axes)]
        kept = dict.fromkeys(group for at, group in enumerate(groups) if at != join.stacked)
        if len(kept) != len(own):
            continue
        sizes = dict(zip(kept, own, strict=True))
        if join.along is not None:
            at = list(kept).index(groups[join.along])
            sizes[groups[join.along]] = sum(tensors[0][at] for tensors in ends)
        if join.stacked is not None:
            group = groups[join.stacked]
            sizes[group] = sizes.get(group, 1) * count
        shape = [1] * rank
        for group, axis in dict(zip(groups, axes, strict=True)).items():
            shape[axis] *= sizes[group]
        return tuple(shape)
    raise MisfitError(f"no tensor's view has parts of the shape {list(own)}")


def _axes(rank: int, seen: Seen) -> list[int] | None:
    """For each axis after the view, the stored axis; None if the rank is too small."""
    divided = len(seen.view) or 1
    view = [axis for axis in range(rank) for _ in range(divided if axis == seen.axis else 1)]
    if (seen.view and seen.axis >= rank) or len(seen.axes) > len(view):
        return None
    return [view[axis] for axis in (*seen.axes, *range(len(seen.axes), len(view)))]
