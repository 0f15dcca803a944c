"""The differences between two checkpoints or two plans, as text for a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_remap.core import counted, fold_groups, fold_names, printable, quoted, size
from llava_remap.report.terminal import (
    MOST_LINES,
    more,
    names_by_fact,
    shown,
    write,
    write_section,
)

if TYPE_CHECKING:
    from llava_remap.verification.difference import (
        Difference,
        Element,
        Entry,
        File,
        OnlyIn,
        Row,
        Side,
        Template,
        Tokenizers,
        Values,
    )

#: Characters of a value, and names in a sentence.
_LONGEST, _SHOWN = 60, 4
_MORE = "lines; --format json has every one"
#: Columns, more than any table needs.
_UNLIMITED = 100_000
_STORED = {
    "shared": "one tensor for all names",
    "apart": "a tensor for each name",
    "equal": "a tensor for each name, with the same values",
    "alone": "a tensor for one name only",
}
#: The kinds of `Difference.differs`, as nouns.
_KINDS = {"files": "configs", "chat_template": "chat template", "plan": "entries of the plan"}

_Lines = Iterable[str | Text]


def print_difference(console: Console, found: Difference) -> None:
    """Both sides, every difference, differences only in spelling, and last the verdict."""
    write(console, *(_side(name, side) for name, side in (("A", found.a), ("B", found.b))))
    sections: dict[str, _Lines] = {
        "Layout": _layout(found),
        "Names": [*_only_in("A", found.only_in_a), *_only_in("B", found.only_in_b)],
        "Shapes": _by_fact(
            (s.name, f"{_shape(s.a)} in A, {_shape(s.b)} in B") for s in found.shapes
        ),
        "Dtypes": _by_fact((d.name, f"{d.a} in A, {d.b} in B") for d in found.dtypes),
        "Ties": [
            line
            for tie in found.ties
            for line in (
                f"  {', '.join(map(printable, tie.names))}",
                Text(f"    A: {_STORED[tie.a]}; B: {_STORED[tie.b]}", "dim"),
            )
        ],
        _values_title(found): _values(console, found.values),
        **{file.name: _file(console, file) for file in found.files if file.differs},
        "Tokenizer": _tokenizers(console, found.tokenizer) if found.tokenizer else [],
        "Chat template": [line for t in found.templates for line in _template(t)],
        **_entries(found.entries),
        "Spelt differently, read as the same": _spelling(found),
        "Notes": [f"  {note}" for note in found.notes],
    }
    for heading, texts in sections.items():
        write_section(console, heading, texts)
    write(console, _verdict(found))


def _side(name: str, side: Side) -> Text:
    what = "mapped tensor" if side.form in ("plan", "record of a conversion") else "tensor"
    facts = f"{side.form}; {counted(side.tensors, what)}; {size(side.nbytes)}"
    return Text.assemble((name, "bold"), f"  {shown(side.location)}  ", (printable(facts), "dim"))


def _verdict(found: Difference) -> Text:
    if not found.equal:
        kinds = ", ".join(_KINDS.get(kind, kind) for kind in found.differs)
        values = f". Values were not compared: {found.values_reason}" if found.values_reason else ""
        only = "only " * (found.differs == ("layout",))
        values *= found.of == "checkpoints"
        return Text.assemble(("\nDifferent", "bold red"), f": {only}{kinds}{values}")
    if found.of == "plans":
        return Text.assemble(("\nEqual", "bold green"), ": every entry of the plans")
    how = f"{counted(found.tensors, 'tensor')}, bit by bit"
    if found.values_reason:
        how = (
            f"{counted(found.tensors, 'tensor')} by names, shapes and dtypes. Values were not "
            f"compared: {found.values_reason}"
        )
    elif not found.notes:  # notes say what was not compared
        how += "; configs, tokenizer and chat template too"
    return Text.assemble(("\nEqual", "bold green"), f": {how}")


def _bounded(lines: Sequence[str | Text]) -> list[str | Text]:
    """The first lines, and how many more there are."""
    return [*lines[:MOST_LINES], more(len(lines) - MOST_LINES, _MORE, "  ")]


def _by_fact(facts: Iterable[tuple[str, str]]) -> list[str | Text]:
    """Each fact below the names that it holds for. There are few different facts."""
    groups = list(names_by_fact(facts).items())
    rest = more(len(groups) - MOST_LINES, _MORE, "  ")
    return [*(line for fact, names in groups[:MOST_LINES] for line in _group(names, [fact])), rest]


def _group(names: Iterable[str], facts: Iterable[str]) -> Iterator[str | Text]:
    """Folded names, and below them the facts that hold for them."""
    lines = fold_names(names)
    yield from (f"  {line}" for line in lines[:MOST_LINES])
    yield more(len(lines) - MOST_LINES, _MORE, "  ")
    yield from (Text(f"    {printable(fact)}", "dim") for fact in facts)


def _only_in(side: str, tensors: Sequence[OnlyIn]) -> list[str | Text]:
    if not tensors:
        return []
    groups = names_by_fact((t.name, f"{t.dtype} {_shape(t.shape)}") for t in tensors)
    lines = [
        Text.assemble(f"    {name}", (f"  {fact}", "dim"))
        for fact, names in groups.items()
        for name in fold_names(names)
    ]
    return [f"  only in {side}: {counted(len(tensors), 'tensor')}", *_bounded(lines)]


def _shape(shape: Sequence[int]) -> str:
    return str(list(shape))


def _layout(found: Difference) -> list[str]:
    if (layout := found.layout) is None:
        return []
    names = f"{layout.renamed} of {counted(found.tensors, 'common tensor')} have another name"
    return [f"  {layout.a} in A, {layout.b} in B: {names}. All names here are classic ones."]


def _values_title(found: Difference) -> str:
    every = counted(found.values_compared, "tensor")
    return f"Values: {len(found.values)} of {every} differ"


def _values(console: Console, values: Sequence[Values]) -> _Lines:
    """A line for tensors that differ only in the numbers in their names."""
    if not values:
        return []
    named = {entry.name: entry for entry in values}
    groups = {line: [named[n] for n in names] for line, names in fold_groups(named).items()}
    rows, remarks = [], []
    for line, entries in list(groups.items())[:MOST_LINES]:
        distances = [entry.max_abs for entry in entries if entry.max_abs is not None]
        differing, elements = (
            sum(getattr(entry, field) for entry in entries) for field in ("differing", "elements")
        )
        first = entries[0].first
        rows.append(
            (
                line,
                f"{differing:,} of {elements:,}",
                f"{max(distances):.3g}" if distances else "none finite",
                f"{_shape(first.index)}: {_elements(first.a, first.b)}",
            )
        )
        remarks += [f"  {line}: {remark}" for remark in [_remark(entries)] if remark]
    sides = {entry.rounded_in for entry in values}
    if len(sides) == 1 and (side := sides.pop()) is not None:
        other = "B" if side == "a" else "A"
        remarks.append(f"  every number of {side.upper()} is that of {other}, rounded to nearest")
    headings = ("tensor", "differing", "by up to", "first, in A and B")
    rest = more(len(groups) - MOST_LINES, _MORE, "  ")
    return [*_table(console, headings, rows), rest, *remarks]


def _remark(entries: Sequence[Values]) -> str:
    """Further facts about the elements that differ."""
    words = {
        "not_finite": "inf or NaN in A or B",
        "nan_bits": "NaN in both, with other bits",
        "zero_signs": "0 in both, with another sign",
    }
    counts = {field: sum(getattr(entry, field) for entry in entries) for field in words}
    return ", ".join(f"{count:,} {words[field]}" for field, count in counts.items() if count)


def _elements(a: Element, b: Element) -> str:
    """Two elements, with their bits if the numbers look alike."""
    texts = [f"{e.value:.6g}" if isinstance(e.value, float) else str(e.value) for e in (a, b)]
    if texts[0] == texts[1]:
        texts = [f"{text} ({e.bits})" for text, e in zip(texts, (a, b), strict=True)]
    return ", ".join(texts)


def _table(
    console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[str | Text]:
    """A table; on a terminal that is too narrow for it, two lines for each row."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    cells = [[printable(cell) for cell in row] for row in rows]
    for row in cells:
        table.add_row(*map(Text, row))
    unlimited = console.options.update(width=_UNLIMITED)
    lines = console.render_lines(table, unlimited)
    texts = [
        Text.assemble("  ", *((part.text, part.style or "") for part in line)) for line in lines
    ]
    for text in texts:
        text.rstrip()
    if console.is_terminal and max(map(len, texts)) > console.width:
        return [line for row in cells for line in _stacked(headings, row)]
    return list(texts)


