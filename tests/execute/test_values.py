"""Values of source tensors, however they lie: the same elements, in memory that a chunk takes
and not the tensor.
"""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llava_remap.checkpoint import Tensor
from llava_remap.checkpoint.catalog import Location
from llava_remap.core.problem import RemapError
from llava_remap.execute.values import CHUNK_ELEMENTS, chunks, rows

SHAPE = (3000, 700)
ELEMENTS = np.random.default_rng(0).integers(0, 0x7C00, SHAPE).astype("<u2")
KINDS = [
    "row by row",
    "column by column",
    "big-endian",
    "big-endian, column by column",
    "with gaps",
    "one row many times",
]


def laid_out(kind: str, folder: Path) -> tuple[Tensor, NDArray[np.uint16]]:
    """A tensor in a file, 16 bytes behind its start, and its elements."""
    rows, columns = SHAPE
    data, stride, first, wanted = ELEMENTS.tobytes(), None, 0, ELEMENTS
    if kind.endswith("column by column"):
        data, stride = (
            ELEMENTS.T.astype(">u2" if kind.startswith("big") else "<u2").tobytes(),
            (1, rows),
        )
    elif kind == "big-endian":
        data = ELEMENTS.astype(">u2").tobytes()
    elif kind == "with gaps":
        first, stride, wanted = 5, (columns, 2), ELEMENTS[:, 5::2][:, :300]
    elif kind == "one row many times":
        stride, wanted = (0, 1), np.broadcast_to(ELEMENTS[0], SHAPE)
    path = folder / "data"
    path.write_bytes(bytes(16) + data)
    where = Location(path, 16 + 2 * first, stride, kind.startswith("big-endian"), (16, len(data)))
    return Tensor.of("x", "F16", wanted.shape, where), wanted


@pytest.mark.parametrize("kind", KINDS)
def test_chunks(kind: str, tmp_path: Path) -> None:
    tensor, wanted = laid_out(kind, tmp_path)
    found = list(chunks(tensor))
    assert b"".join(found) == wanted.tobytes()
    assert {len(chunk) for chunk in found[:-1]} == {2 * CHUNK_ELEMENTS}


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 0), (0, 1), (1, 2), (3, 1_000_001), (524_287, 524_289), (1_799_998, 1_800_000)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_bytes(kind: str, start: int, stop: int, tmp_path: Path) -> None:
    """Also one that begins or ends inside an element."""
    tensor, wanted = laid_out(kind, tmp_path)
    assert b"".join(chunks(tensor, start, stop)) == wanted.tobytes()[start:stop]


@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind: str, tmp_path: Path) -> None:
    tensor, wanted = laid_out(kind, tmp_path)
    for start, stop in ((0, 1), (17, 600), (2999, 3000), (5, 5)):
        np.testing.assert_array_equal(
            rows(tensor, start, stop), wanted[start:stop].view("<f2").astype(np.float64)
        )


def test_rows_of_a_vector(tmp_path: Path) -> None:
    tensor, wanted = laid_out("row by row", tmp_path)
    vector = Tensor.of("x", "F16", (700,), tensor.location)
    np.testing.assert_array_equal(
        rows(vector, 10, 20), wanted[0, 10:20].view("<f2").astype(np.float64)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_a_chunk(kind: str, tmp_path: Path) -> None:
    tensor, _ = laid_out(kind, tmp_path)
    list(chunks(tensor, 0, 100))  # what is imported on the way
    tracemalloc.start()
    try:
        for _ in chunks(tensor):
            pass
        for start in range(0, 3000, 100):
            rows(tensor, start, start + 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2 * CHUNK_ELEMENTS < tensor.nbytes + 2 * CHUNK_ELEMENTS


@pytest.mark.parametrize("stride", [None, (1, 3)])
def test_halves_of_complex_numbers_have_their_own_byte_order(
    stride: tuple[int, int] | None, tmp_path: Path
) -> None:
    """So torch has it, which swaps the bytes of each half."""
    numbers = np.arange(12, dtype="<f4").view("<c8").reshape(3, 2)
    stored = numbers.astype(">c8")
    data = stored.tobytes() if stride is None else stored.T.tobytes()
    (tmp_path / "data").write_bytes(data)
    tensor = Tensor.of(
        "x", "C64", (3, 2), Location(tmp_path / "data", 0, stride, True, (0, len(data)))
    )
    assert b"".join(chunks(tensor)) == numbers.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_has_become_shorter(kind: str, tmp_path: Path) -> None:
    tensor, _ = laid_out(kind, tmp_path)
    path = tmp_path / "data"
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(RemapError, match=r"LR102.*it became shorter after its header was read"):
        list(chunks(tensor))


@pytest.mark.parametrize("kind", ["row by row", "big-endian"])
def test_a_disk_that_fails(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, _ = laid_out(kind, tmp_path)

    def failing(*arguments: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(RemapError, match=r"LR102.*can't be read: Input/output error"):
        list(chunks(tensor))
