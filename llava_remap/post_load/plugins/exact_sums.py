"""Computes sums over the rows of a matrix that are the same, to the last bit, on every machine.

A sum of floats depends on its order, and a matrix product uses the order that suits the processor.
Sums of small integers are exact in any order, fused or not. So each chunk of rows is scaled column
by column with powers of two and rounded to integers:

- `high`: 25 bits. A normal has 19 bits (see `normals`), so 512 products of both add up to at most
  2^(25 + 19 + 9) = 2^53 units: the product of a chunk is exact, whichever library computes it.
- `low`: the rest, 43 bits. Sums of 512 of these, and of `high` alone, are exact too.

Together the two reach 69 bits below the column's largest value, so they hold every F16.

An F16 is a multiple of 2^-24. Below 2 it has 25 bits, and `high` holds all of them. So a chunk of
such rows needs no scaling; most rows of embeddings are such.

The other operations are elementwise and in the order of the chunks: numpy's + − × ÷, each rounded
as IEEE 754 says.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows added at once. More would not be exact.
CHUNK_ROWS = 512

#: Rows scaled and rounded at once, few enough to stay in the processor's cache. No sum depends on
#: this number.
_BLOCK_ROWS = 32
_HIGH, _LOW = 25, 44
#: The sums are kept in units of 2^64, so that no sum of F64 overflows.
_UNIT = 64
#: A column whose largest value is below 2^-800 (F64 only) is scaled as if that value were 2^-800,
#: so that the scales don't overflow either.
_LOWEST = -800


class ExactSums:
    """Sums over rows x_i, [columns], and their normals z_i, [new]."""

    def __init__(self, columns: int, new: int) -> None:
        self._rows = 0
        # Σ x, and its rounding error.
        self._sum, self._lost = np.zeros(columns), np.zeros(columns)
        self._sum_high = np.zeros(columns)
        self._sum_z = np.zeros(new)
        self._product = np.zeros((new, columns))
        self._buffer = np.empty((CHUNK_ROWS, columns))

    def add(self, x: NDArray[np.floating[Any]], z: NDArray[np.float64]) -> None:
        """Add a chunk of rows, [up to CHUNK_ROWS, columns], finite, and its normals, [as many,
        new].

        The numpy dtype of the rows changes the time, but no sum.
        """
        assert len(x) == len(z) <= CHUNK_ROWS
        whole = _has_25_bits(x)
        scale, unit = (1.0, 2.0**-_UNIT) if whole else _scales(x)
        high, sum_high, sum_low = self._buffer[: len(x)], np.zeros(x.shape[1]), np.zeros(x.shape[1])
        for start in range(0, len(x), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            if whole:
                high[block] = x[block]
            else:
                low = x[block] * scale
                low -= np.rint(low, out=high[block])
                low *= 2.0**_LOW
                sum_low += np.rint(low, out=low).sum(axis=0)
            sum_high += high[block].sum(axis=0)
        sum_high *= unit
        sum_low *= unit * 2.0**-_LOW
        self._add_to_sum(sum_high)
        self._add_to_sum(sum_low)
        self._sum_high += sum_high
        self._sum_z += z.sum(axis=0)
        product = z.T @ high
        product *= unit
        self._product += product
        self._rows += len(x)

    def _add_to_sum(self, term: NDArray[np.float64]) -> None:
        """Add, and keep the rounding error (Knuth's two-sum, The Art of Computer Programming 2,
        4.2.2).
        """
        total = self._sum + term
        part = total - self._sum
        self._lost += (self._sum - (total - part)) + (term - part)
        self._sum = total

    def mean(self, dtype: str) -> NDArray[np.float64]:
        """Mean of the rows, [columns]. Rounding it to `dtype` gives the rounded exact mean."""
        unit = Fraction(2**_UNIT, self._rows)
        exact = (
            (Fraction(s) + Fraction(lost)) * unit
            for s, lost in zip(self._sum.tolist(), self._lost.tolist(), strict=True)
        )
        return np.array([_to_float(mean, dtype) for mean in exact], np.float64)

    def spread(self, factor: float) -> NDArray[np.float64]:
        """factor · Σ (x_i − mean)·z_i, [new, columns], with x rounded to 25 bits of its column's
        largest value in the chunk.

        Σ x_i·(z_i − mean z) is the same sum and needs no second pass.
        """
        centred = self._product - np.outer(self._sum_z / self._rows, self._sum_high)
        with np.errstate(over="ignore"):  # inf is for the caller to judge
            spread: NDArray[np.float64] = (centred * factor) * 2.0**_UNIT
        return spread


def _has_25_bits(x: NDArray[np.floating[Any]]) -> bool:
    """Whether rows are F16 and all below 2, where the pattern of 2.0 is 0x4000."""
    return x.dtype == np.float16 and bool((x.view(np.uint16) & 0x7FFF).max(initial=0) < 0x4000)


def _scales(x: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each column of a chunk: the factor that scales its largest value to 25 bits, and the unit
    of scaled values in units of the sums.
    """
    largest = np.maximum(x.max(axis=0), -x.min(axis=0))
    exponent = np.maximum(np.frexp(largest)[1], _LOWEST)
    return np.ldexp(1.0, _HIGH - exponent), np.ldexp(1.0, exponent - _HIGH - _UNIT)


def _to_float(value: Fraction, dtype: str) -> float:
    """A float64 that rounds to `dtype` as `value` itself does.

    Rounding twice to nearest can go wrong beside a tie. So `value` is first rounded to odd: to the
    neighbouring float whose last bit is set. Then the second rounding is right (Boldo and
    Melquiond, 2008).
    """
    nearest = float(value)
    if dtype == "F64" or nearest == value or np.float64(nearest).view(np.int64) & 1:
        return nearest
    return math.nextafter(nearest, math.inf if value > nearest else -math.inf)
