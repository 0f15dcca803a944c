"""Sums that come out the same everywhere: against exact arithmetic, in any order, with other
libraries' kernels.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llava_remap.core.dtypes import from_float64, to_float64
from llava_remap.post_load import Change
from llava_remap.post_load.plugins.exact_sums import CHUNK_ROWS, ExactSums
from llava_remap.post_load.plugins.expand_embeddings import ExpandEmbeddings

Floats = NDArray[np.float64]
EMBED = "language_model.model.embed_tokens.weight"
WORDS = {"F16": "<u2", "BF16": "<u2", "F32": "<u4"}


def summed(x: NDArray[np.floating[Any]], z: Floats | None = None) -> ExactSums:
    z = np.zeros((len(x), 0)) if z is None else z
    sums = ExactSums(x.shape[1], z.shape[1])
    for start in range(0, len(x), CHUNK_ROWS):
        sums.add(x[start : start + CHUNK_ROWS], z[start : start + CHUNK_ROWS])
    return sums


# --- the mean


def nearest(exact: Fraction, dtype: str) -> int:
    """The pattern of the number nearest to `exact`, ties to even, by exact comparison of three
    neighbours.
    """
    guess = int(np.frombuffer(from_float64(np.array([float(exact)]), dtype), WORDS[dtype])[0])
    sign = guess & (0x80000000 if dtype == "F32" else 0x8000)
    patterns = [sign | max((guess ^ sign) + step, 0) for step in (-1, 0, 1)]
    values = to_float64(np.array(patterns, WORDS[dtype]).tobytes(), dtype).tolist()
    return min(
        zip(values, patterns, strict=True), key=lambda at: (abs(Fraction(at[0]) - exact), at[1] & 1)
    )[1]


def assert_exact_mean(x: Floats, dtype: str) -> None:
    found = np.frombuffer(from_float64(summed(x).mean(dtype), dtype), WORDS[dtype])
    for column, got in zip(x.T.tolist(), found.tolist(), strict=True):
        exact = sum(map(Fraction, column), Fraction(0)) / len(column)
        assert got == nearest(exact, dtype) or exact == got == 0


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(WORDS)),
    st.integers(1, 1200),
    st.integers(0, 2**32),
    st.integers(0, 24),
    st.sampled_from([-100, -14, 0, 12, 90]),
)
def test_mean_is_the_exact_one_rounded(
    dtype: str, rows: int, seed: int, spread: int, at: int
) -> None:
    """Values of up to 24 bits over up to 25 binary orders: within 50 bits of each other."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (rows, 3)) * 2.0 ** -random.integers(0, spread + 1, (rows, 3))
    x[:, 1] -= x[:, 1].mean()  # the sum all but vanishes
    x = np.ldexp(x, at if dtype != "F16" else min(max(at, -14), 12))
    assert_exact_mean(to_float64(from_float64(x, dtype), dtype).reshape(x.shape), dtype)


def test_mean_of_all_halves() -> None:
    """From the smallest to the largest: 40 bits."""
    values = np.arange(1 << 16, dtype="<u2").view("<f2").astype(np.float64)
    finite = values[np.isfinite(values)]
    assert_exact_mean(np.stack([finite, np.abs(finite), np.sort(finite)], axis=1), "F16")


def test_a_mean_beside_a_tie_is_rounded_once() -> None:
    """1 + 2^-24 + 2^-53: as a double it would be the tie 1 + 2^-24, and then 1."""
    column = [3.0, *[1.0] * 13, 2.0**-20, 2.0**-49]
    for sign, last in ((1.0, 0x3F800001), (-1.0, 0xBF800001)):
        x = sign * np.array(column).reshape(16, 1)
        assert_exact_mean(x, "F32")
        assert np.frombuffer(from_float64(summed(x).mean("F32"), "F32"), "<u4").tolist() == [last]
        assert summed(x).mean("F64").tolist() == [sign * (1 + 2.0**-24)]


