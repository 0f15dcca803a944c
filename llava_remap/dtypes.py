"""Numbers of the stored dtypes to float64 and back, by numpy alone. Imported only where values are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "<u1",
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


def to_float64(raw: bytes | memoryview, dtype: str) -> NDArray[np.float64]:
    """Little-endian elements as float64, exactly (I64 and U64 beyond 2^53 excepted), in one dimension.

    Raises:
        ValueError: for a dtype without a number format here (complex, 8-bit floats).
    """
    if dtype not in _NUMPY:
        raise ValueError(f"no arithmetic on dtype {dtype}")
    stored: NDArray[Any] = np.frombuffer(raw, _NUMPY[dtype])
    if dtype == "BF16":  # the upper half of a float32
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def from_float64(values: NDArray[np.float64], dtype: str) -> bytes:
    """Values rounded once, to nearest and ties to even, as little-endian elements in row-major order.

    Raises:
        ValueError: for a dtype that is not a float.
    """
    if dtype not in FLOATS:
        raise ValueError(f"can't round to dtype {dtype}")
    with np.errstate(over="ignore"):  # what is too large becomes inf, as rounding to nearest has it
        if dtype != "BF16":
            return values.astype(_NUMPY[dtype]).tobytes()
        single = values.astype(np.float32)
    # Rounding twice (to float32, then to its upper half) errs where the first step lands on a tie of the second:
    # there the float32 is moved one step back to the side on which the value really lies.
    bits = single.view(np.uint32)
    tie = (bits & 0xFFFF) == 0x8000
    grew, shrank = np.abs(single) > np.abs(values), np.abs(single) < np.abs(values)
    bits = np.where(tie & grew, bits - 1, np.where(tie & shrank, bits + 1, bits))
    rounded = np.where(np.isnan(single), (bits >> 16) | 0x40, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return rounded.astype("<u2").tobytes()
