"""Tensors that are compared by value, however they lie in their files."""

from __future__ import annotations

from pathlib import Path

import torch

from llava_remap.checkpoint import Location, Tensor
from llava_remap.execute import value_checks


def test_strided_tensors_are_compared_by_value(tmp_path: Path) -> None:
    """More than one chunk of each: a strided and a contiguous copy of one matrix are equal, and
    one value makes them differ.
    """
    matrix = torch.arange(1024 * 600, dtype=torch.float32).reshape(1024, 600)
    (tmp_path / "rows").write_bytes(matrix.numpy().tobytes())
    (tmp_path / "columns").write_bytes(matrix.T.contiguous().numpy().tobytes())
    nbytes = matrix.numel() * 4
    rows = Tensor.of(
        "w", "F32", (1024, 600), Location(tmp_path / "rows", 0, None, False, (0, nbytes))
    )
    columns = Tensor.of(
        "w", "F32", (1024, 600), Location(tmp_path / "columns", 0, (1, 1024), False, (0, nbytes))
    )
    assert value_checks.equal(rows, columns)
    matrix[1000, 3] += 1
    (tmp_path / "rows").write_bytes(matrix.numpy().tobytes())
    assert not value_checks.equal(rows, columns)


def test_zeros_of_another_sign_are_other_values(tmp_path: Path) -> None:
    """In another dtype, too: what is written for both has one of the two signs."""
    (tmp_path / "one").write_bytes(torch.zeros(5).numpy().tobytes())
    (tmp_path / "other").write_bytes((-torch.zeros(5)).half().numpy().tobytes())
    one = Tensor.of("a", "F32", (5,), Location(tmp_path / "one", 0, None, False, (0, 20)))
    other = Tensor.of("b", "F16", (5,), Location(tmp_path / "other", 0, None, False, (0, 10)))
    assert not value_checks.equal(one, other)
    (tmp_path / "other").write_bytes(torch.zeros(5).half().numpy().tobytes())
    assert value_checks.equal(one, other)
