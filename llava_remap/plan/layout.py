"""A plan in another layout: the same tensors from the same sources, written under other names.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llava_remap.core.problem import Problem
from llava_remap.plan.boxes import Part
from llava_remap.plan.model import Plan, PostLoadChange


def in_layout(plan: Plan, layout: str, names: Mapping[str, str]) -> Plan:
    """The plan with every name of the target as a layout has it.

    Which tensors lie in which file, and in which order, stays. A name that is none of the target's
    (one that a rule made and the model doesn't have) stays too.

    Args:
        names: classic name → name in the layout, for every parameter of the target.
    """

    def spelt(name: str) -> str:
        return names.get(name, name)

    def renamed(problem: Problem) -> Problem:
        if problem.side == "source":
            return problem
        table = tuple((spelt(name), text) for name, text in problem.table)
        return replace(problem, names=tuple(map(spelt, problem.names)), table=table)

    def changed(entry: PostLoadChange) -> PostLoadChange:
        change = entry.change
        return replace(
            entry,
            change=replace(
                change, target=spelt(change.target), reads=tuple(map(spelt, change.reads))
            ),
        )

    def placed(part: Part) -> Part:
        return replace(part, placed=replace(part.placed, name=spelt(part.placed.name)))

    mapped = (
        replace(m, target=spelt(m.target), parts=tuple(map(placed, m.parts))) for m in plan.mapped
    )
    aliases = (replace(a, target=spelt(a.target), of=spelt(a.of)) for a in plan.aliases)
    return replace(
        plan,
        layout=layout,
        target_names=tuple(sorted(map(spelt, plan.target_names))),
        tied_absent=tuple(sorted(map(spelt, plan.tied_absent))),
        mapped=tuple(sorted(mapped, key=lambda m: m.target)),
        aliases=tuple(sorted(aliases, key=lambda a: a.target)),
        unmapped=tuple(
            replace(u, suggestions=tuple(map(spelt, u.suggestions))) for u in plan.unmapped
        ),
        missing=tuple(
            sorted(
                (replace(m, target=spelt(m.target)) for m in plan.missing), key=lambda m: m.target
            )
        ),
        mismatched=tuple(
            sorted(
                (replace(m, target=spelt(m.target)) for m in plan.mismatched),
                key=lambda m: m.target,
            )
        ),
        collisions=tuple(
            sorted(
                (replace(c, target=spelt(c.target)) for c in plan.collisions),
                key=lambda c: c.target,
            )
        ),
        post_load=tuple(
            sorted(map(changed, plan.post_load), key=lambda entry: entry.change.target)
        ),
        value_checks=tuple(
            replace(check, target=spelt(check.target)) for check in plan.value_checks
        ),
        problems=tuple(map(renamed, plan.problems)),
        notes=tuple(map(renamed, plan.notes)),
        shards=tuple(
            replace(shard, tensors=tuple(map(spelt, shard.tensors))) for shard in plan.shards
        ),
    )
