"""How weight files are divided, what order the tensors have in them, and where they lie."""

from __future__ import annotations

import json
from inspect import signature
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.checkpoint import open_checkpoint
from llava_remap.cli.commands import apply_command
from llava_remap.core.problem import RemapError
from llava_remap.execute import JOBS
from llava_remap.jobs.apply import apply
from llava_remap.jobs.apply import plan as plan_job
from llava_remap.planning import Mapped, Part, aligned
from llava_remap.routing import SourceName
from tests.conftest import CLIP, RELEASED, Run

SOURCES = [str(RELEASED / "safetensors"), f"vision_tower={CLIP}"]


def test_a_file_for_each_of_the_sources_in_their_order() -> None:
    plan = plan_job("llava-v1.5", SOURCES).plan
    origins = {entry.target: entry.origins[0] for entry in plan.mapped}
    catalogs = {
        "model": open_checkpoint(RELEASED / "safetensors").catalog,
        "vision_tower": open_checkpoint(CLIP).catalog,
    }
    assert len(plan.shards) == 2
    for shard, (source, catalog) in zip(plan.shards, catalogs.items(), strict=True):
        taken = [origins[name] for name in shard.tensors]
        assert taken == [
            SourceName(source, name) for name in catalog if SourceName(source, name) in taken
        ]


@pytest.mark.parametrize("nbytes", [1, 20_000, 60_000, 10**9])
def test_files_no_larger_than_asked_for(nbytes: int) -> None:
    apply("llava-v1.5", SOURCES, "whole")
    apply("llava-v1.5", SOURCES, "out", max_shard_nbytes=nbytes)
    files = sorted(Path("out").glob("*.safetensors"))
    sizes = [[tensor.nbytes for tensor in open_checkpoint(path).catalog.values()] for path in files]
    assert all(sum(found) <= nbytes or len(found) == 1 for found in sizes)
    for before, after in pairwise(sizes):
        assert sum(before) + after[0] > nbytes, "no file ends before it has to"
    index = json.loads(Path("out/model.safetensors.index.json").read_text())["weight_map"]
    written = {name: tensor for path in files for name, tensor in load_file(path).items()}
    whole = {
        name: tensor
        for path in Path("whole").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert index == {name: path.name for path in files for name in open_checkpoint(path).catalog}
    assert written.keys() == whole.keys()
    assert all(torch.equal(written[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("size", "files"), [("50kB", None), ("1GB", 1), ("0.5 GiB", 1), ("500000", 1)]
)
def test_sizes_on_the_command_line(size: str, files: int | None, run: Run) -> None:
    command = (
        "apply",
        "llava-v1.5",
        "--source",
        SOURCES[0],
        "--source",
        SOURCES[1],
        "--dry-run",
        "--format",
        "json",
    )
    shards = run(*command, "--max-shard-size", size).json["shards"]
    assert len(shards) == files if files else len(shards) > 5


@pytest.mark.parametrize(
    "options", [{"max_shard_nbytes": 0}, {"max_shard_nbytes": -1}, {"jobs": 0}]
)
def test_numbers_that_cant_be(options: dict[str, int]) -> None:
    with pytest.raises(RemapError, match="LR211"):
        apply("llava-v1.5", SOURCES, "out", **options)  # type: ignore[arg-type]
    assert not Path("out").exists()


@pytest.mark.parametrize("size", ["0", "5XB", "-1GB", "", "1e9", "nan"])
def test_what_is_no_size(size: str, run: Run) -> None:
    ran = run("apply", "llava-v1.5", "--source", SOURCES[0], "--max-shard-size", size)
    assert ran.code == 2
    assert "is no size" in " ".join(ran.err.split())


def test_the_command_line_and_python_write_as_many_files_at_a_time() -> None:
    """The number stands in both, so that `--help` imports nothing that copies."""
    assert signature(apply_command).parameters["jobs"].default == JOBS


def entry(name: str, dtype: str, *shape: int) -> Mapped:
    return Mapped(name, dtype, shape, (Part.whole("model", name, name, shape),), (), ())


def test_order_is_kept_where_every_tensor_stays_aligned() -> None:
    kept = [entry("a", "F16", 2), entry("b", "F32", 3), entry("c", "F16", 1)]
    assert aligned(kept) == kept
    odd = [entry("a", "F16", 1), entry("b", "F32", 3), entry("c", "F16", 5)]
    assert [found.target for found in aligned(odd)] == ["b", "a", "c"]


def test_most_bytes_keep_their_place_within_a_block() -> None:
    """Whatever the length of the source's header is: then file systems can share them."""
    state = load_file(RELEASED / "safetensors" / "model.safetensors")
    Path("source").mkdir()
    for path in (RELEASED / "safetensors").iterdir():
        if path.suffix != ".safetensors":
            (Path("source") / path.name).write_bytes(path.read_bytes())
    for padding in (1, 700, 1404):
        save_file(
            state, "source/model.safetensors", metadata={"format": "pt", "padding": "x" * padding}
        )
        apply("llava-v1.5", ["source", SOURCES[1]], f"out-{padding}", verify="none")
        source = open_checkpoint(Path("source")).catalog
        converted = open_checkpoint(Path(f"out-{padding}")).catalog
        record = json.loads(Path(f"out-{padding}/llava_remap.json").read_text())
        moved = kept = 0
        for mapped in record["plan"]["mapped"]:
            if not mapped["then"] and mapped["from"][0]["source"] == "model":
                before, after = (
                    source[mapped["from"][0]["name"]].location,
                    converted[mapped["target"]].location,
                )
                assert before is not None
                assert after is not None
                assert after.offset % 8 == 0
                nbytes = converted[mapped["target"]].nbytes
                kept += nbytes * ((before.offset - after.offset) % 4096 == 0)
                moved += nbytes
        assert kept / moved > 0.5
