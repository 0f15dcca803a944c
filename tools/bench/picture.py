"""Wall time and peak memory of each way as bars, in SVG. The colours can be read on a light and
on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from statistics import median

from tools.bench.results import COPY, GIB, MIB, SYNC, Converted, Results, peak, ratios, spread

_INK, _OTHERS, _OURS, _FAINT = "#7d8590", "#c27803", "#2f81f7", "#8b949e"
_WIDTH, _ROW, _BAR = 900, 24, 14
#: Where each panel's bars begin, and how long the longest is; what comes behind them is their text.
_WALL, _MEMORY, _LONGEST = 215, 600, 190


def picture(results: Results) -> str:
    """The checkpoints of the form on which all ways were measured, the largest first."""
    chosen = [entry for entry in results.converted if entry.form == results.converted[0].form]
    body: list[str] = []
    top = 0
    for entry in sorted(chosen, key=lambda entry: -entry.nbytes):
        body += _block(entry, results.floor, top)
        top += (len(entry.ways) + 2) * _ROW
    style = (
        f"text {{ font: 12px system-ui, sans-serif; fill: {_INK} }} .title {{ font-weight: 600 }}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        f'width="{_WIDTH}" '
        f'height="{top}" role="img">'
    )
    title = (
        "<title>Wall time relative to cp, and peak memory, of each way to convert a "
        "checkpoint</title>"
    )
    return "\n".join([head, title, f"<style>{style}</style>", *body, "</svg>"]) + "\n"


def _block(entry: Converted, floor: int, top: int) -> Iterator[str]:
    """One checkpoint: a line of titles, then a line for each way. Peaks down at `floor` may be
    smaller than they seem.
    """
    title = f"{entry.nbytes / 1e9:.1f} GB, page cache {entry.page_cache}"
    for x, text in ((0, title), (_WALL, f"wall time ÷ {COPY}"), (_MEMORY, "peak memory")):
        yield _text(x, top + 17, text, ' class="title"')
    walls = {way: ratios(entry.ways, way, COPY) for way in entry.ways}
    peaks = {way: peak(usages) for way, usages in entry.ways.items()}
    longest = max(max(values) for values in walls.values())
    for number, way in enumerate(entry.ways, 1):
        y = top + number * _ROW
        yield _text(0, y + 17, way)
        colour = _FAINT if way in (COPY, SYNC) else _OURS if way.startswith("apply") else _OTHERS
        scaled = [value / longest * _LONGEST for value in walls[way]]
        yield _bar(_WALL, y, median(scaled), colour)
        yield _range(_WALL, y, scaled)
        yield _text(_WALL + max(scaled) + 6, y + 17, spread(walls[way]))
        yield _bar(_MEMORY, y, peaks[way] / max(peaks.values()) * _LONGEST, colour)
        nbytes = (
            f"{peaks[way] / GIB:.1f} GiB" if peaks[way] >= GIB else f"{peaks[way] / MIB:.0f} MiB"
        )
        nbytes = f"≤ {nbytes}" if peaks[way] < floor + MIB else nbytes
        yield _text(_MEMORY + peaks[way] / max(peaks.values()) * _LONGEST + 6, y + 17, nbytes)


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}"{attributes}>{escape(text)}</text>'


def _bar(x: float, y: int, length: float, colour: str) -> str:
    return (
        f'<rect x="{x}" y="{y + 5}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
    )


def _range(x: float, y: int, lengths: Sequence[float]) -> str:
    """A line from the least to the most of all rounds, over the end of the bar."""
    middle = y + 5 + _BAR / 2
    return (
        f'<path d="M{x + min(lengths):.1f} {middle}H{x + max(lengths):.1f}" stroke="{_INK}" '
        'stroke-width="2"/>'
    )
