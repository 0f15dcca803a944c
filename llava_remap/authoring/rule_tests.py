"""The tests of a rule file, run, and written where they are missing: those in the file, and the
snapshots beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.authoring.name_set import read_names
from llava_remap.authoring.snapshot import SnapshotResult, run_snapshots
from llava_remap.core.problem import RemapError, refuse
from llava_remap.rewrite import Known, Status, TestResult, new_test, run_tests, untested
from llava_remap.rulefile import NameTest, RuleFile, load_rule_file


@dataclass(frozen=True, slots=True)
class Untested:
    """A rule that no test in its file reached.

    Attributes:
        test: what was written for it; None while it is missing.
        why: why it is missing still, though tests were to be written.
    """

    rule: str
    test: NameTest | None = None
    why: str = ""

    @property
    def status(self) -> Status:
        return "missing" if self.test is None else "written"

    def to_json(self) -> dict[str, Any]:
        name = None if self.test is None else self.test.from_
        return {"rule": self.rule, "status": self.status, "name": name, "why": self.why}


@dataclass(frozen=True, slots=True)
class Tested:
    """What the tests of a rule file came to.

    Attributes:
        rules: the file, as it was asked for.
        tests: those that stood in the file.
        untested: rules written in the file that none of them reached.
    """

    rules: str
    tests: tuple[TestResult, ...]
    untested: tuple[Untested, ...]
    snapshots: tuple[SnapshotResult, ...]

    @property
    def passed(self) -> bool:
        """Nothing failed, and no snapshot is missing. A rule without a test is told and doesn't
        count.
        """
        in_file = all(result.status != "failed" for result in self.tests)
        return in_file and all(result.status in ("passed", "written") for result in self.snapshots)

    def to_json(self) -> dict[str, Any]:
        tests = [
            {
                "status": t.status,
                "name": t.name,
                "wanted": t.wanted,
                "got": t.got,
                "rules": list(t.rules),
            }
            for t in self.tests
        ]
        return {
            "rules": self.rules,
            "passed": self.passed,
            "tests": tests,
            "untested": [rule.to_json() for rule in self.untested],
            "snapshots": [snapshot.to_json() for snapshot in self.snapshots],
        }


def run_rule_tests(
    rules: RuleFile, asked: str, given: Sequence[str], *, update: bool, offline: bool
) -> Tested:
    """Run the tests of a rule file.

    Args:
        asked: what the user calls the file.
        given: `--source` arguments: a checkpoint for which a snapshot has to be there.
        update: whether missing tests are written: to the file, where all that stand in it pass, and
            as snapshots.

    Raises:
        RemapError: LR113 for a broken snapshot, LR508 where something can't be written, and as
            `read_names`.
    """
    names = read_names(rules, given, offline=offline) if given else None
    tests = run_tests(rules)
    missing = [Untested(label) for label in untested(rules)]
    if update and missing:
        failed = any(test.status == "failed" for test in tests)
        if failed:
            missing = [
                Untested(rule.rule, why="nothing is added to a file whose tests fail")
                for rule in missing
            ]
        else:
            missing = _written(rules, missing, names.known(rules) if names else Known())
    snapshots = run_snapshots(rules, names, update=update)
    return Tested(asked, tuple(tests), tuple(missing), tuple(snapshots))


def _written(rules: RuleFile, missing: Sequence[Untested], known: Known) -> list[Untested]:
    """Each rule with a test, and these in the file; one test may do for several rules."""
    found: dict[str, NameTest] = {}
    for rule in missing:
        if (test := new_test(rules, rule.rule, known)) is not None:
            found[rule.rule] = test
    if found:
        tests = list(found.values())
        _add(rules, [test for at, test in enumerate(tests) if test not in tests[:at]])
    why = "no name is known that it takes: give --source SRC, or write the test by hand"
    return [
        Untested(r.rule, found[r.rule]) if r.rule in found else Untested(r.rule, why=why)
        for r in missing
    ]


def _add(rules: RuleFile, tests: Sequence[NameTest]) -> None:
    """Add tests to the file. The new text is loaded and tested first, and has to say the same as
    the old one otherwise.
    """
    from llava_remap.core.files import replace_file  # tests that are only run start the sooner
    from llava_remap.rulefile.edit import with_tests

    path = rules.path
    text = with_tests(path.read_bytes().decode("utf-8"), tests, str(path))

    def check(partial: Path) -> None:
        if not _says(partial, rules, tests):
            raise refuse(
                "LR201",
                f"{path}: with tests behind the others, it would be read as something else, so it "
                "is left as it was.",
                "Let the file end in an empty line, or add the tests by hand.",
            )

    replace_file(path, text.encode("utf-8"), check=check)


def _says(partial: Path, rules: RuleFile, tests: Sequence[NameTest]) -> bool:
    try:
        new = load_rule_file(partial)
    except RemapError:
        return False
    wanted = rules.text.model_copy(update={"tests": (*rules.text.tests, *tests)})
    return new.text == wanted and all(result.status == "passed" for result in run_tests(new))
