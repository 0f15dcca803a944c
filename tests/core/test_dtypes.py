"""Numbers of the stored dtypes: against torch, and where torch rounds twice, against exact
arithmetic.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llava_remap.core.dtypes import (
    DTYPE_BITS,
    FLOATS,
    cast,
    few_floats,
    from_float64,
    is_finite,
    to_float64,
)
from llava_remap.core.dtypes import numbers as read_numbers

RUNS = settings(deadline=None)

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
ALL_PATTERNS = np.arange(1 << 16, dtype="<u2")
#: Bits of exponent and of fraction.
LAYOUT = {"F16": (5, 10), "BF16": (8, 7)}
#: numpy warns of overflow to infinity and of signalling NaNs; both are meant here.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in cast")


def bits_of(raw: bytes) -> NDArray[np.uint16]:
    return np.frombuffer(raw, "<u2")


def by_torch(raw: bytes, dtype: str) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (
        torch.frombuffer(bytearray(raw), dtype=TORCH[dtype]).to(torch.float64).numpy()
    )
    return found


def is_nan(patterns: NDArray[np.uint16], dtype: str) -> NDArray[np.bool_]:
    exponent, fraction = LAYOUT[dtype]
    top = ((1 << exponent) - 1) << fraction
    nan: NDArray[np.bool_] = (patterns & 0x7FFF) > top
    return nan


def value(bits: int, dtype: str) -> Fraction:
    """The value of a finite, non-negative pattern, from the definition of the format (IEEE 754,
    3.4).
    """
    exponent_bits, fraction_bits = LAYOUT[dtype]
    exponent, fraction = divmod(bits, 1 << fraction_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent == 0:
        return Fraction(fraction) * Fraction(2) ** (1 - bias - fraction_bits)
    return Fraction((1 << fraction_bits) + fraction) * Fraction(2) ** (
        exponent - bias - fraction_bits
    )


FINITE = {
    dtype: [value(bits, dtype) for bits in range(((1 << e) - 1) << f)]
    for dtype, (e, f) in LAYOUT.items()
}


def nearest(number: float, dtype: str) -> int:
    """The pattern nearest to a number that is not NaN, ties to even, by exact arithmetic."""
    sign = 0x8000 if math.copysign(1, number) < 0 else 0
    infinity = len(FINITE[dtype])
    if math.isinf(number):
        return sign | infinity
    exact = abs(Fraction(number))
    low = bisect_right(FINITE[dtype], exact) - 1
    # Above the largest finite number the next one would be one step further: from half of the step
    # on it is infinity.
    step = FINITE[dtype][-1] - FINITE[dtype][-2]
    high = FINITE[dtype][low + 1] if low + 1 < infinity else FINITE[dtype][-1] + step
    below, above = exact - FINITE[dtype][low], high - exact
    if below == above:
        return sign | (low + low % 2)
    return sign | min(low + (above < below), infinity)


def test_the_reference_itself() -> None:
    assert [value(bits, "F16") for bits in (0x3C00, 0x0001, 0x7BFF)] == [
        1,
        Fraction(1, 2**24),
        65504,
    ]
    assert [value(bits, "BF16") for bits in (0x3F80, 0x4049)] == [1, Fraction(3.140625)]
    assert [nearest(x, "F16") for x in (1.0, -2.0, 65519.99, 65520.0, 2**-25, 2**-25 + 2**-60)] == [
        0x3C00, 0xC000, 0x7BFF, 0x7C00, 0x0000, 0x0001
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_pattern_reads_as_in_torch(dtype: str) -> None:
    ours = to_float64(ALL_PATTERNS.tobytes(), dtype)
    assert ours.dtype == np.float64
    assert ours.shape == (65536,)
    np.testing.assert_array_equal(
        ours, by_torch(ALL_PATTERNS.tobytes(), dtype)
    )  # NaN equals NaN here
    np.testing.assert_array_equal(np.signbit(ours), ALL_PATTERNS >= 0x8000)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_a_few_floats_without_numpy_are_those_of_torch(dtype: str) -> None:
    raw = ALL_PATTERNS.tobytes()
    np.testing.assert_array_equal(few_floats(raw, dtype), by_torch(raw, dtype))


def test_whole_numbers_are_not_floats() -> None:
    with pytest.raises(ValueError, match="I64 is not a float"):
        few_floats(bytes(8), "I64")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_pattern_comes_back(dtype: str) -> None:
    back = bits_of(from_float64(to_float64(ALL_PATTERNS.tobytes(), dtype), dtype))
    nan = is_nan(ALL_PATTERNS, dtype)
    assert nan.sum() == {"F16": 2046, "BF16": 254}[dtype]
    np.testing.assert_array_equal(back[~nan], ALL_PATTERNS[~nan])
    assert is_nan(back[nan], dtype).all()


@pytest.mark.parametrize(("dtype", "words"), [("F32", "<u4"), ("F64", "<u8")])
def test_wide_floats_read_as_in_torch_and_come_back(dtype: str, words: str) -> None:
    rng = np.random.default_rng(0)
    raw = rng.bytes(int(words[2]) * 50_000)
    ours = to_float64(raw, dtype)
    back = np.frombuffer(from_float64(ours, dtype), words)
    np.testing.assert_array_equal(ours, by_torch(raw, dtype))
    nan = np.isnan(ours)
    assert 0 < nan.sum() < 1000  # one pattern of 256 or of 1024
    np.testing.assert_array_equal(back[~nan], np.frombuffer(raw, words)[~nan])


def hard_numbers(dtype: str) -> NDArray[np.float64]:
    """Random numbers over the whole range and beyond it, the middles between neighbours, and
    numbers very near to those.
    """
    rng = np.random.default_rng(1)
    exponents = rng.uniform(*{"F16": (-28, 18), "BF16": (-140, 130)}[dtype], 1500)
    spread = rng.choice([-1.0, 1.0], 1500) * rng.uniform(1, 2, 1500) * 2.0**exponents
    low = np.sort(rng.choice(len(FINITE[dtype]) - 1, 700, replace=False))
    low = np.concatenate(
        [low, np.arange(140), np.arange(len(FINITE[dtype]) - 140, len(FINITE[dtype]) - 1)]
    )
    middles = np.array([float((FINITE[dtype][at] + FINITE[dtype][at + 1]) / 2) for at in low])
    near = [middles * (1 + sign * 2.0**-power) for sign in (-1, 1) for power in (25, 30, 52)]
    last = float(
        FINITE[dtype][-1] + (FINITE[dtype][-1] - FINITE[dtype][-2]) / 2
    )  # the tie between the largest and infinity
    ends = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        last,
        -last,
        math.nextafter(last, 0),
        math.nextafter(last, math.inf),
        1e300,
        -1e300,
        5e-324,
    ]
    return np.concatenate([spread, middles, -middles, *near, ends])


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_is_exact(dtype: str) -> None:
    numbers = hard_numbers(dtype)
    ours = bits_of(from_float64(numbers, dtype))
    exact = np.array([nearest(float(number), dtype) for number in numbers], dtype=np.uint16)
    np.testing.assert_array_equal(ours, exact)
    assert {0x0000, 0x8000, len(FINITE[dtype]), len(FINITE[dtype]) | 0x8000} <= set(ours.tolist())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_torch_agrees_except_where_it_rounds_twice(dtype: str) -> None:
    numbers = hard_numbers(dtype)
    ours = bits_of(from_float64(numbers, dtype))
    theirs = torch.from_numpy(numbers).to(TORCH[dtype]).view(torch.int16).numpy().view(np.uint16)
    differ = np.flatnonzero(ours != theirs)
    assert len(differ) < len(numbers) / 2
    for at in differ:
        number = float(numbers[at])
        assert int(ours[at]) == nearest(number, dtype)
        single = torch.tensor(number, dtype=torch.float64).to(torch.float32)
        assert float(single) != number  # float32 has moved it onto a tie
        assert nearest(float(single), dtype) == int(theirs[at])


@RUNS
@given(st.floats(allow_nan=False))
@example(1 + 2**-8)  # a tie of bfloat16, down to even
@example(1 + 3 * 2**-8)  # a tie, up to even
@example(1 + 2**-8 + 2**-40)  # float32 makes a tie of it from above
@example(1 + 3 * 2**-8 - 2**-40)  # … and from below
@example(-(1 + 2**-8 + 2**-40))
@example(2.0**-134)  # half of the smallest bfloat16
@example(2.0**-134 * (1 + 2**-52))
@example(3.3895313892515355e38)  # the largest bfloat16
@example(3.3961775292304957e38)  # from here on: infinity
@example(1e39)
@example(-5e-324)
def test_bfloat16_is_rounded_once(number: float) -> None:
    assert bits_of(from_float64(np.array([number]), "BF16"))[0] == nearest(number, "BF16")


@RUNS
@given(st.floats(allow_nan=False))
@example(1 + 2**-11)
@example(1 + 2**-11 + 2**-52)
@example(2.0**-25)
@example(65520.0)
@example(math.nextafter(65520.0, 0))
def test_float16_is_rounded_once(number: float) -> None:
    assert bits_of(from_float64(np.array([number]), "F16"))[0] == nearest(number, "F16")


@RUNS
@given(st.floats(allow_nan=False))
def test_float32_is_rounded_as_in_c(number: float) -> None:
    ours = from_float64(np.array([number]), "F32")
    try:
        assert ours == struct.pack("<f", number)
    except OverflowError:
        assert ours == struct.pack("<f", math.copysign(math.inf, number))


@RUNS
@given(st.floats())
def test_float64_is_the_same(number: float) -> None:
    assert from_float64(np.array([number]), "F64") == struct.pack("<d", number)
    assert to_float64(struct.pack("<d", number), "F64").tobytes() == struct.pack("<d", number)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(
    "pattern", [0x7FF8000000000000, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x7FF0000000000001]
)
def test_nan_stays_nan(pattern: int, dtype: str) -> None:
    (bits,) = bits_of(from_float64(np.array([pattern], dtype=np.uint64).view(np.float64), dtype))
    assert is_nan(np.array([bits]), dtype).all()


INTEGERS: list[tuple[str, str, list[int]]] = [
    ("I64", "<3q", [-(2**53), 0, 2**53]),
    ("I32", "<3i", [-(2**31), 7, 2**31 - 1]),
    ("I16", "<3h", [-32768, 7, 32767]),
    ("I8", "<3b", [-128, 7, 127]),
    ("U64", "<3Q", [0, 7, 2**53]),
    ("U32", "<3I", [0, 7, 2**32 - 1]),
    ("U16", "<3H", [0, 7, 65535]),
    ("U8", "<3B", [0, 7, 255]),
    ("BOOL", "<3B", [0, 1, 1]),
]


@pytest.mark.parametrize(("dtype", "layout", "numbers"), INTEGERS)
def test_integers_are_read_exactly(dtype: str, layout: str, numbers: list[int]) -> None:
    assert to_float64(struct.pack(layout, *numbers), dtype).tolist() == numbers


def test_every_dtype_is_read_or_refused() -> None:
    assert FLOATS == ("F64", "F32", "F16", "BF16")
    readable = {*FLOATS, *(dtype for dtype, _, _ in INTEGERS)}
    assert set(DTYPE_BITS) - readable == {"C64", "F8_E4M3", "F8_E5M2"}


@pytest.mark.parametrize("dtype", ["C64", "F8_E4M3", "F8_E5M2", "bfloat16", ""])
def test_no_numbers(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"no arithmetic on dtype {dtype}"):
        to_float64(bytes(8), dtype)


@pytest.mark.parametrize(
    "dtype", [*(dtype for dtype, _, _ in INTEGERS), "C64", "F8_E4M3", "F8_E5M2", "float16"]
)
def test_no_rounding(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"can't round to dtype {dtype}"):
        from_float64(np.zeros(1), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_are_written_one_behind_the_other(dtype: str) -> None:
    table = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for values in (table, np.asfortranarray(table), np.repeat(table, 2, axis=1)[:, ::2]):
        assert to_float64(from_float64(values, dtype), dtype).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_and_memory_views(dtype: str) -> None:
    assert to_float64(b"", dtype).tolist() == []
    assert from_float64(np.zeros((0, 4)), dtype) == b""
    assert to_float64(memoryview(from_float64(np.array([1.5, -2.0]), dtype)), dtype).tolist() == [
        1.5,
        -2,
    ]


def test_the_input_is_left_alone() -> None:
    values = np.array([1 + 2**-8 + 2**-40, -3.0])
    before = values.copy()
    from_float64(values, "BF16")
    np.testing.assert_array_equal(values, before)


def float32_patterns() -> bytes:
    """Each upper half with lower halves on and beside the ties of BF16 and F16, and random ones."""
    upper = ALL_PATTERNS.astype(np.uint32) << 16
    lower = [
        0,
        1,
        0x0FFF,
        0x1000,
        0x1001,
        0x7FFF,
        0x8000,
        0x8001,
        0xFFFF,
        *np.random.default_rng(0).integers(0, 1 << 16, 8),
    ]
    return b"".join((upper | np.uint32(low)).astype("<u4").tobytes() for low in lower)


STORED = {"F16": ALL_PATTERNS.tobytes(), "BF16": ALL_PATTERNS.tobytes(), "F32": float32_patterns()}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("stored", STORED)
def test_cast_as_torch_does(stored: str, dtype: str) -> None:
    """Every half, and floats around every tie, to the bit; of NaN only that it stays one."""
    raw = STORED[stored]
    wanted = torch.frombuffer(bytearray(raw), dtype=TORCH[stored]).to(TORCH[dtype])
    found = torch.frombuffer(bytearray(cast(raw, stored, dtype)), dtype=TORCH[dtype])
    nan = torch.isnan(wanted)
    assert torch.equal(torch.isnan(found), nan)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    assert torch.equal(found.view(whole)[~nan], wanted.view(whole)[~nan])


@RUNS
@given(st.floats(allow_nan=False), st.sampled_from(["F16", "BF16"]))
def test_cast_from_float64_rounds_once(number: float, dtype: str) -> None:
    """Which torch doesn't: it goes by way of float32."""
    assert bits_of(cast(struct.pack("<d", number), "F64", dtype))[0] == nearest(number, dtype)


