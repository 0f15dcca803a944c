"""Every case as a table, for developers: `python -m tests.original [--version VERSION]... [FAMILY...]`.

Without a version, the installed transformers is asked; without a family, all of them are.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.original.answers import ALL_VERSIONS, INSTALLED, ask_all
from tests.original.convert import main_target
from tests.original.facts import FAMILIES, family
from tests.original.verdict import judge_family


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.original", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("family", nargs="*", help=", ".join(FAMILIES))
    parser.add_argument("--version", action="append", choices=[*ALL_VERSIONS, "all"], help="of transformers")
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
            print(f"\n{name} by {main_target(name).rules}, recorded for {family(name).rules}; transformers {version}")
            for case, verdict in judge_family(name, answers, version):
                total, equal = total + 1, equal + (not verdict.wrong)
                mark = "NO" if verdict.wrong else "ok"
                said = "; ".join(verdict.wrong)[:150] if verdict.wrong else verdict.fault.name if verdict.fault else ""
                print(f"  {case:15} {mark} {said}".rstrip())
    print(f"\n{equal} of {total} cases equal, declared faults apart")


if __name__ == "__main__":
    main()
