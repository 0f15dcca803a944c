"""`make text-models`: every language model of the installed transformers inside a LLaVA, as the
table in docs/text-models.md.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.compat.run import ROOT, missing
from tests.original.answers import ALL_VERSIONS, INSTALLED
from tests.text_models.matrix import NEAR, Matrix, everything

PAGE = ROOT / "docs" / "text-models.md"
BEGIN, END = "<!-- made by `make text-models` -->\n\n", "\n<!-- end of the table -->\n"
#: The columns: the installed version first.
VERSIONS = (INSTALLED, *(version for version in reversed(ALL_VERSIONS) if version != INSTALLED))


def rows(matrix: Matrix) -> dict[str, str]:
    """A line of Markdown for each kind."""
    return {kind: f"| `{kind}` | {' | '.join(_cells(matrix, kind))} |" for kind in matrix.outcomes}


def _cells(matrix: Matrix, kind: str) -> list[str]:
    outcome = matrix.outcomes[kind]
    if outcome.folder is None:
        what = (
            f"refused: {_short(outcome.refused)}"
            if outcome.refused
            else f"not tried: {_short(outcome.untried)}"
        )
        return [what, *[""] * (len(VERSIONS) - 1)]
    return [_cell(matrix.far[version][kind]) for version in VERSIONS]


def _cell(far: float | str) -> str:
    if isinstance(far, float):
        return "exact" if far <= NEAR else "**other logits**"
    return "–" if far == "no such language model" else "doesn't open"


def _short(reason: str) -> str:
    """A reason as it is on every machine, and as a table can have it."""
    text = re.sub(r"\s+", " ", reason).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 200 else text[:199] + "…"


def table(matrix: Matrix) -> str:
    head = f"| language model | {' | '.join(VERSIONS)} |\n{'| --- ' * (len(VERSIONS) + 1)}|\n"
    return head + "\n".join(rows(matrix).values()) + "\n"


def written() -> str:
    """The table as it stands in the docs."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    if why := [
        reason for version in ALL_VERSIONS if version != INSTALLED and (reason := missing(version))
    ]:
        raise SystemExit("\n".join(why))
    with tempfile.TemporaryDirectory() as work:
        made = table(everything(Path(work)))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + made + END + rest.partition(END)[2])
    print(made)


if __name__ == "__main__":
    main()
