"""`detect`: which config it looks at, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import MANIFESTS, Changed, Run
from tests.small_llava import apply_v15


def test_tiles_without_a_newline_are_not_llava_1_5(run: Run, changed: Changed) -> None:
    ran = apply_v15(
        run,
        changed(
            config=lambda c: c.update(
                {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"}
            )
        ),
    )
    assert ran.code == 1
    assert "LR311" in ran.out
    assert "image_aspect_ratio: 'anyres'" in ran.out


def test_detect_looks_at_the_config_that_is_used(run: Run, tmp_path: Path) -> None:
    """OneVision without its config, which comes from another source: the family is told by that
    one.
    """
    whole = json.loads((MANIFESTS / "llava-onevision-qwen2-0.5b.released.json").read_text())
    (tmp_path / "bare.json").write_text(json.dumps({**whole, "config": None}))
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    alone = run("apply", "llava-interleave", "--source", "bare.json", "--dry-run")
    assert "no config.json to say image_aspect_ratio" in alone.out
    both = run(
        "apply",
        "llava-interleave",
        "--source",
        "bare.json",
        "--source",
        "language_model=whole.json",
        "--dry-run",
    )
    assert "LR311" in both.out
    assert "anyres_max_9" in both.out
