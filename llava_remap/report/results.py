"""The results of commands, as text for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core import counted, size
from llava_remap.folder.programs import serving
from llava_remap.report.plan import note_line
from llava_remap.report.terminal import (
    DETAIL,
    folded_above,
    names_by_fact,
    print_problems,
    shown,
    write,
    write_section,
)

if TYPE_CHECKING:  # all reports are imported together
    from pathlib import Path

    from llava_remap.authoring.shrink import Shrunk
    from llava_remap.jobs.job import Job
    from llava_remap.jobs.revert import Restored, Reversion
    from llava_remap.jobs.run import Result
    from llava_remap.verification import Verification

_STRICT = "strict load by transformers: nothing missing, unexpected or mismatched"
#: What was checked after writing, by `--verify`.
_CHECKED = {
    "meta": _STRICT,
    "full": f"{_STRICT}; every tensor read back, and equal to what the sources give",
    "none": "not checked after writing (--verify none)",
}
_FORWARD = "names and shapes read back: the rule file maps them to where they came from"
_CHECKED_BACK = {
    **_CHECKED,
    "meta": _FORWARD,
    "full": f"{_FORWARD}; every tensor equal to what the source gives",
}
#: The strict load of `verify`; None if it wasn't tried.
_LOADED = {
    True: _STRICT,
    False: "strict load by transformers: failed",
    None: "strict load by transformers: not tried",
}

#: The sizes of a small checkpoint that are shown.
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "image_size")


def print_result(console: Console, result: Result, job: Job) -> None:
    """What was written, how it was checked, and which programs load it with which command."""
    plan = job.plan
    programs = (
        {}
        if plan.layout == "original"
        else serving(_path(result.output), job.small_files, plan.layout)
    )
    # A note of what the folder lacks is repeated below a long plan.
    again = DETAIL.get() != "quiet"
    notes = [note_line(n) for n in result.notes if n not in plan.notes or (n.lacks and again)]
    done = Text.assemble(
        ("Done", "bold green"), f": {shown(result.output)} written in {result.seconds:.1f} s"
    )
    if result.reused and not result.nbytes:
        same = f": {shown(result.output)} is finished, and as this job would write it"
        done = Text.assemble(("Nothing to do", "bold green"), same)
    if DETAIL.get() == "quiet" or not result.nbytes:
        write(console, *notes, done)
        return
    write(
        console,
        done,
        f"  {size(result.nbytes)} of weights in {counted(len(plan.shards), 'file')}; "
        f"{checked(result, job)}",
        f"  {result.reused} of them finished before, as their digests say" if result.reused else "",
        f"  took {size(result.used.memory)} of memory at most, {size(result.used.disk)} of disk",
        *notes,
        f"  {', '.join(name for name in result.files if not name.endswith('.safetensors'))}",
    )
    width = max(map(len, programs), default=0)
    lines = [
        Text.assemble("  ", (program.ljust(width), "bold"), f"  {command}")
        for program, command in programs.items()
    ]
    write_section(console, "Load and serve", lines)


def checked(result: Result, job: Job) -> str:
    """What was checked after writing."""
    return (_CHECKED_BACK if job.plan.layout == "original" else _CHECKED)[result.verified]


def _path(folder: Path) -> str:
    """A path for commands, in a form that isn't mistaken for an option or a hub id."""
    return str(folder) if folder.is_absolute() else f"./{folder}"


def print_verification(console: Console, checked: Verification) -> None:
    """What was checked in a folder, and what is wrong with it."""
    written = f"{'' if checked.as_written else 'not '}as they were written"
    same = "equal, bit by bit, to what the sources give"
    if checked.differing:
        same = f"compared with what the sources give, {checked.differing} differ"
    write(
        console,
        Text(shown(checked.folder), "bold"),
        f"  {counted(checked.files, 'file')}, {size(checked.nbytes)}: {written}",
        f"  {_LOADED[checked.strict]}",
        f"  {checked.tensors} tensors {same}" if checked.tensors is not None else "",
    )
    print_problems(console, checked.problems)
    if not checked.problems:
        write(console, Text("Verified", "bold green"))


def print_reverted(console: Console, job: Reversion, done: Result) -> None:
    """For each source, what is restored, and what isn't and why; last, the output."""
    write(console, Text(f"{shown(job.converted.path)}, back through {job.record.rules}", "bold"))
    write_section(console, "Restored", _restored(job))
    names = {part.name for part in job.parts}
    write_section(
        console,
        "Not restored",
        [
            *(text for part in job.parts for text in _not_restored(part)),
            *(
                f"  {name}: none of its tensors was used; it is as it was, in {source.location}"
                for name, source in job.record.sources.items()
                if name not in names
            ),
        ],
    )
    write(
        console,
        Text.assemble(
            ("\nDone", "bold green"), f": {shown(job.output)} written in {done.seconds:.1f} s"
        ),
    )


def _restored(job: Reversion) -> Iterator[str | Text]:
    width = max(len(part.name) for part in job.parts)
    for part in job.parts:
        configs = ", ".join(sorted(part.texts)) or "no config: the record has none"
        yield from (
            Text.assemble(
                "  ",
                (part.name.ljust(width), "bold"),
                f"  {shown(part.folder)}: {counted(len(part.recipe.mapped), 'tensor')} in "
                f"{counted(len(part.shards), 'file')}, {size(part.nbytes)}",
            ),
            f"  {' ' * width}  {configs}",
        )


def _not_restored(part: Restored) -> Iterator[str | Text]:
    for in_part in (False, True):
        dropped = names_by_fact(
            (entry.name, f"{entry.reason} ({entry.rule})")
            for entry in part.dropped
            if (entry.box is not None) is in_part
        )
        for reason, names in dropped.items():
            were = "was" if len(names) == 1 else "were"
            what = "of which a part was dropped" if in_part else f"that {were} dropped"
            yield f"  {part.name}: {counted(len(names), 'tensor')} {what}"
            yield from folded_above(reason, names, "    ")
    not_taken = f"{counted(part.not_taken, 'tensor')} of {part.location} that were not taken"
    files = dict.fromkeys((*part.not_restored, *(() if part.texts else ("config.json",))))
    yield from (
        f"  {part.name}: {not_taken}" if part.not_taken else "",
        f"  {part.name}: {', '.join(files)}; copy from {part.location}" if files else "",
    )


def print_shrunk(console: Console, done: Shrunk) -> None:
    """The sizes of each part before and after, then the folder and how to give it to `apply`."""
    parts = {"language_model": done.twin.text, **done.twin.towers}
    width = max(map(len, parts))
    sizes = []
    for name, part in parts.items():
        changes = (
            f"{key} {part.before[key]} → {part.after[key]}" for key in _SIZES if key in part.before
        )
        sizes.append(Text.assemble("  ", (name.ljust(width), "bold"), "  ", ", ".join(changes)))
    write(console, Text(f"{shown(done.location)}, made small", "bold"))
    write_section(console, "Sizes", sizes)
    write(
        console,
        Text.assemble(
            ("\nDone", "bold green"), f": {shown(done.output)} written, {size(done.nbytes)}"
        ),
        f"  {len(done.twin.tensors)} of {done.tensors_before} tensors, with made-up values",
    )
    if done.tower is not None:
        tower = shown(done.tower)
        what = (
            "a tower that fits"
            if done.twin.tower_apart
            else "config and image processor of the tower"
        )
        write(console, f"  {tower}: {what}; give it as --source vision_tower={tower}")
