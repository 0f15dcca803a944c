"""Writes new rule files. An existing file is never overwritten: it may be days of work."""

from __future__ import annotations

from pathlib import Path

from llava_remap.core.problem import refuse


def refuse_existing(output: Path) -> None:
    """LR508 for an output that exists."""
    try:
        there = output.exists() or output.is_symlink()
    except (OSError, ValueError) as error:
        raise refuse("LR508", f"{output}: {error}.", "Give another --output.") from None
    if there:
        raise refuse(
            "LR508",
            f"{output} exists already, and nothing is overwritten.",
            "Give another --output.",
        )


def write_new(output: Path, text: str) -> None:
    """Write a rule file.

    Raises:
        RemapError: LR508 for an output that exists, or that can't be written.
    """
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise refuse(
            "LR508", f"{output}: {error.strerror or error}.", "Give another --output."
        ) from None
