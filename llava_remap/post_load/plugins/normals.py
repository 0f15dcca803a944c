"""Draws standard normal numbers that are the same, to the last bit, on every machine and with every
numpy.

numpy promises the raw bits of its Philox generator, but neither its normals nor the last bit of its
`log`, `sin` and `cos`, which differ between processors. This module uses only operations that IEEE
754 rounds correctly: + − × ÷ and the square root.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: A normal is a multiple of 1/STEPS and at most LARGEST, so that sums of products with it can be
#: exact (see `exact_sums`). The steps change the variance by 2e-11; one normal in 8e14 is beyond
#: LARGEST.
STEPS = 2.0**16
LARGEST = 8.0
#: Pairs tried at once, few enough to stay in the processor's cache. The result doesn't depend on
#: this number.
_TRIES = 4096


def normals(bits: np.random.Philox, count: int) -> NDArray[np.float64]:
    """The next `count` normals, by Marsaglia's polar method (Marsaglia and Bray, 1964).

    The method makes pairs. If `count` is odd, the partner of the last normal is discarded.
    """
    pairs = (count + 1) // 2
    drawn = np.empty((pairs, 2))
    found = 0
    while found < pairs:
        # No more tries than missing pairs, so that every word read is used or rejected.
        raw = bits.random_raw(2 * min(_TRIES, pairs - found))
        u, v = _uniform(raw[::2]), _uniform(raw[1::2])
        s = u * u + v * v
        inside = (s > 0) & (s < 1)
        s = s[inside]
        factor = np.sqrt(-2.0 * log(s) / s)
        new = drawn[found : found + len(s)]
        new[:, 0], new[:, 1] = u[inside] * factor, v[inside] * factor
        found += len(s)
    drawn *= STEPS
    np.rint(drawn, out=drawn)
    drawn /= STEPS
    return np.clip(drawn, -LARGEST, LARGEST, out=drawn).ravel()[:count]


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The natural logarithm of positive, finite numbers that are not subnormal, with a relative
    error below 1e-15.

    x = m·2^e with m in [√½, √2), and log m = 2·artanh f = 2·(f + f³/3 + f⁵/5 + …) with f = (m −
    1)/(m + 1), |f| < 0.172.
    """
    m, e = np.frexp(x)
    low = m < 0.7071067811865476
    m, e = np.where(low, 2.0 * m, m), np.where(low, e - 1, e)
    f = (m - 1.0) / (m + 1.0)
    square = f * f
    series = np.zeros_like(f)
    for k in range(23, 1, -2):  # the omitted terms are below f·1e-20
        series = (series + 1.0 / k) * square
    return e * 0.6931471805599453 + 2.0 * (f + f * series)


def _uniform(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The upper 53 bits of each word as a number in [-1, 1)."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
