"""What lint found: for a person, for programs, and as annotations of GitHub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from llava_remap.core.escaped import printable
from llava_remap.core.fold import fold_names
from llava_remap.core.wording import counted
from llava_remap.report.problems import MOST_LINES, print_problem
from llava_remap.report.terminal import line

if TYPE_CHECKING:
    from llava_remap.authoring.lint import Finding, Linted
    from llava_remap.core.problem import Problem

FORMAT = "llava-remap/lint"
FORMAT_VERSION = 1


def print_lint(console: Console, files: Sequence[Linted]) -> None:
    """For each file its findings, and a line on what was tried and whether it is reversible."""
    for linted in files:
        shown: Counter[str] = Counter()
        for finding in linted.findings:
            code = finding.problem.code
            shown[code] += 1
            if shown[code] <= MOST_LINES:
                place = f"{finding.mark} " if finding.mark else ""
                print_problem(
                    console,
                    finding.problem,
                    place=place,
                    style="cyan" if finding.note else "bold red",
                )
        for code, count in shown.items():
            if count > MOST_LINES:
                line(
                    console,
                    f"\n… and {count - MOST_LINES} more of {code}; --format json has every one",
                )
        if linted.findings:
            console.print()
        verdict = ("failed", "bold red") if linted.failed else ("clean", "bold green")
        line(
            console,
            Text.assemble(
                (linted.file, "bold"),
                ": ",
                verdict,
                "".join(f"; {part}" for part in _summary(linted)),
            ),
        )


def lint_json(files: Sequence[Linted]) -> str:
    """Every file with all of its findings."""
    clean = not any(linted.failed for linted in files)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "clean": clean,
        "files": [_file(linted) for linted in files],
    }
    return json.dumps(content, indent=2)


def lint_github(files: Sequence[Linted]) -> str:
    """A workflow command for each finding, which GitHub shows at the line that it is about."""
    return "\n".join(
        dict.fromkeys(
            printable(_command(finding)) for linted in files for finding in linted.findings
        )
    )


def _summary(linted: Linted) -> list[str]:
    if not linted.loaded:
        return ["not looked at, since it can't be loaded"]
    tried = [counted(linted.rules, "rule"), counted(linted.tests, "test")]
    tried += [counted(linted.witnesses, "name") + " made from them"]
    if linted.names is not None:
        tried.append(counted(linted.names, "real name"))
    parts = [", ".join(tried)]
    if linted.untried:
        parts.append(
            f"no name was tried on {_rules(linted.untried)}: a regex needs one from a test or a "
            "source"
        )
    if linted.unknown:
        parts.append(
            f"the target's parameters aren't known ({linted.unknown}), so drops are judged by the "
            "rules alone"
        )
    back = f"{counted(linted.targets, 'new name')} led back and there again"
    if linted.reversible:
        parts.append(f"reversible: {back}" if linted.targets else "reversible: it renames nothing")
    else:
        why = "".join(f", `{label}` ({why})" for label, why in linted.one_way)
        parts.append(f"not reversible{f': {why[2:]}' if why else ''}; {back}")
    return parts


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
    mark = finding.mark
    place = (
        {"file": mark.file, "line": mark.line, "column": mark.column}
        if mark
        else dict.fromkeys(("file", "line", "column"))
    )
    return {**finding.problem.to_json(), **place, "level": "note" if finding.note else "error"}


def _command(finding: Finding) -> str:
    problem, mark = finding.problem, finding.mark
    properties = {"file": mark.file, "line": mark.line, "col": mark.column} if mark else {}
    properties["title"] = f"{problem.code} {problem.title}"
    said = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    message = "\n".join(filter(None, [problem.cause, *_names(problem), problem.fix]))
    return f"::{'notice' if finding.note else 'error'} {said}::{_data(message)}"


def _names(problem: Problem) -> list[str]:
    lines = [f"{name}  {fact}" for name, fact in problem.table] or fold_names(problem.names)
    return lines[:MOST_LINES] + [f"… and {len(lines) - MOST_LINES} more lines"] * (
        len(lines) > MOST_LINES
    )


def _data(text: str) -> str:
    """Escaped as GitHub's runner reads it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _rules(labels: Sequence[str]) -> str:
    return " and ".join(f"`{label}`" for label in labels)