@pytest.mark.parametrize("stored", STORED)
def test_finite_as_torch_says(stored: str) -> None:
    raw = STORED[stored]
    wanted = torch.isfinite(torch.frombuffer(bytearray(raw), dtype=TORCH[stored])).numpy()
    assert 0 < wanted.sum() < len(wanted)
    np.testing.assert_array_equal(is_finite(raw, stored), wanted)


@RUNS
@given(st.floats())
@example(-math.inf)
@example(math.nan)
@example(-1.7976931348623157e308)
def test_finite_float64(number: float) -> None:
    assert is_finite(struct.pack("<d", number), "F64").tolist() == [math.isfinite(number)]


def test_integers_are_finite() -> None:
    assert all(is_finite(bytes([255] * 8), dtype).all() for dtype, _, _ in INTEGERS)
    with pytest.raises(ValueError, match="no arithmetic on dtype C64"):
        is_finite(bytes(8), "C64")


@pytest.mark.parametrize(
    ("dtype", "kind"), [("F16", "f2"), ("BF16", "f4"), ("F32", "f4"), ("F64", "f8"), ("I8", "i1")]
)
def test_numbers_keep_numpys_own_dtype(dtype: str, kind: str) -> None:
    found = read_numbers(
        from_float64(np.array([1.5]), dtype) if dtype in FLOATS else b"\x01", dtype
    )
    assert (found.dtype, found.tolist()) == (np.dtype(kind), [1.5 if dtype in FLOATS else 1])


@pytest.mark.parametrize(
    "pair", [("I64", "F16"), ("F16", "I8"), ("F8_E4M3", "F32"), ("F32", "BOOL")]
)
def test_cast_of_no_float(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="can't cast"):
        cast(b"", *pair)


@pytest.mark.parametrize(("stored", "wider"), [("BF16", "F32"), ("F16", "F32")])
def test_every_bit_pattern_survives_a_wider_dtype(stored: str, wider: str) -> None:
    """Signalling NaNs included: what is called exact comes back as it was."""
    raw = np.arange(1 << 16, dtype="<u2").tobytes()
    assert cast(cast(raw, stored, wider), wider, stored) == raw
