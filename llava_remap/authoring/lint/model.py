"""What lint is given and what it finds. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llava_remap.core.problem import Mark, Problem


@dataclass(frozen=True, slots=True)
class Names:
    """Real names that a rule file is held against.

    Attributes:
        taken: the names of all sources, selected and prefixed as the rule file says.
        first: those of the first source as they are stored, which a rule's `when` may ask for, as
            it may for the `config`.
        wanted: the parameters of the target; None where the rule file has none, or they can't be
            known.
        unknown: why they can't, in words.
        complete: whether the rules have to take every name, as those of a whole rule file have to
            and those of a part needn't.
    """

    taken: tuple[str, ...]
    first: tuple[str, ...]
    config: Mapping[str, Any] | None
    wanted: frozenset[str] | None = None
    unknown: str = ""
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and where in a rule file it is; `mark` is None where there is no file. A note
    leads to no exit code. `lost` are new names that don't lead back to what they were made from.
    """

    mark: Mark | None
    problem: Problem
    note: bool = False
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, problem: Problem) -> Finding:
        """From a problem that knows its place."""
        return cls(problem.place, replace(problem, place=None))

    def place(self, file: str) -> tuple[bool, str, int, int, str]:
        """What findings are sorted by: those in `file` first."""
        mark = self.mark or Mark("", 0, 0)
        return mark.file != file, mark.file, mark.line, mark.column, self.problem.code


@dataclass(frozen=True, slots=True)
class Linted:
    """A rule file that was looked at.

    Attributes:
        file: its name in messages.
        findings: in order of place, the file's own first.
        loaded: whether it is a valid rule file; if not, the findings say why, and nothing else is
            known.
        rules, tests, witnesses: how many it has; a witness is a name made from a template, or one
            of a test.
        names: how many real names it was held against; None without any.
        targets: how many new names were led back and there again, and came out the same.
        one_way: the rules of `names` that have no way back, and why.
        untried: rules whose regex takes none of the names, so that nothing is known of them.
        unknown: why the target's parameters aren't known, where real names were given and it has
            some.
    """

    file: str
    findings: tuple[Finding, ...]
    loaded: bool = True
    rules: int = 0
    tests: int = 0
    witnesses: int = 0
    names: int | None = None
    targets: int = 0
    one_way: tuple[tuple[str, str], ...] = ()
    untried: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def reversible(self) -> bool:
        """Whether every rename of `names` has a way back, and every new name that was tried came
        back.
        """
        return not self.one_way and not any(finding.lost for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether there is more to tell than notes."""
        return not all(finding.note for finding in self.findings)
