"""The column `as the research code` of the table in docs/versions.md."""

from __future__ import annotations

from tests.original.answers import ALL_VERSIONS, Answers
from tests.original.convert import RULES, main_target
from tests.original.facts import FAMILIES, family
from tests.original.verdict import judge_family

HEAD = "as the research code"


def cell(rules: str, answers: Answers) -> str:
    """What all versions together come to for a rule file.

    It is `yes`, `yes but: FAULT (VERSIONS)`, `no: N of M cases differ`, or a dash where nothing is
    recorded. A rule file that can't meet the facts gets the name of the one that is asked instead.
    """
    names = [name for name in FAMILIES if main_target(name).rules == rules]
    if not names:
        instead = [main_target(name).rules for name in RULES if family(name).rules == rules]
        return f"see `{instead[0]}`" if instead else "—"
    found = {
        version: [verdict for name in names for _, verdict in judge_family(name, answers, version)]
        for version in ALL_VERSIONS
    }
    verdicts = [verdict for of_version in found.values() for verdict in of_version]
    if wrong := sum(bool(verdict.wrong) for verdict in verdicts):
        return f"no: {wrong} of {len(verdicts)} cases differ"
    faults = dict.fromkeys(verdict.fault.name for verdict in verdicts if verdict.fault)
    with_fault = {
        fault: [
            v
            for v, of_version in found.items()
            if any(one.fault and one.fault.name == fault for one in of_version)
        ]
        for fault in faults
    }
    return (
        "yes"
        + (" but: " if faults else "")
        + "; ".join(f"{fault} ({_span(with_fault[fault])})" for fault in faults)
    )


def with_column(table: str, answers: Answers) -> str:
    """A table of rule files by versions in Markdown, with one more column."""
    head, line, *rows = table.splitlines()
    longer = [
        f"{head} {HEAD} |",
        f"{line} --- |",
        *(f"{row} {cell(rules_of_row(row), answers)} |" for row in rows),
    ]
    return "\n".join(longer) + "\n"


def without_column(table: str) -> str:
    """The same table without its last column."""
    return "".join(line[: line.rindex("|", 0, -1) + 1] + "\n" for line in table.splitlines())


def rules_of_row(row: str) -> str:
    """The rule file that a row is about."""
    return row.split("`")[1]


def _span(versions: list[str]) -> str:
    """Versions that follow on each other, the first and the last."""
    return versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
