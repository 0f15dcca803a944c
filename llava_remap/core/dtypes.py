"""The dtypes of stored tensors: one table, and conversions of their numbers to float64 and back.

Dtypes have the names that safetensors gives them. numpy is imported only where values are computed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Dtype(NamedTuple):
    """The facts of one dtype.

    Attributes:
        bits: bits of one element.
        torch: its name in torch.
        storage: its typed storage in a file of `torch.save`; empty if there is none.
        numpy: the numpy dtype for reading its bits; empty if numpy can't compute with it.
        exponent: for floats, the mask of the exponent's bits. They are all set in inf and NaN, and
            in no other number.
    """

    bits: int
    torch: str
    storage: str = ""
    numpy: str = ""
    exponent: int = 0


DTYPES: Mapping[str, Dtype] = {
    "F64": Dtype(64, "float64", "DoubleStorage", "<f8", 0x7FF0000000000000),
    "F32": Dtype(32, "float32", "FloatStorage", "<f4", 0x7F800000),
    "F16": Dtype(16, "float16", "HalfStorage", "<f2", 0x7C00),
    "BF16": Dtype(16, "bfloat16", "BFloat16Storage", "<u2", 0x7F80),
    "I64": Dtype(64, "int64", "LongStorage", "<i8"),
    "I32": Dtype(32, "int32", "IntStorage", "<i4"),
    "I16": Dtype(16, "int16", "ShortStorage", "<i2"),
    "I8": Dtype(8, "int8", "CharStorage", "<i1"),
    "U64": Dtype(64, "uint64", "", "<u8"),
    "U32": Dtype(32, "uint32", "", "<u4"),
    "U16": Dtype(16, "uint16", "", "<u2"),
    "U8": Dtype(8, "uint8", "ByteStorage", "<u1"),
    "BOOL": Dtype(8, "bool", "BoolStorage", "<u1"),
    "F8_E4M3": Dtype(8, "float8_e4m3fn"),
    "F8_E5M2": Dtype(8, "float8_e5m2"),
    "C64": Dtype(64, "complex64", "ComplexFloatStorage"),
}
DTYPE_BITS = {name: dtype.bits for name, dtype in DTYPES.items()}
TORCH_DTYPES = {name: dtype.torch for name, dtype in DTYPES.items()}
#: The floats that allow computations. A model's parameters have one of these dtypes.
FLOATS = tuple(name for name, dtype in DTYPES.items() if dtype.exponent)
#: For each float dtype, the dtypes that hold all its numbers exactly.
HELD_BY = {
    "F64": ("F64",),
    "F32": ("F32", "F64"),
    "F16": ("F16", "F32", "F64"),
    "BF16": ("BF16", "F32", "F64"),
}


def numbers(raw: bytes | memoryview, dtype: str) -> NDArray[Any]:
    """Little-endian elements as a one-dimensional numpy array. BF16 becomes float32, since numpy
    doesn't have it.

    Raises:
        ValueError: for a dtype without a number format here (complex, 8-bit floats).
    """
    import numpy as np

    if dtype not in DTYPES or not DTYPES[dtype].numpy:
        raise ValueError(f"no arithmetic on dtype {dtype}")
    stored: NDArray[Any] = np.frombuffer(raw, DTYPES[dtype].numpy)
    return (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else stored


def to_float64(raw: bytes | memoryview, dtype: str) -> NDArray[np.float64]:
    """Little-endian elements as a one-dimensional float64 array: exact, except for I64 and U64
    beyond 2^53.

    Raises:
        ValueError: as `numbers`.
    """
    return numbers(raw, dtype).astype("float64")


def few_floats(raw: bytes, dtype: str) -> tuple[float, ...]:
    """The exact values of a few little-endian floats. For a few thousand numbers this is faster
    than the import of numpy, and needs less memory.

    Raises:
        ValueError: for a dtype that is not a float.
    """
    if dtype not in FLOATS:
        raise ValueError(f"{dtype} is not a float")
    if dtype == "BF16":  # the upper half of a float32
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[::2], raw[1::2]
        raw, dtype = bytes(wide), "F32"
    code = {"F64": "d", "F32": "f", "F16": "e"}[dtype]
    return struct.unpack(f"<{len(raw) * 8 // DTYPES[dtype].bits}{code}", raw)


def is_finite(raw: bytes | memoryview, dtype: str) -> NDArray[np.bool_]:
    """Which elements are neither inf nor NaN, decided by their bits.

    Raises:
        ValueError: as `numbers`.
    """
    import numpy as np

    if dtype not in FLOATS:
        return np.ones(len(numbers(raw, dtype)), np.bool_)
    exponent = DTYPES[dtype].exponent
    bits = np.frombuffer(raw, DTYPES[dtype].numpy.replace("f", "u"))
    finite: NDArray[np.bool_] = (bits & exponent) != exponent
    return finite


def cast(raw: bytes | memoryview, stored: str, dtype: str) -> bytes:
    """Little-endian elements in another float dtype, each rounded once, to nearest and ties to
    even.

    Raises:
        ValueError: for a dtype that is not a float.
    """
    import numpy as np

    if not {stored, dtype} <= set(FLOATS):
        raise ValueError(f"can't cast dtype {stored} to {dtype}")
    values = numbers(raw, stored)
    if stored == "F64":
        return from_float64(values, dtype)
    if dtype == "BF16":  # a float32 holds every value of the other dtypes
        return _upper_half(values.astype(np.float32).view(np.uint32))
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(DTYPES[dtype].numpy).tobytes()


def _upper_half(bits: NDArray[np.uint32]) -> bytes:
    """float32 bits rounded to BF16, which is their upper half."""
    import numpy as np

    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN stays a NaN. If no set bits are cut off, BF16 holds it exactly, so its bits stay.
    is_cut_nan = ((bits & 0x7FFFFFFF) > 0x7F800000) & ((bits & 0xFFFF) != 0)
    return np.where(is_cut_nan, (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()


def from_float64(values: NDArray[np.float64], dtype: str) -> bytes:
    """Values rounded once, to nearest and ties to even, as little-endian elements in row-major
    order.

    Raises:
        ValueError: for a dtype that is not a float.
    """
    import numpy as np

    if dtype not in FLOATS:
        raise ValueError(f"can't round to dtype {dtype}")
    with np.errstate(over="ignore"):  # values that are too large become inf, by IEEE rounding
        if dtype != "BF16":
            return values.astype(DTYPES[dtype].numpy).tobytes()
        single = values.astype(np.float32)
    # Rounding twice (to float32, then to its upper half) errs if the first step lands on a tie of
    # the second. The float32 is then moved one step back to the side on which the value lies.
    bits = single.view(np.uint32)
    tie = (bits & 0xFFFF) == 0x8000
    grew, shrank = np.abs(single) > np.abs(values), np.abs(single) < np.abs(values)
    return _upper_half(np.where(tie & grew, bits - 1, np.where(tie & shrank, bits + 1, bits)))
