"""Small files of a source that are broken, and processors that don't work: refused before
anything is written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CLIP, RELEASED, Changed, Run
from tests.small_llava import apply_v15, rule_file


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": null}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": "x"}'),
        ("tokenizer_config.json", "[]"), ("special_tokens_map.json", '{"pad_token": {"x": 1}}'),
        ("added_tokens.json", '{"x": "y"}'), ("tokenizer.json", '{"model": null}'),
        ("tokenizer.json", '{"model": {"vocab": 3}}'), ("tokenizer.model", "no model"),
        ("generation_config.json", "[]"), ("generation_config.json", "no JSON"),
        ("generation_config.json", "[" * 100000),
    ],
)  # fmt: skip
def test_small_files_that_are_broken(file: str, text: str, run: Run, changed: Changed) -> None:
    source = changed()
    (source / file).write_text(text)
    ran = apply_v15(run, source)
    assert ran.code == 3
    assert "LR113" in ran.out + ran.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"crop_size": "28"}, 3), ({"crop_size": [28, 28]}, 3),
        ({"crop_size": {"height": 28, "width": 56}}, 1),
        ({"image_mean": "x"}, 3), ({"image_processor_type": "Foo"}, 3),
    ],
    ids=str,
)  # fmt: skip
def test_image_processors_that_do_not_work(
    change: dict[str, Any], code: int, run: Run, tmp_path: Path
) -> None:
    """A picture is taken through the processor before anything is written."""
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    content = json.loads((tower / "preprocessor_config.json").read_text())
    (tower / "preprocessor_config.json").write_text(json.dumps({**content, **change}))
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert ran.code == code
    assert "LR" in ran.out + ran.err
    assert not Path("out").exists()


def test_the_dry_run_tries_the_processor_too(run: Run, tmp_path: Path) -> None:
    rules = rule_file(tmp_path, "processor: {class: CLIPProcessor}")
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
    )
    assert ran.code == 1
    assert "LR605" in ran.out
