"""Commands that lead on from a checkpoint which no rule file takes."""

from __future__ import annotations

from llava_remap.core.escaped import quote


def draft_command(class_name: str, location: str, **parts: str) -> str:
    """The command that infers a rule file for a checkpoint whose names no rule file knows.

    Args:
        parts: further sources → where they are.
    """
    given = (
        [f"model={location}", *(f"{name}={place}" for name, place in parts.items())]
        if parts
        else [location]
    )
    return (
        f"llava-remap rules new {' '.join(f'--from {quote(text)}' for text in given)} --to "
        f"{class_name} --output mine.yaml"
    )
