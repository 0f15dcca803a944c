"""Problems as text for a person: each with its code, the facts, the names folded, and what to
do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core.codes import CODES
from llava_remap.core.escaped import printable
from llava_remap.core.fold import fold_groups, fold_names
from llava_remap.core.problem import Problem
from llava_remap.report.terminal import line

if TYPE_CHECKING:  # a refusal of a rule file is shown without the rooms that it doesn't come to
    from llava_remap.plan import Plan

#: Folded lines shown for one problem; the rest is counted, and whole in the JSON report.
MOST_LINES = 12
#: Characters. Some causes quote a value out of a file, which can be of any length.
_LONGEST_CAUSE = 2000


def print_problems(console: Console, problems: Sequence[Problem], plan: Plan | None = None) -> None:
    """Each problem; and, of a plan, the rules that would mend it."""
    near: dict[str, tuple[str, ...]] = {}
    if plan is not None:
        for unmapped in plan.unmapped:
            near[unmapped.produced or unmapped.name] = unmapped.suggestions
        near |= {missing.target: missing.suggestions for missing in plan.missing}
    for problem in problems:
        print_problem(
            console,
            problem,
            near if CODES[problem.code].unmatched else {},
            in_plan=plan is not None,
        )
    if plan is not None and plan.suggested_rules:
        console.print()
        line(
            console,
            Text(
                "Rules that might mend it, for the front of `names`; look at each before you paste "
                "it",
                "bold",
            ),
        )
        for rule in plan.suggested_rules[:MOST_LINES]:
            line(console, f"  {rule}")
        _more(console, len(plan.suggested_rules) - MOST_LINES, in_plan=True)


def print_problem(
    console: Console,
    problem: Problem,
    near: Mapping[str, tuple[str, ...]] = {},
    *,
    in_plan: bool = False,
    place: str = "",
    style: str = "bold red",
) -> None:
    """One problem.

    Args:
        near: for a name those that it could have been meant for.
        in_plan: whether a report of the plan has more.
        place: what stands before its code.
    """
    console.print()
    line(console, Text.assemble(place, (problem.code, style), (f" {problem.title}", "bold")))
    cause = problem.placed_cause
    cause = cause if len(cause) <= _LONGEST_CAUSE else cause[:_LONGEST_CAUSE] + "…"
    line(console, f"  {printable(cause)}")
    if problem.table:
        shown = [f"{name}  {fact}" for name, fact in problem.table]
    else:
        shown = [text + _nearest(names, near) for text, names in fold_groups(problem.names).items()]
    for text in shown[:MOST_LINES]:
        line(console, f"    {printable(text)}")
    _more(console, len(shown) - MOST_LINES, in_plan)
    if problem.fix:
        line(console, Text.assemble(("  → ", "green"), printable(problem.fix)))


def _nearest(names: Sequence[str], near: Mapping[str, tuple[str, ...]]) -> str:
    """What the names of one line are nearest to, folded as they are."""
    lines = fold_names(near[name][0] for name in names if near.get(name))
    return f"   nearest: {', '.join(lines)}" if lines else ""


def _more(console: Console, count: int, in_plan: bool) -> None:
    if count > 0:
        where = "; --report FILE.json has every one" if in_plan else ""
        line(console, Text(f"    … and {count} more lines{where}", "dim"))
