"""`tests/conftest.py` imports nothing heavy, so a test of a room without torch costs no import of
it; and `make test-fast` refuses one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import HEAVY

ROOT = Path(__file__).parents[1]


LIGHT = (
    "tests.conftest",
    "tests.small_llava",
    "tests.planning.conftest",
    "tests.planning.test_build",
    "tests.rewrite.conftest",
    "tests.routing.test_route",
    "tests.jobs.test_output_problems",
    "tests.authoring.lint.conftest",
)


def test_what_fast_tests_import_is_light() -> None:
    program = (
        "import sys, importlib\n"
        f"for name in {LIGHT}:\n"
        "    importlib.import_module(name)\n"
        f"    print(name, *({HEAVY} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == [*LIGHT]


def test_a_run_without_torch_has_none(tmp_path: Path) -> None:
    for name, module in (("a", "torch"), ("b", "transformers.utils"), ("c", "json")):
        (tmp_path / f"test_{name}.py").write_text(f"def test_it():\n    import {module}\n")
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir=."]
    command = [sys.executable, "-m", "pytest", "--without-torch", *options, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "2 failed, 1 passed" in ran.stdout, ran.stdout
    for module in ("torch", "transformers"):
        assert f"ImportError: {module} is imported in a run `--without-torch`" in ran.stdout
