"""Makes text from outside harmless to a terminal: one function, and streams that apply it to
everything they print.

Names of tensors, paths, values of configs, tokens, answers of a hub and messages of libraries can
hold anything. Control characters, characters that turn the direction of a line, and invisible
characters are shown as escapes.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

#: Invisible characters that `str.isprintable` lets pass: joiners, fillers, selectors of variants.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class UnprintedError(OSError):
    """The printed text can't be written, for example to a full disk."""


def printable(text: str) -> str:
    """Text in which nothing moves the cursor, changes a colour, turns the direction or hides.

    >>> printable("a\\x1b[31mb\\u202ec"), printable("é 图")
    ('a\\\\x1b[31mb\\\\u202ec', 'é 图')
    """
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(
        letter
        if letter.isprintable() and not _UNSEEN.match(letter)
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def quote(text: str) -> str:
    """A text as one word of a shell command, fully printable. Escapes use `$'…'`, which bash, zsh
    and ksh know.

    >>> quote("a b"), quote("a\\nb")
    ("'a b'", "$'a\\\\nb'")
    """
    if printable(text) == text:
        return shlex.quote(text)
    letters = (
        "".join(f"\\x{byte:02x}" for byte in os.fsencode(one)) if printable(one) != one else one
        for one in text
    )
    return "$'" + "".join(f"\\{one}" if one in "\\'" else one for one in letters) + "'"


def printable_lines(text: str) -> str:
    """Like `printable`, but line breaks are kept."""
    return "\n".join(map(printable, text.split("\n")))


def raw(stream: TextIO) -> TextIO:
    """The stream behind an escaping stream, for code that draws on a terminal and escapes texts
    itself.
    """
    return stream.rich_proxied_file if isinstance(stream, EscapingStream) else stream


class EscapingStream(io.TextIOBase):
    """A stream that escapes every text and writes it to another stream.

    Attributes:
        rich_proxied_file: the other stream. rich writes to it directly, since styles are control
            sequences; `report.terminal` escapes its texts itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable_lines(text))
        return len(text)

    def flush(self) -> None:
        self.rich_proxied_file.flush()

    def fileno(self) -> int:
        return self.rich_proxied_file.fileno()

    def isatty(self) -> bool:
        return self.rich_proxied_file.isatty()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.rich_proxied_file.encoding


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape everything that is printed within the block, by any library."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = EscapingStream(out), EscapingStream(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
