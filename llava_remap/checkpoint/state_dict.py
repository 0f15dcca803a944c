"""Finds the tensors in the value of a torch file: the state dict inside wrappers, and each tensor
inside its storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.catalog import Location, Tensor, WeightFile, is_count, is_shape
from llava_remap.checkpoint.source_file import corrupt, unknown_dtype
from llava_remap.checkpoint.torch_pickle import BARE, BY_TORCH_NAME, STORAGES, Described
from llava_remap.core import DTYPE_BITS, RemapError, quoted, refuse, several

#: Keys of a larger dict under which training code stores the state dict.
_WRAPPERS = ("state_dict", "model", "module")


@dataclass(frozen=True, slots=True)
class StateDict:
    """Described tensors by name.

    Attributes:
        inside: the keys of the wrappers around them, from the outside.
        passed_over: keys beside the wrappers that hold tensors too.
    """

    tensors: dict[str, Described]
    inside: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


def find_state_dict(value: Any, file: Path) -> StateDict:
    """The state dict in `value`: `value` itself, or the dict under `state_dict`, `model` or
    `module`, which may be nested. A dict of state dicts, one for each module, is taken as the state
    dict of the module around them: their names stand before those of their tensors.

    Raises:
        RemapError: LR106 if there is none, more than one, or one that holds more than tensors.
    """
    inside: list[str] = []
    passed_over: list[str] = []
    seen: set[int] = set()
    while True:
        if not isinstance(value, dict):
            kind = "tensor" if isinstance(value, Described) else type(value).__name__
            raise refuse(
                "LR106",
                f"{quoted(file.name)} holds a value of type {kind}, not a state dict.",
                BARE,
            )
        # A dict that holds itself would be followed for ever.
        wrappers = [
            key
            for key in _WRAPPERS
            if isinstance(value.get(key), dict) and value[key] and id(value[key]) not in seen
        ]
        if len(wrappers) > 1:
            raise refuse(
                "LR106",
                f"{quoted(file.name)} holds more than one state dict: {several(wrappers)}.",
                BARE,
            )
        if not wrappers:
            break
        inside += wrappers
        passed_over += [
            str(key) for key, other in value.items() if key != wrappers[0] and _holds_tensor(other)
        ]
        value = value[wrappers[0]]
        seen.add(id(value))
    if "param_groups" in value:
        raise refuse(
            "LR106",
            f"{quoted(file.name)} is the state of an optimizer (it has `param_groups`).",
            "Give the weights.",
        )
    if _is_of_modules(value):
        value = {
            f"{module}.{name}": tensor
            for module, part in value.items()
            for name, tensor in part.items()
        }
    if others := [
        str(key)
        for key, item in value.items()
        if not isinstance(key, str) or not isinstance(item, Described)
    ]:
        raise refuse(
            "LR106",
            f"{len(others)} of {len(value)} entries in {quoted(file.name)} aren't tensors with a "
            f"name ({several(others)}): this is a trainer's or a quantised file.",
            BARE,
            others,
        )
    return StateDict(value, tuple(inside), tuple(passed_over))


def _is_of_modules(value: Mapping[Any, Any]) -> bool:
    """Whether a dict holds nothing but state dicts under the names of modules, and no name can come
    from two of them.
    """
    parts = list(value.values())
    return (
        any(parts)
        and all(isinstance(part, dict) for part in parts)
        and all(isinstance(key, str) and "." not in key for key in value)
        and all(
            isinstance(name, str) and isinstance(item, Described)
            for part in parts
            for name, item in part.items()
        )
    )


def _holds_tensor(value: Any) -> bool:
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Described):
            return True
        if isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending += item.values() if isinstance(item, dict) else item
    return False


def place_tensors(
    kind: str,
    file: Path,
    state: StateDict,
    places: Mapping[str, tuple[int, int]],
    *,
    big_endian: bool = False,
) -> WeightFile:
    """A file with the tensors of a state dict.

    Args:
        kind: the file's format, for the report.
        places: a storage's key → its offset from the start of the file and its size, in bytes.

    Raises:
        RemapError: LR102 if a storage is missing or doesn't fit a tensor, LR106 for a dtype not in
            `DTYPE_BITS`.
    """
    tensors = []
    for name, described in state.tensors.items():
        key = described.storage.key
        if key not in places:
            raise corrupt(file, f"the storage {quoted(key)} of {quoted(name)} is missing", name)
        tensors.append(_place(name, described, file, places[key], big_endian))
    tensors.sort(key=lambda tensor: tensor.pieces[0].location.offset)
    passed_over = tuple(f"{file.name}: {key}" for key in state.passed_over)
    return WeightFile(kind, tensors, state.inside, passed_over)


def _place(
    name: str, found: Described, file: Path, storage: tuple[int, int], big_endian: bool
) -> Tensor:
    def misfit(why: str) -> RemapError:
        return refuse(
            "LR102",
            f"in {quoted(file.name)} the tensor {quoted(name)} {why}.",
            "Download or copy the file again.",
            [name],
        )

    itemsize, dtype = STORAGES[found.storage.kind]
    # A view is a part of its storage, in elements. Without a view, the tensor has all of it.
    first, numel = found.storage.view or (0, found.storage.numel)
    if not is_count(first) or not is_count(numel):
        raise misfit("has a storage of an impossible size")
    if (first + numel) * itemsize > storage[1]:
        raise misfit(
            f"has a storage of {(first + numel) * itemsize} bytes by the pickle, but the file has "
            f"{storage[1]} bytes for it"
        )
    start, nbytes = storage[0] + first * itemsize, numel * itemsize
    if found.dtype is not None:
        dtype = BY_TORCH_NAME[found.dtype]
    if dtype not in DTYPE_BITS:
        raise unknown_dtype(file, name, dtype)
    if found.altered:
        raise refuse(
            "LR106",
            f"in {quoted(file.name)} the tensor {quoted(name)} is stored negated or conjugated.",
            "Save it again after `.resolve_conj().resolve_neg()`.",
            [name],
        )
    itemsize = DTYPE_BITS[dtype] // 8
    offset, shape, stride = found.offset, found.shape, found.stride
    if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride):
        raise misfit("has a shape and a stride of different lengths")
    if not is_shape(shape) or not all(map(is_count, stride)) or not is_count(offset):
        raise misfit("has an impossible shape, stride or offset")
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    reach = 0 if 0 in shape else 1 + last
    if (offset + reach) * itemsize > nbytes:
        raise misfit(
            f"extends to byte {(offset + reach) * itemsize} of its storage, which has {nbytes} "
            "bytes"
        )
    # The strides of an empty tensor, and of a dimension of size 1, don't matter.
    is_row_major = 0 in shape or all(
        size == 1 or step == prod(shape[axis + 1 :])
        for axis, (size, step) in enumerate(zip(shape, stride, strict=True))
    )
    begin, gaps = start + offset * itemsize, None if is_row_major else stride
    return Tensor.of(name, dtype, shape, Location(file, begin, gaps, big_endian, storage))
