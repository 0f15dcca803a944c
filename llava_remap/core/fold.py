"""Folded names: many tensor names in few lines, as a person would write them.

>>> fold_names(["layers.0.up", "layers.1.up", "layers.2.up", "norm"])
['layers.{0..2}.up', 'norm']
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llava_remap.core.escaped import printable

#: A number as a program writes it: `01` is another name than `1`.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def fold_names(names: Iterable[str]) -> list[str]:
    """Join names that differ only in whole-number segments, one segment at a time, in order of
    first appearance.

    Numbers that don't follow each other are listed as runs: `layers.{0..3,7}`. Numbers inside a
    word (`fc1`) are never folded.
    """
    return list(fold_groups(names))


def fold_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """As `fold_names`: each line with the names that it stands for."""
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
