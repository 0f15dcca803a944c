"""The small LLaVA-1.5 through the command line, and rule files on top of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import CLIP, Run


def apply_v15(run: Run, source: Path, tower: Path = CLIP, rules: object = "llava-v1.5") -> Any:
    return run(
        "apply", rules, "--source", source, "--source", f"vision_tower={tower}", "--output", "out"
    )


def rule_file(folder: Path, text: str) -> Path:
    """A file of one's own on top of `llava-v1.5`."""
    path = folder / "mine.yaml"
    path.write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [llava-v1.5.yaml]\n"
        f"{text}\n"
    )
    return path
