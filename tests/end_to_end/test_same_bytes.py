"""The same weight files, byte for byte, whoever writes them, where and how; and file modes as
the umask says.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llava_remap.jobs.run as whole_job
from llava_remap.execute import INDEX, writer
from llava_remap.jobs.apply import apply
from llava_remap.verification.record import RECORD
from tests.conftest import CLIP, RELEASED

FORMS = ("safetensors", "bin", "sharded")


def job(output: Path = Path("out"), form: str = "sharded", **options: Any) -> dict[str, str]:
    """Convert; every file with its digest."""
    apply(
        "llava-v1.5",
        [str(RELEASED / form), f"vision_tower={CLIP}"],
        output,
        **{"verify": "none", **options},
    )
    return contents(output)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What each form of one checkpoint gives."""
    folder = tmp_path_factory.mktemp("wanted")
    return {form: job(folder / form, form, jobs=1) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_with_any_number_of_jobs(form: str, jobs: int, wanted: dict[str, dict[str, str]]) -> None:
    assert job(form=form, jobs=jobs) == wanted[form]


def test_in_many_small_files() -> None:
    one, other = (job(Path(str(jobs)), max_shard_nbytes=50_000, jobs=jobs) for jobs in (1, 8))
    assert one == other
    assert len(list(Path("1").glob("*.safetensors"))) > 5


def test_resumed(wanted: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(whole_job, "write_index", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job()
    assert job(resume=True) == wanted["sharded"]


def test_through_the_cache(
    wanted: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that can't be written past it."""
    monkeypatch.setattr(writer, "_past_the_cache", lambda file: False)
    assert job() == wanted["sharded"]


@pytest.fixture
def in_memory() -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_on_another_file_system(in_memory: Path, wanted: dict[str, dict[str, str]]) -> None:
    assert job(in_memory / "out") == wanted["sharded"]


@pytest.mark.parametrize(
    ("umask", "mode", "folder"),
    [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755), (0o002, 0o664, 0o775)],
    ids=["077", "022", "002"],
)
def test_modes_follow_the_umask(
    umask: int, mode: int, folder: int, wanted: dict[str, dict[str, str]]
) -> None:
    before = os.umask(umask)
    try:
        assert job(Path("deep/out")) == wanted["sharded"]
    finally:
        os.umask(before)
    assert {
        path.name: path.stat().st_mode & 0o777 for path in Path("deep/out").iterdir()
    } == dict.fromkeys(wanted["sharded"], mode)
    assert {path.stat().st_mode & 0o777 for path in (Path("deep"), Path("deep/out"))} == {folder}


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Asia/Tokyo"},
        {
            "PYTHONHASHSEED": "2",
            "LC_ALL": "tr_TR.UTF-8",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": "elsewhere",
        },
    ],
    ids=["C", "Turkish"],
)
def test_in_another_environment(
    environment: dict[str, str], wanted: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """In a process of its own, from another folder."""
    (tmp_path / "elsewhere").mkdir()
    environment = {
        name: str(tmp_path / value) if name == "TMPDIR" else value
        for name, value in environment.items()
    }
    command = (
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "sharded",
        "--source",
        f"vision_tower={CLIP}",
        "--verify",
        "none",
    )
    program = [
        sys.executable,
        "-c",
        "from llava_remap.cli import main; main()",
        *map(str, command),
        "--output",
        str(tmp_path / "out"),
    ]
    ran = subprocess.run(
        program,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert contents(tmp_path / "out") == wanted["sharded"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_comparison_is_of_whole_folders(wanted: dict[str, dict[str, str]]) -> None:
    for form in FORMS:
        assert {INDEX, RECORD, "config.json"} < wanted[form].keys()
