"""From the value in a torch file to its tensors: the state dict inside wrappers, and each tensor
inside its storage.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.bounds import is_count, is_shape, unknown_dtype
from llava_remap.checkpoint.catalog import Location, Tensor
from llava_remap.checkpoint.torch_pickle import BARE, BY_TORCH_NAME, STORAGES, Described
from llava_remap.core.dtypes import DTYPE_BITS
from llava_remap.core.problem import RemapError, refuse
from llava_remap.core.wording import quoted, several

#: Keys under which training code puts a state dict into a larger one.
_WRAPPERS = ("state_dict", "model", "module")


@dataclass(frozen=True, slots=True)
class StateDict:
    """Described tensors by name.

    Attributes:
        inside: the wrappers' keys, from the outside.
        passed_over: keys beside the wrappers that hold tensors too.
    """

    tensors: dict[str, Described]
    inside: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


def find_state_dict(value: Any, file: Path) -> StateDict:
    """The state dict in `value`, which is one or has one under `state_dict`, `model` or `module`,
    these nested also.

    Raises:
        RemapError: LR106 where there is none, more than one, or one that holds more than tensors.
    """
    inside: list[str] = []
    passed_over: list[str] = []
    seen: set[int] = set()
    while True:
        if not isinstance(value, dict):
            raise refuse(
                "LR106", f"{quoted(file.name)} holds one {_kind(value)} and no state dict.", BARE
            )
        # A dict that holds itself has no end.
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
    others = [
        str(key)
        for key, item in value.items()
        if not isinstance(key, str) or not isinstance(item, Described)
    ]
    if others:
        count = f"{len(others)} of {len(value)} entries in {quoted(file.name)}"
        raise refuse(
            "LR106",
            f"{count} are no tensors with a name ({several(others)}): a trainer's or a "
            "quantised file.",
            BARE,
            others,
        )
    return StateDict(value, tuple(inside), tuple(passed_over))


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, Described) else type(value).__name__


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


def place(
    name: str, found: Described, file: Path, storage: tuple[int, int], *, big_endian: bool = False
) -> Tensor:
    """The tensor `found`, whose storage lies at `storage` (offset from the start of the file, size;
    both in bytes).

    Raises:
        RemapError: LR102 where tensor and storage don't fit, LR106 for a dtype not in `DTYPE_BITS`.
    """

    def corrupt(why: str) -> RemapError:
        return refuse(
            "LR102",
            f"in {quoted(file.name)} the tensor {quoted(name)} {why}.",
            "Download or copy the file again.",
            [name],
        )

    itemsize, dtype = STORAGES[found.storage.kind]
    # A view is a part of its storage, in elements; without one all of it is meant.
    first, numel = found.storage.view or (0, found.storage.numel)
    if not is_count(first) or not is_count(numel):
        raise corrupt("has a storage of a size that can't be")
    if (first + numel) * itemsize > storage[1]:
        raise corrupt(
            f"has a storage of {(first + numel) * itemsize} bytes by the pickle, of {storage[1]} "
            "in the file"
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
        raise corrupt("has no shape and stride of one length")
    if not is_shape(shape) or not all(map(is_count, stride)) or not is_count(offset):
        raise corrupt("has a shape, stride or offset that can't be")
    reach = (
        0
        if 0 in shape
        else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    )
    if (offset + reach) * itemsize > nbytes:
        raise corrupt(
            f"reaches to byte {(offset + reach) * itemsize} of its storage, which has {nbytes}"
        )
    rows = None if is_row_major(shape, stride) else stride
    return Tensor.of(
        name, dtype, shape, Location(file, start + offset * itemsize, rows, big_endian, storage)
    )


def is_row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie one behind the other. An empty tensor has none; a dimension of
    size 1 never takes its step.
    """
    if 0 in shape:
        return True
    return all(
        size == 1 or step == prod(shape[axis + 1 :])
        for axis, (size, step) in enumerate(zip(shape, stride, strict=True))
    )
