"""Legacy files put together by hand: what today's torch no longer writes, and what no torch
would.
"""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.problem import RemapError

from .stored import same

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SIX = torch.arange(6, dtype=torch.float32)


class Id:
    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class Rebuilt:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, {})


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Id) else None


def written(
    folder: Path, value: Any, keys: Any, storages: list[tuple[int, bytes]], **sys_info: Any
) -> Path:
    stream = io.BytesIO()
    for header in (MAGIC, PROTOCOL, {"little_endian": True, **sys_info}):
        pickle.dump(header, stream, 2)
    Pickler(stream, 2).dump(value)
    pickle.dump(keys, stream, 2)
    for count, data in storages:
        stream.write(struct.pack("<q", count) + data)
    file = folder / "old.bin"
    file.write_bytes(stream.getvalue())
    return file


def six(view: Any = None, numel: Any = 6, kind: Any = torch.FloatStorage, key: str = "k") -> Id:
    return Id("storage", kind, key, "cpu", numel, view)


BYTES = bytes(SIX.view(torch.uint8).tolist())


def test_views_of_a_storage(tmp_path: Path) -> None:
    value = {"all": Rebuilt(six(), 0, (6,), (1,)), "part": Rebuilt(six(("v", 2, 3)), 1, (2,), (1,))}
    file = written(tmp_path, value, ["k"], [(6, BYTES)])
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["part"], SIX[3:5])
    catalog = open_checkpoint(file).catalog
    assert all(same(catalog[name], loaded[name]) for name in loaded)
    places = [tensor.location.storage for tensor in catalog.values() if tensor.location]
    assert len(set(places)) == 1


def test_elements_are_little_endian_whatever_the_machine_was(tmp_path: Path) -> None:
    file = written(
        tmp_path, {"w": Rebuilt(six(), 0, (6,), (1,))}, ["k"], [(6, BYTES)], little_endian=False
    )
    loaded = torch.load(file, weights_only=True)["w"]
    assert torch.equal(loaded, SIX)
    assert same(open_checkpoint(file).catalog["w"], SIX)


def test_the_count_is_in_elements_of_the_first_mention(tmp_path: Path) -> None:
    first = torch.HalfStorage
    value = {
        "h": Rebuilt(six(numel=12, kind=first), 0, (12,), (1,)),
        "f": Rebuilt(six(), 0, (6,), (1,)),
    }
    catalog = open_checkpoint(written(tmp_path, value, ["k"], [(12, BYTES)])).catalog
    assert same(catalog["f"], SIX)
    assert same(catalog["h"], SIX.view(torch.float16))


@pytest.mark.parametrize(
    ("value", "keys", "storages", "says"),
    [
        (Rebuilt(six(), 0, (6,), (1,)), [], [], "storage `k` of `w` is missing"),
        (
            Rebuilt(six(), 0, (6,), (1,)),
            ["k", "other"],
            [(6, BYTES)],
            "names a storage that no tensor uses",
        ),
        (
            Rebuilt(six(), 0, (6,), (1,)),
            {"k": 1},
            [(6, BYTES)],
            "names a storage that no tensor uses",
        ),
        (Rebuilt(six(), 0, (6,), (1,)), ["k", "k"], [(6, BYTES), (6, BYTES)], "occurs twice"),
        (
            Rebuilt(six(), 0, (6,), (1,)),
            ["k"],
            [(5, BYTES)],
            "has 5 elements, but the pickle gives another number",
        ),
        (Rebuilt(six(), 0, (6,), (1,)), ["k"], [(6, BYTES[:-1])], "the storage `k` ends at byte"),
        (Rebuilt(six(), 0, (6,), (1,)), ["k"], [(2**62, BYTES)], "the storage `k` ends at byte"),
        (
            Rebuilt(six(numel=2**60), 0, (6,), (1,)),
            ["k"],
            [(2**60, BYTES)],
            "the storage `k` ends at byte",
        ),
        (
            Rebuilt(six(("v", 4, 3)), 0, (3,), (1,)),
            ["k"],
            [(6, BYTES)],
            "a storage of 28 bytes by the pickle, but the file has 24 bytes",
        ),
        (
            Rebuilt(six(("v", 2, 3)), 0, (4,), (1,)),
            ["k"],
            [(6, BYTES)],
            "extends to byte 16 of its storage, which has 12",
        ),
        (Rebuilt(six(("v", -1, 3)), 0, (3,), (1,)), ["k"], [(6, BYTES)], "an impossible size"),
        (Rebuilt(six(("v", 1)), 0, (3,), (1,)), ["k"], [(6, BYTES)], "is broken"),
        (Rebuilt(Id("module", 1, 2, 3), 0, (3,), (1,)), ["k"], [(6, BYTES)], "is broken"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, value: Any, keys: Any, storages: list[tuple[int, bytes]], says: str
) -> None:
    with pytest.raises(RemapError) as caught:
        open_checkpoint(written(tmp_path, {"w": value}, keys, storages))
    (problem,) = caught.value.problems
    assert problem.code == "LR102"
    assert says in problem.cause


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    count = 2 << 30
    file = written(
        tmp_path, {"w": Rebuilt(six(numel=count), 0, (count,), (1,))}, ["k"], [(count, b"")]
    )
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + 4 * count)
    tracemalloc.start()
    assert open_checkpoint(file).nbytes == 4 * count
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
