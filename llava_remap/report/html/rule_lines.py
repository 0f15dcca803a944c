"""The text of a rule file and of all files that it extends, with the number of names that each line
took. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_remap.report.html.rows import Row

if TYPE_CHECKING:
    from llava_remap.planning import Plan
    from llava_remap.rulefile import RuleFile


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a rule file.

    Attributes:
        rule: the rule that begins on it, as plans call it; empty if none does.
        taken: how many names the rule took.
    """

    text: str
    rule: str = ""
    taken: int = 0


@dataclass(frozen=True, slots=True)
class File:
    """A rule file, as `extends` spells it."""

    name: str
    lines: tuple[Line, ...]

    @property
    def has_rules(self) -> bool:
        return any(line.rule for line in self.lines)

    @property
    def taken(self) -> int:
        return sum(line.taken for line in self.lines)


def rule_lines(rules: RuleFile, plan: Plan, rows: Iterable[Row]) -> list[File]:
    """The rule file, then the files that it extends, its parents first."""
    taken = Counter(rule for row in rows for rule in row.rules)
    taken.update(f"post_load/{change.use}" for change in plan.post_load)
    begun: dict[tuple[str, int], str] = {}
    for file in (rules, *rules.layouts):
        prefix = "" if file is rules else f"{file.name}/"
        for label, mark in file.marks.items():
            rule = label if not prefix else prefix + label.partition("/")[2]
            begun.setdefault((file.called[mark.file], mark.line), rule)
        for node in file.tree.list_at("post_load"):
            use = node.locate(("use",))
            begun[file.called[use.mark.file], use.mark.line] = f"post_load/{use.value}"
    return [
        File(name, tuple(_lines(name, text.split("\n"), begun, taken)))
        for name, text in reversed(rules.texts)
    ]


def _lines(
    file: str, texts: Sequence[str], begun: dict[tuple[str, int], str], taken: Counter[str]
) -> Iterable[Line]:
    for number, text in enumerate(texts, 1):
        rule = begun.get((file, number), "")
        yield Line(text, rule, taken[rule] if rule else 0)
