"""The flow of bytes from modules of the sources through rules to modules of the target, as a graph.
Pure.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from llava_remap.core import printable
from llava_remap.report.html.rows import Row

Path = tuple[str, ...]
Tone = Literal["module", "rule", "quiet", "bad"]

#: The most modules on each side, and rules between them, that are drawn separately.
_MODULES, _RULES = 14, 16
_NUMBER = re.compile(r"[0-9]+")
#: Statuses of tensors that aren't parts of the written target.
_ENDS = ("unmapped", "no target", "tied", "dropped", "not used")


class Node(NamedTuple):
    """A node of the picture.

    Attributes:
        column: 0 for the sources, 1 for rules, 2 for the target.
        label: printable.
        filter: the column of the table and its value that select the node's tensors; empty for a
            module.
    """

    column: int
    label: str
    tone: Tone
    filter: tuple[str, str] = ("", "")


def flow(rows: Sequence[Row]) -> dict[str, Any]:
    """The nodes, and links between the nodes' numbers with bytes and number of tensors.

    Links from sources have the bytes that are read, links to the target the bytes that are written.
    """
    from_ = modules(
        (_source_path(origin.source, origin.name), nbytes)
        for row in rows
        for origin, nbytes in row.taken
    )
    to = modules((tuple(row.target.split(".")), row.nbytes) for row in rows if _is_target(row))
    weights = Counter[str]()
    for row in rows:
        weights[_rule(row)] += row.nbytes
    apart = {rule for rule, _ in weights.most_common(_RULES)}
    nbytes, tensors = Counter[tuple[Node, Node]](), Counter[tuple[Node, Node]]()
    for row in rows:
        for start, end, amount in _links(row, from_, to, apart):
            nbytes[start, end] += amount
            tensors[start, end] += 1
    nodes = sorted({node for link in tensors for node in link})
    number = {node: n for n, node in enumerate(nodes)}
    return {
        "nodes": [node._asdict() for node in nodes],
        "links": [
            [number[start], number[end], nbytes[start, end], count]
            for (start, end), count in sorted(tensors.items())
        ],
    }


def _links(
    row: Row, from_: dict[Path, Path], to: dict[Path, Path], apart: set[str]
) -> Iterator[tuple[Node, Node, int]]:
    """The links of a tensor, each with its bytes."""
    if _is_target(row):
        place = to[tuple(row.target.split("."))]
        end = Node(2, printable(".".join(place)) or "all modules", "module")
    else:
        end = Node(2, row.status, "bad" if row.is_bad else "quiet", ("status", row.status))
    if not row.taken:
        if row.status in ("missing", "made"):
            tone: Tone = "bad" if row.is_bad else "quiet"
            yield Node(0, row.status, tone, ("status", row.status)), end, row.nbytes
        return
    rule = _rule(row)
    middle = Node(1, rule, "rule", ("rules", rule))
    if rule not in apart:
        middle = Node(1, "other rules", "rule")
    for origin, nbytes in row.taken:
        source, *module = from_[_source_path(origin.source, origin.name)] or ("all sources",)
        label = printable(f"{source}: {'.'.join(module)}" if module else source)
        yield Node(0, label, "module"), middle if rule else end, nbytes
    if rule:
        yield middle, end, row.nbytes


def _is_target(row: Row) -> bool:
    """Whether the row is a parameter with a place in the written target."""
    return row.status not in _ENDS


def _rule(row: Row) -> str:
    """The last rule that a name went through: the rule that made the new name, or dropped it."""
    return printable(row.rules[-1]) if row.rules else ""


def _source_path(source: str, name: str) -> Path:
    return (source, *name.split("."))


def modules(names: Iterable[tuple[Path, int]], most: int = _MODULES) -> dict[Path, Path]:
    """For each name, as segments, the module that it is drawn in: a few modules, the largest ones
    divided first. Numbers are folded to `*`.

    Args:
        names: each with its bytes.
        most: the largest number of modules. If there are more different first segments, all names
            are one module, `()`.
    """
    sizes = Counter[Path]()
    for path, nbytes in names:
        sizes[path] += nbytes
    groups: dict[Path, list[Path]] = {(): list(sizes)}
    weights: dict[Path, int] = {(): sizes.total()}
    undivided: set[Path] = {()}
    while undivided:
        largest = max(undivided, key=lambda module: (weights[module], module))
        undivided.remove(largest)
        inside: dict[Path, list[Path]] = defaultdict(list)
        for path in groups[largest]:
            at = len(largest)
            # The last segment is the tensor's own name, such as `weight`.
            deeper = at < max(len(path) - 1, 1)
            inside[(*largest, _folded(path[at])) if deeper else largest].append(path)
        if len(groups) - 1 + len(inside) > most or set(inside) == {largest}:
            continue
        del groups[largest]
        groups |= inside
        weights |= {module: sum(sizes[path] for path in paths) for module, paths in inside.items()}
        undivided |= inside.keys() - {largest}
    return {path: module for module, paths in groups.items() for path in paths}


def _folded(segment: str) -> str:
    return "*" if _NUMBER.fullmatch(segment) else segment
