"""Coverage: the proof from shapes that parts cover every target tensor and every source tensor
once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted
from llava_remap.planning.boxes import Box, Shape, coverage_gaps
from llava_remap.planning.mapped import Alias, Mapped
from llava_remap.planning.model import Dropped
from llava_remap.routing import SourceName

_FIX = "Correct the sizes in the rule that places the tensor."


def placement_problems(
    mapped: Sequence[Mapped], aliases: Iterable[Alias], dropped: Iterable[Dropped] = ()
) -> list[Problem]:
    """Rows of tensors that go nowhere (LR301), come from nowhere (LR302), or are placed or taken
    twice (LR304).

    Args:
        mapped: the target tensors that are written.
        aliases: names that aren't written. Each takes all of its source tensor.
        dropped: tensors and regions that are left out.
    """
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for entry in mapped:
        if not _is_renamed(entry):
            boxes = [part.placed for part in entry.parts]
            for code, told in _told(entry.shape_before, boxes, "LR302", "come from nowhere"):
                rows[code].append((entry.target, told))
    for origin, (shape, boxes) in _taken(mapped, aliases, dropped).items():
        for code, told in _told(shape, boxes, "LR301", "go nowhere"):
            rows[code].append((origin.name, told))
    return [
        Problem(
            code,
            f"{counted(len(found), 'tensor')} placed only in part, or twice: `{found[0][0]}`: "
            f"{found[0][1]}.",
            _FIX,
            tuple(name for name, _ in found),
            tuple(found),
        )
        for code, found in sorted(rows.items())
    ]


def _is_renamed(entry: Mapped) -> bool:
    """Whether an entry can't have gaps: it is one whole tensor, or a post-load rule makes it."""
    return entry.is_made or entry.is_renamed


def _taken(
    mapped: Sequence[Mapped], aliases: Iterable[Alias], dropped: Iterable[Dropped]
) -> dict[SourceName, tuple[Shape, list[Box]]]:
    """Shape and boxes of every source tensor that is taken in part, or more than once."""
    found: dict[SourceName, tuple[Shape, list[Box]]] = {}
    for entry in mapped:
        for part in entry.parts:
            origin = SourceName(part.source, part.taken.name)
            found.setdefault(origin, (part.shape, []))[1].append(part.taken)
    for alias in aliases:
        found.setdefault(alias.source, (alias.shape, []))[1].append(
            Box.whole(alias.source.name, alias.shape)
        )
    for left_out in dropped:
        origin = SourceName(left_out.source, left_out.name)
        # Without mapped parts, other tensors provide their parameters too, which is reported.
        if left_out.box is not None and origin in found:
            found[origin][1].append(left_out.box)
    return {
        origin: (shape, boxes)
        for origin, (shape, boxes) in found.items()
        if len(boxes) > 1 or not boxes[0].is_whole(shape)
    }


def _told(shape: Shape, boxes: Sequence[Box], code: str, lacking: str) -> Iterator[tuple[str, str]]:
    """The rows of a tensor that boxes leave out (`code`) or cover twice (LR304), in words."""
    try:
        left_out, twice = coverage_gaps(shape, boxes)
    except ValueError as error:
        yield code, str(error)
        return
    if left_out:
        yield code, f"rows {_ranges(left_out)} {lacking}"
    if twice:
        yield "LR304", f"rows {_ranges(twice)} are placed twice"


def _ranges(rows: Sequence[range]) -> str:
    return ", ".join(f"{span.start}..{span.stop - 1}" for span in rows)
