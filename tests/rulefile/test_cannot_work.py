"""Rule files of one's own that a job refuses, each with its place; and one that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RELEASED, Run
from tests.small_llava import apply_v15, rule_file

pytestmark = pytest.mark.torch  # whole jobs


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("target: {class: set_seed}", 2, "mine.yaml:6:17 transformers"),
        ("target: {config: {text_config: {const: 1}}}", 2, "is a group of values"),
        ("target: {config: {architectures.x: {const: 1}}}", 2, "has no parts"),
        ("target: {config: {vision_feature_layer: {const: 99}}}", 3, "the tower has 3 layers"),
        ("processor: {class: CLIPProcessor}", 1, "LR605"),
        ("processor: {chat_template: 'hello {% if %}'}", 1, "LR605"),
        ("processor: {chat_template: 'no image'}", 1, "LR605"),
        ("tokens: [{text: '<pad>', role: pad}]", 2, "`tokens` has none with this role"),
        (
            "tokens: [{text: '<a>', role: image}, {text: '<b>', role: image}]",
            2,
            "two of `tokens` have one role",
        ),
        (
            "post_load: [{use: expand_embeddings}, {use: expand_embeddings, with: {seed: 3}}]",
            2,
            "mine.yaml:6:39 two rules of",
        ),
        (
            "post_load: [{use: expand_embedings}]",
            2,
            "mine.yaml:6:13 `post_load` uses `expand_embedings`",
        ),
        ("post_load: []", 1, "LR402"),
    ],
)
def test_rule_files_that_cannot_work(
    text: str, code: int, words: str, run: Run, tmp_path: Path
) -> None:
    ran = apply_v15(run, RELEASED / "bin", rules=rule_file(tmp_path, text))
    assert ran.code == code
    assert words in ran.out + ran.err
    assert not Path("out").exists()


def test_a_changed_source_does_not_become_the_first(run: Run, tmp_path: Path) -> None:
    rules = rule_file(tmp_path, "sources: {vision_tower: {select: 'vision_model.{rest...}'}}")
    assert apply_v15(run, RELEASED / "bin", rules=rules).code == 0
