"""The way back as text for a person: what was restored, and what could not be."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core.fold import fold_names
from llava_remap.core.wording import counted, size
from llava_remap.report.terminal import heading, line, shown

if TYPE_CHECKING:  # every other report is imported together with this one
    from llava_remap.jobs.revert import Restored, Reversion
    from llava_remap.jobs.run import Result


def print_reverted(console: Console, job: Reversion, done: Result) -> None:
    """Each source with what of it is back, what is not and why, and last where it lies."""
    line(
        console, Text(f"{shown(str(job.converted.path))}, back through {job.record.rules}", "bold")
    )
    heading(console, "Restored")
    width = max(len(part.name) for part in job.parts)
    for part in job.parts:
        count = len(part.recipe.mapped)
        tensors = (
            f"{counted(count, 'tensor')} in {counted(len(part.shards), 'file')}, "
            f"{size(part.nbytes)}"
        )
        line(
            console,
            Text.assemble(
                "  ", (part.name.ljust(width), "bold"), f"  {shown(str(part.folder))}: {tensors}"
            ),
        )
        line(
            console,
            f"  {' ' * width}  {', '.join(sorted(part.texts)) or 'no config: the record has none'}",
        )
    others = {
        name: source
        for name, source in job.record.sources.items()
        if name not in {part.name for part in job.parts}
    }
    if others or any(
        part.dropped or part.not_taken or part.not_restored or not part.texts for part in job.parts
    ):
        heading(console, "Not restored")
        for part in job.parts:
            _not_restored(console, part)
        for name, source in others.items():
            line(
                console,
                f"  {name}: none of its tensors was used; it is as it was, in {source.location}",
            )
    console.print()
    line(
        console,
        Text.assemble(
            ("Done", "bold green"), f": {shown(str(job.output))} written in {done.seconds:.1f} s"
        ),
    )


def _not_restored(console: Console, part: Restored) -> None:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for dropped in part.dropped:
        groups[(dropped.rule, dropped.reason)].append(dropped.name)
    for (rule, reason), names in groups.items():
        line(
            console,
            f"  {part.name}: {counted(len(names), 'tensor')} that "
            f"{'was' if len(names) == 1 else 'were'} dropped",
        )
        for folded in fold_names(names):
            line(console, f"    {folded}")
        line(console, Text(f"      {reason} ({rule})", "dim"))
    if part.not_taken:
        line(
            console,
            f"  {part.name}: {counted(part.not_taken, 'tensor')} of {part.location} that were not "
            "taken",
        )
    files = [*part.not_restored, *([] if part.texts else ["config.json"])]
    if files:
        line(
            console, f"  {part.name}: {', '.join(dict.fromkeys(files))}; copy from {part.location}"
        )
