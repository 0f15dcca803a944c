"""What was measured becomes figures, goals, tables and a picture. No test looks at a clock."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.bench.goals import GOALS
from tools.bench.measure import Usage
from tools.bench.picture import picture
from tools.bench.readme import BEGIN, END, replaced, section
from tools.bench.results import (
    APPLY,
    CLASSIC,
    COPY,
    DRY_7B,
    EMPTY,
    MIB,
    OPERATED,
    RENAME,
    Converted,
    Results,
    Rounds,
    ratios,
    read_results,
    spread,
    together,
    user,
)
from tools.bench.tables import tables


def usages(*walls: float, user: float = 1.0, mib: int = 50) -> list[Usage]:
    return [Usage(wall, user, 0.5, mib * MIB) for wall in walls]


def converted(nbytes: int, rename_mib: int) -> Converted:
    ways: Rounds = {
        COPY: usages(10, 20),
        RENAME: usages(10.5, 23, mib=rename_mib),
        APPLY: usages(12, 24, user=2),
        CLASSIC: usages(50, 50, user=17, mib=15_000),
    }
    return Converted(nbytes, 718, "bin", "cold", 0.0, ways)


@pytest.fixture
def results() -> Results:
    large, small = converted(14 * 10**9, 58), converted(10**9, 40)
    short = {EMPTY: usages(0.2, 0.2), DRY_7B: usages(0.5, 0.7)}
    return Results(
        ["machine   of a test"],
        10 * MIB,
        [small, large],
        short,
        10**9,
        {"warm": {"a way": usages(1)}},
        [replace(small, form="transpose", ways={COPY: usages(1, 2), OPERATED: usages(2, 6)})],
    )


def test_json_and_back(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "new" / "results.json")
    assert read_results(tmp_path / "new" / "results.json") == results


def test_ratios_are_within_a_round(results: Results) -> None:
    ways = results.converted[0].ways
    assert ratios(ways, RENAME, COPY) == [1.05, 1.15]
    assert ratios(ways, CLASSIC, APPLY, user) == [8.5, 8.5]
    assert ratios(ways, RENAME, "never measured") == []
    assert spread([1.05, 1.15, 1.06]) == "1.06 (1.05–1.15)"
    assert spread([2.0]) == "2.00"


def test_rounds_of_several_runs(results: Results) -> None:
    other = deepcopy(results)
    other.converted[1].ways[RENAME] = usages(11, 12, mib=59)
    other.short[DRY_7B] = usages(0.6, 0.6)
    both = together([results, other])
    assert together([results]) == results
    assert ratios(both.converted[1].ways, RENAME, COPY) == [1.05, 1.15, 1.1, 0.6]
    assert both.short == other.short
    assert [usage.wall for usage in both.copying["warm"]["a way"]] == [1, 1]
    other.converted[1].ways.pop(APPLY)
    with pytest.raises(ValueError, match="different ways"):
        together([results, other])
    other.converted.pop()
    with pytest.raises(ValueError, match="different things"):
        together([results, other])
    other.machine = ["machine   another one"]
    with pytest.raises(ValueError, match="different machines"):
        together([results, other])


def test_goals(results: Results) -> None:
    found = {goal.wanted: (goal.measured(results), goal.met(results)) for goal in GOALS}
    assert found["14 GB, rename only: wall ÷ `cp` ≤ 1.1 ×"] == ("bin 1.05–1.15", "in 1 of 2")
    assert found["transpose: wall ÷ `cp` ≤ 2.5 ×"] == ("1 GB 2.00–3.00", "in 1 of 2")
    assert found["14 GB, rename only: peak memory ≤ 60 MiB"] == ("bin 58", "yes")
    assert found["14 GB, `apply`: wall ÷ `cp` ≤ 1.25 ×"] == ("bin 1.20", "yes")
    assert found["rename only: peak memory at 14 GB, more than at 1 GB ≤ 20 MiB"] == (
        "bin 18",
        "yes",
    )
    assert found["14 GB: user CPU of the classic way ÷ that of `apply` ≥ 8 ×"] == (
        "bin 8.50",
        "yes",
    )
    assert found["1 GB, warm: wall of the classic way ÷ that of `apply` ≥ 3 ×"] == (
        "not measured",
        "",
    )
    assert found["dry run of a 7B ÷ `--help` of an empty typer app ≤ 3 ×"] == (
        "2.50–3.50",
        "in 1 of 2",
    )


def test_a_goal_that_no_round_meets(results: Results) -> None:
    results.converted[1].ways[RENAME] = usages(30, 40, mib=61)
    met = {goal.wanted: goal.met(results) for goal in GOALS}
    assert (
        met["14 GB, rename only: wall ÷ `cp` ≤ 1.1 ×"]
        == met["14 GB, rename only: peak memory ≤ 60 MiB"]
        == "no"
    )


def test_section_of_the_page(results: Results) -> None:
    made = section(results)
    for table in tables(results):
        assert table.markdown() in made
        assert {len(row) for row in table.rows} == {len(table.columns)}
    page = f"before\n{BEGIN}old\n{END}\nafter\n"
    assert replaced(replaced(page, made), made) == f"before\n{BEGIN}{made}{END}\nafter\n"
    with pytest.raises(ValueError, match="not both in the page"):
        replaced("no place for it", made)


def test_picture_has_a_bar_for_each_way_and_panel(results: Results) -> None:
    drawn = ElementTree.fromstring(picture(results))
    bars = drawn.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 2 * sum(len(entry.ways) for entry in results.converted)
    right = [float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in bars]
    assert max(right) < float(drawn.attrib["width"])
