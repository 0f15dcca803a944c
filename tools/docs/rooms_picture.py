"""The picture of the rooms: who imports whom, drawn from the imports in the code."""

from __future__ import annotations

import ast
from functools import cache
from html import escape

from tests.test_rooms import PACKAGE, ROOMS, imported

ROW, NAME, CELL = 30, 130, 34
#: What a room does, in a few words.
SAYS = {
    "core": "problems and codes, dtypes, files, cache",
    "rulefile": "YAML text → validated rule file",
    "rewrite": "rule file → program; names → new names",
    "checkpoint": "files → catalog, headers only",
    "source": "what the user named → local checkpoint",
    "target_model": "class and config → wanted parameters",
    "routing": "does this rule file fit this checkpoint",
    "post_load": "plug-ins that change tensors",
    "planning": "what becomes of every tensor; coverage",
    "execute": "plan → weight files",
    "folder": "config, tokenizer, processor, template",
    "verification": "strict load, digests, comparison",
    "jobs": "the order of a whole job",
    "authoring": "draft, lint, tests, snapshots, twins",
    "report": "plan and result → terminal, JSON, HTML",
    "cli": "arguments in, exit code out",
}


@cache
def imports() -> dict[str, set[str]]:
    """The other rooms that each room imports from."""
    return {
        room: {
            name.split(".")[1]
            for module in (PACKAGE / room).rglob("*.py")
            for name in imported(module)
            if name.startswith("llava_remap.")
        }
        & {*ROOMS} - {room}
        for room in ROOMS
    }


def room_table() -> str:
    """The rooms with the first sentence of their own docstring."""
    rows = ["| room | what it is for | imports from |", "| --- | --- | --- |"]
    for room in ROOMS:
        doc = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
        names = ", ".join(f"`{other}`" for other in ROOMS if other in imports()[room])
        rows.append(
            f"| `{room}` | {' '.join(doc.split(chr(10) * 2)[0].split())} | {names or '—'} |"
        )
    return "\n".join(rows) + "\n"


def rooms_svg() -> str:
    """A row for each room, with dots for the rooms that it imports from."""
    width, top = NAME + 300 + CELL * len(ROOMS) + 20, 120
    height = top + ROW * len(ROOMS) + 20
    left = NAME + 300
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="14" fill="#222">',
        "<title>The rooms of llava_remap and their imports</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, room in enumerate(ROOMS):
        x, y = left + CELL * index, top + ROW * index
        shade = "#f3f5fb" if index % 2 == 0 else "#fff"
        lines += [
            f'<rect x="10" y="{y}" width="{width - 20}" height="{ROW}" fill="{shade}"/>',
            f'<text x="20" y="{y + 20}" font-weight="bold">{room}</text>',
            f'<text x="{NAME}" y="{y + 20}" font-size="13" fill="#555">{escape(SAYS[room])}</text>',
            f'<text transform="translate({x + 20} {top - 8}) rotate(-60)">{room}</text>',
            f'<rect x="{x + 4}" y="{y + 4}" width="{CELL - 8}" height="{ROW - 8}" rx="4" '
            'fill="#3f51b5"/>',
        ]
    for row, room in enumerate(ROOMS):
        for column, other in enumerate(ROOMS):
            if other in imports()[room]:
                x, y = left + CELL * column + CELL // 2, top + ROW * row + ROW // 2
                lines.append(
                    f'<circle cx="{x}" cy="{y}" r="7" fill="#7986cb">'
                    f"<title>{room} imports from {other}</title></circle>"
                )
    return "\n".join([*lines, "</svg>"]) + "\n"
