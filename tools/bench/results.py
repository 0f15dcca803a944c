"""What a run of the benchmarks found, as JSON and back, and the figures that tables and goals
are made from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tools.bench.measure import Usage

GIB, MIB = 1 << 30, 1 << 20

#: The ways that are measured, by the names that they have in tables and in JSON.
COPY, SYNC = "cp -r", "cp -r, then sync"
RENAME, APPLY, FIRST = "apply, rename only", "apply", "apply for the first time"
CLASSIC_RENAME, CLASSIC = "classic way, rename only", "classic way"
LOADED = "from_pretrained, save_pretrained"
OPERATED = "apply, with the operation"
#: Commands that move no weights.
EMPTY, HELP, LINT, LIST = (
    "an empty typer app, --help",
    "llava-remap --help",
    "rules lint llava-v1.5",
    "rules list",
)
DRY_7B, DRY_72B, DRY_110B = ("dry run, 7B", "dry run, 72B", "dry run, 110B")
REFUSED, LINT_MANY = "refusal of 71,000 names that don't fit", "rules lint, 3,000 rules"
IMPORTS = "importing torch and transformers"

#: For each way what it took in each round.
Rounds = dict[str, list[Usage]]


@dataclass(frozen=True, slots=True)
class Converted:
    """A checkpoint and what each way took to convert it.

    Attributes:
        nbytes: of its tensors.
        form: `safetensors` or `bin`.
        page_cache: `warm`: the source was read before each run; `cold`: it was dropped from the
            page cache.
        most_cached: if cold, the largest share of the source (0 to 1) that stayed in the page cache
            all the same.
    """

    nbytes: int
    tensors: int
    form: str
    page_cache: str
    most_cached: float
    ways: Rounds

    @property
    def full_size(self) -> bool:
        """Whether it is as large as LLaVA-1.5-7B."""
        return self.nbytes > 13 * 10**9

    @property
    def one_gb(self) -> bool:
        return self.nbytes < 2 * 10**9


@dataclass(slots=True)
class Results:
    """All of one run.

    Attributes:
        machine: lines that describe it.
        floor: bytes of peak memory that the kernel reported, at the end, for a child that does
            nothing.
        short: commands that move no weights.
        copied_nbytes: size of the file that ways to copy were tried on.
        copying: these ways, by the state of the page cache.
        operations: the checkpoints that need a tensor operation; `form` is its name.
    """

    machine: list[str]
    floor: int = 0
    converted: list[Converted] = field(default_factory=list)
    short: Rounds = field(default_factory=dict)
    copied_nbytes: int = 0
    copying: dict[str, Rounds] = field(default_factory=dict)
    operations: list[Converted] = field(default_factory=list)

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_results(file: Path) -> Results:
    content = json.loads(file.read_text(encoding="utf-8"))
    for kind in ("converted", "operations"):
        content[kind] = [
            Converted(**{**entry, "ways": _rounds(entry["ways"])}) for entry in content[kind]
        ]
    content["short"] = _rounds(content["short"])
    content["copying"] = {state: _rounds(ways) for state, ways in content["copying"].items()}
    return Results(**content)


def together(runs: Sequence[Results]) -> Results:
    """Runs on one machine as one with all their rounds. Of short commands, the last run's: it has
    rounds enough.

    Raises:
        ValueError: where they are of different machines or versions, or measured different things.
    """
    last = runs[-1]
    if any(run.machine != last.machine for run in runs):
        raise ValueError("the runs are of different machines or versions")
    what = [
        [
            (entry.nbytes, entry.form, entry.page_cache)
            for entry in (*run.converted, *run.operations)
        ]
        for run in runs
    ]
    if any(each != what[-1] for each in what) or any(
        run.copying.keys() != last.copying.keys() for run in runs
    ):
        raise ValueError("the runs measured different things")
    converted, operations = (
        [
            replace(
                same[-1],
                most_cached=max(entry.most_cached for entry in same),
                ways=_all_rounds([entry.ways for entry in same]),
            )
            for same in zip(*lists, strict=True)
        ]
        for lists in ([run.converted for run in runs], [run.operations for run in runs])
    )
    copying = {state: _all_rounds([run.copying[state] for run in runs]) for state in last.copying}
    return replace(
        last,
        floor=max(run.floor for run in runs),
        converted=converted,
        operations=operations,
        copying=copying,
    )


def _all_rounds(runs: Sequence[Rounds]) -> Rounds:
    if any(ways.keys() != runs[-1].keys() for ways in runs):
        raise ValueError("the runs measured different ways")
    return {name: [usage for ways in runs for usage in ways[name]] for name in runs[-1]}


def _rounds(ways: Mapping[str, Sequence[Mapping[str, Any]]]) -> Rounds:
    return {name: [Usage(**usage) for usage in usages] for name, usages in ways.items()}


def wall(usage: Usage) -> float:
    return usage.wall


def user(usage: Usage) -> float:
    return usage.user


def ratios(
    ways: Rounds, way: str, base: str, figure: Callable[[Usage], float] = wall
) -> list[float]:
    """A way's figure divided by that of another one in the same round, for each round; empty
    where either wasn't measured.
    """
    if way not in ways or base not in ways:
        return []
    return [figure(one) / figure(other) for one, other in zip(ways[way], ways[base], strict=True)]


def peak(usages: Iterable[Usage]) -> float:
    """Median of the peak memory, in bytes."""
    return median(usage.peak_nbytes for usage in usages)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range: `1.05 (1.01–1.10)`; of one value, itself."""
    middle = f"{median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({value_range(values, digits)})"


def value_range(values: Sequence[float], digits: int = 2) -> str:
    """The range alone: `1.01–1.10`, or one number where both ends are written alike."""
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return low if low == high else f"{low}–{high}"
