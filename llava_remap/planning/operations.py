"""The boxes of each parameter that tensor operations make, or why sizes don't add up. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted
from llava_remap.planning.boxes import Box, Part, Shape
from llava_remap.planning.mapped import written_dtype
from llava_remap.planning.model import Dropped
from llava_remap.planning.place import MisfitError, PartOfWhole, Placed, place, viewed
from llava_remap.rewrite import CompiledOperation
from llava_remap.routing import Applied, Routed, Routes


@dataclass(frozen=True, slots=True)
class Provided:
    """A parameter that operations provide.

    Attributes:
        parts: where the parameter's numbers come from.
        tensors: the source tensors, each once.
        rules: the rules that made the parameter's name.
    """

    parts: tuple[Part, ...]
    tensors: tuple[Routed, ...]
    rules: tuple[str, ...]

    def written_dtypes(self, wanted: str | None) -> Mapping[str, str]:
        """Dtype in which a tensor would be written → the first such tensor. Only one dtype is
        allowed.

        Args:
            wanted: as for `written_dtype`.
        """
        found: dict[str, str] = {}
        for routed in self.tensors:
            found.setdefault(written_dtype(routed.tensor.dtype, wanted), routed.tensor.name)
        return found


@dataclass(frozen=True, slots=True)
class Operations:
    """All operations of a plan.

    Attributes:
        provided: by parameter, an entry for each operation that makes it. Several entries are a
            collision.
        dropped: the dropped parts.
        claimed: the parameters of operations whose sizes don't add up.
        problems: LR321 and LR322, with the reason for each tensor.
    """

    provided: Mapping[str, tuple[Provided, ...]]
    dropped: tuple[Dropped, ...]
    claimed: frozenset[str]
    problems: tuple[Problem, ...]


def place_operations(
    routes: Routes,
    shapes: Mapping[str, Shape],
    tied: Collection[str],
    sizes: Mapping[str, int],
    dtype: str | None = None,
) -> Operations:
    """Place every operation.

    Args:
        shapes: the parameters of the target.
        tied: parameters that share another parameter's tensor.
        sizes: key of the target's config → its value, for the names in views.
        dtype: the dtype of every parameter that is written; None keeps the dtype of each.
    """
    provided: dict[str, tuple[Provided, ...]] = {}
    dropped: list[Dropped] = []
    claimed: set[str] = set()
    misfits: dict[str, tuple[CompiledOperation, list[tuple[str, str]]]] = {}
    mixed: dict[str, tuple[CompiledOperation, list[tuple[str, str]]]] = {}
    for applied in routes.operations:
        names = applied.made_of(shapes)
        try:
            made, left_out = place_one(applied, names, shapes, tied, sizes)
        except MisfitError as error:
            claimed |= {name for name in names.values() if name in shapes}
            first = next(applied.tensors).tensor.name
            rows = misfits.setdefault(applied.rule.label, (applied.rule, []))[1]
            rows.append((first, str(error)))
            continue
        dropped += left_out
        for name, entry in made.items():
            if len(dtypes := entry.written_dtypes(dtype)) > 1:
                claimed.add(name)
                found = " and ".join(f"`{one}` is {of}" for of, one in dtypes.items())
                rows = mixed.setdefault(applied.rule.label, (applied.rule, []))[1]
                rows.append((entry.tensors[0].tensor.name, found))
            else:
                provided[name] = (*provided.get(name, ()), entry)
    problems = (
        *_problems(
            "LR321",
            misfits,
            "takes {} whose sizes don't add up",
            "Correct the rule's sizes, or its `when` if the rule isn't for this checkpoint.",
        ),
        *_problems(
            "LR322",
            mixed,
            "joins tensors of different dtypes into {}",
            "With --dtype, each of them is cast before they are joined, if all are floats.",
        ),
    )
    return Operations(provided, tuple(dropped), frozenset(claimed), problems)


def _problems(
    code: str,
    found: Mapping[str, tuple[CompiledOperation, Sequence[tuple[str, str]]]],
    what: str,
    fix: str,
) -> Iterator[Problem]:
    """A problem for each rule.

    Args:
        found: by rule, its tensors, each with the reason.
        what: what is wrong; `{}` stands for the number of tensors.
    """
    for rule, rows in found.values():
        yield Problem(
            code,
            f"`{rule.label}` {what.format(counted(len(rows), 'tensor'))}: {rows[0][1]}.",
            fix,
            tuple(name for name, _ in rows),
            tuple(rows),
            place=rule.mark,
        )


def place_one(
    applied: Applied,
    names: Mapping[tuple[int, int], str],
    shapes: Mapping[str, Shape],
    tied: Collection[str],
    sizes: Mapping[str, int],
) -> tuple[dict[str, Provided], list[Dropped]]:
    """The new tensors of one operation, and its dropped parts.

    Args:
        names: the new names, by the index in `targets` and the number in a list.

    Raises:
        MisfitError: if a tensor is missing or given twice, or if sizes don't add up.
    """
    operation, sources = applied.rule.operation, _one_each(applied)
    for name in names.values():
        if name not in shapes:
            raise MisfitError(f"the model has no parameter `{name}`")
        if name in tied:
            raise MisfitError(f"the model ties `{name}` to another parameter")
    values = {name: sizes[key] for name, key in operation.sizes.items()}
    old = {place: (r.tensor.name, r.tensor.shape) for place, r in sources.items()}
    new = {place: (name, shapes[name]) for place, name in names.items()}
    parts, wholes = (new, old) if operation.divides else (old, new)
    [(whole_name, whole_shape)] = wholes.values()
    whole = viewed(whole_name, whole_shape, operation.seen, values)
    ends = [
        [
            PartOfWhole(viewed(*parts[end, number], part.seen, values), number)
            for at, number in sorted(parts)
            if at == end
        ]
        if part.names is not None
        else [PartOfWhole.dropped(part.size, values)]
        for end, part in enumerate(operation.parts)
    ]
    if empty := [end for end, tensors in enumerate(ends) if not tensors]:
        raise MisfitError(f"no tensor matches `{operation.parts[empty[0]].names}`")
    for tensors, end in zip(ends, operation.parts, strict=True):
        if [tensor.number for tensor in tensors] != list(range(len(tensors))):
            absent = min({*range(len(tensors))} - {tensor.number for tensor in tensors})
            raise MisfitError(f"number {absent} is missing in the list of `{end.names}`")
    placed = place(whole, operation.join, ends)
    by_place = {
        (end, tensor.number): region
        for end, (tensors, regions) in enumerate(zip(ends, placed, strict=True))
        for tensor, region in zip(tensors, regions, strict=True)
    }
    if operation.divides:
        return _divided(applied, names, by_place)
    [name] = names.values()
    found = [_part(sources[at], region.in_part, region.in_whole) for at, region in by_place.items()]
    return {name: _provided(found, [*sources.values()])}, []


def _one_each(applied: Applied) -> dict[tuple[int, int], Routed]:
    for found in applied.sources.values():
        if len(found) > 1:
            raise MisfitError(
                f"`{found[0].tensor.name}` and `{found[1].tensor.name}` would be the same part"
            )
    return {place: found[0] for place, found in applied.sources.items()}


def _divided(
    applied: Applied,
    names: Mapping[tuple[int, int], str],
    placed: Mapping[tuple[int, int], Placed],
) -> tuple[dict[str, Provided], list[Dropped]]:
    [whole] = applied.tensors
    made: dict[str, Provided] = {}
    left_out = []
    for at, region in placed.items():
        if region.in_part is None:
            reason = applied.rule.operation.parts[at[0]].reason
            left_out.append(
                Dropped(
                    whole.source, whole.tensor.name, applied.rule.label, reason, region.in_whole
                )
            )
        elif names[at] in made:
            raise MisfitError(f"two parts become `{names[at]}`")
        else:
            made[names[at]] = _provided([_part(whole, region.in_whole, region.in_part)], [whole])
    return made, left_out


def _part(routed: Routed, taken: Box | None, placed: Box | None) -> Part:
    assert taken is not None  # only a division drops parts
    assert placed is not None
    return Part(routed.source, routed.tensor.shape, taken, placed)


def _provided(parts: Sequence[Part], tensors: Sequence[Routed]) -> Provided:
    rules = dict.fromkeys(rule for routed in tensors for rule in routed.rewrite.rules)
    return Provided(tuple(parts), tuple(tensors), tuple(rules))
