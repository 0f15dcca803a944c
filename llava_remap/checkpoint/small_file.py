"""The files of a source that are looked up by name: absent, or readable, or refused."""

from __future__ import annotations

from pathlib import Path

from llava_remap.checkpoint.errors import unreadable
from llava_remap.core.files import is_regular_file
from llava_remap.core.problem import refuse
from llava_remap.core.wording import quoted


def has_file(path: Path) -> bool:
    """Whether a source has a file at `path`.

    Raises:
        RemapError: LR100 or LR102 where the name is there and can't be read as a file, with the
            system's reason.
    """
    try:
        return is_regular_file(path)
    except OSError as error:
        raise unreadable(error, path) from None


def read_file(path: Path) -> bytes:
    """The content of a source's file.

    Raises:
        RemapError: LR100 or LR102 where it can't be read.
    """
    try:
        if not is_regular_file(path):
            raise FileNotFoundError(2, "nothing is there", str(path))
        return path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from None


def read_text(path: Path) -> str:
    """The text of a source's file.

    Raises:
        RemapError: LR100 or LR102 where it can't be read, LR113 where it isn't UTF-8.
    """
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(
            "LR113",
            f"{quoted(path.name)} isn't UTF-8 at byte {error.start}.",
            "Replace it by the original one.",
        ) from None
