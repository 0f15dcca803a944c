"""A plan, a refusal or a result as one page for a browser, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llava_remap.core import CODES, Problem, fold_groups, fold_names, printable, size
from llava_remap.core.version import __version__
from llava_remap.report.html.flow import flow
from llava_remap.report.html.rows import STATUSES, Row, rows
from llava_remap.report.html.rule_lines import rule_lines
from llava_remap.report.plan import facts, value_checks
from llava_remap.report.results import checked
from llava_remap.report.terminal import near_names, nearest

if TYPE_CHECKING:
    from llava_remap.jobs.job import Job
    from llava_remap.jobs.run import Result
    from llava_remap.planning import Plan

_HERE = Path(__file__).parent
_SCRIPTS = ("assets/echarts.min.js", "page.js")
#: The most folded lines of names below a problem, and in the short table of all names.
_MOST_NAMES, _MOST_LINES = 200, 1000


class Names(NamedTuple):
    """Names that differ only in numbers, as one line of the short table."""

    status: str
    source: str
    names: str
    rules: str
    target: str
    dtype: str
    how: str
    tensors: int
    nbytes: int


def plan_html(job: Job, result: Result | None = None) -> str:
    """The page of a plan, with what it will need, and the result if it was carried out."""
    plan, found = job.plan, rows(job)
    return _page(
        headline=_headline(plan.problems, written=result is not None),
        title=f"{plan.rules_name} {plan.rules_version}",
        problems=_with_names(plan.problems, plan),
        suggested=plan.suggested_rules,
        suggested_operations=plan.suggested_operations,
        notes=_with_names(result.notes if result is not None else plan.notes),
        plan=plan,
        choice=job.choice,
        provided=len(plan.mapped) + len(plan.aliases) + len(plan.tied_absent),
        facts=facts(job) | {"Value checks": [value_checks(job).partition(": ")[2]]},
        result=result,
        predicted=job.predicted,
        checked="" if result is None else checked(result, job),
        shards=_shards(job, result),
        names=_short(found),
        statuses=STATUSES,
        files=rule_lines(job.rules, plan, found),
        data=_packed({"columns": _columns(found), "flow": flow(found)}),
        tensors=len(found),
    )


def refusal_html(problems: Sequence[Problem], kind: str) -> str:
    """The page of a command that was refused before it had a result.

    Args:
        kind: the kind of the result: `plan`, …
    """
    return _page(
        headline=_headline(problems, written=False),
        title=f"before there was a {kind}",
        problems=_with_names(problems),
        notes=(),
        plan=None,
    )


def _page(**values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        """Escape characters that hide or reverse text, in every text that isn't the page's own."""
        return printable(value) if type(value) is str else value

    own = {name: (_HERE / name).read_text(encoding="utf-8") for name in (*_SCRIPTS, "page.css")}
    hashes = [
        base64.b64encode(hashlib.sha256(own[name].encode()).digest()).decode() for name in _SCRIPTS
    ]
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "pieces": _pieces}
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        scripts=[Markup(own[name]) for name in _SCRIPTS],
        style=Markup(own["page.css"]),
        script_sources=" ".join(f"'sha256-{digest}'" for digest in hashes),
        **values,
    )


def _pieces(text: str) -> list[str]:
    """A sentence, divided at its backticks: every second piece is code."""
    return printable(text).split("`")


def _headline(problems: Sequence[Problem], *, written: bool) -> tuple[str, str, str]:
    """A word for the page's colours, the verdict, and what it means."""
    if problems:
        kinds = dict.fromkeys(f"{p.code} {CODES[p.code].title}" for p in problems)
        return "bad", "Refused", f"{', '.join(kinds)}."
    if written:
        return "good", "Written", "Every tensor and every parameter has its place."
    return (
        "good",
        "Plan complete",
        "Every tensor and every parameter has its place. This is a plan: nothing was written.",
    )


def _with_names(
    problems: Iterable[Problem], plan: Plan | None = None
) -> list[tuple[Problem, list[tuple[str, str]], int]]:
    """Each problem with its folded names and a fact for each, and the number of hidden names."""
    near = {} if plan is None else near_names(plan)
    found = []
    for problem in problems:
        groups: dict[str, list[str]] = defaultdict(list)
        for name, fact in problem.table:
            groups[fact].append(name)
        lines = [(line, fact) for fact, names in groups.items() for line in fold_names(names)] or [
            (line, nearest(names, near if CODES[problem.code].unmatched else {}))
            for line, names in fold_groups(problem.names).items()
        ]
        found.append((problem, lines[:_MOST_NAMES], max(len(lines) - _MOST_NAMES, 0)))
    return found


def _shards(job: Job, result: Result | None) -> list[tuple[str, int | None, int, str]]:
    """The files of the output: name, number of tensors, bytes and digest, as far as known."""
    nbytes = {entry.target: entry.nbytes for entry in job.plan.mapped}
    tensors = {
        shard.file: (len(shard.tensors), sum(nbytes[name] for name in shard.tensors))
        for shard in job.plan.shards
    }
    if result is None:
        return [(file, count, amount, "") for file, (count, amount) in tensors.items()]
    return [
        (file, tensors[file][0] if file in tensors else None, digest.nbytes, digest.xxh3_128)
        for file, digest in result.digests.items()
    ]


def _short(found: Iterable[Row]) -> tuple[list[Names], int]:
    """All tensors in few lines with folded names, and the number of lines that aren't shown."""
    groups: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for row in found:
        rules = " → ".join(row.rules)
        key = (row.status, row.sources, row.component, rules, row.dtype, row.how)
        groups[key][row.new_name or "".join(o.name for o, _ in row.taken)] = row
    lines = [
        Names(
            status=status,
            source=source,
            names=", ".join(fold_names(o.name for name in names for o, _ in alike[name].taken)),
            rules=rules,
            target=line if component else "",
            dtype=dtype,
            how=how,
            tensors=len(names),
            nbytes=sum(alike[name].nbytes for name in names),
        )
        for (status, source, component, rules, dtype, how), alike in groups.items()
        for line, names in fold_groups(alike).items()
    ]
    return lines[:_MOST_LINES], max(len(lines) - _MOST_LINES, 0)


def _columns(found: Sequence[Row]) -> dict[str, Any]:
    """The table of all tensors by columns. A column with few different texts is a list of these
    texts, and for each row the number of its text.
    """
    many = {
        "names": ["\n".join(printable(origin.name) for origin, _ in row.taken) for row in found],
        "target": [printable(row.new_name) for row in found],
        "nbytes": [row.nbytes for row in found],
    }
    few = {
        "source": [printable(row.sources) for row in found],
        "component": [printable(row.component) for row in found],
        "status": [row.status for row in found],
        "rules": ["\n".join(map(printable, row.rules)) for row in found],
        "dtype": [printable(row.dtype) for row in found],
        "shape": [row.shape for row in found],
        "how": [printable(row.how) for row in found],
    }
    return many | {name: _numbered(texts) for name, texts in few.items()}


def _numbered(texts: Sequence[str]) -> dict[str, Any]:
    numbers: dict[str, int] = {}
    of = [numbers.setdefault(text, len(numbers)) for text in texts]
    return {"texts": list(numbers), "of": of}


def _packed(content: Mapping[str, Any]) -> str:
    """Compressed JSON as base64: a tenth of the size, and without characters special to HTML."""
    return base64.b64encode(
        gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0)
    ).decode()
