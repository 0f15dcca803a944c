"""Reads a safetensors file: 8 bytes with the length of the header, the header in JSON, then the
tensors one behind the other.

Format: https://huggingface.co/docs/safetensors#format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_remap.checkpoint.catalog import Location, Tensor, is_count, is_shape
from llava_remap.checkpoint.source_file import LARGEST, parse_object, unknown_dtype
from llava_remap.core import DTYPE_BITS, RemapError, quoted, refuse

_AGAIN = "Download or copy the file again."


def read_safetensors(file: Path) -> list[Tensor]:
    """The tensors of `file`, by offset. Only its header is read.

    Raises:
        RemapError: LR102 if the header is broken or disagrees with the file, LR106 for a dtype not
            in `DTYPE_BITS`.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise _corrupt(
                f"{quoted(file.name)} needs {8 + length} bytes for its header alone, but the file "
                f"has {size}."
            )
        if length > LARGEST:
            raise _corrupt(
                f"the header of {quoted(file.name)} has {length} bytes, but the format allows "
                f"{LARGEST}."
            )
        header = parse_object(
            stream.read(length), "LR102", f"the header of {quoted(file.name)}", _AGAIN
        )
    header.pop("__metadata__", None)
    end = 8 + length
    tensors = [_tensor(file, end, *item) for item in header.items()]
    tensors.sort(key=lambda tensor: tensor.pieces[0].location.storage)
    for tensor in tensors:
        offset, nbytes = tensor.pieces[0].location.storage
        place = f"in {quoted(file.name)} the tensor {quoted(tensor.name)}"
        if offset != end:
            raise _corrupt(
                f"{place} starts at byte {offset}, but the tensor before it ends at {end}.",
                tensor.name,
            )
        if nbytes != tensor.nbytes:
            raise _corrupt(
                f"{place} has {nbytes} bytes, but needs {tensor.nbytes} by its shape and dtype.",
                tensor.name,
            )
        end += nbytes
    if end != size:
        raise _corrupt(
            f"{quoted(file.name)} has {end} bytes by its header, but the file has {size}."
        )
    return tensors


def _tensor(file: Path, start: int, name: str, entry: Any) -> Tensor:
    """The tensor of one entry of the header, whose offsets count from `start`."""
    try:
        dtype, shape, (first, behind) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        dtype = None
    if (
        not isinstance(dtype, str)
        or not is_shape(shape)
        or not is_count(first)
        or not is_count(behind)
        or behind < first
    ):
        raise _corrupt(
            f"in the header of {quoted(file.name)} the entry of {quoted(name)} doesn't describe a "
            "tensor.",
            name,
        )
    if dtype not in DTYPE_BITS:
        raise unknown_dtype(file, name, dtype)
    location = Location(file, start + first, None, False, (start + first, behind - first))
    return Tensor.of(name, dtype, shape, location)


def _corrupt(cause: str, *names: str) -> RemapError:
    return refuse("LR102", cause, _AGAIN, names)
