"""The findings of lint: for a person, for programs, and as annotations of GitHub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from llava_remap.core import counted, fold_names, printable
from llava_remap.report.machine import document
from llava_remap.report.terminal import MOST_LINES, print_problem, write

if TYPE_CHECKING:
    from llava_remap.authoring.lint import Finding, Linted
    from llava_remap.core.problem import Problem


def print_lint(console: Console, files: Sequence[Linted]) -> None:
    """For each file its findings, and a line that says what was tried and whether the file is
    reversible.
    """
    for linted in files:
        counts: Counter[str] = Counter()
        for finding in linted.findings:
            code = finding.problem.code
            counts[code] += 1
            if counts[code] <= MOST_LINES:
                print_problem(
                    console,
                    finding.problem,
                    place=f"{finding.mark} " if finding.mark else "",
                    style="cyan" if finding.note else "bold red",
                )
        write(
            console,
            *(
                f"\n… and {count - MOST_LINES} more of {code}; --format json has every one"
                for code, count in counts.items()
                if count > MOST_LINES
            ),
            Text.assemble(
                "\n" if linted.findings else "",
                (linted.file, "bold"),
                ": ",
                ("failed", "bold red") if linted.failed else ("clean", "bold green"),
                *(f"; {part}" for part in _summary(linted) if part),
            ),
        )


def lint_json(files: Sequence[Linted]) -> dict[str, Any]:
    """Every file with all of its findings (`llava-remap/lint`, version 1)."""
    clean = not any(linted.failed for linted in files)
    return document("lint", {"clean": clean, "files": [_file(linted) for linted in files]})


def lint_github(files: Sequence[Linted]) -> str:
    """A workflow command for each finding, which GitHub shows at the line that it is about."""
    return "\n".join(
        dict.fromkeys(
            printable(_command(finding)) for linted in files for finding in linted.findings
        )
    )


def _summary(linted: Linted) -> list[str]:
    """What was tried, and with which result. The caller leaves out empty texts."""
    if not linted.loaded:
        return ["not checked, since it can't be loaded"]
    names = "" if linted.names is None else f", {counted(linted.names, 'real name')}"
    untried = " and ".join(f"`{label}`" for label in linted.untried)
    back = f"{counted(linted.targets, 'new name')} led back and forward again"
    reversible = f"reversible: {back if linted.targets else 'it renames nothing'}"
    if not linted.reversible:
        why = ", ".join(f"`{label}` ({why})" for label, why in linted.one_way)
        reversible = f"not reversible{f': {why}' if why else ''}; {back}"
    return [
        f"{counted(linted.rules, 'rule')}, {counted(linted.tests, 'test')}, "
        f"{counted(linted.witnesses, 'name')} made from them{names}",
        untried and f"no name was tried on {untried}: a regex needs names from a test or a source",
        linted.unknown
        and f"the target's parameters aren't known ({linted.unknown}), so drops are checked only "
        "against the rules",
        reversible,
    ]


def _file(linted: Linted) -> dict[str, Any]:
    findings = [_finding(finding) for finding in linted.findings]
    if not linted.loaded:
        return {"file": linted.file, "loaded": False, "findings": findings}
    return {
        "file": linted.file,
        "loaded": True,
        "rules": linted.rules,
        "tests": linted.tests,
        "witnesses": linted.witnesses,
        "names": linted.names,
        "reversible": linted.reversible,
        "led_back": linted.targets,
        "one_way": [{"rule": label, "reason": why} for label, why in linted.one_way],
        "untried": list(linted.untried),
        "target_unknown": linted.unknown or None,
        "findings": findings,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    place = {key: getattr(finding.mark, key, None) for key in ("file", "line", "column")}
    return {**finding.problem.to_json(), **place, "level": "note" if finding.note else "error"}


def _command(finding: Finding) -> str:
    problem, mark = finding.problem, finding.mark
    properties = {"file": mark.file, "line": mark.line, "col": mark.column} if mark else {}
    properties["title"] = f"{problem.code} {problem.title}"
    place = ",".join(
        f"{key}={_escaped(str(value)).replace(':', '%3A').replace(',', '%2C')}"
        for key, value in properties.items()
    )
    message = "\n".join(filter(None, [problem.cause, *_names(problem), problem.fix]))
    return f"::{'notice' if finding.note else 'error'} {place}::{_escaped(message)}"


def _names(problem: Problem) -> list[str]:
    lines = [f"{name}  {fact}" for name, fact in problem.table] or fold_names(problem.names)
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"… and {more} more lines" if more > 0 else ""]


def _escaped(text: str) -> str:
    """Text as GitHub's runner reads it in a message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
