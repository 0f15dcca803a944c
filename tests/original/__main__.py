"""Every case as a table, for developers: `python -m tests.original [--version VERSION]...
[FAMILY...]`.

Without a version, the installed transformers is asked; without a family, all of them are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.original.answers import ALL_VERSIONS, INSTALLED, Answers, ask_all
from tests.original.convert import main_target
from tests.original.facts import FAMILIES, family
from tests.original.judge import compare, distance, nearest_reading, token_of
from tests.original.verdict import judge_family

HEADS = ("prompt", "ids", "pixels", "logits", "alone")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.original", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("family", nargs="*", help=", ".join(FAMILIES))
    parser.add_argument(
        "--version", action="append", choices=[*ALL_VERSIONS, "all"], help="of transformers"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.family if name not in FAMILIES]:
        parser.error(f"no facts of {', '.join(unknown)}")
    names = tuple(given.family) or FAMILIES
    versions = given.version or [INSTALLED]
    if "all" in versions:
        versions = list(ALL_VERSIONS)
    with tempfile.TemporaryDirectory() as work:
        answers = ask_all([main_target(name) for name in names], versions, Path(work))
    equal = total = 0
    for version in versions:
        for name in names:
            print(
                f"\n{name} by {main_target(name).rules}; transformers {version}\n"
                f"  {_row('case', '', HEADS)}"
            )
            for case, verdict in judge_family(name, answers, version):
                total, equal = total + 1, equal + (not verdict.wrong)
                mark = "NO" if verdict.wrong else "ok"
                said = (
                    "; ".join(verdict.wrong)[:100]
                    if verdict.wrong
                    else verdict.fault.name
                    if verdict.fault
                    else ""
                )
                print("  " + _row(case, mark, _columns(name, case, answers, version), said))
    print(f"\n{equal} of {total} cases equal, declared faults apart")


def _row(case: str, mark: str, columns: Sequence[str], said: str = "") -> str:
    return " ".join([f"{case:15} {mark:2}", *(f"{column:8}" for column in columns), said]).rstrip()


def _columns(name: str, case: str, answers: Answers, version: str) -> list[str]:
    """Whether prompt, ids and pixels are equal; how far logits are off in standard deviations,
    the whole way and alone.
    """
    folder, facts = answers.of(main_target(name), version), family(name)
    if isinstance(folder, str) or case not in facts.cases:
        return [""] * 5
    answer, token = folder.cases[case], token_of(facts.cases[case], folder)
    found = compare(facts, facts.cases[case], answer, token)
    made = {"prompt": answer.prompt, "ids": answer.ids, "pixels": answer.pixels}
    same = [
        "" if value in (None, ()) else "differs" if kind in found else "="
        for kind, value in made.items()
    ]
    reading = nearest_reading(facts.cases[case], answer, token)
    forwards = (answer.whole, answer.alone[facts.cases[case].readings.index(reading)])
    return same + [
        f"{distance(reading, forward):.1e}" if forward and forward.logits else ""
        for forward in forwards
    ]


if __name__ == "__main__":
    main()
