"""Problems, and the errors that carry them.

A `Problem` is one finding: a stable code, a line with the cause, and a line with the fix. A
`RemapError` carries all problems that were found together; it is raised once. The codes are in
`codes`, and explained in docs/reference/messages.md.
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
    """One finding. Whoever collects it decides whether it is a problem or a note.

    Attributes:
        code: a key of `CODES`.
        cause: one line with the facts (file, rule, both values), without place and names.
        fix: what to do; one line, and a line for each command if there are several.
        names: the complete names of all tensors concerned.
        table: pairs of a name and its own fact, for problems that need them.
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
        # A cause may quote text from outside that has several lines.
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
        """The problem as JSON: each fact in a field of its own, and `message` for people. `place`
        may be null, and `details` is present only with a table.
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
    """A signal asked the process to end. No library is to blame, whichever code it interrupted."""


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
        """The highest exit code: unreadable or unwritable files outweigh names without a rule."""
        return max(problem.exit for problem in self.problems)


refuse = RemapError.of


class ConfigError(RemapError):
    """A source's config lacks something necessary, or contradicts itself or the tensors."""


class RunawayRuleError(RemapError):
    """The regex of a rule takes too long on a name."""
