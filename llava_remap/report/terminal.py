"""The parts of all reports to a person: lines and sections, folded names, problems."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from llava_remap.core import CODES, Problem, fold_groups, fold_names, printable

if TYPE_CHECKING:  # a refused rule file is shown without importing the rooms of a plan
    from llava_remap.planning import Plan

#: The most folded lines for one problem. Further lines are counted here, and listed in the JSON
#: report.
MOST_LINES = 12
#: The most characters of a cause. Some causes quote a value from a file, of any length.
_LONGEST_CAUSE = 2000
#: The space between two columns of a line; a word with the space around it.
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
_WORD = re.compile(r"\s*\S+\s*")
#: A word of a shell's command line, with the option before it.
_WORDS = re.compile(
    r"(?:--?[\w-]+ (?!-))?"
    r"(?:\$'(?:\\.|[^'\\])*'|'[^']*'|\"[^\"]*\"|\\.|[^\s'\"\\])+"
)
_MORE_IN_PLAN = "lines; -v, or --report FILE.json, has every one"

Detail = Literal["quiet", "normal", "verbose"]
DETAIL: ContextVar[Detail] = ContextVar("detail", default="normal")
"""How detailed reports are. `quiet`: problems, notes and the last line. `verbose`: every name,
unfolded.
"""


def console_for(file: TextIO) -> Console:
    """A console that draws on a terminal and writes plain lines to everything else.

    On a terminal, lines are wrapped at its width. Elsewhere (a pipe, a log, TERM=dumb) every line
    stays whole, so that `grep` finds whole facts. NO_COLOR leaves out all styles.
    """
    wraps = file.isatty() and os.environ.get("TERM") != "dumb"
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        file=file, soft_wrap=not wraps, highlight=False, color_system=None if plain else "auto"
    )


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


def write(console: Console, *texts: str | Text, whole: bool = False) -> None:
    """Write each text on a line of its own; empty texts are left out.

    Everything that reports print goes through this function. It escapes control characters, and
    rich reads no markup. A text that starts with a line break has an empty line above it.
    A console with `soft_wrap` gets every text as one line; on others, long texts are wrapped.

    Args:
        whole: whether no text is wrapped.
    """
    whole = whole or console.soft_wrap
    for text in filter(None, texts):
        plain = str(text)
        harmless = "\n" * plain.startswith("\n") + printable(plain.removeprefix("\n"))
        line = text if isinstance(text, Text) and harmless == plain else Text(harmless)
        for part in [line] if whole else _wrapped(line, console.width):
            console.print(part, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _wrapped(line: Text, width: int) -> Iterator[Text]:
    """A line in parts of at most `width` columns, broken between words. A longer word stays whole.

    Two or more spaces separate the columns of a table. A wrapped text stands under its own column
    if at least half of the width remains, else under the first word, indented by two more.
    """
    plain = line.plain
    columns = [
        gap.end() for gap in _GAP.finditer(plain) if cell_len(plain[: gap.end()]) * 2 <= width
    ]
    hanging = (
        cell_len(plain[: columns[-1]])
        if columns
        else len(plain.strip("\n")) - len(plain.lstrip()) + 2
    )
    breaks, used = list[int](), 0
    for word in _WORD.finditer(plain):
        if used + cell_len(word[0].strip("\n").rstrip()) > width and used > hanging:
            breaks.append(word.start())
            used = hanging
        used += cell_len(word[0].strip("\n"))
    first, *rest = line.divide(breaks)
    for part in (first, *(Text(" " * hanging) + part for part in rest)):
        part.rstrip()
        yield part


def write_command(console: Console, command: str, indent: str = "  ") -> None:
    """Write a command that can be copied. On a terminal, a long line is continued after `\\`."""
    lines = [indent]
    for words in _WORDS.findall(command):
        if not console.soft_wrap and cell_len(lines[-1] + words) > console.width - 2:
            lines[-1] += "\\"
            lines.append(f"{indent}    ")
        lines[-1] += f"{words} "
    write(console, *(line.rstrip() for line in lines), whole=True)


def write_section(console: Console, title: str, texts: Iterable[str | Text]) -> None:
    """Write the non-empty texts below a heading; if there are none, write nothing."""
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
    lines = sorted(names) if DETAIL.get() == "verbose" else fold_names(names)
    return [*(f"{indent}{line}" for line in lines), Text(f"{indent}  {fact}", "dim")]


def print_problems(console: Console, problems: Sequence[Problem], plan: Plan | None = None) -> None:
    """Each problem; for a plan also the rules that might solve it."""
    near = {} if plan is None else near_names(plan)
    rules: Sequence[str] = () if plan is None else plan.suggested_rules
    for problem in problems:
        print_problem(
            console,
            problem,
            near if CODES[problem.code].unmatched else {},
            in_plan=plan is not None,
        )
    operations: Sequence[str] = () if plan is None else plan.suggested_operations
    if operations:
        write_section(
            console,
            "Sizes and names that add up, for `tensors`; check whether rows follow one another "
            "or alternate before you paste one",
            [
                *(f"  {line}" for line in operations[:MOST_LINES]),
                more(len(operations) - MOST_LINES, _MORE_IN_PLAN),
            ],
        )
    if rules:
        write_section(
            console,
            "Rules that might help, for the top of `names`; check each before you paste it",
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
        place: a text before the code.
    """
    cause = problem.placed_cause
    if len(cause) > _LONGEST_CAUSE:
        cause = cause[:_LONGEST_CAUSE] + "…"
    verbose = DETAIL.get() == "verbose"
    groups = {name: [name] for name in problem.names} if verbose else fold_groups(problem.names)
    lines = [f"{name}  {fact}" for name, fact in problem.table] or [
        f"{text}   {nearest(names, near)}".rstrip() for text, names in groups.items()
    ]
    most = len(lines) if verbose else MOST_LINES
    write(
        console,
        Text.assemble("\n", place, (problem.code, style), (f" {problem.title}", "bold")),
        f"  {cause}",
        *(f"    {text}" for text in lines[:most]),
        more(len(lines) - most, _MORE_IN_PLAN if in_plan else "lines; -v has every one"),
        *(
            Text.assemble(("    " if number else "  → ", "green"), printable(line))
            for number, line in enumerate(problem.fix.splitlines())
        ),
    )


def near_names(plan: Plan) -> dict[str, tuple[str, ...]]:
    """For each name without a match, the names that may have been meant."""
    near = {unmapped.produced or unmapped.name: unmapped.suggestions for unmapped in plan.unmapped}
    return near | {missing.target: missing.suggestions for missing in plan.missing}


def nearest(names: Sequence[str], near: Mapping[str, tuple[str, ...]]) -> str:
    """The nearest names to the names of one line, folded too."""
    lines = fold_names(near[name][0] for name in names if near.get(name))
    return f"nearest: {', '.join(lines)}" if lines else ""
