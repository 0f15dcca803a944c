"""Rule files as text and JSON: the list, their tests, and the explanations of names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.text import Text

from llava_remap.core import fold_names
from llava_remap.report.machine import document
from llava_remap.report.terminal import DETAIL, write

if TYPE_CHECKING:  # to list rule files, neither their tests nor their engine is needed
    from llava_remap.authoring.explain import ExplainedName, ExplainedNames, LeftOut
    from llava_remap.authoring.in_file_tests import Status
    from llava_remap.authoring.rule_tests import Tested
    from llava_remap.rulefile import Listed

_STYLES: dict[Status, str] = {
    "passed": "green",
    "failed": "bold red",
    "missing": "yellow",
    "written": "cyan",
}
#: The longest line of a log that shows a name beside what it became, in columns.
_WIDTH = 120
#: Outcomes of a name, in the order in which they are shown. The bad outcome stands last, where
#: people see it.
_OUTCOMES = ("mapped", "dropped", "unmapped")
_NUMBER = re.compile(r"(?<![^.])(0|[1-9][0-9]{0,8})(?![^.])")

_Fact = TypeVar("_Fact", bound=Hashable)
_Names = tuple[str, ...]


def print_list(console: Console, files: Sequence[Listed]) -> None:
    """Each file on a line: name, version and purpose; with `-v` what it extends, below."""
    names = max(len(file.name) for file in files)
    versions = max(len(file.version) for file in files)
    for file in files:
        extends = f"{' ' * (names + versions + 4)}extends {', '.join(file.extends)}"
        write(
            console,
            Text.assemble(
                (file.name.ljust(names), "bold"),
                f"  {file.version.ljust(versions)}  {file.summary}",
            ),
            Text(extends if file.extends and DETAIL.get() == "verbose" else "", "dim"),
        )


def list_json(files: Sequence[Listed]) -> dict[str, Any]:
    """The list (`llava-remap/rule-files`, version 1)."""
    content = [
        {"name": f.name, "version": f.version, "summary": f.summary, "extends": list(f.extends)}
        for f in files
    ]
    return document("rule-files", {"rule_files": content, "problems": []})


def print_tests(console: Console, files: Sequence[Tested]) -> None:
    """For each file the tests that failed, are missing or were written, and last the number of
    tests by status.
    """
    for tested in files:
        write(console, *_tests(tested), f"{tested.rules}: {', '.join(_counts(tested))}")


def _tests(tested: Tested) -> Iterator[str | Text]:
    for test in tested.tests:
        if test.status == "failed":
            yield from (
                _status(test.status, f"{tested.rules}: {test.name}"),
                f"  wanted {test.wanted}",
                f"  got    {test.got}",
            )
    for rule in tested.untested:
        why = f": {rule.why}" if rule.why else "; --update writes one"
        what = f"no test in the file reaches it{why}"
        if rule.test is not None:
            what = f"a test of {', '.join(rule.test.old_names)}"
        yield _status(rule.status, f"{tested.rules}: {rule.rule}: {what}")
    for snapshot in tested.snapshots:
        if snapshot.status != "passed":
            why = f": {snapshot.why}" if snapshot.why else ""
            yield _status(snapshot.status, f"{snapshot.file}{why}")
        differences = (((d.name, d.wanted, d.got), None) for d in snapshot.differences)
        for (name, wanted, got), _ in _folded(differences):
            yield from (f"  {name}", f"    wanted {wanted}", f"    got    {got}")


def _counts(tested: Tested) -> Iterator[str]:
    """How many tests and snapshots have each status, in words."""
    tests = Counter(test.status for test in tested.tests)
    tests.update(rule.status for rule in tested.untested)
    for status in _STYLES:
        if tests[status] or status in ("passed", "failed"):
            yield f"{tests[status]} {status}"
    if tested.snapshots:
        snapshots = Counter(snapshot.status for snapshot in tested.snapshots)
        names = sum(snapshot.names for snapshot in tested.snapshots if snapshot.status == "passed")
        counts = ", ".join(f"{n} {status}" for status, n in snapshots.items())
        yield f"snapshots: {counts}{f' ({names} names)' if names else ''}"


def tests_json(files: Sequence[Tested]) -> dict[str, Any]:
    """Every test of every file (`llava-remap/tests`, version 1)."""
    passed = all(tested.passed for tested in files)
    tests = [tested.to_json() for tested in files]
    return document("tests", {"passed": passed, "files": tests, "problems": []})


def print_explanation(console: Console, explained: ExplainedNames) -> None:
    """The rules that took the names, in order, and the name after each; unmapped names last, with
    the nearest rules.

    Names that the same rules took and that differ only in numbers are folded.
    """
    write(
        console,
        Text(f"{explained.rules.name} {explained.rules.text.version or ''}".strip(), "bold"),
        *(f"  {source}: {why}" for source, why in explained.aside.items()),
        *_left_out(explained.left_out),
        *([f"  {explained.unknown}"] if explained.unknown else []),
    )
    chains: dict[_Names, list[ExplainedName]] = {}
    for entry in sorted(
        explained.names, key=lambda entry: _OUTCOMES.index(entry.explanation.outcome)
    ):
        rewrite = entry.explanation.rewrite
        prefixed = entry.source if rewrite.source != entry.name else ""
        chains.setdefault((prefixed, entry.explanation.outcome, *rewrite.rules), []).append(entry)
    for entries in chains.values():
        console.print()
        write(console, *_chain(entries, _WIDTH if console.soft_wrap else console.width))
    counts = Counter[str](entry.explanation.outcome for entry in explained.names)
    outcomes = [f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES if counts[outcome]]
    write(console, f"\n{', '.join(outcomes) or 'no names'}")


def _left_out(rules: Sequence[LeftOut]) -> Iterator[str]:
    """The rules whose `when` doesn't hold; several on one line, unless -v asks for each."""
    if len(rules) > 1 and DETAIL.get() != "verbose":
        yield f"  {len(rules)} rules are left out, since their `when` doesn't hold; -v says why"
        return
    for rule in rules:
        yield f"  {rule.rule} is left out, since its `when` doesn't hold: {'; '.join(rule.why)}"


