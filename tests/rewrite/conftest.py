"""A rule file written for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_remap.rulefile import RuleFile, load_rule_file

Load = Callable[[str], RuleFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str) -> RuleFile:
        path = tmp_path / "r.yaml"
        path.write_text("schema: 1\n" + text)
        return load_rule_file(path)

    return write_and_load
