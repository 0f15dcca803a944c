"""A tensor of a base with what an adapter adds to it: W + scale · B A, the same to the last bit on every machine.

A matrix product adds in the order that suits the processor, so its last bits differ. Sums of small integers are exact in any
order. So each row of B and each column of A is scaled with a power of two and cut into two integers, `high` and `low`, of so few
bits that no sum of their products exceeds 2^53. What they leave out is, at rank 128, less than 2^-36 of the product of a row's
and a column's largest: float32 has 2^-24. The rest is elementwise: float64, and one rounding at the end, to the stored dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llava_remap.checkpoint import DTYPE_BITS, Tensor
from llava_remap.dtypes import from_float64, to_float64
from llava_remap.errors import refuse
from llava_remap.execute.values import CHUNK_ELEMENTS, rows

Matrix = NDArray[np.float64]


def merged_bytes(w: Tensor, a: Tensor, b: Tensor, scale: float, start: int, stop: int) -> Iterator[bytes]:
    """A run of the merged tensor's bytes, a block of rows at a time, in the dtype of `w`.

    Args:
        w, a, b: [rows, columns], [rank, columns] and [rows, rank].
        start, stop: the run, counted in row-major order from the first byte.

    Raises:
        RemapError: LR406 for values that are inf or NaN, or become so in the dtype; LR102 where a source has become shorter.
    """
    count, columns = w.shape
    width = columns * DTYPE_BITS[w.dtype] // 8
    step = max(1, CHUNK_ELEMENTS // max(columns, 1))
    with _judged_later():
        product = _Product(rows(a, 0, a.shape[0]))
    first, last = start // max(width, 1), -(-stop // max(width, 1))
    for row in range(first, min(last, count), step):
        end = min(row + step, last, count)
        with _judged_later():
            values = rows(w, row, end) + scale * product.of(rows(b, row, end))
        made = from_float64(values, w.dtype)
        if not np.isfinite(to_float64(made, w.dtype)).all():
            cause = f"`{w.name}`, with what `{b.name}` adds, has values that are inf or NaN or don't fit into {w.dtype}."
            raise refuse("LR406", cause, "Look for large values in the base, and at the adapter's alpha.", [w.name])
        yield made[max(start - row * width, 0) : stop - row * width]


def _judged_later() -> np.errstate:
    """What is inf or NaN is seen in what is made."""
    return np.errstate(over="ignore", invalid="ignore")


class _Product:
    """B A for blocks of rows of B, given A, [rank, columns]."""

    def __init__(self, a: Matrix) -> None:
        #: So many bits that twice `rank` products of two integers make at most 2^53.
        self._bits = (53 - (2 * len(a) - 1).bit_length()) // 2
        high, low, self._exponent = _cut(a.T, self._bits)
        self._high, self._crossed = high.T, np.concatenate((low, high), axis=1).T

    def of(self, b: Matrix) -> Matrix:
        high, low, exponent = _cut(b, self._bits)
        total = high @ self._high
        total += np.concatenate((high, low), axis=1) @ self._crossed * 2.0**-self._bits
        product: Matrix = np.ldexp(total, exponent[:, None] + self._exponent)
        return product


def _cut(x: Matrix, bits: int) -> tuple[Matrix, Matrix, NDArray[np.int32]]:
    """x as (high + low · 2^-bits) · 2^exponent: integers below 2^bits, and one exponent a row."""
    exponent = np.frexp(np.abs(x).max(axis=1))[1] - bits
    low = np.ldexp(x, -exponent[:, None])
    high = np.rint(low)
    low -= high
    low *= 2.0**bits
    return high, np.rint(low, out=low), exponent
