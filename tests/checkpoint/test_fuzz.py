"""Whatever a file holds, nothing but a `RemapError` comes out of reading it."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_remap.checkpoint import open_checkpoint
from llava_remap.errors import RemapError

RUNS = settings(max_examples=100, deadline=None)


def opens_or_refuses(data: bytes, name: str = "weights.bin") -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        try:
            checkpoint = open_checkpoint(file)
        except RemapError as error:
            str(error).encode()
            return False
        for tensor in checkpoint.catalog.values():
            assert tensor.location is None or 0 <= tensor.location.offset <= len(data)
        return True


def written(zipped: bool) -> bytes:
    stream = io.BytesIO()
    base = torch.arange(12, dtype=torch.float32).view(3, 4)
    value = {"state_dict": {"a": base, "b": base.t(), "c": torch.ones(2, dtype=torch.bfloat16)}, "epoch": 1}
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


ZIP, LEGACY = written(True), written(False)
with zipfile.ZipFile(io.BytesIO(ZIP)) as _archive:
    PICKLE = _archive.read("archive/data.pkl")

changes = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4)


def changed(data: bytes, at: list[tuple[int, int]]) -> bytes:
    found = bytearray(data)
    for position, value in at:
        found[position % len(found)] = value
    return bytes(found)


def test_the_unchanged_files_open() -> None:
    assert opens_or_refuses(ZIP)
    assert opens_or_refuses(LEGACY)
    assert opens_or_refuses(with_pickle(PICKLE))


def with_pickle(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ZIP)) as old, zipfile.ZipFile(stream, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, data if record.filename.endswith("data.pkl") else old.read(record))
    return stream.getvalue()


@RUNS
@given(changes)
def test_changed_zip(at: list[tuple[int, int]]) -> None:
    opens_or_refuses(changed(ZIP, at))


@RUNS
@given(changes)
def test_changed_table_of_contents(at: list[tuple[int, int]]) -> None:
    start = ZIP.index(b"PK\1\2")
    opens_or_refuses(ZIP[:start] + changed(ZIP[start:], at))


@RUNS
@given(changes)
def test_changed_pickle(at: list[tuple[int, int]]) -> None:
    opens_or_refuses(with_pickle(changed(PICKLE, at)))


@RUNS
@given(st.binary(max_size=200))
def test_any_pickle(data: bytes) -> None:
    opens_or_refuses(with_pickle(data))


@RUNS
@given(changes)
def test_changed_legacy(at: list[tuple[int, int]]) -> None:
    opens_or_refuses(changed(LEGACY, at))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
offsets = st.integers(-1, 40)
entries = json_values | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F4", "", 3]),
        "shape": st.lists(offsets | st.integers(2**31, 2**70), max_size=3) | json_values,
        "data_offsets": st.lists(offsets, max_size=3) | json_values,
    }
)


@RUNS
@given(st.dictionaries(st.text(max_size=4), entries, max_size=3), st.integers(0, 60), st.integers(-3, 3))
def test_any_safetensors_header(header: dict[str, Any], nbytes: int, more: int) -> None:
    data = json.dumps(header).encode()
    opens_or_refuses(max(0, len(data) + more).to_bytes(8, "little") + data + bytes(nbytes), "model.safetensors")


@RUNS
@given(st.binary(max_size=300), st.sampled_from(["x.bin", "model.safetensors", "x.index.json", "x.json"]))
def test_anything(data: bytes, name: str) -> None:
    opens_or_refuses(data, name)


@RUNS
@given(json_values, json_values)
def test_any_index_or_manifest(first: Any, second: Any) -> None:
    opens_or_refuses(json.dumps({"weight_map": first}).encode(), "x.index.json")
    content = {"format": "llava-remap/manifest", "format_version": 1, "config": second, "tensors": first, "aliases": second}
    opens_or_refuses(json.dumps(content).encode(), "x.json")
