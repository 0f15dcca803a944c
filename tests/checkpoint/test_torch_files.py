"""Files that torch writes in less usual ways: views, shared storages, wrappers, byte orders,
both formats.
"""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_remap.checkpoint import Checkpoint, open_checkpoint
from llava_remap.core.problem import RemapError

from .stored import DTYPES, SPELLING, same

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(folder: Path, value: Any, zipped: bool = True, **options: Any) -> Path:
    file = folder / "saved.bin"
    torch.save(value, file, _use_new_zipfile_serialization=zipped, **options)
    return file


def agrees(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> bool:
    assert checkpoint.catalog.keys() == expected.keys()
    return all(same(checkpoint.catalog[name], value) for name, value in expected.items())


def stride_of(checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    location = checkpoint.catalog[name].location
    assert location is not None
    return location.stride


@FORMATS
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype(tmp_path: Path, dtype: str, zipped: bool) -> None:
    values = (
        torch.arange(24, dtype=torch.float32).to(DTYPES[dtype])
        if dtype[0] != "U"
        else torch.ones(24, dtype=DTYPES[dtype])
    )
    expected = {"other": torch.zeros(3), "w": values.view(2, 3, 4)}
    checkpoint = open_checkpoint(saved(tmp_path, expected, zipped))
    assert checkpoint.catalog["w"].dtype == dtype == SPELLING[DTYPES[dtype]]
    assert agrees(checkpoint, expected)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path: Path, zipped: bool, protocol: int) -> None:
    expected = {"a": torch.randn(2, 3), "b": torch.randn(4).half()}
    assert agrees(
        open_checkpoint(saved(tmp_path, expected, zipped, pickle_protocol=protocol)), expected
    )


@FORMATS
def test_strides_and_offsets(tmp_path: Path, zipped: bool) -> None:
    base = torch.randn(6, 8)
    expected = {
        "transposed": base.t(),
        "rows": base[2:4],
        "columns": base[:, 3:5],
        "every_other": base[::2, 1::3],
        "repeated": torch.randn(1, 3).expand(5, 3),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    checkpoint = open_checkpoint(saved(tmp_path, expected, zipped))
    assert agrees(checkpoint, expected)
    assert stride_of(checkpoint, "transposed") == (1, 8)
    assert stride_of(checkpoint, "rows") is None
    assert stride_of(checkpoint, "columns") == (8, 1)
    assert stride_of(checkpoint, "every_other") == (16, 3)
    assert stride_of(checkpoint, "repeated") == (0, 1)
    locations = [
        checkpoint.catalog[name].location
        for name in ("transposed", "rows", "columns", "every_other")
    ]
    assert len({location.storage for location in locations if location}) == 1
    assert checkpoint.catalog["rows"].nbytes == 64
    assert checkpoint.aliases == ()


@FORMATS
def test_strides_that_say_nothing_are_none(tmp_path: Path, zipped: bool) -> None:
    expected = {
        "scalar": torch.tensor(3.5),
        "row": torch.randn(4, 7)[:1],
        "column": torch.randn(3, 1).t(),
        "ones": torch.as_strided(torch.randn(9), (1, 1, 3), (5, 7, 1)),
        "empty": torch.empty(0),
        "empty_matrix": torch.empty(4, 0).t(),
        "stub": torch.empty(0, dtype=torch.bfloat16),
    }
    checkpoint = open_checkpoint(saved(tmp_path, expected, zipped))
    assert agrees(checkpoint, expected)
    assert [stride_of(checkpoint, name) for name in expected] == [None] * len(expected)
    assert checkpoint.catalog["scalar"].shape == ()
    assert checkpoint.catalog["stub"].shape == (0,)
    assert checkpoint.aliases == ()


@FORMATS
def test_shared_storage(tmp_path: Path, zipped: bool) -> None:
    embedding = torch.randn(5, 4)
    expected = {
        "embed.weight": embedding,
        "other": torch.randn(2),
        "head.weight": embedding,
        "part": embedding[1:],
    }
    checkpoint = open_checkpoint(saved(tmp_path, expected, zipped))
    assert agrees(checkpoint, expected)
    assert checkpoint.aliases == (("embed.weight", "head.weight"),)
    places = {
        name: tensor.location.storage
        for name, tensor in checkpoint.catalog.items()
        if tensor.location
    }
    assert places["embed.weight"] == places["head.weight"] == places["part"] != places["other"]


@FORMATS
def test_parameters_and_module_state_dicts(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = module.state_dict()  # an OrderedDict with `_metadata` as an attribute
    assert agrees(open_checkpoint(saved(tmp_path, state, zipped)), dict(state))
    parameters = dict(module.named_parameters())
    assert agrees(
        open_checkpoint(saved(tmp_path, parameters, zipped)),
        {k: v.detach() for k, v in parameters.items()},
    )
    marked = torch.nn.Parameter(torch.ones(2))
    marked.partition_dim = 0  # type: ignore[attr-defined]
    assert agrees(open_checkpoint(saved(tmp_path, {"w": marked}, zipped)), {"w": marked.detach()})


@FORMATS
@pytest.mark.parametrize(
    "keys",
    [["state_dict"], ["model"], ["module"], ["model", "module"], ["state_dict", "model", "module"]],
)
def test_wrappers(tmp_path: Path, zipped: bool, keys: list[str]) -> None:
    expected = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    value: Any = expected
    for key in reversed(keys):
        value = {"epoch": 3, key: value, "lr": 0.1}
    checkpoint = open_checkpoint(saved(tmp_path, value, zipped))
    assert agrees(checkpoint, expected)
    assert checkpoint.form.endswith(f"(saved.bin), inside `{' / '.join(keys)}`")
    assert checkpoint.passed_over == ()


def test_tensors_beside_a_wrapper_are_named(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    value = {
        "model": {"a": torch.ones(2)},
        "optimizer": optimizer,
        "args": {"lr": 1},
        "ema": {"a": torch.ones(2)},
        "epoch": 1,
    }
    checkpoint = open_checkpoint(saved(tmp_path, value))
    assert agrees(checkpoint, {"a": torch.ones(2)})
    assert checkpoint.passed_over == ("saved.bin: optimizer", "saved.bin: ema")


def test_the_name_of_a_file_says_nothing_about_its_format(tmp_path: Path) -> None:
    expected = {"w": torch.randn(3)}
    for suffix in (".pt", ".pth", ".ckpt", ".safetensors", ""):
        file = saved(tmp_path, expected).rename(tmp_path / f"last{suffix}")
        assert agrees(open_checkpoint(file), expected)
        assert agrees(open_checkpoint(tmp_path), expected) if suffix else True
        file.unlink()


def rewritten(
    file: Path, target: Path, *, replace: dict[str, bytes] | None = None, zip64: bool = False
) -> Path:
    """The records of a zip as another program would write them."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for record in old.infolist():
            data = (replace or {}).get(record.filename.split("/", 1)[1], old.read(record))
            with new.open(zipfile.ZipInfo(record.filename), "w", force_zip64=zip64) as stream:
                stream.write(data)
    return target


def test_big_endian(tmp_path: Path) -> None:
    expected = {
        "f": torch.randn(3, 4),
        "h": torch.randn(5).to(torch.bfloat16),
        "i": torch.arange(6),
        "b": torch.tensor([True, False]),
    }
    file = saved(tmp_path, expected)
    with zipfile.ZipFile(file) as archive:
        swapped = {}
        for key, value in zip("0123", expected.values(), strict=True):
            data = archive.read(f"saved/data/{key}")
            size = value.element_size()
            swapped[f"data/{key}"] = b"".join(
                data[i : i + size][::-1] for i in range(0, len(data), size)
            )
    big = rewritten(file, tmp_path / "big.bin", replace={**swapped, "byteorder": b"big"})
    loaded = torch.load(big, weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    checkpoint = open_checkpoint(big)
    assert all(
        tensor.location and tensor.location.big_endian for tensor in checkpoint.catalog.values()
    )
    assert agrees(checkpoint, expected)


def test_a_file_without_byte_order_is_little_endian(tmp_path: Path) -> None:
    expected = {"w": torch.randn(3)}
    old, new = saved(tmp_path, expected), tmp_path / "new.bin"
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as target:
        for record in source.infolist():
            if not record.filename.endswith("byteorder"):
                target.writestr(record.filename, source.read(record))
    assert agrees(open_checkpoint(new), expected)


def test_zip64_headers(tmp_path: Path) -> None:
    expected = {"a": torch.randn(3, 4), "b": torch.randn(7)[2:]}
    file = rewritten(saved(tmp_path, expected), tmp_path / "large.bin", zip64=True)
    assert agrees(open_checkpoint(file), expected)


def test_a_file_of_more_than_4_gb_in_little_memory(tmp_path: Path) -> None:
    expected = {"a": torch.randn(3, 4), "b": torch.randn(7)}
    old, new = saved(tmp_path, expected), tmp_path / "large.bin"
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as target:
        for record in source.infolist():
            if record.filename.endswith("data/1"):
                target.start_dir = (
                    5 << 30
                )  # where zipfile writes next: leaves a hole that takes no disk
            target.writestr(record.filename, source.read(record))
    tracemalloc.start()
    checkpoint = open_checkpoint(new)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    location = checkpoint.catalog["b"].location
    assert location is not None
    assert location.offset > 5 << 30
    assert peak < 4_000_000
    assert agrees(checkpoint, expected)


def test_a_storage_may_be_longer_than_its_tensors_but_not_shorter(tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": torch.arange(4, dtype=torch.float32)})
    with zipfile.ZipFile(file) as archive:
        data = archive.read("saved/data/0")
    longer = rewritten(file, tmp_path / "longer.bin", replace={"data/0": data + b"\0" * 4})
    assert agrees(open_checkpoint(longer), {"w": torch.arange(4, dtype=torch.float32)})
    shorter = rewritten(file, tmp_path / "shorter.bin", replace={"data/0": data[:-4]})
    with pytest.raises(
        RemapError, match="a storage of 16 bytes by the pickle, but the file has 12 bytes"
    ):
        open_checkpoint(shorter)


@FORMATS
def test_every_cut_of_a_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    file = saved(tmp_path, {"a": torch.randn(3, 4), "b": torch.randn(7)}, zipped)
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(RemapError) as caught:
            open_checkpoint(file)
        assert caught.value.problems[0].code == "LR102"
