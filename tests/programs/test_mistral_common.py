"""Folders as Mistral publishes them, in a Python that has mistral-common: the written tokenizers
give its ids. Elsewhere these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forks import HANGS
from tests.programs.run import ROOT, place

pytestmark = [pytest.mark.programs, pytest.mark.mistral_common]


def test_the_tests_of_mistrals_folders_pass_with_its_library(tmp_path: Path) -> None:
    (packages,) = place("mistral_common").glob("lib/python*/site-packages")
    tests = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-m", "not compat"]
    ran = subprocess.run(
        [*tests, "tests/end_to_end/test_mistral_params.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(packages),
            "LLAVA_REMAP_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert "skipped" not in ran.stdout
