"""Merging an adapter: exact sums, whichever order a library takes; one rounding; block by block."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llava_remap.checkpoint import Location, Tensor
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, from_float64, to_float64
from llava_remap.core.problem import RemapError
from llava_remap.execute.merge import Pair, blocks_of_rows
from llava_remap.execute.values import chunks

Matrix = NDArray[np.float64]
ROWS, COLUMNS, RANK = 40, 24, 12


def stored(name: str, dtype: str, values: Matrix) -> Tensor:
    path = Path(f"{name}.bytes")
    path.write_bytes(from_float64(values, dtype))
    return Tensor.of(
        name, dtype, values.shape, Location(path, 0, None, False, (0, path.stat().st_size))
    )


def triple(dtype: str, of_adapter: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices whose numbers are of very different sizes."""
    draw = np.random.default_rng(seed)

    def matrix(*shape: int) -> Matrix:
        return draw.normal(size=shape) * 2.0 ** draw.integers(-10, 1, size=shape)

    w, a, b = matrix(ROWS, COLUMNS), matrix(RANK, COLUMNS), matrix(ROWS, RANK)
    return stored("w", dtype, w), stored("a", of_adapter, a), stored("b", of_adapter, b)


def values(tensor: Tensor) -> Matrix:
    assert tensor.location is not None
    return to_float64(tensor.location.file.read_bytes(), tensor.dtype).reshape(tensor.shape)


