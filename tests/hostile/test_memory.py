"""Memory does not grow with the checkpoint: sparse files as large as the largest model, and real
limits, set by the kernel.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import pytest

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.dtypes import DTYPE_BITS

from ..conftest import CLIP, MANIFESTS, RELEASED
from .forked import forking

MIB = 1 << 20
SHARD = 5 * 10**9
CGROUP = Path("/sys/fs/cgroup")

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def sparse_checkpoint(folder: Path, shapes: Shapes, config: Mapping[str, Any]) -> Path:
    """Shards of 5 GB with genuine headers and holes for tensors: all zeros, and next to nothing
    on the disk.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    filled = 0
    for name, (dtype, shape) in shapes.items():
        nbytes = prod(shape) * DTYPE_BITS[dtype] // 8
        if shards[-1] and filled + nbytes > SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = (dtype, shape)
        filled += nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file, header, at = folder / f"model-{number:05}-of-{len(shards):05}.safetensors", {}, 0
        for name, (dtype, shape) in shard.items():
            end = at + prod(shape) * DTYPE_BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
            weight_map[name] = file.name
        text = json.dumps(header).encode()
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + at)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


@pytest.fixture(scope="module")
def seventy_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = json.loads((MANIFESTS / "llava-next-qwen1.5-72b.released.json").read_text())
    shapes = {
        name: (entry["dtype"], tuple(entry["shape"])) for name, entry in manifest["tensors"].items()
    }
    return sparse_checkpoint(
        tmp_path_factory.mktemp("sparse") / "llava-next-72b", shapes, manifest["config"]
    )


def test_145_gb_are_planned_in_full(seventy_two: Path, tmp_path: Path) -> None:
    """The disk may have no room for the result, which is found last; everything else is there."""
    files = list(seventy_two.iterdir())
    assert sum(file.stat().st_size for file in files) > 140e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 10e6
    plan = [
        "apply",
        "llava-next",
        "--source",
        seventy_two,
        "--output",
        tmp_path / "out",
        "--dry-run",
        "--report",
        tmp_path / "r.json",
    ]
    with forking() as run:
        cold = run(*plan)  # asks transformers what it wants
        warm = run(*plan)
    report = json.loads((tmp_path / "r.json").read_text())
    assert {problem["code"] for problem in report["problems"]} <= {"LR502"}, warm.out
    assert warm.code == (4 if report["problems"] else 0)
    assert len(report["mapped"]) == report["target"]["tensors"] > 1000
    assert not any(report[kind] for kind in ("unmapped", "missing", "mismatched", "collisions"))
    assert report["nbytes"]["write"] > 140e9
    assert warm.kib < 100 * 1024
    assert cold.kib < 600 * 1024


#: A language model all of whose matrices have 64 MiB, seven to a layer.
WIDE = {
    "hidden_size": 8192,
    "intermediate_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
}


def wide(folder: Path, layers: int) -> Path:
    """The genuine tiny checkpoint with a language model of such layers, zeros but for its norms;
    its tokenizer and tower stay.
    """
    genuine = RELEASED / "safetensors"
    small = json.loads((genuine / "config.json").read_text())
    old = small["hidden_size"]
    attention, mlp = (4096, 8192), (4096, 8192)
    large = {
        "q_proj": attention,
        "k_proj": attention,
        "v_proj": attention,
        "o_proj": attention[::-1],
    }
    large |= {"gate_proj": mlp, "up_proj": mlp, "down_proj": mlp[::-1]}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in open_checkpoint(genuine).catalog.values():
        kind = tensor.name.split(".")[-2]
        shape = large.get(kind) or tuple(
            WIDE["hidden_size"] if size == old else size for size in tensor.shape
        )
        if kind == "rotary_emb":
            continue
        if (layer := re.search(r"layers\.(\d+)\.", tensor.name)) is None:
            shapes[tensor.name] = (tensor.dtype, shape)
        elif layer[1] == "0":
            for number in range(layers):
                shapes[tensor.name.replace("layers.0.", f"layers.{number}.")] = (
                    tensor.dtype,
                    shape,
                )
    sparse_checkpoint(folder, shapes, {**small, **WIDE, "num_hidden_layers": layers})
    for tensor in open_checkpoint(folder).catalog.values():
        if (
            "norm" in tensor.name and "vision" not in tensor.name
        ):  # with norms of zeros it would be a delta
            assert tensor.location is not None
            with tensor.location.file.open("r+b") as stream:
                stream.seek(tensor.location.offset)
                stream.write(b"\x00\x3c" * (tensor.nbytes // 2))  # 1.0 in F16
    for file in genuine.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    return folder


@contextmanager
def cgroup(nbytes: int) -> Iterator[Callable[[], object]]:
    """What puts a process into a new group of the kernel's that may hold so much memory; skips
    where none can be made.
    """
    first = CGROUP / "memory" if (CGROUP / "memory").is_dir() else CGROUP
    group = first / f"llava-remap-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if first != CGROUP else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(nbytes))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no group can be made: {error}")
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


@contextmanager
def data_limit(nbytes: int) -> Iterator[Callable[[], object]]:
    """Limits what a process can allocate, whatever the addresses: private memory that it can
    write to.
    """
    yield lambda: resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))


LIMITS = pytest.mark.parametrize("limited", [data_limit, cgroup])


@LIMITS
@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("layers", [2, pytest.param(29, marks=pytest.mark.long)])
def test_matrices_of_64_mib_are_written_under_a_limit(
    layers: int, limited: Any, tmp_path: Path
) -> None:
    """Two layers are 1.1 GB, 29 are 200 matrices and 13.7 GB: the same 600 MiB do for both."""
    if shutil.disk_usage(tmp_path).free < layers * 700 * MIB:
        pytest.skip("the disk is too full")
    source, output = wide(tmp_path / "source", layers), tmp_path / "out"
    arguments = [
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        output,
    ]
    try:
        with limited(600 * MIB) as limit, forking(limit=limit) as run:
            ended = run(*arguments)
        assert ended.code == 0, ended.out
        assert (
            sum(file.stat().st_size for file in output.glob("*.safetensors"))
            > layers * 7 * 64 * MIB
        )
        assert ended.kib < 600 * 1024
    finally:
        shutil.rmtree(output, ignore_errors=True)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_the_limit_is_one(tmp_path: Path) -> None:
    """Far below what is needed it is hit, and nothing is left behind."""
    arguments = [
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
    ]
    with data_limit(60 * MIB) as limit, forking(limit=limit) as run:
        ended = run(*arguments, "--output", tmp_path / "out")
    assert ended.code != 0, ended.out
    assert not (tmp_path / "out").exists()
