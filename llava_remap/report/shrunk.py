"""A small twin as text for a person: what became smaller, and where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core.wording import size
from llava_remap.report.terminal import heading, line, shown

if TYPE_CHECKING:  # every other report is imported together with this one
    from llava_remap.authoring.shrink import Shrunk

_SHOWN = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "image_size")


def print_shrunk(console: Console, done: Shrunk) -> None:
    """The sizes before and after of each part, then the folder and what to give it to."""
    twin = done.twin
    line(console, Text(f"{shown(done.location)}, made small", "bold"))
    heading(console, "Sizes")
    parts = {"language_model": twin.text, **twin.towers}
    width = max(map(len, parts))
    for name, part in parts.items():
        changes = (
            f"{key} {part.before[key]} → {part.after[key]}" for key in _SHOWN if key in part.before
        )
        line(console, Text.assemble("  ", (name.ljust(width), "bold"), "  ", ", ".join(changes)))
    console.print()
    line(
        console,
        Text.assemble(
            ("Done", "bold green"), f": {shown(str(done.output))} written, {size(done.nbytes)}"
        ),
    )
    line(console, f"  {len(twin.tensors)} of {done.tensors_before} tensors, with made-up values")
    if done.tower is not None:
        what = (
            "a tower that fits" if twin.tower_apart else "config and image processor of the tower"
        )
        line(
            console,
            f"  {shown(str(done.tower))}: {what}; give it as --source "
            f"vision_tower={shown(str(done.tower))}",
        )
