"""`make conversions`: every conversion that the installed transformers has, imported as rules and
compared with its own engine, as the table in docs/rules/import.md.
"""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.conversions.agree import Outcome, compare

PAGE = Path(__file__).parent.parent / "docs" / "rules" / "import.md"
BEGIN, END = "<!-- made by `make conversions` -->\n\n", "\n<!-- end of the table -->\n"


def tried(kind: str) -> Outcome:
    """The outcome of an entry; an exception is a difference."""
    try:
        return compare(kind)
    except Exception as error:  # whatever the class or the engine raises is what is to be known
        return Outcome(different=(f"{type(error).__name__}: {' '.join(str(error).split())}",))


def table(outcomes: dict[str, Outcome]) -> str:
    """The counts, and a line of Markdown for each entry."""
    files = [one for one in outcomes.values() if not one.refused]
    same = [one for one in files if not one.untried and not one.different]
    head = (
        f"{len(outcomes)} entries: {len(files)} become a rule file, {len(same)} of which agree "
        f"with transformers in both directions on {sum(one.tensors for one in same):,} tensors; "
        f"{sum(bool(one.different) for one in files)} differ.\n\n"
        "| entry | class | rules | operations | tensors compared |\n"
        "| --- | --- | --- | --- | --- |\n"
    )
    return head + "\n".join(_row(kind, outcomes[kind]) for kind in sorted(outcomes)) + "\n"


def _row(kind: str, outcome: Outcome) -> str:
    if outcome.refused:
        return f"| `{kind}` | no rule file: {_short(outcome.refused)} | | | |"
    result = f"{outcome.tensors}, equal"
    if outcome.untried:
        result = f"not compared: {_short(outcome.untried)}"
    if outcome.different:
        result = f"**differs**: {_short(outcome.different[0])}"
    counts = f"{outcome.rules} | {outcome.operations}"
    return f"| `{kind}` | `{outcome.class_name}` | {counts} | {result} |"


def _short(reason: str) -> str:
    """A reason as a table can have it."""
    text = re.sub(r"\s+", " ", reason).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 160 else text[:159] + "…"


def written() -> str:
    """The table as it stands in the docs."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    from llava_remap.target_model import conversion_types

    kinds = conversion_types()
    with ProcessPoolExecutor(int(os.environ.get("WORKERS", "2"))) as pool:
        outcomes = {}
        for kind, outcome in zip(kinds, pool.map(tried, kinds), strict=True):
            outcomes[kind] = outcome
            print(_row(kind, outcome), file=sys.stderr, flush=True)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(outcomes) + END + rest.partition(END)[2])
    print(table(outcomes))


if __name__ == "__main__":
    main()
