"""Tensors as the files of a checkpoint, in every form in which LLaVA checkpoints are stored."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from llava_remap.core.dtypes import TORCH_DTYPES

if TYPE_CHECKING:
    import torch

#: How many files a sharded checkpoint has.
SHARDS = 3
# The beginning of a file from before torch 1.6.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True,
           "type_sizes": {"short": 2, "int": 4, "long": 4}})  # fmt: skip


class Form(str, Enum):
    """How weights are stored."""

    safetensors = "safetensors"
    sharded_safetensors = "sharded_safetensors"
    bin = "bin"
    sharded = "sharded"
    legacy = "legacy"

    @property
    def suffix(self) -> str:
        return "safetensors" if "safetensors" in self.value else "bin"

    @property
    def is_sharded(self) -> bool:
        return self.value.startswith("sharded")


Stored = Mapping[str, tuple[str, tuple[int, ...], bytes]]
"""Name → dtype, shape and elements, little-endian in row-major order."""


def weight_files(form: Form, stored: Stored, aliases: Sequence[Sequence[str]]) -> dict[str, bytes]:
    """The weight files, and the index of several, by name.

    Args:
        aliases: groups of names that are one tensor: torch files hold it once under all of them,
            safetensors under the first.
    """
    first = {name: group[0] for group in aliases for name in group[1:]}
    if form.suffix == "safetensors":
        stored = {name: entry for name, entry in stored.items() if name not in first}
    stem = "model" if form.suffix == "safetensors" else "pytorch_model"
    if not form.is_sharded:
        return {f"{stem}.{form.suffix}": _file(form, stored, first)}
    shards = _split(stored, first)
    names = [
        f"{stem}-{number:05}-of-{len(shards):05}.{form.suffix}"
        for number in range(1, len(shards) + 1)
    ]
    total = sum(len(data) for name, (_, _, data) in stored.items() if name not in first)
    weight_map = {
        tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    files = {name: _file(form, shard, first) for name, shard in zip(names, shards, strict=True)}
    return {
        **files,
        f"{stem}.{form.suffix}.index.json": (json.dumps(index, indent=2) + "\n").encode(),
    }


def _split(
    stored: Stored, first: Mapping[str, str]
) -> list[dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """In order and of about equal size; names of one tensor lie together."""
    total = 1 + sum(len(data) for _, _, data in stored.values())
    shards: list[dict[str, tuple[str, tuple[int, ...], bytes]]] = [{} for _ in range(SHARDS)]
    place: dict[str, int] = {}
    before = 0
    for name, entry in stored.items():
        number = place.setdefault(first.get(name, name), before * SHARDS // total)
        shards[number][name] = entry
        before += len(entry[2])
    return [shard for shard in shards if shard]


def _file(form: Form, stored: Stored, first: Mapping[str, str]) -> bytes:
    each = {name: _tensor(*entry) for name, entry in stored.items() if name not in first}
    tensors = {name: each[first.get(name, name)] for name in stored}
    if form.suffix == "safetensors":
        from safetensors.torch import save

        return save(tensors, {"format": "pt"})
    return _legacy(tensors) if form is Form.legacy else _zip(tensors)


def _tensor(dtype: str, shape: tuple[int, ...], data: bytes) -> torch.Tensor:
    import torch

    kind = getattr(torch, TORCH_DTYPES[dtype])
    return (
        torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)
        if data
        else torch.empty(shape, dtype=kind)
    )


def _zip(tensors: Mapping[str, torch.Tensor]) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(dict(tensors), file)
    return file.getvalue()


def _legacy(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """As `torch.save` wrote before 1.6: pickles, then each storage behind its number of elements.

    torch can still write it, but names storages by their place in memory, so that no two files are
    equal.
    """
    import torch

    # Each tensor has a storage of its own, or is there under several names; empty ones share one
    # without a place.
    written = {tensor.data_ptr(): tensor for tensor in tensors.values()}
    keys = {place: f"{number:05}" for number, place in enumerate(written)}
    file = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, torch.storage.TypedStorage):
                return None
            storage: Any = value  # its methods have no types
            return (
                "storage",
                getattr(torch, storage.pickle_storage_type()),
                keys[storage.data_ptr()],
                "cpu",
                len(storage),
                None,
            )

    for value in _LEGACY:
        pickle.dump(value, file, protocol=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the storages that it itself pickles here
        Pickler(file, protocol=2).dump(dict(tensors))
    pickle.dump(list(keys.values()), file, protocol=2)
    for tensor in written.values():
        file.write(tensor.numel().to_bytes(8, "little"))
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return file.getvalue()
