"""What the benchmark checks before it believes a figure. Nothing is timed here."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.bench import Tensors, _check_conversions, _tensors
from tools.bench.measure import CommandError, cached_share, evict, file_system, run, warm
from tools.bench.options import rounds_of, size_of
from tools.bench.results import APPLY, CLASSIC, LOADED, RENAME


def test_sizes() -> None:
    assert [size_of(text) for text in ("500MB", "2.5gb", "1 GB")] == [
        500_000_000,
        2_500_000_000,
        1_000_000_000,
    ]
    assert 14 * 10**9 < size_of("7b") < 15 * 10**9
    for wrong in ("1", "1GiB", "GB"):
        with pytest.raises(argparse.ArgumentTypeError):
            size_of(wrong)
    with pytest.raises(argparse.ArgumentTypeError):
        rounds_of("0")


def test_ways_that_wrote_other_tensors_are_not_compared() -> None:
    one: Tensors = {"a": ("F16", (2, 3))}
    other: Tensors = {"b": ("F32", (2, 3))}
    _check_conversions({APPLY: one, CLASSIC: one, RENAME: one, LOADED: other})
    with pytest.raises(CommandError, match="not comparable"):
        _check_conversions({APPLY: one, CLASSIC: other})
    with pytest.raises(CommandError, match="other shapes"):
        _check_conversions({RENAME: one, LOADED: {"b": ("F16", (3, 2))}})


def test_a_cut_file_is_not_taken_for_a_result(tmp_path: Path) -> None:
    from numpy import zeros
    from safetensors.numpy import save_file

    with pytest.raises(CommandError, match="no tensors"):
        _tensors(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({"a": zeros((2, 3), "float32")}, file)
    assert _tensors(tmp_path) == {"a": ("F32", (2, 3))}
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CommandError, match="its header says"):
        _tensors(tmp_path)


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(CommandError, match=r"(?s)exit code 3 .*why"):
        run([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])


def test_peak_memory_is_that_of_the_whole_process() -> None:
    # In a small process, as the benchmark is one: what this one has would count as its children's.
    small = (
        "import sys; from tools.bench.measure import run; print(run([sys.executable, '-c', "
        "sys.argv[1]]).peak_nbytes)"
    )
    root = Path(__file__).resolve().parents[2]
    idle, busy = (
        int(
            subprocess.run(
                [sys.executable, "-c", small, code], cwd=root, check=True, capture_output=True
            ).stdout
        )
        for code in ("", "b'x' * (200 << 20)")
    )
    assert 190 << 20 < busy - idle < 210 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux' page cache")
def test_page_cache(tmp_path: Path) -> None:
    if file_system(tmp_path) not in ("ext4", "xfs", "btrfs"):
        pytest.skip("a file system that may be memory")
    file = tmp_path / "file"
    with file.open("wb") as opened:
        opened.write(os.urandom(1 << 20))
        os.fdatasync(opened.fileno())  # the tests' own process doesn't wait in `fsync`
    evict([file])
    assert cached_share([file]) == 0
    warm([file])
    assert cached_share([file]) == 1
