"""Everything that can go wrong, as one family.

A `Problem` is one finding: a stable code, one line of cause with the facts, one line of what to do.
A `RemapError` carries all problems that were found together; it is raised once.
The codes are in `codes`, and explained in docs/reference/messages.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llava_remap.core.codes import CODES, Exit

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file. Lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: a problem or a note, as its collector decides.

    Attributes:
        code: a key of `CODES`.
        cause: one line with the facts (file, rule, both values), without place and names.
        fix: what to do; one line, and a line for each command if there are several.
        names: every tensor name concerned, unfolded and complete.
        table: each name with a fact of its own, for problems that need it.
        place: the problem's place in a rule file, if it has one.
        side: whether `names` and `table` name tensors of a source or of the target.
        lacks: as a note, whether the output lacks something that users may expect of it. Such a
            note is shown again when the job is done.
    """

    code: str
    cause: str
    fix: str = ""
    names: tuple[str, ...] = ()
    table: tuple[tuple[str, str], ...] = ()
    place: Mark | None = None
    side: Literal["source", "target"] = "source"
    lacks: bool = False

    def __post_init__(self) -> None:
        # What a cause quotes may be anybody's text, of several lines.
        object.__setattr__(self, "cause", r"\n".join(self.cause.splitlines()))

    @property
    def title(self) -> str:
        return CODES[self.code].title

    @property
    def exit(self) -> Exit:
        return CODES[self.code].exit

    @property
    def placed_cause(self) -> str:
        """The cause, after its place if it has one."""
        return f"{self.place} {self.cause}" if self.place else self.cause

    @property
    def message(self) -> str:
        """Title, place, cause and fix in one string."""
        return f"{self.title}: {self.placed_cause}" + (f" {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, Any]:
        """The problem in every JSON document: each fact in a field of its own, and `message` for
        people. `place` is null without a place, and `details` is there only with a table.
        """
        place = self.place
        details = {"details": dict(self.table)} if self.table else {}
        return {
            "code": self.code,
            "title": self.title,
            "cause": self.cause,
            "fix": self.fix,
            "place": place and {"file": place.file, "line": place.line, "column": place.column},
            "message": self.message,
            "names": sorted(self.names),
            **details,
        }


class EndedBySignal(SystemExit):
    """The process was asked to end; no library is to blame, wherever the signal came."""


class RemapError(Exception):
    """A job was refused. Carries every problem found, in the order in which they were found."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (
            (problems,) if isinstance(problems, Problem) else tuple(problems)
        )
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(f"{p.code} {p.message}" for p in self.problems)

    @classmethod
    def of(
        cls,
        code: str,
        cause: str,
        fix: str = "",
        names: Iterable[str] = (),
        place: Mark | None = None,
    ) -> Self:
        """An error of this class with one problem, to be raised by the caller."""
        return cls(Problem(code, cause, fix, tuple(names), place=place))

    @property
    def exit(self) -> Exit:
        """The gravest exit code: files that can't be read or written outweigh names without a
        rule.
        """
        return max(problem.exit for problem in self.problems)


refuse = RemapError.of


class ConfigError(RemapError):
    """A source's config lacks something necessary, or contradicts itself or the tensors."""


class RunawayRuleError(RemapError):
    """The regex of a rule takes too long on a name."""
