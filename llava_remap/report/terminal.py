"""What all reports to a person have: lines and sections, folded names, problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core import CODES, Problem, fold_groups, fold_names, printable

if TYPE_CHECKING:  # a refused rule file is shown without importing the rooms of a plan
    from llava_remap.planning import Plan

#: Folded lines shown for one problem. The others are counted here, and listed in the JSON report.
MOST_LINES = 12
#: Characters. Some causes quote a value from a file, which can have any length.
_LONGEST_CAUSE = 2000
_MORE_IN_PLAN = "lines; --report FILE.json has every one"


def shown(location: str | Path) -> str:
    """A path relative to the current folder, if it lies there; any other text, such as a hub id,
    unchanged. The result is printable and on one line.
    """
    path = Path(location)
    try:
        return printable(
            f"./{path.resolve().relative_to(Path.cwd())}" if path.exists() else str(location)
        )
    except (ValueError, OSError):  # it is elsewhere, or the current folder is gone
        return printable(str(location))


def write(console: Console, *texts: str | Text) -> None:
    """Write each text on a line of its own; empty texts are left out.

    Everything that reports print goes through this function. It escapes what a terminal would
    obey, and rich reads no markup. A text that starts with a line break has an empty line above it.
    """
    for text in filter(None, texts):
        plain = str(text)
        harmless = "\n" * plain.startswith("\n") + printable(plain.removeprefix("\n"))
        console.print(
            text if harmless == plain else harmless,
            soft_wrap=True,
            highlight=False,
            markup=False,
            emoji=False,
        )


def write_section(console: Console, title: str, texts: Iterable[str | Text]) -> None:
    """Write the texts that aren't empty below a heading; if all are, write nothing."""
    if lines := [text for text in texts if text]:
        write(console, Text(f"\n{title}", "bold"), *lines)


def more(count: int, what: str, indent: str = "    ") -> Text:
    """The line for `count` more lines than are shown; empty if there are none."""
    return Text(f"{indent}… and {count} more {what}" if count > 0 else "", "dim")


def names_by_fact(facts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Each fact with all names that it holds for; `facts` has a fact for each name."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, fact in facts:
        groups[fact].append(name)
    return groups


def folded_above(fact: str, names: Iterable[str], indent: str = "  ") -> list[str | Text]:
    """Folded names, and below them the fact that holds for them."""
    return [*(f"{indent}{line}" for line in fold_names(names)), Text(f"{indent}  {fact}", "dim")]


def print_problems(console: Console, problems: Sequence[Problem], plan: Plan | None = None) -> None:
    """Each problem; for a plan also the rules that might mend it."""
    near = {} if plan is None else near_names(plan)
    rules: Sequence[str] = () if plan is None else plan.suggested_rules
    for problem in problems:
        print_problem(
            console,
            problem,
            near if CODES[problem.code].unmatched else {},
            in_plan=plan is not None,
        )
    if rules:
        write_section(
            console,
            "Rules that might mend it, for the front of `names`; look at each before you paste it",
            [
                *(f"  {rule}" for rule in rules[:MOST_LINES]),
                more(len(rules) - MOST_LINES, _MORE_IN_PLAN),
            ],
        )


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
        near: for a name, the names that may have been meant.
        in_plan: whether a JSON report of the plan lists what isn't shown.
        place: stands before the code.
    """
    cause = problem.placed_cause
    if len(cause) > _LONGEST_CAUSE:
        cause = cause[:_LONGEST_CAUSE] + "…"
    lines = [f"{name}  {fact}" for name, fact in problem.table] or [
        f"{text}   {nearest(names, near)}".rstrip()
        for text, names in fold_groups(problem.names).items()
    ]
    write(
        console,
        Text.assemble("\n", place, (problem.code, style), (f" {problem.title}", "bold")),
        f"  {cause}",
        *(f"    {text}" for text in lines[:MOST_LINES]),
        more(len(lines) - MOST_LINES, _MORE_IN_PLAN if in_plan else "lines"),
        Text.assemble(("  → ", "green"), printable(problem.fix)) if problem.fix else "",
    )


def near_names(plan: Plan) -> dict[str, tuple[str, ...]]:
    """For each name without a match, the names that may have been meant."""
    near = {unmapped.produced or unmapped.name: unmapped.suggestions for unmapped in plan.unmapped}
    return near | {missing.target: missing.suggestions for missing in plan.missing}


def nearest(names: Sequence[str], near: Mapping[str, tuple[str, ...]]) -> str:
    """The nearest names to the names of one line, folded too."""
    lines = fold_names(near[name][0] for name in names if near.get(name))
    return f"nearest: {', '.join(lines)}" if lines else ""
