"""Values of tensors: every planted difference is found as torch and numpy find it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llava_remap.checkpoint import Tensor, open_checkpoint
from llava_remap.verification.compare_values import compare_values
from llava_remap.verification.difference import Values

#: By torch's dtype, the integers that have as many bits.
BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.int8,
    torch.float8_e5m2: torch.int8,
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.int8: torch.int8,
    torch.uint8: torch.int8,
    torch.bool: torch.int8,
}


def stored(tensor: torch.Tensor, name: str) -> Tensor:
    save_file({"t": tensor}, f"{name}.safetensors")
    return open_checkpoint(Path(f"{name}.safetensors")).catalog["t"]


def compared(a: torch.Tensor, b: torch.Tensor) -> Values | None:
    return compare_values("t", stored(a, "a"), stored(b, "b"))


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_counts_distance_and_place_are_those_of_torch(dtype: torch.dtype) -> None:
    """Random bits, so that all kinds of numbers are among them, in more than one chunk."""
    numbers = np.random.default_rng(7)
    shape = (3, 1009, 101)
    a = torch.from_numpy(numbers.integers(-128, 128, (*shape, 8), dtype="i1"))
    a = a[..., : BITS[dtype].itemsize].contiguous().view(BITS[dtype]).reshape(shape)
    if dtype is torch.bool:
        a = a & 1
    b = a.clone()
    where = torch.from_numpy(numbers.integers(50_000, a.numel(), 40))
    b.view(-1)[where] ^= 1 if dtype is torch.bool else 5
    found = compared(a.view(dtype), b.view(dtype))
    other = torch.nonzero(a != b)
    assert found is not None
    assert (found.elements, found.differing) == (a.numel(), len(other))
    assert found.first.index == tuple(other[0].tolist())
    width = 8 * BITS[dtype].itemsize
    place = tuple(other[0])
    for element, side in ((found.first.a, a), (found.first.b, b)):
        assert int(element.bits, 16) == int(side[place]) % 2**width
        assert len(element.bits) == 2 + width // 4
    if dtype.is_floating_point:
        x, y = (side.view(dtype).double()[a != b] for side in (a, b))
        finite = x.isfinite() & y.isfinite()
        assert found.not_finite == int((~finite).sum())
        assert found.max_abs == float((x - y).abs()[finite].max())
    else:
        pairs = zip(*(side.view(dtype)[a != b].tolist() for side in (a, b)), strict=True)
        assert found.max_abs == max(abs(left - right) for left, right in pairs)


def test_equal_tensors_have_no_difference() -> None:
    a = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1.0])
    assert compared(a, a.clone()) is None
    assert compared(a, a.double()) is None
    assert compared(torch.zeros(0, 3), torch.zeros(0, 3)) is None
    assert compared(torch.tensor(2.0), torch.tensor(2, dtype=torch.int64)) is None


def test_nan_and_zero_are_compared_by_their_bits() -> None:
    a = torch.tensor([0x7FC00000, 0x7FC00000, 0, 0x3F800000, 0x7F800000], dtype=torch.int32)
    b = torch.tensor([0x7FC00000, 0x7FC00001, -(2**31), 0x3F800000, 0x3F800000], dtype=torch.int32)
    found = compared(a.view(torch.float32), b.view(torch.float32))
    assert found is not None
    assert (found.differing, found.nan_bits, found.zero_signs, found.not_finite) == (3, 1, 1, 2)
    assert found.max_abs == 0  # of the zeros; the other ones aren't finite
    assert (found.first.index, found.first.a.value) == ((1,), "nan")
    assert (found.first.a.bits, found.first.b.bits) == ("0x7fc00000", "0x7fc00001")


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.5 + 2**-40], dtype=torch.float64), 2**-40),
        (torch.tensor([2**53 + 1, 4]), torch.tensor([2.0**53, 4.0], dtype=torch.float64), None),
        (torch.tensor([2**63 - 1]), torch.tensor([2**63], dtype=torch.uint64), 1),
        (torch.tensor([-(2**63)]), torch.tensor([2**63 - 1]), 2**64 - 1),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 5j]), 3.0),
    ],
)
def test_numbers_of_other_dtypes_are_compared_exactly(
    a: torch.Tensor, b: torch.Tensor, distance: Any
) -> None:
    found = compared(a, b)
    assert found is not None
    assert found.differing == 1
    assert distance is None or found.max_abs == distance


def test_signed_zero_differs_in_other_dtypes_too() -> None:
    found = compared(torch.tensor([-0.0]), torch.tensor([0.0], dtype=torch.float16))
    assert found is not None
    assert (found.differing, found.zero_signs, found.first.a.value) == (1, 1, -0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounded_numbers_are_recognised(dtype: torch.dtype) -> None:
    a = torch.from_numpy(np.random.default_rng(3).normal(size=(300, 1000)))
    # torch rounds a float64 to float32 first.
    a = a if dtype is torch.float32 else a.float()
    b = a.to(dtype)
    for found, side in ((compared(a, b), "b"), (compared(b, a), "a")):
        assert found is not None
        assert found.rounded_in == side
    b.view(-1)[299_999] += 1
    found = compared(a, b)
    assert found is not None
    assert found.rounded_in is None


def test_memory_does_not_grow_with_the_tensor() -> None:
    a = torch.zeros(40, 1 << 20)
    b = a + 1
    one, other = stored(a, "a"), stored(b, "b")
    compare_values("t", stored(a[:1].clone(), "c"), stored(b[:1].clone(), "d"))  # imports
    tracemalloc.start()
    found = compare_values("t", one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found.differing == a.numel()
    assert peak < a.nbytes // 4
