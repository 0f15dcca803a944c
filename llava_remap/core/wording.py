"""Words for counts, sizes and names in messages. Folding writes many tensor names in few lines, as
a person would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llava_remap.core.escaped import printable

#: A number without leading zeros: `01` is another name than `1`.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "tensor"), counted(2, "tensor")
    ('1 tensor', '2 tensors')
    """
    return f"{number} {what}" + ("s" if number != 1 else "")


def size(nbytes: int) -> str:
    """Bytes in a suitable unit, by powers of 1000."""
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
    """`text` in backticks, with control characters escaped and cut to 120 characters, since text
    from a file may be anything.

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


def fold_names(names: Iterable[str]) -> list[str]:
    """Join names that differ only in whole-number segments, one segment at a time, in order of
    first appearance.

    Numbers with gaps are listed as runs: `layers.{0..3,7}`. Numbers inside a word (`fc1`) are never
    folded.

    >>> fold_names(["layers.0.up", "layers.1.up", "layers.2.up", "norm"])
    ['layers.{0..2}.up', 'norm']
    """
    return list(fold_groups(names))


def fold_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Like `fold_names`: each line → the names that it stands for."""
    folded: dict[tuple[str, ...], list[str]] = {tuple(name.split(".")): [name] for name in names}
    for at in range(max(map(len, folded), default=0)):
        groups: dict[tuple[str | None, ...], dict[tuple[str, ...], list[str]]] = {}
        for segments, members in folded.items():
            numbered = at < len(segments) and _NUMBER.fullmatch(segments[at])
            key = (*segments[:at], None, *segments[at + 1 :]) if numbered else segments
            groups.setdefault(key, {})[segments] = members
        folded = {}
        for key, alike in groups.items():
            numbers = [int(segments[at]) for segments in alike] if None in key else []
            line = tuple(_runs(numbers) if segment is None else segment for segment in key)
            folded[line] = [name for members in alike.values() for name in members]
    return {printable(".".join(segments)): members for segments, members in folded.items()}


def _runs(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return "{" + ",".join("..".join(map(str, run)) for run in runs) + "}"


def one_line(error: BaseException) -> str:
    """The text of a library's error for a message: one line, at most 300 characters, without a full
    stop.
    """
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
