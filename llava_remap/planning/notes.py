"""Notes of a plan: on tensors that share their bytes, on sources that aren't used, and on tensors
that replace others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted
from llava_remap.routing import Routed, Routes, in_place_of, is_one_tensor
from llava_remap.rulefile import RuleFile


def sharing_notes(
    tied: Collection[str], single: Mapping[str, Routed], checkpoints: Mapping[str, Checkpoint]
) -> list[Problem]:
    """LR506 for names that share a storage of a source: one tensor, or views of one storage."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, routed in single.items():
        where = routed.tensor.location
        shared = next(
            (group for group in checkpoints[routed.source].aliases if routed.tensor.name in group),
            None,
        )
        key = shared if where is None else (where.file, where.storage)
        if key is not None and routed.tensor.nbytes:
            groups[key].append(name)
    notes = []
    for names in (group for group in groups.values() if len(group) > 1):
        first, *rest = (single[name] for name in names)
        how = (
            "are one tensor"
            if all(is_one_tensor(checkpoints, first.origin, r.origin) for r in rest)
            else "are views of one storage"
        )
        done = (
            "the model ties them, so one tensor is written"
            if any(name in tied for name in names)
            else "the model doesn't tie them, so each is written"
        )
        notes.append(
            Problem(
                "LR506",
                f"{len(names)} names {how} in the checkpoint; {done}.",
                names=tuple(names),
                side="target",
            )
        )
    return notes


def beside_notes(
    rules: RuleFile,
    routes: Routes,
    single: Mapping[str, Routed],
    placed: Collection[str],
) -> list[Problem]:
    """LR310 for each source that isn't used.

    The note counts the source's tensors with another shape than the tensor used instead, and those
    that can't be compared because an operation applies on one side only. The other tensors are
    compared by value.
    """
    notes = []
    for source in dict.fromkeys(r.source for r in routes.beside):
        there = [r for r in routes.beside if r.source == source and r.rewrite.reason is None]
        used = [(r, in_place_of(r, single, routes)) for r in there]
        made = sum(u is None and _is_made(r, single, placed) for r, u in used)
        odd = -made + sum(u is None or u.tensor.shape != r.tensor.shape for r, u in used)
        shapes = (
            f" {odd} of its {len(there)} tensors have another shape there, or are missing there."
            if odd
            else ""
        )
        if made:
            shapes += (
                f" {made} of its {len(there)} tensors aren't compared, since operations make the "
                "tensors in their place."
            )
        notes.append(
            Problem(
                "LR310",
                f"`{rules.first_source}` has these tensors itself, so `{source}` is not used."
                f"{shapes}",
            )
        )
    return notes


def _is_made(beside: Routed, single: Mapping[str, Routed], placed: Collection[str]) -> bool:
    """Whether an operation makes the tensor that is used instead, or would make it from this
    tensor.
    """
    if (operated := beside.rewrite.operated) is None:
        return beside.rewrite.target in placed
    targets = operated.rule.operation.targets
    made = (operated.rule.operation.made(end, operated.taken.fields) for end in range(len(targets)))
    return any(name in single or name in placed for name in made)


def replaced_notes(routes: Routes) -> list[Problem]:
    """LR312 for each source whose tensors replace tensors of another source."""
    notes = []
    for source in dict.fromkeys(source for _, source in routes.replaced):
        places = [routed for routed, by in routes.replaced if by == source]
        whose = " and ".join(
            f"`{name}`" for name in dict.fromkeys(routed.source for routed in places)
        )
        taken = "is taken, not that" if len(places) == 1 else "are taken, not those"
        notes.append(
            Problem(
                "LR312",
                f"{counted(len(places), 'tensor')} of `{source}` {taken} of {whose}.",
                names=tuple(str(routed.rewrite.target) for routed in places),
            )
        )
    return notes
