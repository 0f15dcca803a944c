"""What a job used: the disk as `du` counts it, and the parts that are told of a prediction."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llava_remap.jobs.resources import Predicted, Used


def test_disk_is_what_the_system_says_that_files_occupy() -> None:
    """Blocks, not sizes: a small file takes a whole one, and a hole takes none."""
    Path("small").write_bytes(b"x")
    Path("large").write_bytes(bytes(range(256)) * 400)
    with Path("sparse").open("wb") as file:
        file.truncate(1 << 30)
    files = [Path("small"), Path("large"), Path("sparse")]
    told = subprocess.check_output(["du", "-c", "-B1", *map(str, files)], text=True)
    assert Used.by(files).disk == int(told.splitlines()[-1].split()[0])
    assert Used.by(files).disk < 1 << 30


def test_no_files_take_no_disk() -> None:
    assert Used.by([]).disk == 0
    assert Used.by([]).memory > 0


def test_memory_is_the_sum_of_its_parts() -> None:
    predicted = Predicted(process=1, libraries=20, working=300, disk=4000)
    assert predicted.to_json() == {
        "memory": 321,
        "memory_parts": {"process": 1, "libraries": 20, "working": 300},
        "disk": 4000,
    }
