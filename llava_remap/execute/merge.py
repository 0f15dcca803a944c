"""A tensor of a base plus the product of an adapter's pair: W + scale · B A, the same to the last
bit on every machine.

A matrix product adds in the order that suits the processor, so its last bits differ. Sums of small
integers are exact in any order. So each row of B and each column of A is scaled with a power of two
and rounded to integers. The integers have so few bits that no sum of their products exceeds 2^53:
23 bits at rank 128, about as many as float32's 24. For outputs in float32 or finer, `low` has as
many further bits, and only the product of low and low is left out. The other steps are elementwise,
in float64, with one rounding at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from llava_remap.checkpoint import Tensor
from llava_remap.core import DTYPE_BITS, refuse
from llava_remap.core.dtypes import from_float64, is_finite, to_float64
from llava_remap.execute.values import rows

Matrix = NDArray[np.float64]

#: Elements computed at once: enough for a fast product, at 8 MB for each of its half dozen arrays.
BLOCK_ELEMENTS = 1 << 20


class Pair:
    """A LoRA pair, added to rows of a matrix.

    Args:
        name: of the matrix.
        a, b: [rank, columns] and [rows, rank].
        dtype: the dtype that the sum is rounded to.
    """

    def __init__(self, name: str, a: Tensor, b: Tensor, scale: float, dtype: str) -> None:
        self._name, self._b, self._dtype = name, b, dtype
        self._a, self._scale = rows(a, 0, a.shape[0]), scale
        self._product: tuple[slice, _Product] | None = None

    def added(self, w: Matrix, first: int, columns: slice = slice(None)) -> bytes:
        """The sum for some rows and columns of the matrix, as bytes in row-major order.

        Args:
            w: the numbers of the matrix there.
            first: the first row.

        Raises:
            RemapError: LR406 for values that are inf or NaN, or become so in the dtype; LR102 if a
                source has become shorter.
        """
        with _judged_later():
            if self._product is None or self._product[0] != columns:
                fine = self._dtype in ("F32", "F64")
                factors = _Product(self._a[:, columns], self._scale, fine=fine)
                self._product = columns, factors
            product = self._product[1]
            made = from_float64(product.of(rows(self._b, first, first + len(w))) + w, self._dtype)
        if not is_finite(made, self._dtype).all():
            raise refuse(
                "LR406",
                f"`{self._name}`, merged with `{self._b.name}`, has values that are inf or NaN or "
                f"don't fit into {self._dtype}.",
                "Check the base for large values, and check the adapter's alpha.",
                [self._name],
            )
        return made

    def added_to_all(
        self, w: Iterable[Matrix], first: int, start: int, stop: int
    ) -> Iterator[bytes]:
        """A run of the sum's bytes.

        Args:
            w: blocks of whole rows of the matrix, which cover the run.
            first: the first row of the first block.
            start, stop: the run, counted in the dtype of the sum, in row-major order, from the
                first byte of the matrix.

        Raises:
            RemapError: as `added`.
        """
        for block in w:
            at = first * block.shape[1] * DTYPE_BITS[self._dtype] // 8
            made = self.added(block, first)
            yield made[max(start - at, 0) : stop - at]
            first += len(block)


class Merged:
    """A source tensor with its LoRA pair, rounded to a dtype.

    Args:
        w, a, b, scale, dtype: the tensor, [rows, columns]; the others as for `Pair`.
    """

    def __init__(self, w: Tensor, a: Tensor, b: Tensor, scale: float, dtype: str) -> None:
        self._w, self._pair = w, Pair(w.name, a, b, scale, dtype)

    def block(self, first: int, last: int, columns: slice) -> bytes:
        """Rows first..last of some columns, as bytes in row-major order.

        Raises:
            RemapError: as `Pair.added`.
        """
        return self._pair.added(rows(self._w, first, last, columns), first, columns)


def blocks_of_rows(raw: Iterable[bytes], dtype: str, columns: int) -> Iterator[Matrix]:
    """Divide the bytes of whole rows of a matrix into blocks for `Pair.added_to_all`."""
    width, left = columns * DTYPE_BITS[dtype] // 8, bytearray()
    nbytes = max(1, BLOCK_ELEMENTS // max(columns, 1)) * width
    for piece in chain(raw, [b""]):
        left += piece
        while len(left) >= nbytes or (not piece and left):
            yield to_float64(bytes(left[:nbytes]), dtype).reshape(-1, columns)
            del left[:nbytes]


def _judged_later() -> np.errstate:
    """No warnings: inf and NaN are looked for in the result."""
    return np.errstate(over="ignore", invalid="ignore")


class _Product:
    """scale · B A for blocks of rows of B, given A, [rank, columns]."""

    def __init__(self, a: Matrix, scale: float, *, fine: bool) -> None:
        self._fine = fine
        #: The most bits with which the sum of the products is at most 2^53. There are `rank`
        #: products, or twice as many if `fine`.
        self._bits = (53 - (len(a) * (1 + fine) - 1).bit_length()) // 2
        high, low, unit = _cut(a.T, self._bits)
        self._high, self._crossed = high.T, np.concatenate((low, high), axis=1).T if fine else None
        self._factor = scale * unit

    def of(self, b: Matrix) -> Matrix:
        high, low, unit = _cut(b, self._bits)
        product: Matrix = high @ self._high
        if self._crossed is not None:
            product += np.concatenate((high, low), axis=1) @ self._crossed * 2.0**-self._bits
        product *= self._factor
        product *= unit[:, None]
        return product


def _cut(x: Matrix, bits: int) -> tuple[Matrix, Matrix, Matrix]:
    """x as (high + low · 2^-bits) · unit: integers up to 2^bits, and a power of two for each
    row.
    """
    exponent = np.frexp(np.abs(x).max(axis=1))[1]
    low = x * np.ldexp(1.0, bits - exponent)[:, None]
    high = np.rint(low)
    low -= high
    low *= 2.0**bits
    return high, np.rint(low, out=low), np.ldexp(1.0, exponent - bits)
