"""`make compat`: what every version of transformers makes of each family, as the table in
docs/versions.md.

`python -m tools.compat_table` converts a small checkpoint of each family, asks all versions, and
writes the table. Its last column says whether they compute what the research code computed, where
that is recorded: `tests.original`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.compat.checkpoints import FAMILIES
from tests.compat.known import known, unexplained
from tests.compat.run import ROOT, VERSIONS, Look, convert_all, look_with_all, missing
from tests.original.answers import ALL_VERSIONS, ask_all
from tests.original.convert import main_target
from tests.original.facts import FAMILIES as RECORDED
from tests.original.table import with_column

PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- made by `make compat` -->\n\n", "\n<!-- end of the table -->"


def table(seen: Look) -> str:
    """Rule files by versions, in Markdown."""
    installed = seen[""].said["transformers"]
    versions = {**{version: version for version in VERSIONS}, installed: ""}
    rows = ["| rule file | " + " | ".join(versions) + " |", "| --- " * (len(versions) + 1) + "|"]
    for rules in dict.fromkeys(twin.rules for twin in FAMILIES.values()):
        names = [name for name, twin in FAMILIES.items() if twin.rules == rules]
        rows.append(
            f"| `{rules}` | "
            + " | ".join(_cell(names, version, seen) for version in versions.values())
            + " |"
        )
    return "\n".join(rows) + "\n"


def _cell(names: list[str], version: str, seen: Look) -> str:
    found = {difference for name in names for difference in unexplained(name, version, seen)}
    found |= {
        f"{kind} tensors"
        for name in names
        for kind in seen[version].said[name].get("left_over", ())
    }
    if found:
        return "no: " + ", ".join(sorted(found))
    (cell,) = {of.cell if (of := known(name, seen[version])) else "yes" for name in names}
    return cell


def parts(page: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands behind it."""
    before, _, rest = page.partition(BEGIN)
    written, _, after = rest.partition(END)
    return before, written, after


def main() -> None:
    if why := [reason for version in VERSIONS if (reason := missing(version))]:
        raise SystemExit("\n".join(why))
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "seen").mkdir()
        made = table(look_with_all(convert_all(Path(work)), Path(work) / "seen"))
        recorded = [main_target(name) for name in RECORDED]
        made = with_column(made, ask_all(recorded, ALL_VERSIONS, Path(work) / "original"))
    before, _, after = parts(PAGE.read_text())
    PAGE.write_text(before + BEGIN + made + END + after)
    print(made)


if __name__ == "__main__":
    main()
