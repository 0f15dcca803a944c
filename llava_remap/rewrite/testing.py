"""The tests that stand in a rule file, run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llava_remap.rewrite.program import Program, Rewrite, compile_all
from llava_remap.rulefile import NameTest, RuleFile

DROPPED, UNMAPPED = "(dropped)", "(unmapped)"


@dataclass(frozen=True, slots=True)
class TestResult:
    """Outcome of one in-file test.

    Attributes:
        wanted, got: a name, `(dropped)` or `(unmapped)`.
        rules: the labels of the rules that took the name there.
    """

    __test__ = False  # pytest: not a test class

    name: str
    wanted: str
    got: str
    rules: tuple[str, ...]

    @property
    def status(self) -> Literal["passed", "failed"]:
        return "passed" if self.wanted == self.got else "failed"


def outcome(rewrite: Rewrite) -> str:
    """What became of a name, in a word: the new name, `(dropped)` or `(unmapped)`."""
    return rewrite.target or (DROPPED if rewrite.reason is not None else UNMAPPED)


def run_tests(rules: RuleFile) -> list[TestResult]:
    """Run the tests that stand in a rule file, in order."""
    program = compile_all(rules)
    return [_run(program, test) for test in rules.text.tests]


def _run(program: Program, test: NameTest) -> TestResult:
    """A test's name, in a checkpoint that has besides what the test says is `given`."""
    found = program.given((test.from_, *test.given.names), test.given.config).rewrite(test.from_)
    wanted = test.to or (DROPPED if test.dropped else UNMAPPED)
    return TestResult(test.from_, wanted, outcome(found), found.rules)
