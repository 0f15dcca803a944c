"""Every tensor of a job as one row: its names and its outcome. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from llava_remap.core import DTYPE_BITS
from llava_remap.planning.problems import component
from llava_remap.planning.regions import in_words
from llava_remap.routing import SourceName

if TYPE_CHECKING:
    from llava_remap.jobs.job import Job
    from llava_remap.planning import Box, Mapped, Plan

#: The outcomes of a tensor, in words. Problems come first.
STATUSES = {
    "missing": "no source provides the parameter",
    "unmapped": "no parameter for the source tensor",
    "mismatched": "the parameter has another shape",
    "collision": "several tensors for one parameter",
    "no target": "the target's parameters aren't known, for the reasons above",
    "mapped": "copied as it is",
    "moved": "divided, joined or reordered; the numbers stay as they are",
    "computed": "merged, cast, or changed by a post-load rule",
    "made": "made by a post-load rule",
    "tied": "shares another parameter's tensor, so it isn't written",
    "dropped": "left out by a rule",
    "not used": "not selected, or taken from another source",
}
#: Parts of a parameter that are listed.
_MOST_PARTS = 4
#: The statuses that are shown in red.
BAD = ("missing", "unmapped", "mismatched", "collision")


@dataclass(frozen=True, slots=True)
class Row:
    """A parameter of the target, or a source tensor that becomes no parameter.

    Attributes:
        status: a key of `STATUSES`.
        taken: the source tensors that it is made from, each with the bytes that are taken from it.
        target: the parameter's name; empty if there is none.
        produced: the name that the rules made, if no parameter is known to have it.
        rules: the rules that the name went through, in order.
        dtype, shape: as written, or as stored if nothing is written; `stored → written` if they
            differ; empty if unknown.
        nbytes: size as written, or as stored if nothing is written.
        how: the computation, or the reason, in words.
    """

    status: str
    taken: tuple[tuple[SourceName, int], ...] = ()
    target: str = ""
    rules: tuple[str, ...] = ()
    dtype: str = ""
    shape: str = ""
    nbytes: int = 0
    how: str = ""
    produced: str = ""

    @property
    def is_bad(self) -> bool:
        return self.status in BAD

    @property
    def component(self) -> str:
        """The part of the target that the new name belongs to; empty if there is none."""
        return component(self.new_name) if self.new_name else ""

    @property
    def new_name(self) -> str:
        return self.target or self.produced

    @property
    def sources(self) -> str:
        """The names of the sources."""
        return ", ".join(dict.fromkeys(origin.source for origin, _ in self.taken))


def rows(job: Job) -> list[Row]:
    """Every parameter, and every source tensor that becomes no parameter; problems first."""
    found = [*_planned(job)]
    used = {origin for row in found for origin, _ in row.taken}
    found += [
        _stored(job, "not used", [origin])
        for source, checkpoint in job.checkpoints.items()
        for name in checkpoint.catalog
        if (origin := SourceName(source, name)) not in used
    ]
    return sorted(found, key=lambda row: not row.is_bad)


def _planned(job: Job) -> Iterator[Row]:
    """The rows of all entries of the plan."""
    plan = job.plan
    wanted = {entry.target: entry.target_shape for entry in plan.mismatched}
    usual = _usual_bits(plan)
    for missing in plan.missing:
        nbytes = prod(missing.shape) * usual // 8
        yield Row("missing", (), missing.target, (), "", _shape(missing.shape), nbytes)
    for unmapped in plan.unmapped:
        # Without a target, it isn't known whether a name that rules made is a parameter's.
        is_known = bool(plan.target_names) or unmapped.produced is None
        how = "no rule takes it" if unmapped.produced is None else "no parameter has the new name"
        status = "unmapped" if is_known else "no target"
        origin = SourceName(unmapped.source, unmapped.name)
        row = _stored(job, status, [origin], "", unmapped.rules, how if is_known else "")
        yield replace(row, produced=unmapped.produced or "")
    for clash in plan.collisions:
        how = f"{clash.made_by} makes it, too" if clash.made_by else "each would be the parameter"
        yield _stored(job, "collision", clash.from_, clash.target, (), how)
    for mapped in plan.mapped:
        yield _mapped(job, mapped, wanted.get(mapped.target))
    for alias in plan.aliases:
        status = "mismatched" if alias.target in wanted else "tied"
        how = f"shares {alias.of}"
        yield _stored(job, status, [alias.source], alias.target, alias.rules, how)
    for name in plan.tied_absent:
        yield Row("tied", target=name, how="no source has it, nor needs to")
    for dropped in plan.dropped:
        origin = SourceName(dropped.source, dropped.name)
        row = _stored(job, "dropped", [origin], "", (dropped.rule,), dropped.reason)
        stored = job.checkpoints[dropped.source].catalog[dropped.name].shape
        yield row if dropped.box is None else _in_part(row, dropped.box, stored)


def _in_part(row: Row, box: Box, stored: tuple[int, ...]) -> Row:
    """The row of a tensor of which only a part is dropped; its other parts have rows of their
    own.
    """
    [(origin, whole)] = row.taken
    nbytes = whole * prod(box.sizes) // prod(box.view)
    how = f"{in_words(box, stored, 'the source tensor')}: {row.how}"
    shape = _shape(box.sizes)
    return replace(row, taken=((origin, nbytes),), nbytes=nbytes, shape=shape, how=how)


def _mapped(job: Job, entry: Mapped, wanted: tuple[int, ...] | None) -> Row:
    """The row of a parameter.

    Args:
        wanted: the shape that it should have, if it has another.
    """
    taken = Counter[SourceName]()
    for part in entry.parts:
        origin = SourceName(part.source, part.taken.name)
        taken[origin] += prod(part.taken.sizes) * DTYPE_BITS[entry.dtype_of(origin)] // 8
    for lora in entry.loras:
        for origin in (lora.a, lora.b):
            taken[origin] += job.checkpoints[origin.source].catalog[origin.name].nbytes
    moved = "mapped" if entry.is_renamed else "moved"
    status = "made" if entry.is_made else "computed" if entry.then else moved
    return Row(
        "mismatched" if wanted is not None else status,
        tuple(taken.items()),
        entry.target,
        entry.rules,
        _change(" + ".join(entry.stored_dtypes), entry.dtype),
        _change(_shape(entry.shape_before), _shape(entry.shape if wanted is None else wanted)),
        entry.nbytes,
        "; ".join(_how(entry)),
    )


def _how(entry: Mapped) -> Iterator[str]:
    """What happens to the numbers of a parameter."""
    if not (entry.is_made or entry.is_renamed):
        yield from _moves(entry)
    for lora in entry.loras:
        scale = "not known from a manifest" if lora.scale is None else f"{lora.scale:g}"
        yield f"LoRA pair added: rank {lora.rank}, scale {scale}"
    if entry.casts:
        yield "rounded to nearest" if entry.is_rounded else "cast, exactly"
    if (change := entry.post_load) is not None:
        yield change.use


def _moves(entry: Mapped) -> Iterator[str]:
    """Where the numbers of a parameter come from, if not all from one whole tensor."""
    if len(entry.parts) == 1:
        [part] = entry.parts
        taken = in_words(part.taken, part.shape, "the source tensor")
        placed = in_words(part.placed, entry.shape_before, "it")
        yield taken if placed == "it" else f"{taken} → {placed}"
        return
    yield f"put together from {len(entry.parts)} parts"
    for part in entry.parts[:_MOST_PARTS]:
        placed = in_words(part.placed, entry.shape_before, "it")
        yield f"{in_words(part.taken, part.shape)} → {placed}"
    if (rest := len(entry.parts) - _MOST_PARTS) > 0:
        yield f"and {rest} more"


def _stored(
    job: Job,
    status: str,
    origins: Iterable[SourceName],
    target: str = "",
    rules: tuple[str, ...] = (),
    how: str = "",
) -> Row:
    """The row of source tensors that aren't written."""
    tensors = [(origin, job.checkpoints[origin.source].catalog[origin.name]) for origin in origins]
    return Row(
        status,
        tuple((origin, tensor.nbytes) for origin, tensor in tensors),
        target,
        rules,
        ", ".join(dict.fromkeys(tensor.dtype for _, tensor in tensors)),
        ", ".join(dict.fromkeys(_shape(tensor.shape) for _, tensor in tensors)),
        sum(tensor.nbytes for _, tensor in tensors),
        how,
    )


def _usual_bits(plan: Plan) -> int:
    """Bits of an element in the dtype of most of the bytes that are written; 16 if there are none.

    A parameter that is missing has no dtype; its size is estimated.
    """
    dtypes = Counter[str]()
    for entry in plan.mapped:
        dtypes[entry.dtype] += entry.nbytes
    return DTYPE_BITS[dtypes.most_common(1)[0][0]] if dtypes else 16


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
