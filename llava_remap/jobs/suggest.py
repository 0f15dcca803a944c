"""Suggestions for unmapped and missing names of a plan: guesses from names and shapes, for a person
to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llava_remap.planning import Layout, Plan
from llava_remap.rewrite.infer import nearest, suggest_operations, suggest_rules
from llava_remap.routing import Routes


def with_suggestions(
    plan: Plan, routes: Routes, layout: Layout | None = None, *, with_rules: bool = True
) -> Plan:
    """The plan with the nearest names on the other side for each unmapped or missing tensor, and
    with rules that would map them.

    Args:
        routes: the routes that the plan was built from.
        layout: the plan's layout. Rules are written with classic names.
        with_rules: whether to suggest rules; only useful if the rule file is for this checkpoint.
    """
    if not plan.unmapped and not plan.missing and not plan.mismatched:
        return plan
    left = {entry.name: entry.shape for entry in plan.unmapped}
    missing = {entry.target: entry.shape for entry in plan.missing}
    near, near_sources = nearest(left, missing), nearest(missing, left)
    return replace(
        plan,
        unmapped=tuple(replace(u, suggestions=near[u.name]) for u in plan.unmapped),
        missing=tuple(replace(m, suggestions=near_sources[m.target]) for m in plan.missing),
        suggested_rules=_rules(plan, routes, layout.names if layout else {}) if with_rules else (),
        suggested_operations=_operations(plan, routes, layout.names if layout else {})
        if with_rules
        else (),
    )


def _operations(plan: Plan, routes: Routes, names: Mapping[str, str]) -> tuple[str, ...]:
    over = {(entry.source, entry.name) for entry in plan.unmapped}
    left = {
        r.rewrite.target or r.rewrite.prepared: r.tensor.shape
        for r in routes.taken
        if (r.source, r.tensor.name) in over and r.rewrite.operated is None
    }
    classic = {name: own for own, name in names.items()}
    turned = {
        classic.get(m.target, m.target): m.source_shape
        for m in plan.mismatched
        if len(m.source_shape) == 2 and m.source_shape == m.target_shape[::-1]
    }
    return suggest_operations(left, _missing(plan, names), turned)


def _missing(plan: Plan, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The missing parameters, by their names in the classic layout."""
    classic = {name: own for own, name in names.items()}
    return {classic.get(m.target, m.target): m.shape for m in plan.missing}


def _rules(plan: Plan, routes: Routes, names: Mapping[str, str]) -> tuple[str, ...]:
    over = {(entry.source, entry.name) for entry in plan.unmapped}
    left = {
        r.rewrite.prepared: r.tensor.shape
        for r in routes.taken
        if (r.source, r.tensor.name) in over
    }
    others = [r.rewrite.prepared for r in routes.taken if r.rewrite.prepared not in left]
    return suggest_rules(left, _missing(plan, names), others)
