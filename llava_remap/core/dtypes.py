"""Numbers of the stored dtypes to float64 and back, by numpy alone. Imported only where values
are computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "<u1",
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
#: The bits of the exponent. All of them are set in inf and NaN, and in no other number.
_EXPONENT = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


def numbers(raw: bytes | memoryview, dtype: str) -> NDArray[Any]:
    """Little-endian elements as numpy has them, in one dimension: those of BF16, which it hasn't,
    as float32.

    Raises:
        ValueError: for a dtype without a number format here (complex, 8-bit floats).
    """
    if dtype not in _NUMPY:
        raise ValueError(f"no arithmetic on dtype {dtype}")
    stored: NDArray[Any] = np.frombuffer(raw, _NUMPY[dtype])
    return (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else stored


def to_float64(raw: bytes | memoryview, dtype: str) -> NDArray[np.float64]:
    """Little-endian elements as float64, exactly (I64 and U64 beyond 2^53 excepted), in one
    dimension.

    Raises:
        ValueError: as `numbers`.
    """
    return numbers(raw, dtype).astype(np.float64)


def is_finite(raw: bytes | memoryview, dtype: str) -> NDArray[np.bool_]:
    """Which elements are neither inf nor NaN, told by their bits.

    Raises:
        ValueError: as `numbers`.
    """
    if dtype not in FLOATS:
        integers: NDArray[np.bool_] = np.isfinite(numbers(raw, dtype))
        return integers
    bits = np.frombuffer(raw, _NUMPY[dtype].replace("f", "u"))
    finite: NDArray[np.bool_] = (bits & _EXPONENT[dtype]) != _EXPONENT[dtype]
    return finite


def cast(raw: bytes | memoryview, stored: str, dtype: str) -> bytes:
    """Little-endian elements in another float dtype, each rounded once, to nearest and ties to
    even.

    Raises:
        ValueError: for a dtype that is not a float.
    """
    if not {stored, dtype} <= set(FLOATS):
        raise ValueError(f"can't cast dtype {stored} to {dtype}")
    if stored == "F64":
        return from_float64(numbers(raw, stored), dtype)
    values = numbers(raw, stored)
    if dtype == "BF16":  # a float32 holds every value of the other dtypes
        return _upper_half(values.astype(np.float32).view(np.uint32))
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(_NUMPY[dtype]).tobytes()


def _upper_half(bits: NDArray[np.uint32]) -> bytes:
    """float32 bits rounded to BF16, which is their upper half."""
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()


def from_float64(values: NDArray[np.float64], dtype: str) -> bytes:
    """Values rounded once, to nearest and ties to even, as little-endian elements in row-major
    order.

    Raises:
        ValueError: for a dtype that is not a float.
    """
    if dtype not in FLOATS:
        raise ValueError(f"can't round to dtype {dtype}")
    with np.errstate(over="ignore"):  # what is too large becomes inf, as rounding to nearest has it
        if dtype != "BF16":
            return values.astype(_NUMPY[dtype]).tobytes()
        single = values.astype(np.float32)
    # Rounding twice (to float32, then to its upper half) errs where the first step lands on a tie
    # of the second: there the float32 is moved one step back to the side on which the value really
    # lies.
    bits = single.view(np.uint32)
    tie = (bits & 0xFFFF) == 0x8000
    grew, shrank = np.abs(single) > np.abs(values), np.abs(single) < np.abs(values)
    return _upper_half(np.where(tie & grew, bits - 1, np.where(tie & shrank, bits + 1, bits)))
