"""What `make bench` found, as a section of docs/performance.md and a picture.

python -m tools.bench.readme FILE.json [FILE.json …] # several runs: their rounds are put together
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.bench.picture import picture
from tools.bench.results import Results, read_results, together
from tools.bench.tables import tables

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "bench.svg"
BEGIN, END = (
    "<!-- made by `python -m tools.bench.readme` from what `make bench` found -->\n",
    "<!-- end of what was found -->",
)


def section(results: Results) -> str:
    """Picture, goals, machine, then all other tables."""
    *others, goals = tables(results)
    shown = f"![wall time relative to cp, and peak memory, of each way]({PICTURE.name})\n"
    machine = "Measured on:\n\n" + "".join(
        f"- {' '.join(line.split())}\n" for line in results.machine
    )
    return "\n".join([shown, goals.markdown(), machine, *(table.markdown() for table in others)])


def replaced(page: str, made: str) -> str:
    """The page with what is between the markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{BEGIN.strip()} and {END} are not both in the page")
    return before + BEGIN + made + END + after


def main() -> None:
    results = together([read_results(Path(name)) for name in sys.argv[1:]])
    made = replaced(PAGE.read_text(encoding="utf-8"), section(results))
    PAGE.write_text(made, encoding="utf-8")
    PICTURE.write_text(picture(results), encoding="utf-8")


if __name__ == "__main__":
    main()
