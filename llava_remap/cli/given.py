"""The words of the command line, for messages that show the command again with changes."""

from __future__ import annotations

from collections.abc import Collection
from contextvars import ContextVar
from pathlib import Path

from llava_remap.core import quote

GIVEN: ContextVar[tuple[str, ...]] = ContextVar("given", default=())


def command_without(
    *options: str, taken: Path | None = None, free: str = "", manifests: Collection[str] = ()
) -> str:
    """The command that was given, quoted for a shell, without these flags.

    Args:
        taken: the output that was given, if it can't be used.
        free: another name for the output; empty if the given one can be used.
        manifests: sources that are manifests. The command names the checkpoint instead.
    """
    words: list[str] = []
    given = iter(GIVEN.get())
    for word in given:
        name, equals, value = word.rpartition("=")
        if free and word in ("-o", "--output"):
            next(given, None)
        elif value in manifests:
            words.append(f"{name}{equals}CHECKPOINT")
        elif word not in options and not (free and (Path(word) == taken or name == "--output")):
            words.append(quote(word))
    return " ".join(["llava-remap", *words, *(["--output", quote(free)] if free else [])])
