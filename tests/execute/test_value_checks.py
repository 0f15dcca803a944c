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