def test_extremes() -> None:
    """Zeros, the smallest and the largest numbers: neither NaN nor infinity, nor a warning."""
    largest = np.finfo(np.float64).max
    columns = [
        [0.0, 0, 0, -0.0],
        [largest] * 4,
        [largest, -largest, 1, 1],
        [5e-324] * 4,
        [2.0**-149] * 4,
        [1e-300, 0, 0, 0],
    ]
    x = np.array(columns).T
    z = np.array([[8.0, 1], [-8, 1], [8, 1], [-8, -2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sums = summed(x, z)
        mean, spread = sums.mean("F64"), sums.spread(2.0**-10)
    assert mean.tolist()[:2] == [0.0, largest]
    assert mean[4] == 2.0**-149
    assert np.isfinite(mean).all()
    assert np.isfinite(spread).all()
    assert (spread[:, [0, 4]] == 0).all()


# --- the product


def integers_of(x: Floats, bits: int = 25) -> tuple[list[list[int]], list[int]]:
    """One chunk's columns in 2^bits units of the power of two above their largest: the integers,
    and the exponents.
    """
    exponents = [max(abs(Fraction(v)) for v in column) for column in x.T.tolist()]
    ceilings = [
        next(e for e in range(-1100, 1100) if top < Fraction(2) ** e) if top else 0
        for top in exponents
    ]
    integers = [
        [round(Fraction(v) * Fraction(2) ** (bits - e)) for v in column]
        for column, e in zip(x.T.tolist(), ceilings, strict=True)
    ]
    return integers, ceilings


@pytest.mark.parametrize("rows", [2, 30, 512])
@pytest.mark.parametrize("kind", ["ordinary", "wide", "largest"])
def test_the_product_is_exact(kind: str, rows: int) -> None:
    """With normals that add up to nothing, the spread is the product alone: exact up to the last
    bit.
    """
    random = np.random.default_rng(rows)
    x = random.normal(0, 0.02, (rows, 4))
    half = random.integers(-(2**19), 2**19, (rows // 2, 3)) / 2**16
    if kind == "wide":
        x *= 2.0 ** random.integers(-60, 60, x.shape)
    if kind == "largest":  # each rounds up to 2^25 units, and every sum is as large as it can be
        x, half = np.full((rows, 4), 1 - 2.0**-53), np.full((rows // 2, 3), 8 - 2.0**-16)
        x[rows // 2 :] *= -1
    z = np.concatenate([half, -half])
    found = summed(x, z).spread(1.0)
    integers, exponents = integers_of(x)
    for column in range(4):
        for at in range(3):
            products = (
                i * Fraction(w) for i, w in zip(integers[column], z[:, at].tolist(), strict=True)
            )
            total = sum(products, Fraction(0))
            assert abs(total) <= 2**37
            assert Fraction(found[at, column]) == total * Fraction(2) ** (exponents[column] - 25)
    if kind == "largest":
        assert (np.abs(found) == rows * (8 - 2.0**-16)).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_any_order_of_the_rows_of_a_chunk(dtype: str) -> None:
    random = np.random.default_rng(1)
    x = to_float64(from_float64(random.normal(0.1, 0.02, (512, 33)), dtype), dtype).reshape(512, 33)
    z = random.integers(-(2**19), 2**19 + 1, (512, 7)) / 2**16
    once = summed(x, z)
    for order in (np.arange(512)[::-1], random.permutation(512), np.argsort(x[:, 0])):
        again = summed(x[order], z[order])
        assert again.mean("F64").tobytes() == once.mean("F64").tobytes()
        assert again.spread(0.3).tobytes() == once.spread(0.3).tobytes()


def test_column_by_column_it_is_the_same() -> None:
    """However the library cuts a product: one column and one normal at a time gives the same
    bits.
    """
    random = np.random.default_rng(2)
    x = random.normal(0.1, 0.02, (700, 600))
    z = random.integers(-(2**19), 2**19 + 1, (700, 5)) / 2**16
    whole = summed(x, z).spread(0.3)
    for column in (0, 511, 512, 599):
        for at in range(5):
            alone = summed(x[:, [column]], z[:, [at]])
            assert alone.spread(0.3)[0, 0] == whole[at, column]


# --- whatever the rows are stored as


def halves(rows: int, columns: int, seed: int) -> NDArray[np.float16]:
    """Patterns of F16, half of the columns below 2: of zeros, subnormals and numbers of every
    size.
    """
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 0x7C00, (rows, columns)) >> random.integers(
        0, 10, (rows, columns)
    )
    patterns[:, ::2] = np.minimum(patterns[:, ::2], 0x3FFF)
    signs = random.integers(0, 2, (rows, columns)) << 15
    return (patterns | signs).astype(np.uint16).view(np.float16)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 1100),
    st.integers(0, 2**32),
    st.sampled_from([np.float16, np.float32]),
    st.booleans(),
)
def test_rows_as_stored_give_the_same_bits_as_float64(
    rows: int, seed: int, kind: type, small: bool
) -> None:
    """Also where a chunk takes the short way, as all of it is below 2, and the next one doesn't."""
    x = halves(rows, 6, seed)[:, :: 2 if small else 1]
    if not small:
        x[: rows // 2, 1::2] = 1.9990234375  # the largest below 2
    z = np.random.default_rng(seed).integers(-(2**19), 2**19 + 1, (rows, 5)) / 2**16
    wanted, found = summed(x.astype(np.float64), z), summed(x.astype(kind), z)
    for dtype in ("F16", "F64"):
        assert found.mean(dtype).tobytes() == wanted.mean(dtype).tobytes()
    assert found.spread(0.3).tobytes() == wanted.spread(0.3).tobytes()


@pytest.mark.parametrize("top", [2.0, -2.0, 65504.0])
def test_one_number_too_large_for_the_short_way(top: float) -> None:
    x = np.full((512, 3), 2.0**-24, np.float16)
    x[300, 1] = top
    z = np.full((512, 1), 8.0)
    z[:256] = -8 + 2.0**-16
    assert (
        summed(x, z).spread(1.0).tobytes() == summed(x.astype(np.float64), z).spread(1.0).tobytes()
    )


# --- other machines, as far as one machine can play them

GOLDEN = {
    "F16": "60ec587078167672785f8b33229e120f0b638f048843b6deef6b578f9219436f",
    "BF16": "6afba129498869d4b25a54b663ea062dd2e1ce8aa66dec192becec2a060f15a6",
    "F32": "f591efee63cc172f41d4a25574b98b2fa5fe9b975c197a47057362dc2976c087",
    "F64": "b294997ae89c57f0c9c474b934b6c2b78034f708cd5e225b79ee014e0dbb3af4",
}


def pattern(dtype: str) -> Floats:
    """A matrix [1100, 96] made of integers alone."""
    row, column = np.arange(1100)[:, None], np.arange(96)[None, :]
    integers = (row * row * 7919 + column * 104729 + row * column * 31) % 16777213 - 8388606
    return to_float64(from_float64(integers * 2.0**-28, dtype), dtype).reshape(1100, 96)


def new_rows(dtype: str) -> bytes:
    matrix = pattern(dtype)
    change = Change(EMBED, dtype, (1100, 96), (1152, 96), (EMBED,))

    def read(target: str, start: int, stop: int, as_stored: bool = False) -> Floats:
        return matrix[start:stop]

    pieces = ExpandEmbeddings(seed=20).pieces([change], read)[change.target]
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


@pytest.mark.parametrize("dtype", GOLDEN)
def test_golden(dtype: str) -> None:
    """If this fails on another machine or with another numpy, new rows are not what they were:
    that breaks a promise.
    """
    assert sha256(new_rows(dtype)).hexdigest() == GOLDEN[dtype]


def dispatched() -> str:
    """The processor features that numpy has kernels for, and this machine has."""
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        try:
            inside = importlib.import_module(name)
        except ImportError:
            continue
        return " ".join(
            feature for feature in inside.__cpu_dispatch__ if inside.__cpu_features__[feature]
        )
    return ""


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENBLAS_NUM_THREADS": "1"},
        {"OPENBLAS_NUM_THREADS": "2"},
        {"OPENBLAS_CORETYPE": "Prescott"},
        {"OPENBLAS_CORETYPE": "Sandybridge"},
        {"NPY_DISABLE_CPU_FEATURES": dispatched()},
    ],
    ids=lambda environment: " ".join(f"{key}={value}" for key, value in environment.items()),
)
def test_golden_with_other_kernels(environment: dict[str, str]) -> None:
    """Where numpy's library is another than OpenBLAS, or the processor none of these, a variable
    does nothing.
    """
    program = (
        "from tests.post_load.test_exact_sums import *; "
        "print(*(sha256(new_rows(d)).hexdigest() for d in GOLDEN))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == list(GOLDEN.values())
