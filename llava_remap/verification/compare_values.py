"""The values of two tensors of one shape, compared chunk by chunk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, TORCH_DTYPES, cast, numbers
from llava_remap.execute import chunks
from llava_remap.planning import holds
from llava_remap.verification.difference import Element, Place, Values, Which

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")


def compare_values(
    name: str, a: Tensor, b: Tensor, on_progress: Callable[[int], None] = lambda nbytes: None
) -> Values | None:
    """The differences between the values of two tensors of one shape; None for no difference.

    Elements of one dtype are equal if their bits are equal. Elements of different dtypes are equal
    if they are exactly the same number: zeros also in their sign, NaNs in the bits that a float64
    keeps.

    Raises:
        RemapError: LR100 or LR102 if a file can't be read.
    """
    found: _Found | None = None
    rounded = _Rounded.of(a.dtype, b.dtype)
    at = 0
    for left, right in zip(chunks(a), chunks(b), strict=True):
        on_progress(len(left) + len(right))
        if rounded is not None:
            rounded.check(left, right)
        if a.dtype != b.dtype or left != right:
            found = _chunk(found or _Found(), at, (left, a.dtype), (right, b.dtype))
        at += len(left) * 8 // DTYPE_BITS[a.dtype]
    if found is None or found.first is None:
        return None
    index = []
    place, here, there = found.first
    for size in reversed(a.shape):
        index.append(place % size)
        place //= size
    return Values(
        name,
        prod(a.shape),
        found.differing,
        found.max_abs,
        found.not_finite,
        found.nan_bits,
        found.zero_signs,
        Place(tuple(reversed(index)), here, there),
        None if rounded is None else rounded.which,
    )


@dataclass(slots=True)
class _Rounded:
    """Whether one side holds the other's numbers, rounded to its dtype.

    Attributes:
        dtypes: the dtypes of A and B.
        sides: the sides that may still be the other side, rounded.
    """

    dtypes: tuple[str, str]
    sides: list[Which]

    @classmethod
    def of(cls, a: str, b: str) -> _Rounded | None:
        """For tensors of these dtypes; None if rounding can't lead from one dtype to the other."""
        if a == b or not {a, b} <= set(FLOATS):
            return None
        able: dict[Which, bool] = {"a": not holds(a, b), "b": not holds(b, a)}
        return cls((a, b), [side for side, can in able.items() if can])

    def check(self, a: bytes, b: bytes) -> None:
        """Look at the next elements."""
        of_a, of_b = self.dtypes
        if "a" in self.sides and cast(b, of_b, of_a) != a:
            self.sides.remove("a")
        if "b" in self.sides and cast(a, of_a, of_b) != b:
            self.sides.remove("b")

    @property
    def which(self) -> Which | None:
        return next(iter(self.sides), None)


@dataclass(slots=True)
class _Found:
    """The differences found so far; `first` begins with the row-major number of an element."""

    differing: int = 0
    max_abs: Any = None
    not_finite: int = 0
    nan_bits: int = 0
    zero_signs: int = 0
    first: tuple[int, Element, Element] | None = None


_Raw = tuple[bytes, str]
"""Little-endian elements and their dtype."""


def _chunk(found: _Found, at: int, a: _Raw, b: _Raw) -> _Found:
    """Count the differences of a chunk. Its first element has the number `at`."""
    import numpy as np

    bits = [np.frombuffer(raw, f"<u{DTYPE_BITS[dtype] // 8}") for raw, dtype in (a, b)]
    x, y = _values(*a), _values(*b)
    apart = bits[0] != bits[1] if a[1] == b[1] else _apart(x, y)
    if not (count := int(np.count_nonzero(apart))):
        return found
    found.differing += count
    if found.first is None:
        first = int(apart.argmax())
        here, there = (
            Element(_shown(value[first]), f"0x{int(one[first]):0{DTYPE_BITS[dtype] // 4}x}")
            for one, value, dtype in ((bits[0], x, a[1]), (bits[1], y, b[1]))
        )
        found.first = at + first, here, there
    if count < len(apart):
        x, y = x[apart], y[apart]
    if not x.dtype.kind == y.dtype.kind == "f":
        _count_slowly(found, x, y)
        return found
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.subtract(x, y)
    np.abs(distances, out=distances)
    furthest = float(distances.max())
    if not np.isfinite(furthest):  # rare: only with inf, NaN, or an overflow
        _count_slowly(found, x, y)
        return found
    found.max_abs = furthest if found.max_abs is None else max(found.max_abs, furthest)
    found.zero_signs += count - int(np.count_nonzero(distances))
    return found


def _count_slowly(found: _Found, x: NDArray[Any], y: NDArray[Any]) -> None:
    """Count differing elements of any kind, inf and NaN among them."""
    import numpy as np

    finite = _is_finite(x) & _is_finite(y)
    found.nan_bits += int(np.count_nonzero(_is_nan(x) & _is_nan(y)))
    found.zero_signs += int(np.count_nonzero((x == 0) & (y == 0)))
    found.not_finite += int(np.count_nonzero(~finite))
    if finite.any():
        furthest = _furthest(x[finite], y[finite])
        found.max_abs = furthest if found.max_abs is None else max(found.max_abs, furthest)


def _values(raw: bytes, dtype: str) -> NDArray[Any]:
    """The exact numbers of elements, as float64, complex128, or integers of their own dtype."""
    import numpy as np

    if dtype in _EIGHT_BITS:
        return np.asarray(_eight_bits(dtype)[np.frombuffer(raw, "u1")])
    if dtype == "C64":
        return np.frombuffer(raw, "<c8").astype("c16")
    found = numbers(raw, dtype)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return found.astype("f8") if dtype in FLOATS else found


@cache
def _eight_bits(dtype: str) -> NDArray[Any]:
    """The numbers of all 256 elements of an 8-bit float, as torch reads them."""
    import torch

    every = torch.arange(256, dtype=torch.uint8).view(getattr(torch, TORCH_DTYPES[dtype]))
    table: NDArray[Any] = every.double().numpy()
    return table


def _apart(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Which numbers of different dtypes differ."""
    import numpy as np

    if a.dtype.kind == b.dtype.kind == "f":
        return np.asarray(a.view("u8") != b.view("u8"))
    if "c" in (a.dtype.kind, b.dtype.kind):
        return np.asarray(a.astype("c16") != b.astype("c16"), bool)
    # A float64 doesn't hold every integer, and numpy would round: Python compares exactly.
    return np.asarray(a.astype(object) != b.astype(object), bool)


def _is_nan(values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.asarray(values != values)  # true only of NaN, for every dtype


def _is_finite(values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.asarray(np.isfinite(values), bool)


def _furthest(a: NDArray[Any], b: NDArray[Any]) -> float | int:
    """The largest distance between finite numbers."""
    import numpy as np

    if a.dtype.kind in "fc" or b.dtype.kind in "fc":
        with np.errstate(over="ignore"):
            return min(float(np.abs(a - b).max()), sys.float_info.max)
    if a.dtype != b.dtype:
        return int(np.abs(a.astype(object) - b.astype(object)).max())
    # Distances of 64-bit integers fit into 64 bits without a sign, and wrap around to it.
    left, right = a.astype("u8"), b.astype("u8")
    return int(np.where(a > b, left - right, right - left).max())


def _shown(value: Any) -> float | int | str:
    """A number in a form that JSON allows."""
    found = value.item()
    if isinstance(found, complex) or found != found or abs(found) == float("inf"):
        return str(found)
    return found if not isinstance(found, bool) else int(found)
