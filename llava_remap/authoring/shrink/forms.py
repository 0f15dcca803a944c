"""Made-up tensors, and their files in every form in which LLaVA checkpoints are stored."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from enum import Enum
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, TORCH_DTYPES, from_float64
from llava_remap.core.problem import refuse
from llava_remap.folder.scratch import json_bytes
from llava_remap.post_load.plugins.normals import normals

if TYPE_CHECKING:
    import torch

#: How many files a sharded checkpoint has.
SHARDS = 3
STD = 0.05
#: The default of every class, for configs older than the key.
_ROPE_THETA = 10000.0
# The beginning of a file written before torch 1.6.
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


def made_up(
    tensors: Mapping[str, Tensor], seed: int, config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Seeded tensors with these dtypes and shapes.

    A tensor's values depend only on the seed, its name and its shape, and are equal on every
    machine.

    Raises:
        RemapError: LR409 for a dtype that has no arithmetic (eight-bit floats, complex numbers).
    """
    import torch

    text = config.get("text_config")
    given = {**config, **(text if isinstance(text, Mapping) else {})}.get("rope_theta")
    theta = given if isinstance(given, (int, float)) and given > 0 else _ROPE_THETA
    made = {}
    for name, tensor in tensors.items():
        kind, content = getattr(torch, TORCH_DTYPES[tensor.dtype]), _values(tensor, seed, theta)
        made[name] = (
            torch.frombuffer(bytearray(content), dtype=kind).reshape(tensor.shape)
            if content
            else torch.empty(tensor.shape, dtype=kind)
        )
    return made


def _values(tensor: Tensor, seed: int, rope_theta: float) -> bytes:
    """The elements of a tensor, little-endian in row-major order.

    Floats are normal numbers with a standard deviation of 0.05. Their mean is 1 in one-dimensional
    weights, which belong to norms, and 0 elsewhere. Buffers of frequencies and positions have their
    usual values. Any other tensor of integers is zero.
    """
    count = prod(tensor.shape)
    if tensor.dtype in FLOATS:
        if tensor.name.endswith("inv_freq"):
            return from_float64(rope_theta ** (-np.arange(count) / count), tensor.dtype)
        digest = hashlib.sha256(f"{seed} {tensor.name}".encode()).digest()
        numbers = STD * normals(np.random.Philox(key=int.from_bytes(digest[:16], "little")), count)
        is_norm = len(tensor.shape) == 1 and tensor.name.endswith("weight")
        return from_float64(numbers + is_norm, tensor.dtype)
    if tensor.dtype.startswith(("F", "C")):
        raise refuse(
            "LR409",
            f"no values can be made in dtype {tensor.dtype}.",
            "Give the checkpoint in F16, BF16 or F32.",
            [tensor.name],
        )
    counts = tensor.name.endswith("position_ids") and tensor.shape
    nbytes = DTYPE_BITS[tensor.dtype] // 8
    row = b"".join(i.to_bytes(nbytes, "little") for i in range(tensor.shape[-1] if counts else 0))
    return row * prod(tensor.shape[:-1]) or bytes(count * nbytes)


def weight_files(
    form: Form, tensors: Mapping[str, torch.Tensor], aliases: Sequence[Sequence[str]]
) -> dict[str, bytes]:
    """The weight files by name, with an index if there are several.

    Args:
        aliases: groups of names of one tensor. Torch files store the tensor once under all its
            names, safetensors files store it under the first name.
    """
    first = {name: group[0] for group in aliases for name in group[1:]}
    if form.suffix == "safetensors":
        tensors = {name: tensor for name, tensor in tensors.items() if name not in first}
    stem = "model" if form.suffix == "safetensors" else "pytorch_model"
    if not form.is_sharded:
        return {f"{stem}.{form.suffix}": _file(form, tensors, first)}
    split = _split(tensors, first)
    shards = {
        f"{stem}-{number:05}-of-{len(split):05}.{form.suffix}": shard
        for number, shard in enumerate(split, 1)
    }
    total = sum(tensor.nbytes for name, tensor in tensors.items() if name not in first)
    weight_map = {tensor: name for name, shard in shards.items() for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return {
        **{name: _file(form, shard, first) for name, shard in shards.items()},
        f"{stem}.{form.suffix}.index.json": json_bytes(index),
    }


def _split(
    tensors: Mapping[str, torch.Tensor], first: Mapping[str, str]
) -> list[dict[str, torch.Tensor]]:
    """Shards of about equal size, in order. All names of a tensor are in the same shard."""
    total = 1 + sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(SHARDS)]
    place: dict[str, int] = {}
    before = 0
    for name, tensor in tensors.items():
        number = place.setdefault(first.get(name, name), before * SHARDS // total)
        shards[number][name] = tensor
        before += tensor.nbytes
    return [shard for shard in shards if shard]


def _file(form: Form, tensors: Mapping[str, torch.Tensor], first: Mapping[str, str]) -> bytes:
    tensors = {name: tensors[first.get(name, name)] for name in tensors}
    if form.suffix == "safetensors":
        from safetensors.torch import save

        return save(tensors, {"format": "pt"})
    if form is Form.legacy:
        return _legacy(tensors)
    import torch

    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def _legacy(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A file in the format of `torch.save` before 1.6: pickles, then each storage after its number
    of elements.

    torch can still write this format, but names storages by their address in memory, so no two of
    its files are equal.
    """
    import torch

    # Every tensor has its own storage, and several names can share one tensor. All empty tensors
    # share one storage without an address.
    written = {tensor.data_ptr(): tensor for tensor in tensors.values()}
    keys = {place: f"{number:05}" for number, place in enumerate(written)}
    file = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, torch.storage.TypedStorage):
                return None
            storage: Any = value  # its methods have no types
            kind = getattr(torch, storage.pickle_storage_type())
            return "storage", kind, keys[storage.data_ptr()], "cpu", len(storage), None

    for value in _LEGACY:
        pickle.dump(value, file, protocol=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the storages that it itself pickles here
        Pickler(file, protocol=2).dump(tensors)
    pickle.dump(list(keys.values()), file, protocol=2)
    for tensor in written.values():
        file.write(tensor.numel().to_bytes(8, "little"))
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return file.getvalue()