def _stacked(headings: Sequence[str], row: Sequence[str]) -> Iterator[str | Text]:
    """A row of a table that is wider than the terminal."""
    yield f"  {row[0]}"
    facts = (f"{heading} {cell}" for heading, cell in zip(headings[1:], row[1:], strict=True))
    yield Text(f"    {'; '.join(facts)}", "dim")


def _file(console: Console, file: File) -> list[str | Text]:
    if file.only_in is not None:
        return [f"  only in {file.only_in.upper()}"]
    if not file.rows:
        return []
    by = [f"  compared as {file.read_by} reads them"] if file.read_by and file.spelling else []
    return [*_rows(console, "key", file.rows), *by]


def _named(name: str, lines: Sequence[str | Text]) -> list[str | Text]:
    """Lines below their heading; a single line stands behind it."""
    if len(lines) == 1:
        return [f"  {name}: {str(lines[0]).strip()}"]
    return [f"  {name}", *lines] if lines else []


def _rows(
    console: Console, what: str, rows: Sequence[Row], show: Callable[[Any], str] | None = None
) -> list[str | Text]:
    """A table of values that differ."""
    if not rows:
        return []
    cells = [(row.key, *_sides(row, show or _value)) for row in rows[:MOST_LINES]]
    rest = more(len(rows) - MOST_LINES, _MORE, "  ")
    return [*_table(console, (what, "A", "B"), cells), rest]


