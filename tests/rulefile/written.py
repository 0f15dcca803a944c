"""Rule files written for a test, and what is said when they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_remap.core.problem import RemapError
from llava_remap.rulefile import RuleFile, load_rule_file

#: The fields that a file with a target needs beside it.
COMPLETE = """\
schema: 1
name: complete
version: 1.0.0
summary: a file that can be applied
sources: {model: {default: org/model}}
target: {class: SomeForConditionalGeneration}
"""


def put(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, text: str | bytes) -> RuleFile:
    return load_rule_file(put(folder, "r.yaml", text))


def refused(rules: str | Path) -> RemapError:
    with pytest.raises(RemapError) as caught:
        load_rule_file(rules)
    return caught.value


def said(folder: Path, text: str | bytes) -> list[tuple[str, str, str]]:
    """Of each problem: the code, the place without the folder (`r.yaml:2:1`), and all that is
    said.
    """
    problems = refused(put(folder, "r.yaml", text)).problems
    causes = [problem.placed_cause.replace(f"{folder}/", "") for problem in problems]
    return [
        (p.code, c.split(" ")[0], f"{c.partition(' ')[2]} {p.fix}".strip())
        for p, c in zip(problems, causes, strict=True)
    ]
