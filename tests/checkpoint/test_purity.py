"""The room reads headers with the standard library alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..forks import HANGS
from .stored import TINY

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from llava_remap.checkpoint import open_checkpoint
assert len(open_checkpoint(Path(sys.argv[2])).catalog) > 20
heavy = {"torch", "numpy", "safetensors", "transformers", "pydantic", "yaml", "huggingface_hub"}
heavy &= set(sys.modules)
assert not heavy, heavy
print("pure")
"""


@pytest.mark.parametrize(
    "form", ["bin", "safetensors", "sharded", "sharded_safetensors", "../legacy_pickle"]
)
def test_nothing_heavy_is_imported(form: str) -> None:
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(root),
        str(TINY / "llava-v1.5" / "released" / form),
    ]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS).stdout
        == "pure\n"
    )