def _sides(row: Row, show: Callable[[Any], str]) -> tuple[str, str]:
    return (
        "–" if row.only_in == "b" else show(row.a),
        "–" if row.only_in == "a" else show(row.b),
    )


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _tokenizers(console: Console, found: Tokenizers) -> list[str | Text]:
    if found.only_in is not None:
        return [f"  only in {found.only_in.upper()}"]
    ids = "ids of texts were not compared: " + found.reason
    if found.texts_tried:
        tried = counted(found.texts_tried, "text")
        ids = f"{len(found.texts)} of {tried} become other ids"
    texts = [
        f"    {quoted(json.dumps(text.text, ensure_ascii=False)[1:-1])}: {_ids(text.a, text.b)}"
        for text in found.texts
    ]
    return [
        *_rows(console, "word", found.words),
        *_rows(console, "special token", found.special),
        *_rows(console, "added token", found.added),
        *(line for file in found.files for line in _named(file.name, _file(console, file))),
        f"  {printable(ids)}",
        *_bounded(texts),
    ]


def _ids(a: Sequence[int], b: Sequence[int]) -> str:
    """Where two lists of ids begin to differ."""
    at = next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    parts = (f"{list(ids[at : at + 3])}" if at < len(ids) else "the end" for ids in (a, b))
    return f"{len(a)} and {len(b)} ids; from number {at} on {' and '.join(parts)}"


def _template(template: Template) -> Iterator[str]:
    name = quoted(template.name)
    if template.only_in is not None:
        yield f"  {name} only in {template.only_in.upper()}"
        return
    yield f"  {name}: the texts differ from line {template.line} on"
    if template.reason:
        yield f"  no prompt was made: {printable(template.reason)}"
        return
    yield f"  {template.differing} of {template.tried} conversations become another prompt"
    if (first := template.first) is not None:
        roles = ", ".join(str(message["role"]) for message in first.conversation)
        yield f"  the first of them ({roles}):"
        yield f"    A {_prompt(first.a, first.b)}"
        yield f"    B {_prompt(first.b, first.a)}"


def _prompt(text: str, other: str) -> str:
    """A prompt from a little before the place where it differs from another one."""
    at = next(
        (n for n, (x, y) in enumerate(zip(text, other, strict=False)) if x != y),
        min(len(text), len(other)),
    )
    start = max(at - 20, 0)
    cut = json.dumps(text[start : start + _LONGEST], ensure_ascii=False)
    return f"{'…' * bool(start)}{cut}{'…' * (len(text) > start + _LONGEST)}"


def _entries(entries: Sequence[Entry]) -> dict[str, list[str | Text]]:
    """The entries of plans, by their list. Entries that differ in the same values are joined."""
    sections: dict[str, list[str | Text]] = {}
    for part in dict.fromkeys(entry.part for entry in entries):
        groups: dict[tuple[str | None, tuple[str, ...]], list[Entry]] = {}
        for entry in entries:
            if entry.part == part:
                keys = () if entry.only_in else tuple(row.key for row in entry.rows)
                groups.setdefault((entry.only_in, keys), []).append(entry)
        shown_groups = list(groups.items())[:MOST_LINES]
        count = sum(map(len, groups.values()))
        title = f"{part.replace('_', ' ').capitalize()}: {count} differ"
        sections[title] = [
            line
            for (only_in, _), alike in shown_groups
            for line in _group((entry.name for entry in alike), _changes(only_in, alike))
        ]
        sections[title].append(more(len(groups) - MOST_LINES, _MORE, "  "))
    return sections


def _changes(only_in: str | None, entries: Sequence[Entry]) -> Iterator[str]:
    """The differences of entries that differ in the values of the same keys."""
    if only_in is not None:
        yield f"only in {only_in.upper()}"
        return
    for row in entries[0].rows[:MOST_LINES]:
        texts = {
            _sides(each, _value) for entry in entries for each in entry.rows if each.key == row.key
        }
        a, b = _sides(row, _value)
        first = " (of the first)" * (len(texts) > 1)
        yield f"{row.key}: {a} in A, {b} in B{first}"
    if (rest := len(entries[0].rows) - MOST_LINES) > 0:
        yield f"and {rest} more values"


def _spelling(found: Difference) -> list[str]:
    files = [*found.files, *(found.tokenizer.files if found.tokenizer else ())]
    return [
        f"  {file.name}, by {file.read_by}: {_keys(file.spelling)}"
        for file in files
        if file.spelling
    ]


def _keys(rows: Sequence[Row]) -> str:
    rest = len(rows) - _SHOWN
    keys = ", ".join(printable(row.key) for row in rows[:_SHOWN])
    return keys + (f" and {rest} more" if rest > 0 else "")
