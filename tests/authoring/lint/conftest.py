"""Rule files written for a test, and what lint finds in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llava_remap.authoring.lint import Finding, Linted, Names, lint
from llava_remap.rulefile import load_rule_file

Lint = Callable[..., Linted]


@pytest.fixture
def linted(tmp_path: Path) -> Lint:
    """Lint a rule file that holds this text, and tests with the names in `tested`, against these
    names.
    """

    def write_and_lint(
        text: str,
        *names: str,
        tested: Sequence[str] = (),
        wanted: frozenset[str] | None = None,
    ) -> Linted:
        tests = "".join(f"  - {{from: '{name}', unmapped: true}}\n" for name in tested)
        path = tmp_path / "r.yaml"
        path.write_text("schema: 1\n" + text + (f"tests:\n{tests}" if tests else ""))
        return lint(load_rule_file(path), Names(names, names, None, wanted) if names else None)

    return write_and_lint


def codes(linted: Linted, without: str = "LR213") -> list[str]:
    """The codes found; the rules of most tests have no tests themselves."""
    return [finding.problem.code for finding in linted.findings if finding.problem.code != without]


def found(linted: Linted, code: str) -> Finding:
    [finding] = [finding for finding in linted.findings if finding.problem.code == code]
    return finding
