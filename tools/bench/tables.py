"""Results as tables of text: for the terminal and, in Markdown, for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tools.bench.goals import GOALS
from tools.bench.results import (
    COPY,
    EMPTY,
    MIB,
    OPERATED,
    SYNC,
    Converted,
    Results,
    Rounds,
    peak,
    ratios,
    spread,
    value_range,
)

#: Columns that the tables need; a narrower terminal wraps them, a pipe gets them whole.
_TERMINAL_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text. The first column stands left, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        return (
            "\n".join([f"{self.title}:", "", *(f"| {' | '.join(cells)} |" for cells in lines)])
            + "\n"
        )


def tables(results: Results) -> list[Table]:
    """All tables that there are figures for; the goals come last."""
    made = [_converted(entry, results.floor) for entry in results.converted]
    made += [_converted(entry, results.floor) for entry in results.operations]
    made += _growth(results)
    if results.short:
        made.append(
            _usages("Commands that move no weights", results.short, (EMPTY,), results.floor)
        )
    for state, ways in results.copying.items():
        title = (
            f"Ways to copy {results.copied_nbytes / 1e9:.2f} GB onto the disk, page cache {state}"
        )
        made.append(_usages(title, ways, (next(iter(ways)),), results.floor))
    rows = tuple((goal.wanted, goal.measured(results), goal.met(results)) for goal in GOALS)
    return [*made, Table("Goals, and the range over the rounds", ("goal", "measured", "met"), rows)]


def print_tables(made: Sequence[Table]) -> None:
    from rich.console import Console  # after the last measurement: see measure.py
    from rich.table import Table as Drawn

    console = Console(width=max(Console().width, _TERMINAL_WIDTH))
    for table in made:
        drawn = Drawn(title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
        for cells in table.rows:
            drawn.add_row(*cells)
        console.print(drawn)


def _converted(entry: Converted, floor: int) -> Table:
    cache = (
        "warm"
        if entry.page_cache == "warm"
        else f"cold (at most {entry.most_cached:.1%} of the source in it)"
    )
    form = entry.form if OPERATED in entry.ways else f".{entry.form}"
    title = f"{entry.nbytes / 1e9:.2f} GB, {entry.tensors} tensors, {form}, page cache {cache}"
    return _usages(
        title, entry.ways, tuple(base for base in (COPY, SYNC) if base in entry.ways), floor
    )


def _usages(title: str, ways: Rounds, bases: Sequence[str], floor: int) -> Table:
    """A row for each way, with medians and ranges over the rounds; ratios are to `bases`, within
    each round.
    """
    columns = ("way", "wall s", *(f"÷ {base}" for base in bases), "user s", "system s", "peak MiB")
    rows = []
    for name, usages in ways.items():
        nbytes = peak(usages)
        rows.append(
            (
                name,
                spread([usage.wall for usage in usages]),
                *(spread(ratios(ways, name, base)) for base in bases),
                f"{median(usage.user for usage in usages):.2f}",
                f"{median(usage.system for usage in usages):.2f}",
                f"{'≤ ' if nbytes < floor + MIB else ''}{nbytes / MIB:,.0f}",
            )
        )
    return Table(title, columns, tuple(rows))


def _growth(results: Results) -> list[Table]:
    """From the smallest checkpoint of each form to the largest: seconds for each GB, and memory."""
    made = []
    for form in dict.fromkeys(entry.form for entry in results.converted):
        sizes = sorted(
            (entry for entry in results.converted if entry.form == form),
            key=lambda entry: entry.nbytes,
        )
        small, large = sizes[0], sizes[-1]
        if small is large:
            continue
        names = [f"{entry.nbytes / 1e9:.1f} GB, {entry.page_cache}" for entry in (small, large)]
        columns = (
            "way",
            *(f"s/GB at {name}" for name in names),
            *(f"peak MiB at {name}" for name in names),
            "more MiB",
        )
        rows = tuple(
            (
                way,
                *(
                    value_range([usage.wall / entry.nbytes * 1e9 for usage in entry.ways[way]])
                    for entry in (small, large)
                ),
                *(f"{peak(entry.ways[way]) / MIB:,.0f}" for entry in (small, large)),
                f"{(peak(large.ways[way]) - peak(small.ways[way])) / MIB:+,.0f}",
            )
            for way in large.ways
            if way in small.ways
        )
        made.append(Table(f"Growth, .{form}", columns, rows))
    return made
