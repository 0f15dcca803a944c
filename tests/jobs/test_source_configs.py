"""Whose config counts, and which comes first: configs alone, without tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llava_remap.checkpoint import Checkpoint
from llava_remap.jobs.job import manifest_problems
from llava_remap.jobs.source_configs import configs_by_source, source_configs
from llava_remap.rulefile import load_rule_file

RULES = """
schema: 1
name: test
summary: for tests of the configs
version: 1.0.0
sources:
  model: {}
  text: {use: [tokenizer]}
  first: {optional: true, overrides: true}
  second: {optional: true, overrides: true}
target: {class: LlavaForConditionalGeneration}
names: [{id: all, from: '{rest...}', to: '{rest}'}]
"""
OWN = {"mm_projector_type": "linear"}


def source(config: Mapping[str, Any] | None, folder: Path | None = Path()) -> Checkpoint:
    return Checkpoint(Path("there"), "", {}, config, folder)


@pytest.mark.parametrize(
    ("configs", "wanted"),
    [
        ({"model": {"a": 1}, "text": {"b": 1}}, ["model"]),
        ({"model": None, "first": {"b": 1}}, ["first"]),
        ({"model": {"a": 1}, "first": {"b": 1}}, ["model", "first"]),
        ({"model": {"a": 1}, "first": OWN}, ["first", "model"]),
        ({"model": OWN, "first": OWN, "second": OWN}, ["second", "first", "model"]),
        ({"model": OWN, "first": OWN, "second": {"b": 1}}, ["first", "model", "second"]),
    ],
    ids=[
        "not of a tokenizer", "of what there is", "the model's", "LLaVA's own keys",
        "the later of two", "of two that with LLaVA's keys",
    ],
)  # fmt: skip
def test_order(
    configs: Mapping[str, Mapping[str, Any] | None], wanted: list[str], tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    rules = load_rule_file(tmp_path / "rules.yaml")
    checkpoints = {
        name: source(config and {**config, "of": name}) for name, config in configs.items()
    }
    assert [config["of"] for config in source_configs(rules, checkpoints)] == wanted
    assert set(configs_by_source(rules, checkpoints)) == set(wanted)


def test_manifests_can_only_be_planned() -> None:
    sources = {"model": source({}), "tower": source({}, None)}
    assert [p.code for p in manifest_problems(sources, dry_run=False)] == ["LR111"]
    assert manifest_problems(sources, dry_run=True) == []
    assert manifest_problems({"model": source({})}, dry_run=False) == []
