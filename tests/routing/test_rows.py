"""The table of token embeddings has to be of the training whose config is believed: rows against
`vocab_size`, from shapes and configs alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_remap.checkpoint import Checkpoint
from llava_remap.rewrite import compile_rules
from llava_remap.routing import route
from llava_remap.routing.trained_with import rows_problems
from llava_remap.rulefile import load_rule_file
from tests.planning.conftest import checkpoint

RULES = """
schema: 1
name: test
summary: for tests of the rows
version: 1.0.0
sources: {model: {}, part: {optional: true, overrides: true}}
target: {class: LlavaForConditionalGeneration}
names: [{id: all, from: '{rest...}', to: '{rest}'}]
"""
TABLE = "embed_tokens"


def source(name: str, rows: int | None, vocab_size: int | None) -> Checkpoint:
    tensors = {"a": (1,), **({TABLE: (rows, 2)} if rows is not None else {})}
    made = checkpoint(tensors, name)
    config = {"vocab_size": vocab_size} if vocab_size is not None else {}
    return Checkpoint(made.path, made.form, made.catalog, config, made.folder)


@pytest.mark.parametrize(
    ("base", "part", "believed", "said"),
    [
        ((320, 320), None, "model", None),
        ((320, 320), (None, 320), "part", None),
        ((320, 320), (None, 321), "part", "a model of 321 tokens, and `model` has 320"),
        ((320, 321), (None, 322), "part", None),
        ((320, 320), (321, 321), "part", None),
        ((320, 320), (1, 321), "part", "`part` brings an embed_tokens of 1 rows"),
        ((320, 320), (322, 321), "part", None),
        ((None, 320), (None, 321), "part", None),
        ((320, 320), (None, None), "part", None),
    ],
    ids=[
        "alone", "as many", "another base", "a base that contradicts itself", "a table of its own",
        "its new rows alone", "padded", "no table", "a config that doesn't say",
    ],
)  # fmt: skip
def test_rows(
    base: tuple[Any, Any],
    part: tuple[Any, Any] | None,
    believed: str,
    said: str | None,
    tmp_path: Path,
) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    rules = load_rule_file(tmp_path / "rules.yaml")
    checkpoints = {"model": source("model", *base)}
    if part is not None:
        checkpoints["part"] = source("part", *part)
    routes = route(rules, compile_rules(rules, ["a"], {}), checkpoints)
    found = rows_problems(rules, checkpoints, routes, TABLE, checkpoints[believed].config or {})
    assert [problem.code for problem in found] == ([] if said is None else ["LR402"])
    assert all(said in problem.cause for problem in found if said is not None)
