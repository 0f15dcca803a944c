"""Whether an output may be written, asked of folders and of sources without tensors; nothing is
made by asking.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_remap.checkpoint import Checkpoint
from llava_remap.checkpoint.catalog import Stamp
from llava_remap.core.problem import RemapError
from llava_remap.jobs.output import output_problems, refuse_changed, refuse_report


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    """A folder with a weight file."""
    folder = tmp_path / "source"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"12345678")
    stamps = {weights: Stamp.of(weights)}
    return Checkpoint(folder, "safetensors", {}, None, folder, stamps=stamps)  # type: ignore[arg-type]


def codes(
    output: Path, sources: Mapping[str, Checkpoint] | None = None, nbytes: int | None = 0
) -> list[str]:
    before = sorted(Path().rglob("*"))
    found = [problem.code for problem in output_problems(output, nbytes, sources or {})]
    assert sorted(Path().rglob("*")) == before
    return found


@pytest.mark.parametrize("output", ["out", "deep/below/out", "empty", "link"])
def test_outputs_that_can_be(output: str) -> None:
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    assert codes(Path(output)) == []


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("filled", "LR503"), ("hidden", "LR503"), ("file", "LR503"), ("file/out", "LR508"),
        ("nowhere", "LR503"), ("circle", "LR503"), ("x" * 300, "LR508"),
    ],
)  # fmt: skip
def test_outputs_that_cannot_be(output: str, code: str) -> None:
    Path("file").touch()
    for folder, name in (("filled", "file"), ("hidden", ".file")):
        Path(folder).mkdir()
        (Path(folder) / name).touch()
    Path("nowhere").symlink_to("gone")
    Path("circle").symlink_to("circle")
    assert codes(Path(output)) == [code]


@pytest.mark.parametrize(
    ("nbytes", "code"), [(99, []), (100, []), (101, ["LR502"]), (None, [])], ids=str
)
def test_room_on_the_disk(
    nbytes: int | None, code: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert codes(Path("deep/out"), nbytes=nbytes) == code


def test_a_folder_in_which_nothing_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the nearest folder that is there; for root, the system's answer is always yes."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    assert codes(Path("deep/out")) == ["LR508"]
    assert asked == [(Path().absolute(), os.W_OK)]


@pytest.mark.parametrize("output", ["source/out", "link/out", "source/deep/out"])
def test_an_output_inside_a_source(output: str, source: Checkpoint) -> None:
    Path("link").symlink_to("source")
    assert codes(Path(output), {"model": source}) == ["LR508"]
    assert codes(Path("source-hf"), {"model": source}) == []


@pytest.mark.parametrize(
    ("report", "refused"),
    [
        ("out/plan.json", True), ("source/plan.json", True), ("plan.json", False),
        ("source.json", False), ("link.json", True),
    ],
)  # fmt: skip
def test_reports(report: str, refused: bool, source: Checkpoint) -> None:
    Path("link.json").symlink_to("source/model.safetensors")
    if refused:
        with pytest.raises(RemapError, match="LR508"):
            refuse_report(Path(report), Path("out"), {"model": source})
    else:
        refuse_report(Path(report), Path("out"), {"model": source})


def test_of_a_source_that_is_one_file_its_neighbours_may_be_written(source: Checkpoint) -> None:
    """But not those that are read with it."""
    file = Checkpoint(
        source.path / "model.safetensors", "", {}, None, source.folder, stamps=source.stamps
    )
    refuse_report(Path("source/plan.json"), Path("out"), {"model": file})
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(RemapError, match="LR508"):
            refuse_report(Path("source") / name, Path("out"), {"model": file})


@pytest.mark.parametrize("change", ["nothing", "another size", "written again", "gone"])
def test_a_source_that_changed_since_it_was_opened(change: str, source: Checkpoint) -> None:
    weights = source.path / "model.safetensors"
    if change == "another size":
        weights.write_bytes(b"1234")
    elif change == "written again":
        os.utime(weights, ns=(0, 1))
    elif change == "gone":
        weights.unlink()
    if change == "nothing":
        refuse_changed({"model": source})
    else:
        with pytest.raises(RemapError, match=r"LR102 .*model\.safetensors"):
            refuse_changed({"model": source})
