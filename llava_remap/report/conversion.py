"""The output of `convert` for people: the short plan, and the summary of several conversions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from llava_remap.core import Problem, counted
from llava_remap.planning.problems import component
from llava_remap.report.machine import document
from llava_remap.report.plan import (
    note_line,
    print_plan,
    print_title,
    print_verdict,
    sources,
    value_checks,
)
from llava_remap.report.terminal import DETAIL, print_problems, shown, write, write_section

if TYPE_CHECKING:
    from llava_remap.jobs.conversions import Converted
    from llava_remap.jobs.job import Job


def print_short_plan(console: Console, job: Job) -> None:
    """The plan in a few lines: the rule file and why, sources, components, merges, drops and notes;
    the problems in full.
    """
    plan = job.plan
    if DETAIL.get() != "normal":
        print_plan(console, job)
        return
    print_title(console, job)
    print_problems(console, plan.problems, plan)
    write_section(console, "Sources", sources(console, job))
    wanted = sorted(Counter(map(component, plan.target_names)).items())
    parameters = ", ".join(f"{name} {count}" for name, count in wanted)
    dropped = Counter(entry.reason for entry in plan.dropped)
    merged = Counter(
        source for entry in plan.mapped for source in {lora.a.source for lora in entry.loras}
    )
    write_section(
        console,
        "Plan",
        [
            f"  parameters  {parameters}" if parameters else "",
            *(
                f"  merged      pairs of {name} into {counted(count, 'tensor')}"
                for name, count in merged.items()
            ),
            *(
                f"  dropped     {counted(count, 'tensor')}: {reason}"
                for reason, count in dropped.items()
            ),
            f"  output      {shown(job.output)}",
        ],
    )
    notes = [*map(_note, plan.notes)]
    is_cut = any(str(note).endswith("…") for note in notes)
    write_section(console, "Notes (-v has all of them)" if is_cut else "Notes", notes)
    write(console, value_checks(job))
    print_verdict(console, job)


def _note(note: Problem) -> Text:
    """The first sentence of a note, with `…` if there is more; the whole note if the folder lacks
    something.
    """
    if note.lacks:
        return note_line(note)
    first, more, _ = note.placed_cause.partition(". ")
    sentence = f"{first.rstrip('.')}. …" if more or note.fix or note.names else first
    return Text.assemble("  ", (note.code, "cyan"), f" {note.title}: {sentence}")


def print_heading(console: Console, source: str, number: int, count: int) -> None:
    """Which of several checkpoints comes now."""
    above = "\n" if number > 1 else ""
    write(console, Text(f"{above}{number} of {count}: {shown(source)}", "bold cyan"))


def print_summary(console: Console, done: Sequence[Converted]) -> None:
    """How each of several conversions ended, and how many succeeded."""
    width = max(len(shown(one.source)) for one in done)
    lines = [
        Text.assemble(
            "  ",
            (shown(one.source).ljust(width), "bold"),
            "  ",
            (one.state, "green" if one.is_well else "red"),
            _outcome(one),
        )
        for one in done
    ]
    write_section(console, "Summary", lines)
    well = sum(one.is_well for one in done)
    write(console, f"  {well} of {counted(len(done), 'checkpoint')}")


def _outcome(one: Converted) -> str:
    if one.problems:
        return f"  {one.problems[0].code} {one.problems[0].title}"
    return f"  {shown(one.output)}" if one.is_well else ""


def summary_json(done: Sequence[Converted], exit_code: int) -> dict[str, Any]:
    """The document `llava-remap/summary` of several conversions."""
    return document("summary", {"exit": exit_code, "checkpoints": [one.to_json() for one in done]})
