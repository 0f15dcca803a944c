"""What is to be said of rule files: the list, their tests, and why names became what they
became.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.text import Text

from llava_remap.core.fold import fold_names
from llava_remap.report.terminal import line

if TYPE_CHECKING:  # to list rule files, neither their tests nor their engine is needed
    from llava_remap.authoring.explain import ExplainedName, ExplainedNames
    from llava_remap.authoring.rule_tests import Tested
    from llava_remap.rewrite import Status
    from llava_remap.rulefile import Listed

_STYLES: dict[Status, str] = {
    "passed": "green",
    "failed": "bold red",
    "missing": "yellow",
    "written": "cyan",
}
#: Columns of a line in which a name still stands beside what it became.
_WIDTH = 120
#: What can become of a name, in the order in which it is shown: what is wrong stands last, where it
#: is seen.
_OUTCOMES = ("mapped", "dropped", "unmapped")
_NUMBER = re.compile(r"(?<![^.])(0|[1-9][0-9]{0,8})(?![^.])")

_Fact = TypeVar("_Fact", bound=Hashable)


def print_list(console: Console, files: Sequence[Listed]) -> None:
    """One file after the other: name, version, what it is for; below, what it extends."""
    names, versions = (
        max(map(len, column))
        for column in zip(*((file.name, file.version) for file in files), strict=True)
    )
    for file in files:
        line(
            console,
            Text.assemble(
                (file.name.ljust(names), "bold"),
                f"  {file.version.ljust(versions)}  {file.summary}",
            ),
        )
        if file.extends:
            line(
                console,
                Text(f"{' ' * (names + versions + 4)}extends {', '.join(file.extends)}", "dim"),
            )


def list_json(files: Sequence[Listed]) -> str:
    """The list (`llava-remap/rule-files`, version 1)."""
    content = [
        {"name": f.name, "version": f.version, "summary": f.summary, "extends": list(f.extends)}
        for f in files
    ]
    return _json("rule-files", {"rule_files": content})


def print_tests(console: Console, tested: Tested) -> None:
    """What failed, is missing or was written, and last how many tests came to what."""
    for test in tested.tests:
        if test.status == "failed":
            _status(console, test.status, f"{tested.rules}: {test.name}")
            line(console, f"  wanted {test.wanted}")
            line(console, f"  got    {test.got}")
    for rule in tested.untested:
        what = (
            "no test in the file reaches "
            f"it{': ' + rule.why if rule.why else '; --update writes one'}"
        )
        if rule.test is not None:
            what = f"a test of {rule.test.from_}"
        _status(console, rule.status, f"{tested.rules}: {rule.rule}: {what}")
    for snapshot in tested.snapshots:
        if snapshot.status != "passed":
            _status(
                console,
                snapshot.status,
                f"{snapshot.file}" + (f": {snapshot.why}" if snapshot.why else ""),
            )
        for (name, wanted, got), _ in _together(
            [((d.name, d.wanted, d.got), ()) for d in snapshot.differences]
        ):
            line(console, f"  {name}")
            line(console, f"    wanted {wanted}")
            line(console, f"    got    {got}")
    counted = Counter(
        [*(t.status for t in tested.tests), *(rule.status for rule in tested.untested)]
    )
    said = [f"{counted['passed']} passed", f"{counted['failed']} failed"]
    said += [f"{counted[status]} {status}" for status in ("missing", "written") if counted[status]]
    if tested.snapshots:
        names = sum(snapshot.names for snapshot in tested.snapshots if snapshot.status == "passed")
        of_snapshots = Counter(snapshot.status for snapshot in tested.snapshots)
        of_names = f" ({names} names)" if names else ""
        said.append(
            "snapshots: "
            f"{', '.join(f'{n} {status}' for status, n in of_snapshots.items())}{of_names}"
        )
    line(console, f"{tested.rules}: {', '.join(said)}")


def tests_json(tested: Sequence[Tested]) -> str:
    """Every test of every file (`llava-remap/tests`, version 1)."""
    content = {"passed": all(t.passed for t in tested), "files": [t.to_json() for t in tested]}
    return _json("tests", content)


def print_explanation(console: Console, found: ExplainedNames) -> None:
    """The rules that took the names, in order, and what each left; unmapped names last, with the
    rules that came nearest.

    Names that the same rules took, and that differ in numbers only, are folded.
    """
    line(console, Text(f"{found.rules.name} {found.rules.text.version or ''}".strip(), "bold"))
    for source, why in found.aside.items():
        line(console, f"  {source}: {why}")
    for left in found.left_out:
        line(
            console,
            f"  {left.rule} is left out, since its `when` doesn't hold: {'; '.join(left.why)}",
        )
    chains: dict[tuple[str, ...], list[ExplainedName]] = {}
    for entry in sorted(found.names, key=lambda entry: _OUTCOMES.index(entry.explanation.outcome)):
        rewrite = entry.explanation.rewrite
        prefixed = entry.source if rewrite.source != entry.name else ""
        chains.setdefault((prefixed, entry.explanation.outcome, *rewrite.rules), []).append(entry)
    for entries in chains.values():
        _chain(console, entries)
    counted: Counter[str] = Counter(entry.explanation.outcome for entry in found.names)
    said = ", ".join(f"{counted[outcome]} {outcome}" for outcome in _OUTCOMES if counted[outcome])
    line(console, f"\n{said or 'no names'}")


def explanation_json(found: ExplainedNames) -> str:
    """Every name by itself (`llava-remap/explanation`, version 1)."""
    return _json("explanation", found.to_json())


def _chain(console: Console, entries: Sequence[ExplainedName]) -> None:
    """Names that the same rules took: the rules once, then the names with what each rule left."""
    first = entries[0].explanation
    console.print()
    if first.rewrite.source != entries[0].name:
        prefix = first.rewrite.source.removesuffix(entries[0].name)
        line(console, Text.assemble((f"prefix of {entries[0].source}", "bold"), f": {prefix}"))
    for step in first.steps:
        makes = "dropped" if step.makes is None else step.makes or "taken out"
        line(console, Text.assemble((step.rule, "bold"), f": {step.pattern} → {makes}"))
    if first.outcome == "dropped":
        line(console, Text(f"  {first.rewrite.reason}", "dim"))
    elif first.outcome == "unmapped":
        line(console, Text("unmapped: no rule of `names` takes it", "bold red"))
    rows = []
    for entry in entries:
        stations = [
            entry.explanation.rewrite.source,
            *(step.after or "" for step in entry.explanation.steps),
        ]
        left = [entry.name, *(name for name in stations if name)]
        rows.append((tuple(dict.fromkeys(left)), entry.explanation.nearest))
    for names, nearest in _together(rows):
        whole = "  " + " → ".join(names)
        for said in (
            [whole]
            if len(whole) <= _WIDTH
            else [f"  {names[0]}", *(f"    → {name}" for name in names[1:])]
        ):
            line(console, said)
        for near in nearest:
            line(console, f"    {near.rule} ({near.pattern}): {near.why}")


def _together(rows: Sequence[tuple[tuple[str, ...], _Fact]]) -> list[tuple[tuple[str, ...], _Fact]]:
    """Rows of names, each with a fact, folded where they differ in numbers only and their facts
    are one.
    """
    alike: dict[tuple[tuple[str, ...], _Fact], list[tuple[str, ...]]] = {}
    for names, fact in rows:
        alike.setdefault((tuple(_NUMBER.sub("#", name) for name in names), fact), []).append(names)
    found: list[tuple[tuple[str, ...], _Fact]] = []
    for (_, fact), group in alike.items():
        columns = [fold_names(column) for column in zip(*group, strict=True)]
        whole = all(len(column) == 1 for column in columns)
        found += [
            (names, fact)
            for names in ([tuple(column[0] for column in columns)] if whole else group)
        ]
    return found


def _status(console: Console, status: Status, text: str) -> None:
    line(console, Text.assemble((status.upper(), _STYLES[status]), f" {text}"))


def _json(kind: str, content: dict[str, Any]) -> str:
    return json.dumps(
        {"format": f"llava-remap/{kind}", "format_version": 1, **content, "problems": []}, indent=2
    )
