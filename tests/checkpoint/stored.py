"""Where the test data lie, and the reference way from a catalog to values: the bytes at the
location, shown by torch.
"""

from __future__ import annotations

from pathlib import Path

import torch

from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import DTYPE_BITS

DATA = Path(__file__).parent.parent / "data"
TINY = DATA / "tiny"

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
SPELLING = {dtype: name for name, dtype in DTYPES.items()}


def stored(tensor: Tensor) -> torch.Tensor:
    """The values that stand at a tensor's location, taken from its storage alone."""
    at = tensor.location
    assert at is not None
    start, nbytes = at.storage
    with at.file.open("rb") as stream:
        stream.seek(at.offset)
        data = stream.read(start + nbytes - at.offset)
    itemsize = DTYPE_BITS[tensor.dtype] // 8
    data = data[: len(data) // itemsize * itemsize]
    if not data:
        return torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if at.big_endian:
        flat = flat.view(-1, itemsize).flip(1).reshape(-1)
    elements = flat.view(DTYPES[tensor.dtype])
    if at.stride is None:
        return elements[: tensor.nbytes // itemsize].view(tensor.shape)
    return torch.as_strided(elements, tensor.shape, at.stride)


def raw(tensor: torch.Tensor) -> bytes:
    """Its elements in row-major order, so that NaN equals NaN."""
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def same(tensor: Tensor, expected: torch.Tensor) -> bool:
    found = stored(tensor)
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and raw(found) == raw(expected)
    )
