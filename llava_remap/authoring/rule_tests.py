"""Runs the tests of a rule file, those in the file and the snapshots beside it, and writes missing
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.authoring.in_file_tests import (
    Known,
    Status,
    TestResult,
    new_test,
    run_tests,
    untested,
)
from llava_remap.authoring.name_set import read_names
from llava_remap.authoring.snapshot import SnapshotResult, run_snapshots
from llava_remap.core.problem import RemapError, refuse
from llava_remap.rulefile import NameTest, RuleFile, load_rule_file
from llava_remap.rulefile.yaml_write import with_tests


@dataclass(frozen=True, slots=True)
class Untested:
    """A rule that no test in its file reached.

    Attributes:
        test: the test that was written for it; None while it is missing.
        why: why no test was written, though one was asked for.
    """

    rule: str
    test: NameTest | None = None
    why: str = ""

    @property
    def status(self) -> Status:
        return "missing" if self.test is None else "written"

    def to_json(self) -> dict[str, Any]:
        name = ", ".join(self.test.old_names) if self.test is not None else None
        return {"rule": self.rule, "status": self.status, "name": name, "why": self.why}


@dataclass(frozen=True, slots=True)
class Tested:
    """The results of a rule file's tests.

    Attributes:
        rules: the file, as the user called it.
        tests: the tests in the file.
        untested: rules of the file itself that none of its tests reached.
    """

    rules: str
    tests: tuple[TestResult, ...]
    untested: tuple[Untested, ...]
    snapshots: tuple[SnapshotResult, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and no snapshot is missing. Rules without a test don't count."""
        in_file = all(result.status == "passed" for result in self.tests)
        return in_file and all(result.status in ("passed", "written") for result in self.snapshots)

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": self.rules,
            "passed": self.passed,
            "tests": [
                {
                    "status": t.status,
                    "name": t.name,
                    "wanted": t.wanted,
                    "got": t.got,
                    "rules": list(t.rules),
                }
                for t in self.tests
            ],
            "untested": [rule.to_json() for rule in self.untested],
            "snapshots": [snapshot.to_json() for snapshot in self.snapshots],
        }


def run_rule_tests(
    rules: RuleFile, asked: str, given: Sequence[str], *, update: bool, offline: bool
) -> Tested:
    """Run the tests of a rule file.

    Args:
        asked: the user's name for the file.
        given: `--source` arguments: a checkpoint that must have a snapshot.
        update: whether missing tests and snapshots are written. Tests are only added to a file
            whose own tests pass.

    Raises:
        RemapError: LR113 for a broken snapshot, LR508 where something can't be written, and as
            `read_names`.
    """
    names = read_names(rules, given, offline=offline) if given else None
    tests = run_tests(rules)
    missing = [Untested(label) for label in untested(rules)]
    if update and missing:
        if any(test.status == "failed" for test in tests):
            missing = [
                Untested(rule.rule, why="no test is added to a file whose tests fail")
                for rule in missing
            ]
        else:
            missing = _written(rules, missing, names.known(rules) if names else Known())
    snapshots = run_snapshots(rules, names, update=update)
    return Tested(asked, tuple(tests), tuple(missing), tuple(snapshots))


def _written(rules: RuleFile, missing: Sequence[Untested], known: Known) -> list[Untested]:
    """Add a test for each rule to the file; one test may reach several rules."""
    tests = [new_test(rules, rule.rule, known) for rule in missing]
    made = [test for test in tests if test is not None]
    if made:
        _add(rules, [test for at, test in enumerate(made) if test not in made[:at]])
    why = "no name is known that the rule takes: give --source SRC, or write the test by hand"
    return [
        Untested(rule.rule, test, why if test is None else "")
        for rule, test in zip(missing, tests, strict=True)
    ]


def _add(rules: RuleFile, tests: Sequence[NameTest]) -> None:
    """Add tests to the file. The new text is loaded and tested first; apart from the tests it must
    say the same as the old text.
    """
    from llava_remap.core.files import replace_file  # running tests doesn't need it

    path = rules.path
    text = with_tests(path.read_bytes().decode("utf-8"), tests, str(path))

    def check(partial: Path) -> None:
        if not _says(partial, rules, tests):
            raise refuse(
                "LR201",
                f"{path}: with the new tests at its end, the file would mean something else, so "
                "it was not changed.",
                "End the file with an empty line, or add the tests by hand.",
            )

    replace_file(path, text.encode("utf-8"), check=check)


def _says(partial: Path, rules: RuleFile, tests: Sequence[NameTest]) -> bool:
    try:
        new = load_rule_file(partial)
    except RemapError:
        return False
    wanted = rules.text.model_copy(update={"tests": (*rules.text.tests, *tests)})
    return new.text == wanted and all(result.status == "passed" for result in run_tests(new))