def explanation_json(explained: ExplainedNames) -> dict[str, Any]:
    """Every name by itself (`llava-remap/explanation`, version 1)."""
    return document("explanation", {**explained.to_json(), "problems": []})


def _chain(entries: Sequence[ExplainedName], width: int) -> Iterator[str | Text]:
    """Names that the same rules took: the rules once, then each name with its new names."""
    first = entries[0].explanation
    prefix = first.rewrite.source.removesuffix(entries[0].name)
    if prefix:
        yield Text.assemble((f"prefix of {entries[0].source}", "bold"), f": {prefix}")
    for step in first.steps:
        makes = "dropped" if step.makes is None else step.makes or "taken out"
        yield Text.assemble((step.rule, "bold"), f": {step.pattern} → {makes}")
    if (operated := first.rewrite.operated) is not None:
        yield Text(f"  {operated.rule.operation}", "dim")
    if first.outcome == "dropped":
        yield Text(f"  {first.rewrite.reason}", "dim")
    elif first.outcome == "unmapped":
        yield Text("unmapped: no rule of `names` takes it", "bold red")
    rows = []
    for entry in entries:
        names, moves = _stations(entry), entry.explanation.moves
        places = tuple(text for move in moves for text in (move.taken, move.placed))
        rows.append(((*names, *places), (len(names), entry.explanation.nearest)))
    for row, (count, nearest) in _folded(rows):
        names, places = row[:count], row[count:]
        whole = f"  {' → '.join(names)}"
        steps = (f"  {names[0]}", *(f"    → {name}" for name in names[1:]))
        yield from (whole,) if len(whole) <= width else steps
        moved = zip(places[::2], places[1::2], strict=True)
        yield from (f"    {taken} → {placed}" for taken, placed in moved)
        yield from (f"    {near.rule} ({near.pattern}): {near.why}" for near in nearest)


def _stations(entry: ExplainedName) -> _Names:
    """A name and everything that it became, each once. What an operation makes is left out where
    its moves say it.
    """
    explanation = entry.explanation
    steps = explanation.steps[:-1] if explanation.moves else explanation.steps
    became = (explanation.rewrite.source, *(step.after for step in steps))
    return tuple(dict.fromkeys((entry.name, *filter(None, became))))


def _folded(rows: Iterable[tuple[_Names, _Fact]]) -> Iterator[tuple[_Names, _Fact]]:
    """Rows of names, each with a fact. Rows that differ only in numbers and have the same fact are
    folded.
    """
    alike: dict[tuple[_Names, _Fact], list[_Names]] = {}
    for names, fact in rows:
        alike.setdefault((tuple(_NUMBER.sub("#", name) for name in names), fact), []).append(names)
    for (_, fact), group in alike.items():
        columns = [fold_names(column) for column in zip(*group, strict=True)]
        if all(len(column) == 1 for column in columns):
            group = [tuple(column[0] for column in columns)]
        for names in group:
            yield names, fact


def _status(status: Status, text: str) -> Text:
    return Text.assemble((status.upper(), _STYLES[status]), f" {text}")
