"""Normals that are the same everywhere: bit by bit against plain Python, whose + − × ÷ and
square root are IEEE 754's too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llava_remap.post_load.plugins.normals import LARGEST, STEPS, log, normals

HALF_ROOT = 0.7071067811865476


def scalar_log(x: float) -> float:
    """The same series, one number at a time."""
    m, e = math.frexp(x)
    if m < HALF_ROOT:
        m, e = 2.0 * m, e - 1
    f = (m - 1.0) / (m + 1.0)
    square, series = f * f, 0.0
    for k in range(23, 1, -2):
        series = (series + 1.0 / k) * square
    return e * math.log(2) + 2.0 * (f + f * series)


def scalar_normals(words: Iterator[int], count: int) -> list[float]:
    found: list[float] = []
    while len(found) < count:
        u, v = ((next(words) >> 11) * 2.0**-52 - 1.0 for _ in range(2))
        s = u * u + v * v
        if 0 < s < 1:
            factor = math.sqrt(-2.0 * scalar_log(s) / s)
            found += [max(-8.0, min(8.0, round(x * factor * 65536) / 65536)) for x in (u, v)]
    return found[:count]


def words(key: int, count: int) -> Iterator[int]:
    return iter(np.random.Philox(key=key).random_raw(count).tolist())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 20_001])
def test_bits_are_those_of_plain_python(count: int) -> None:
    assert normals(np.random.Philox(key=5), count).tolist() == scalar_normals(
        words(5, 4 * count + 50), count
    )


def test_a_stream_can_be_cut_anywhere() -> None:
    """No word is read that isn't needed: the stream is the same in one piece or in several (of
    an even number).
    """
    bits = np.random.Philox(key=3)
    pieces = [normals(bits, count) for count in (2, 1000, 34, 512)]
    np.testing.assert_array_equal(np.concatenate(pieces), normals(np.random.Philox(key=3), 1548))


def test_they_are_few_bits_wide() -> None:
    found = normals(np.random.Philox(key=1), 100_000)
    assert (found * STEPS == np.rint(found * STEPS)).all()
    assert np.abs(found).max() <= LARGEST


def test_they_are_normal() -> None:
    """Kolmogorov and Smirnov's distance, at one in a thousand; mean and variance within four
    standard errors.
    """
    count = 200_000
    found = np.sort(normals(np.random.Philox(key=2), count))
    wanted = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in found.tolist()])
    ranks = np.arange(count + 1) / count
    assert max((ranks[1:] - wanted).max(), (wanted - ranks[:-1]).max()) < 1.95 / math.sqrt(count)
    assert abs(found.mean()) < 4 / math.sqrt(count)
    assert abs(found.var() - 1) < 4 * math.sqrt(2 / count)


class Words:
    """A generator that gives chosen words."""

    def __init__(self, *given: int) -> None:
        self.given = list(given)

    def random_raw(self, count: int) -> NDArray[np.uint64]:
        found, self.given = self.given[:count], self.given[count:]
        return np.array(found, np.uint64)


def test_the_edges() -> None:
    """u = v = 0 and what lies outside the circle are rejected; next to 0 a normal of 12 is cut
    to 8.
    """
    zero, corner, tiny = 1 << 63, 0, (1 << 63) + (1 << 11)
    bits = Words(zero, zero, corner, corner, tiny, zero)
    assert normals(bits, 2).tolist() == [8.0, 0.0]  # type: ignore[arg-type]
    assert bits.given == []


@settings(deadline=None)
@given(st.floats(2.0**-1022, 1e308))
def test_log(x: float) -> None:
    found = log(np.array([x]))[0]
    assert found == scalar_log(x)
    assert abs(found - math.log(x)) <= 1e-15 * abs(math.log(x))


def test_log_where_it_is_hard() -> None:
    """Next to 1, where the logarithm is small, and where the halves of the range meet."""
    near = [1 + k * 2.0**-52 for k in range(2000)] + [1 - k * 2.0**-53 for k in range(2000)]
    near += [
        HALF_ROOT * 2.0**e * (1 + k * 2.0**-52) for e in (-3, -1, 0, 1) for k in range(-500, 500)
    ]
    for x, found in zip(near, log(np.array(near)).tolist(), strict=True):
        assert abs(found - math.log(x)) <= 1e-15 * abs(math.log(x))
