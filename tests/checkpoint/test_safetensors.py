"""The header of a safetensors file: what is believed, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.dtypes import DTYPE_BITS
from llava_remap.core.problem import RemapError

from .stored import DTYPES, same

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(folder: Path, header: Any, body: bytes = b"", *, length: int | None = None) -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes((len(data) if length is None else length).to_bytes(8, "little") + data + body)
    return file


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    values = {"w": torch.ones(2, 3).to(DTYPES[dtype]), "scalar": torch.tensor(1).to(DTYPES[dtype])}
    save_file(
        values, tmp_path / "model.safetensors", metadata={"format": "pt", "w": "not a tensor"}
    )
    catalog = open_checkpoint(tmp_path).catalog
    assert catalog["w"].dtype == dtype
    assert catalog.keys() == values.keys()
    assert all(same(catalog[name], value) for name, value in values.items())


def test_order_is_by_offset_not_by_header(tmp_path: Path) -> None:
    header = {
        "b": {**ENTRY, "data_offsets": [8, 16]},
        "a": ENTRY,
        "empty": {**ENTRY, "shape": [0, 5], "data_offsets": [8, 8]},
    }
    catalog = open_checkpoint(written(tmp_path, header, bytes(16))).catalog
    assert list(catalog) == ["a", "empty", "b"]
    assert catalog["empty"].nbytes == 0


@pytest.mark.parametrize(
    ("header", "body", "says"),
    [
        ({"w": ENTRY}, bytes(7), "has 77 bytes by its header, but the file has 76"),
        ({"w": ENTRY}, bytes(9), "has 77 bytes by its header, but the file has 78"),
        (
            {"w": {**ENTRY, "data_offsets": [4, 12]}},
            bytes(12),
            "starts at byte 74, but the tensor before it ends at 70",
        ),
        (
            {"v": ENTRY, "w": {**ENTRY, "data_offsets": [4, 12]}},
            bytes(12),
            "tensor `w` starts at byte",
        ),
        (
            {"w": {**ENTRY, "shape": [3]}},
            bytes(8),
            "`w` has 8 bytes, but needs 12 by its shape and dtype",
        ),
        ({"w": {**ENTRY, "shape": [-2]}}, bytes(8), "doesn't describe a tensor"),
        ({"w": {**ENTRY, "shape": [True, 2]}}, bytes(8), "doesn't describe a tensor"),
        ({"w": {**ENTRY, "shape": [2.0]}}, bytes(8), "doesn't describe a tensor"),
        ({"w": {**ENTRY, "shape": [2**31, 2**31]}}, bytes(8), "doesn't describe a tensor"),
        (
            {"w": {**ENTRY, "shape": [2**80, 0], "data_offsets": [0, 0]}},
            b"",
            "doesn't describe a tensor",
        ),
        ({"w": {**ENTRY, "shape": [1] * 65}}, bytes(8), "doesn't describe a tensor"),
        ({"w": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "doesn't describe a tensor"),
        ({"w": {**ENTRY, "data_offsets": [0]}}, bytes(8), "doesn't describe a tensor"),
        ({"w": {**ENTRY, "data_offsets": [0, 2**70]}}, bytes(8), "doesn't describe a tensor"),
        ({"w": {**ENTRY, "dtype": 3}}, bytes(8), "doesn't describe a tensor"),
        ({"w": None}, bytes(8), "doesn't describe a tensor"),
        ({"w": [1, 2]}, bytes(8), "doesn't describe a tensor"),
        ({"w": {}}, bytes(8), "doesn't describe a tensor"),
        ([1], b"", "holds a JSON list"),
        (b"{\xff}", b"", "not valid JSON"),
        (b"{" + b'"a":{' * 100_000, b"", "not valid JSON"),
        (
            b'{"w":' + json.dumps(ENTRY).encode() + b',"w":' + json.dumps(ENTRY).encode() + b"}",
            bytes(8),
            "`w` occurs twice",
        ),
        (b'{"\\ud800":' + json.dumps(ENTRY).encode() + b"}", bytes(8), "not valid Unicode"),
        (
            b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
            bytes(8),
            "`model.safetensors`",
        ),
    ],
)
def test_broken_headers(tmp_path: Path, header: Any, body: bytes, says: str) -> None:
    with pytest.raises(RemapError) as caught:
        open_checkpoint(written(tmp_path, header, body))
    (problem,) = caught.value.problems
    assert problem.code == "LR102"
    assert says in problem.cause
    assert len(problem.cause) < 400
    assert problem.fix


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    with pytest.raises(
        RemapError, match="needs 1008 bytes for its header alone, but the file has 69"
    ):
        open_checkpoint(written(tmp_path, {"w": ENTRY}, length=1000))
    with pytest.raises(RemapError, match="LR102"):
        open_checkpoint(written(tmp_path, {"w": ENTRY}, length=2**64 - 1))


def test_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    file = written(tmp_path, {"w": ENTRY}, length=100_000_001)
    with file.open("r+b") as stream:
        stream.truncate(200_000_000)
    tracemalloc.start()
    with pytest.raises(RemapError, match="100000001 bytes, but the format allows 100000000"):
        open_checkpoint(file)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    nbytes = 10 << 30
    file = written(
        tmp_path, {"w": {"dtype": "F16", "shape": [5 << 30], "data_offsets": [0, nbytes]}}
    )
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + nbytes)
    tracemalloc.start()
    assert open_checkpoint(file).nbytes == nbytes
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("first", [0x80, 0x7B, 0x50])
def test_the_lowest_byte_of_the_length_is_not_taken_for_another_format(
    tmp_path: Path, first: int
) -> None:
    """0x80 starts a pickle, 0x7B is the brace of JSON."""
    data = json.dumps({"w": ENTRY}).encode()
    data += b" " * ((first - len(data)) % 256)
    assert len(data) % 256 == first
    assert list(open_checkpoint(written(tmp_path, data, bytes(8))).catalog) == ["w"]


def test_dtype_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(RemapError, match=r"LR106.*`w` has dtype `F4`"):
        open_checkpoint(written(tmp_path, {"w": {**ENTRY, "dtype": "F4"}}, bytes(8)))