def merged_bytes(
    w: Tensor, a: Tensor, b: Tensor, scale: float, dtype: str, start: int, stop: int
) -> Iterator[bytes]:
    """A run of the bytes of the sum in a dtype."""
    rows, columns = w.shape
    width = columns * DTYPE_BITS[dtype] // 8
    first, last = start // width, -(-stop // width)
    raw = chunks(w, first * (w.nbytes // rows), last * (w.nbytes // rows))
    blocks = blocks_of_rows(raw, w.dtype, columns)
    return Pair(w.name, a, b, scale, dtype).added_to_all(blocks, first, start, stop)


def merged(
    w: Tensor, a: Tensor, b: Tensor, scale: float, start: int = 0, stop: int | None = None
) -> bytes:
    return b"".join(
        merged_bytes(w, a, b, scale, w.dtype, start, w.nbytes if stop is None else stop)
    )


@pytest.mark.parametrize("of_adapter", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_against_exact_fractions(dtype: str, of_adapter: str) -> None:
    """Within half a unit in the last place and what the integers leave out: of the largest
    product, 2^-24 or 2^-45.
    """
    w, a, b = triple(dtype, of_adapter)
    found = to_float64(merged(w, a, b, 0.7), dtype).reshape(w.shape)
    big_w, big_a, big_b = (values(tensor) for tensor in (w, a, b))
    digits = DIGITS[dtype]
    left_out = 2.0 ** (-45 if dtype in ("F32", "F64") else -24)
    for row in range(ROWS):
        for column in range(COLUMNS):
            terms = [
                Fraction(x) * Fraction(y) for x, y in zip(big_b[row], big_a[:, column], strict=True)
            ]
            exact = Fraction(big_w[row, column]) + Fraction(0.7) * sum(terms)
            unit = 2.0 ** max(np.frexp(float(exact))[1] - digits, -24 if dtype == "F16" else -200)
            largest = np.abs(big_b[row]).max() * np.abs(big_a[:, column]).max()
            assert (
                abs(float(Fraction(found[row, column]) - exact))
                <= 0.5 * unit + RANK * left_out * largest
            )


DIGITS = {"F16": 11, "BF16": 8, "F32": 24, "F64": 53}
SIDES = st.integers(1, 9)


@given(
    dtype=st.sampled_from(["F16", "BF16", "F32"]),
    of_adapter=st.sampled_from(["F16", "BF16", "F32"]),
    shape=st.tuples(SIDES, SIDES, SIDES),
    scale=st.floats(-4, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_matrices_against_numpy_in_float64(
    dtype: str, of_adapter: str, shape: tuple[int, int, int], scale: float, seed: int
) -> None:
    """W + scale · B A, rounded once: off by half a unit in the last place, and by what the exact
    sums leave out.
    """
    rows, columns, rank = shape
    draw = np.random.default_rng(seed)
    drawn = [
        draw.normal(size=size) * 2.0 ** draw.integers(-6, 3, size=size)
        for size in ((rows, columns), (rank, columns), (rows, rank))
    ]
    w, a, b = (
        stored(name, dtype if name == "w" else of_adapter, one)
        for name, one in zip("wab", drawn, strict=True)
    )
    found = to_float64(merged(w, a, b, scale), dtype).reshape(rows, columns)
    wanted = values(w) + scale * (values(b) @ values(a))
    unit = 2.0 ** np.maximum(np.frexp(wanted)[1] - DIGITS[dtype], -24 if dtype == "F16" else -149)
    left_out = 2.0 ** (-45 if dtype == "F32" else -24) * rank * abs(scale)
    largest = np.abs(values(b)).max(axis=1)[:, None] * np.abs(values(a)).max(axis=0)
    assert (np.abs(found - wanted) <= 0.5 * unit * (1 + 1e-6) + left_out * largest + 1e-12).all()


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_no_order_of_the_sums_changes_a_bit(dtype: str) -> None:
    """A library may add in any order; so may the test."""
    w, a, b = triple(dtype, "F32")
    order = np.random.default_rng(1).permutation(RANK)
    other_a, other_b = (
        stored("a2", "F32", values(a)[order]),
        stored("b2", "F32", values(b)[:, order]),
    )
    assert merged(w, a, b, 1.3) == merged(w, other_a, other_b, 1.3)
    plain, shuffled = values(b) @ values(a), values(other_b) @ values(other_a)
    assert (plain != shuffled).any()  # an ordinary product would tell the difference


def test_any_run_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that begin and end inside a row, and blocks of another size, give the same bytes."""
    w, a, b = triple("F16", "F16")
    whole = merged(w, a, b, 2.0)
    assert len(whole) == w.nbytes
    for start, stop in [(0, 1), (7, 300), (48, 96), (95, w.nbytes), (60, 60)]:
        assert merged(w, a, b, 2.0, start, stop) == whole[start:stop]
    monkeypatch.setattr("llava_remap.execute.merge.BLOCK_ELEMENTS", 3 * COLUMNS)
    assert merged(w, a, b, 2.0) == whole
    assert merged(w, a, b, 2.0, 7, 300) == whole[7:300]


def test_another_dtype_is_rounded_to_once() -> None:
    w, a, b = triple("F32", "F32")
    fine = to_float64(b"".join(merged_bytes(w, a, b, 2.0, "F64", 0, 2 * w.nbytes)), "F64")
    for dtype in ("F16", "BF16"):
        made = to_float64(b"".join(merged_bytes(w, a, b, 2.0, dtype, 0, w.nbytes // 2)), dtype)
        wanted = to_float64(from_float64(fine, dtype), dtype)
        assert np.count_nonzero(made != wanted) <= 2  # beside a tie, 23 bits and 46 may fall apart


def test_nothing_added_changes_nothing() -> None:
    for dtype in ("F16", "BF16", "F32"):
        w, a, b = triple(dtype, "F16")
        assert merged(w, a, stored("zeros", "F16", np.zeros(b.shape)), 2.0) == from_float64(
            values(w), dtype
        )
        assert merged(w, a, b, 0.0) == from_float64(values(w), dtype)


def test_what_does_not_fit_is_refused() -> None:
    w, a, b = triple("F16", "F32")
    with pytest.raises(RemapError) as caught:
        merged(w, a, b, 1e6)
    [problem] = caught.value.problems
    assert problem.code == "LR406"
    assert problem.names == ("w",)
    with pytest.raises(RemapError, match="inf or NaN"):
        merged(w, stored("nan", "F32", np.full(a.shape, np.nan)), b, 1.0)


def test_memory_is_a_few_blocks() -> None:
    """The matrix has 32 MB as it is stored, and 128 MB in float64."""
    size, rank = 4096, 8
    w = stored("w", "F16", np.zeros((size, size)))
    a, b = stored("a", "F16", np.ones((rank, size))), stored("b", "F16", np.ones((size, rank)))
    tracemalloc.start()
    count = sum(len(piece) for piece in merged_bytes(w, a, b, 0.5, "F16", 0, w.nbytes))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == w.nbytes
    assert peak < 64 << 20


def pattern(name: str, rows: int, columns: int, dtype: str) -> Tensor:
    """A matrix made of integers alone."""
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    integers = (row * row * 7919 + column * 104729 + row * column * 31) % 16777213 - 8388606
    return stored(name, dtype, integers * 2.0**-28)


def digests() -> list[str]:
    """Of the sum that is rounded to each dtype."""
    w, a, b = (
        pattern("w", 300, 500, "F32"),
        pattern("a", 128, 500, "F32"),
        pattern("b", 300, 128, "BF16"),
    )
    made = (
        b"".join(merged_bytes(w, a, b, 1.7, dtype, 0, 300 * 500 * DTYPE_BITS[dtype] // 8))
        for dtype in FLOATS
    )
    return [sha256(data).hexdigest()[:16] for data in made]


GOLDEN = ["5c8b7ea8e9810112", "67ab0097bdb27e36", "93c1c540ca5ad5f9", "c9f24ecbbdab3241"]


def test_golden() -> None:
    """If this fails on another machine or with another numpy, what is merged is not what it was:
    that breaks a promise.
    """
    assert digests() == GOLDEN


@pytest.mark.parametrize(
    "variable", ["OPENBLAS_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=2", "OPENBLAS_CORETYPE=Prescott"]
)
def test_golden_with_other_kernels(variable: str) -> None:
    """Where numpy's library is another than OpenBLAS, a variable does nothing."""
    name, _, value = variable.partition("=")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, name: value, "PYTHONPATH": root}
    program = "from tests.execute.test_merge import digests; print(*digests())"
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == GOLDEN
