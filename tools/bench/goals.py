"""The goals, each held against what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.bench.operations import KINDS, Kind
from tools.bench.results import (
    APPLY,
    CLASSIC,
    CLASSIC_RENAME,
    COPY,
    DRY_7B,
    DRY_110B,
    EMPTY,
    FIRST,
    HELP,
    MIB,
    OPERATED,
    RENAME,
    Converted,
    Results,
    peak,
    ratios,
    user,
    value_range,
)

#: For each kind of checkpoint (or "") a figure of each round.
_Figures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        text: what is wanted.
        limit: what no round may be above, or below where `at_least`.
        figures: takes them from the results; without any, the goal wasn't measured.
        unit: of limit and figures.
    """

    text: str
    limit: float
    figures: Callable[[Results], _Figures]
    unit: str = "×"
    at_least: bool = False

    @property
    def wanted(self) -> str:
        return f"{self.text} {'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"

    def measured(self, results: Results) -> str:
        """The range over the rounds, for each kind of checkpoint."""
        digits = 2 if self.unit == "×" else 0
        found = self.figures(results).items()
        return (
            "; ".join(f"{kind} {value_range(values, digits)}".strip() for kind, values in found)
            or "not measured"
        )

    def met(self, results: Results) -> str:
        """`yes` if every round meets it, `no` if none does."""
        every = [value for values in self.figures(results).values() for value in values]
        right = sum(
            value >= self.limit if self.at_least else value <= self.limit for value in every
        )
        if not every:
            return ""
        return "yes" if right == len(every) else f"in {right} of {len(every)}" if right else "no"


def _where(
    chosen: Callable[[Converted], bool], figures: Callable[[Converted], list[float]]
) -> Callable[[Results], _Figures]:
    """A figure of each checkpoint that is chosen."""
    return lambda results: {
        entry.form: found
        for entry in results.converted
        if chosen(entry) and (found := figures(entry))
    }


def _full(entry: Converted) -> bool:
    return entry.full_size


def _warm_gb(entry: Converted) -> bool:
    return entry.one_gb and entry.page_cache == "warm"


def _peaks(way: str) -> Callable[[Converted], list[float]]:
    return lambda entry: [usage.peak_nbytes / MIB for usage in entry.ways.get(way, [])]


def _growth(way: str) -> Callable[[Results], _Figures]:
    """How much more memory is taken at full size than at 1 GB, in MiB."""

    def figures(results: Results) -> _Figures:
        small = {entry.form: peak(entry.ways[way]) for entry in results.converted if entry.one_gb}
        return {
            entry.form: [(peak(entry.ways[way]) - small[entry.form]) / MIB]
            for entry in results.converted
            if entry.full_size and entry.form in small
        }

    return figures


def _by_copy(entry: Converted) -> list[float]:
    return ratios(entry.ways, OPERATED, COPY)


def _operation(
    kind: Kind, figures: Callable[[Converted], list[float]]
) -> Callable[[Results], _Figures]:
    """A figure of the checkpoint that needs an operation."""
    return lambda results: {
        f"{entry.nbytes / 1e9:.0f} GB": figures(entry)
        for entry in results.operations
        if entry.form == kind.name
    }


def _short(command: str) -> Callable[[Results], _Figures]:
    return lambda results: {"": found} if (found := ratios(results.short, command, EMPTY)) else {}


GOALS = (
    Goal(
        "14 GB, rename only: wall ÷ `cp`",
        1.1,
        _where(_full, lambda entry: ratios(entry.ways, RENAME, COPY)),
    ),
    Goal("14 GB, rename only: peak memory", 60, _where(_full, _peaks(RENAME)), "MiB"),
    Goal(
        "14 GB, `apply`: wall ÷ `cp`",
        1.25,
        _where(_full, lambda entry: ratios(entry.ways, APPLY, COPY)),
    ),
    Goal("14 GB, `apply`: peak memory", 450, _where(_full, _peaks(APPLY)), "MiB"),
    Goal(
        "14 GB, `apply` for the first time: wall ÷ `cp`",
        1.25,
        _where(_full, lambda entry: ratios(entry.ways, FIRST, COPY)),
    ),
    Goal(
        "14 GB, `apply` for the first time: peak memory", 450, _where(_full, _peaks(FIRST)), "MiB"
    ),
    Goal("rename only: peak memory at 14 GB, more than at 1 GB", 20, _growth(RENAME), "MiB"),
    Goal("`apply`: peak memory at 14 GB, more than at 1 GB", 20, _growth(APPLY), "MiB"),
    Goal(
        "14 GB: user CPU of the classic way ÷ that of `apply`",
        8,
        _where(_full, lambda entry: ratios(entry.ways, CLASSIC, APPLY, user)),
        at_least=True,
    ),
    Goal(
        "14 GB: user CPU of the classic way ÷ that of `apply` for the first time",
        8,
        _where(_full, lambda entry: ratios(entry.ways, CLASSIC, FIRST, user)),
        at_least=True,
    ),
    Goal(
        "1 GB, warm: wall of the classic way ÷ that of `apply` for the first time",
        3,
        _where(_warm_gb, lambda entry: ratios(entry.ways, CLASSIC, FIRST)),
        at_least=True,
    ),
    Goal(
        "1 GB, warm: wall of the classic way ÷ that of `apply`",
        3,
        _where(_warm_gb, lambda entry: ratios(entry.ways, CLASSIC, APPLY)),
        at_least=True,
    ),
    Goal(
        "1 GB, warm: wall of the classic way ÷ that of `apply`, rename only",
        8,
        _where(_warm_gb, lambda entry: ratios(entry.ways, CLASSIC, RENAME)),
        at_least=True,
    ),
    Goal(
        "1 GB, warm: the same, where the classic way makes no new rows either",
        8,
        _where(_warm_gb, lambda entry: ratios(entry.ways, CLASSIC_RENAME, RENAME)),
        at_least=True,
    ),
    *(
        goal
        for kind in KINDS
        for goal in (
            Goal(f"{kind.name}: wall ÷ `cp`", kind.limit, _operation(kind, _by_copy)),
            Goal(f"{kind.name}: peak memory", kind.peak, _operation(kind, _peaks(OPERATED)), "MiB"),
        )
    ),
    Goal("dry run of a 7B ÷ `--help` of an empty typer app", 3, _short(DRY_7B)),
    Goal("dry run of a 110B ÷ `--help` of an empty typer app", 6, _short(DRY_110B)),
    Goal("`--help` ÷ that of an empty typer app", 1.5, _short(HELP)),
)
