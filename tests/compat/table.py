"""`make compat`: what every version of transformers makes of each family, as the table in the README.

`python -m tests.compat.table` converts a small checkpoint of each family, asks all versions, and writes the table.
Its last column says whether they compute what the research code computed, where that is recorded: `tests.original`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.compat.checkpoints import FAMILIES
from tests.compat.run import ROOT, VERSIONS, Look, convert_all, differences, look_with_all, missing
from tests.original.answers import ALL_VERSIONS, ask_all
from tests.original.convert import main_target
from tests.original.facts import FAMILIES as RECORDED
from tests.original.table import with_column

#: What a version is known to do otherwise: 4.46 pools videos only of towers whose side is at least the patch's area (196 px).
KNOWN = {("llava-next-video-7b.released", "4.46.3"): ("video_generated", "llava-next-video-7b.released/video_logits")}
BEGIN, END = "<!-- made by `make compat` -->\n", "<!-- end of the table -->"


def table(seen: Look) -> str:
    """Rule files by versions, in Markdown."""
    installed = seen[""].said["transformers"]
    versions = {**{version: version for version in VERSIONS}, installed: ""}
    rows = ["| rule file | " + " | ".join(versions) + " |", "| --- " * (len(versions) + 1) + "|"]
    for rules in dict.fromkeys(FAMILIES.values()):
        names = [name for name, of in FAMILIES.items() if of == rules]
        rows.append(f"| `{rules}` | " + " | ".join(_cell(names, version, seen) for version in versions.values()) + " |")
    return "\n".join(rows) + "\n"


def _cell(names: list[str], version: str, seen: Look) -> str:
    found = {difference for name in names for difference in differences(name, seen[version], seen[""])}
    known = {difference for name in names for difference in KNOWN.get((name, version), ())}
    found |= {f"{kind} tensors" for name in names for kind in seen[version].said[name].get("left_over", ())}
    if found - known:
        return "no: " + ", ".join(sorted(found))
    opens = all(seen[version].said[name]["opens_with_AutoProcessor"] for name in names)
    return "yes" + ("" if opens else " ¹") + (" ²" if known else "")


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
    page = ROOT / "README.md"
    before, _, after = parts(page.read_text())
    page.write_text(before + BEGIN + made + END + after)
    print(made)


if __name__ == "__main__":
    main()
