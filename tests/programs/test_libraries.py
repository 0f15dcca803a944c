"""Tests that need a library which isn't beside llava-remap, in a Python that has it: mistral-common
for the tokenizers of Mistral's folders, timm for FastVLM's tower. Elsewhere they are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forks import HANGS
from tests.programs.run import ON_PATH, ROOT, place

pytestmark = pytest.mark.programs


@pytest.mark.parametrize(
    ("tests", "libraries"),
    [
        pytest.param(
            "test_mistral_params.py", ["mistral_common"], marks=pytest.mark.mistral_common
        ),
        pytest.param("test_fastvlm.py", ["timm", "torchvision"], marks=pytest.mark.timm),
    ],
)
def test_what_is_skipped_elsewhere_passes(tests: str, libraries: list[str], tmp_path: Path) -> None:
    packages = [next(place(one).glob("lib/python*/site-packages")) for one in libraries]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-m", "not compat"),
            f"tests/end_to_end/{tests}",
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [ON_PATH, *packages])),
            "LLAVA_REMAP_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert "skipped" not in ran.stdout
