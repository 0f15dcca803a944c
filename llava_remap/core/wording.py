"""The wording of counts, sizes and names in messages."""

from __future__ import annotations

from collections.abc import Iterable

from llava_remap.core.escaped import printable


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "tensor"), counted(2, "tensor")
    ('1 tensor', '2 tensors')
    """
    return f"{number} {what}" + ("s" if number != 1 else "")


def size(nbytes: int) -> str:
    """Bytes in a suitable unit (powers of 1000, as disks are sold)."""
    amount, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"


def amounts(part: int, whole: int) -> str:
    """A part of a number of bytes, in the unit of the whole: `3.1 of 14.1 GB`."""
    power, unit = next(
        (p, u)
        for p, u in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB"), (0, "B"))
        if whole >= 10**p or not p
    )
    digits = 1 if power else 0
    return f"{part / 10**power:.{digits}f} of {whole / 10**power:.{digits}f} {unit}"


def quoted(text: str) -> str:
    """`text` in backticks, with control characters escaped and cut to 120 characters, as a file may
    hold any text.

    >>> quoted("a\\nb")
    '`a\\\\nb`'
    """
    text = printable(text)
    return f"`{text if len(text) <= 120 else text[:117] + '...'}`"


def several(names: Iterable[str], most: int = 3) -> str:
    """The first `most` names and the number of the others, e.g. "`a`, `b`, `c` and 4 more"."""
    every = list(names)
    rest = len(every) - most
    return ", ".join(map(quoted, every[:most])) + (f" and {rest} more" if rest > 0 else "")
