"""Everything that can go wrong, as one family.

A `Problem` is one finding: a stable code, one line of cause with the facts, one line of what to do.
A `RemapError` carries all problems that were found together; it is raised once.
The codes are listed in `CODES` and explained in the README.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """What the command line returns to the shell."""

    DONE = 0
    PROBLEMS = 1
    USAGE = 2
    INPUT = 3
    RESOURCES = 4


@dataclass(frozen=True, slots=True)
class Code:
    """The fixed part of a problem: its title and the exit code it leads to."""

    title: str
    exit: Exit


CODES: dict[str, Code] = {
    # Input
    "LR100": Code("checkpoint not found", Exit.INPUT),
    "LR101": Code("Git LFS pointer in place of weights", Exit.INPUT),
    "LR102": Code("truncated or corrupt file", Exit.INPUT),
    "LR103": Code("index and shards disagree", Exit.INPUT),
    # LR104 is a finding in a file that can be read, so it counts as a mapping problem.
    "LR104": Code("DeepSpeed ZeRO-3 stubs", Exit.PROBLEMS),
    "LR105": Code("pickle wants to build something", Exit.INPUT),
    "LR106": Code("not a model checkpoint", Exit.INPUT),
    "LR107": Code("adapter only", Exit.INPUT),
    "LR108": Code("projector only", Exit.INPUT),
    "LR109": Code("already converted", Exit.PROBLEMS),
    "LR110": Code("every name has a wrapper prefix", Exit.PROBLEMS),
    "LR111": Code("a manifest has no bytes", Exit.PROBLEMS),
    "LR112": Code("the config doesn't say enough", Exit.INPUT),
    "LR113": Code("unreadable tokenizer, config or processor file", Exit.INPUT),
    "LR114": Code("not to be had from the hub", Exit.INPUT),
    # Rule file
    "LR200": Code("rule file not found", Exit.USAGE),
    "LR201": Code("invalid rule file", Exit.USAGE),
    "LR202": Code("invalid pattern", Exit.USAGE),
    "LR206": Code("pattern ran into the time limit", Exit.USAGE),
    "LR209": Code("two rules with one id", Exit.USAGE),
    "LR210": Code("extends cannot be resolved", Exit.USAGE),
    "LR211": Code("wrong command line", Exit.USAGE),
    "LR212": Code("unknown post-load rule or option", Exit.USAGE),
    # Mapping
    "LR301": Code("source names that no rule maps", Exit.PROBLEMS),
    "LR302": Code("target parameters that get nothing", Exit.PROBLEMS),
    "LR303": Code("produced names that the model doesn't have", Exit.PROBLEMS),
    "LR304": Code("two sources for one target", Exit.PROBLEMS),
    "LR305": Code("nothing matched", Exit.PROBLEMS),
    "LR306": Code("a drop takes what the target wants", Exit.PROBLEMS),
    "LR307": Code("empty or doubled name segment", Exit.PROBLEMS),
    "LR308": Code("projector kind", Exit.PROBLEMS),
    "LR309": Code("tower kind", Exit.PROBLEMS),
    "LR310": Code("tower both in the checkpoint and given apart", Exit.PROBLEMS),
    "LR311": Code("wrong family", Exit.PROBLEMS),
    # Shapes, dtypes, vocabulary
    "LR401": Code("shapes differ", Exit.PROBLEMS),
    "LR402": Code("vocabulary sizes disagree", Exit.PROBLEMS),
    "LR403": Code("token id taken by another token", Exit.PROBLEMS),
    "LR405": Code("tied tensors differ", Exit.PROBLEMS),
    "LR406": Code("non-finite values", Exit.PROBLEMS),
    "LR407": Code("spare rows used, no resize", Exit.PROBLEMS),
    "LR408": Code("no tokenizer", Exit.PROBLEMS),
    "LR409": Code("not a dtype for parameters", Exit.PROBLEMS),
    # Resources and output
    "LR501": Code("not enough memory", Exit.RESOURCES),
    "LR502": Code("not enough disk", Exit.RESOURCES),
    "LR503": Code("output not empty", Exit.RESOURCES),
    "LR505": Code("unfinished folder", Exit.RESOURCES),
    "LR506": Code("shared storage", Exit.PROBLEMS),
    "LR508": Code("output can't be written", Exit.RESOURCES),
    # Verification
    "LR601": Code("the loader disagrees", Exit.PROBLEMS),
    "LR602": Code("values differ", Exit.PROBLEMS),
    "LR603": Code("files differ from the record", Exit.PROBLEMS),
    "LR604": Code("number of image tokens", Exit.PROBLEMS),
    "LR605": Code("the processor doesn't work", Exit.PROBLEMS),
    "LR606": Code("no record", Exit.INPUT),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. As a note (exit 0) it has the same form; who collects it decides which it is.

    Attributes:
        code: a key of `CODES`.
        cause: one line with the facts (file, rule, both values), without the names.
        fix: one line of what to do.
        names: every tensor name concerned, unfolded and complete.
        table: each name with a fact of its own, for problems that need it.
    """

    code: str
    cause: str
    fix: str = ""
    names: tuple[str, ...] = ()
    table: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        return CODES[self.code].title

    @property
    def exit(self) -> Exit:
        return CODES[self.code].exit

    @property
    def message(self) -> str:
        """Cause and fix in one string, as it stands in the JSON plan."""
        return f"{self.title}: {self.cause}" + (f" {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, Any]:
        details = {"details": dict(self.table)} if self.table else {}
        return {"code": self.code, "message": self.message, "names": sorted(self.names), **details}


class RemapError(Exception):
    """A job was refused. Carries every problem found, in the order in which they were found."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(f"{p.code} {p.message}" for p in self.problems))

    @property
    def exit(self) -> Exit:
        """The gravest exit code: what can't be read or written outweighs what doesn't map."""
        return max(problem.exit for problem in self.problems)


def refuse(code: str, cause: str, fix: str = "", names: Iterable[str] = ()) -> RemapError:
    """A `RemapError` of one problem, to be raised by the caller."""
    return RemapError(Problem(code, cause, fix, tuple(names)))
