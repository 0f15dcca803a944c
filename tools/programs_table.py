"""The end of `make programs`: what each program made of each family, as the table in
docs/programs.md.

The tests in `tests/programs` leave what they found in `build/programs`.
"""

from __future__ import annotations

import json

from tests.compat.checkpoints import FAMILIES
from tests.programs.outcomes import EQUAL, FOUND, Outcomes
from tests.programs.run import ROOT

PAGE = ROOT / "docs" / "programs.md"
BEGIN, END = "<!-- made by `make programs` -->\n\n", "\n<!-- end of the table -->"
#: By the name of a file in `build/programs`: what stands above its column.
PROGRAMS = {"vllm": "vLLM", "llama_cpp": "llama.cpp", "sglang": "SGLang"}
#: What a question is called; a padded picture is a picture that isn't square.
KINDS = {
    "text": "text",
    "picture": "picture",
    "padded": "picture that isn't square",
    "video": "video",
    "transformers": "with `--model-impl transformers`",
    "sglang": "with its own class",
}


def table(found: dict[str, Outcomes]) -> str:
    """Rule files by programs, in Markdown; below it the programs' own words.

    Args:
        found: outcomes by the program's name.
    """
    words: dict[str, int] = {}
    rows = ["| rule file | " + " | ".join(PROGRAMS.values()) + " |", "| --- " * 4 + "|"]
    for rules in dict.fromkeys(twin.rules for twin in FAMILIES.values()):
        names = [name for name, twin in FAMILIES.items() if twin.rules == rules]
        cells = (_cell(names, found[program], words) for program in PROGRAMS)
        rows.append(f"| `{rules}` | {' | '.join(cells)} |")
    notes = [f"{number}. `{word}`" for word, number in words.items()]
    return "\n".join([*rows, "", "In the programs' own words:", "", *notes]) + "\n"


def _cell(names: list[str], outcomes: Outcomes, words: dict[str, int]) -> str:
    """What is equal, and the number of what is said of the rest."""
    said: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kind for name in names for kind in outcomes[name]):
        for outcome in {outcomes[name][kind] for name in names if kind in outcomes[name]}:
            said.setdefault(outcome, []).append(KINDS[kind])
    parts = []
    for outcome, kinds in sorted(said.items(), key=lambda item: item[0] != EQUAL):
        mark = "" if outcome == EQUAL else f" ({words.setdefault(outcome, len(words) + 1)})"
        parts.append(f"{'' if outcome == EQUAL else 'not: '}{', '.join(kinds)}{mark}")
    return "; ".join(parts)


def main() -> None:
    """Write the table into the page."""
    found = {
        program: json.loads((FOUND / f"{program}.json").read_text(encoding="utf-8"))
        for program in PROGRAMS
    }
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{table(found)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
