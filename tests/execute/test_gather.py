"""Tensors that are put in order in memory, window by window: the numbers that numpy has, however
small the windows, and however the source is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_remap.core.problem import RemapError
from llava_remap.execute import Recipe, apart, blocks, gather, merge
from llava_remap.execute.gather import in_order
from llava_remap.execute.merge import Merged
from llava_remap.planning import Box, Cast, Mapped, Part, blocks_between
from tests.execute.test_boxes import Floats, in_pieces, numbers, stored
from tests.execute.test_merge import COLUMNS, ROWS, merged, triple
from tests.planning.test_boxes import parts, region


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Windows, reads, gaps and strips of a few elements each."""
    with monkeypatch.context() as patched:
        patched.setattr(apart, "_FEW", 0)
        patched.setattr(apart, "_ROWS_NBYTES", 28)
        patched.setattr(apart, "_ELEMENTS_NBYTES", 44)
        patched.setattr(gather, "READ_NBYTES", 24)
        patched.setattr(gather, "_GAP_NBYTES", 8)
        patched.setattr(gather, "_STRIP", 2)
        patched.setattr(gather, "_FEW_ROWS", 1)
        patched.setattr(gather, "ROW_NBYTES", 6)
        yield patched


@given(parts(), st.integers(0, 300), st.integers(0, 300))
def test_blocks_of_a_window_have_what_numpy_has_there(part: Part, start: int, length: int) -> None:
    source = np.arange(prod(part.taken.view))
    wanted = np.full(part.placed.view, -1)
    region(wanted, part.placed)[...] = region(source, part.taken)
    wanted = wanted.ravel()
    wanted[:start] = wanted[start + length :] = -1
    found = np.full(wanted.shape, -1)
    for block in blocks_between(part, start, start + length):
        sizes = [axis.size for axis in block.axes]
        for index in np.ndindex(*sizes):
            at = block.placed + sum(i * a.placed for i, a in zip(index, block.axes, strict=True))
            assert found[at] == -1, "each element once"
            steps = (i * a.taken for i, a in zip(index, block.axes, strict=True))
            found[at] = source[block.taken + sum(steps)]
    np.testing.assert_array_equal(found, wanted)


@st.composite
def joined(draw: st.DrawFn) -> tuple[list[Part], list[Floats], Floats]:
    """Tensors whose axes are put in another order, and which follow one another along an axis."""
    rank = draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, 5)) for _ in range(rank)]
    axis = draw(st.integers(0, rank - 1))
    extents = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    shape = (*sizes[:axis], sum(extents), *sizes[axis + 1 :])
    found, tensors, pieces, at = [], [], [], 0
    for number, extent in enumerate(extents):
        inside = (*sizes[:axis], extent, *sizes[axis + 1 :])
        order = tuple(draw(st.permutations(range(rank))))
        own = tuple(inside[order.index(each)] for each in range(rank))
        tensor = numbers(*own, seed=number)
        start = tuple(at if each == axis else 0 for each in range(rank))
        stop = tuple(first + size for first, size in zip(start, inside, strict=True))
        taken = Box(f"s{number}", own, order, (0,) * rank, inside)
        placed = Box("t", shape, tuple(range(rank)), start, stop)
        found.append(Part("model", own, taken, placed))
        tensors.append(tensor)
        pieces.append(tensor.transpose(order))
        at += extent
    return found, tensors, np.concatenate(pieces, axis=axis)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    made=joined(),
    stored_otherwise=st.booleans(),
    dtype=st.sampled_from(["F32", "F16"]),
    data=st.data(),
)
def test_any_run_of_bytes_is_that_of_numpy(
    made: tuple[list[Part], list[Floats], Floats],
    stored_otherwise: bool,
    dtype: str,
    data: st.DataObject,
    small: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found, tensors, wanted = made
    named = {part.taken.name: tensor for part, tensor in zip(found, tensors, strict=True)}
    source = stored(tmp_path, named, stored_otherwise)
    raw = wanted.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=3))), len(raw)]
    for start, stop in pairwise(cuts):
        moved = in_order(
            found, lambda part: source.catalog[part.taken.name], dtype, start, stop, lambda: None
        )
        assert b"".join(moved) == raw[start:stop]


def written(entry: Mapped, sources: dict[str, Any]) -> bytes:
    return b"".join(blocks(Recipe({entry.target: entry}, {}, sources).pieces(entry.target)))


@pytest.mark.parametrize(("rows", "columns"), [(2, 8), (3, 5), (1, 1)])
def test_of_a_tensor_in_pieces(
    rows: int, columns: int, small: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensor = numbers(7, 8)
    sources = {"model": in_pieces(tmp_path, tensor, rows, columns)}
    taken = Box("w", (7, 8), (1, 0), (2, 1), (7, 6))
    part = Part("model", (7, 8), taken, Box.whole("t", (5, 5)))
    entry = Mapped("t", "F16", (5, 5), (part,), (Cast("F32"),), ())
    assert written(entry, sources) == tensor.T[2:7, 1:6].astype("<f2").tobytes()


@pytest.mark.parametrize("shape", [(300, 500), (1000, 64), (3, 20_000)])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_with_windows_as_they_are(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    """A transpose, and rows of two tensors side by side."""
    one, other = numbers(*shape), numbers(*shape, seed=1)
    sources = {"model": stored(tmp_path, {"one": one, "other": other})}
    then = (Cast("F32"),) if dtype == "F16" else ()
    rows, columns = shape
    taken = Box("one", shape, (1, 0), (0, 0), shape[::-1])
    turned = Part("model", shape, taken, Box.whole("t", shape[::-1]))
    entry = Mapped("t", dtype, shape[::-1], (turned,), then, ())
    kind = "<f2" if then else "<f4"
    assert written(entry, sources) == one.T.astype(kind).tobytes()
    beside = [
        Part(
            "model",
            shape,
            Box.whole(name, shape),
            Box("t", (rows, 2 * columns), (0, 1), (0, at), (rows, at + columns)),
        )
        for name, at in (("one", 0), ("other", columns))
    ]
    entry = Mapped("t", dtype, (rows, 2 * columns), tuple(beside), then, ())
    assert written(entry, sources) == np.concatenate((one, other), 1).astype(kind).tobytes()


def test_a_source_that_became_shorter_is_refused(tmp_path: Path) -> None:
    tensor = numbers(200, 100)
    source = stored(tmp_path, {"w": tensor})
    source.path.write_bytes(source.path.read_bytes()[:-4])
    taken = Box("w", (200, 100), (1, 0), (0, 0), (100, 200))
    part = Part("model", (200, 100), taken, Box.whole("t", (100, 200)))
    with pytest.raises(RemapError, match="LR102"):
        written(Mapped("t", "F32", (100, 200), (part,), (), ()), {"model": source})


def test_parts_that_leave_a_gap_write_nothing(small: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Memory that nothing filled never gets into a file."""
    source = stored(tmp_path, {"w": numbers(4, 4)})
    half = Box("w", (4, 4), (1, 0), (0, 0), (2, 4))
    gaps: Sequence[Part] = [Part("model", (4, 4), half, Box("t", (4, 4), (0, 1), (0, 0), (2, 4)))]
    with pytest.raises(AssertionError, match="planned"):
        b"".join(in_order(gaps, lambda part: source.catalog["w"], "F32", 0, 64, lambda: None))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("elements", [1, 50, 1 << 20])
@pytest.mark.parametrize(
    ("view", "axes", "start", "stop"),
    [
        ((ROWS, COLUMNS), (1, 0), (3, 5), (20, ROWS)),
        ((5, 4, 2, COLUMNS), (0, 2, 1, 3), (1, 0, 1, 0), (4, 2, 4, COLUMNS)),
        ((ROWS, 6, 4), (0, 2, 1), (0, 1, 2), (ROWS, 3, 6)),
        ((ROWS * COLUMNS // 32, 32), (1, 0), (1, 2), (30, 20)),  # across rows
    ],
)
def test_boxes_of_a_sum_have_its_bits(
    view: tuple[int, ...],
    axes: tuple[int, ...],
    start: tuple[int, ...],
    stop: tuple[int, ...],
    elements: int,
    dtype: str,
    small: pytest.MonkeyPatch,
) -> None:
    """Whatever rows and columns are computed together, the bits are those of the whole sum."""
    small.setattr(merge, "BLOCK_ELEMENTS", elements)
    w, a, b = triple(dtype, "F16")
    number = {"F16": "<u2", "BF16": "<u2", "F32": "<u4"}[dtype]
    whole = np.frombuffer(merged(w, a, b, 0.7), number)
    taken = Box("w", view, axes, start, stop)
    part = Part("m", w.shape, taken, Box.whole("t", taken.sizes))
    wanted = region(whole, taken).tobytes()
    found = in_order(
        [part],
        lambda part: w,
        dtype,
        0,
        len(wanted),
        lambda: None,
        lambda part: Merged(w, a, b, 0.7, dtype),
    )
    assert b"".join(found) == wanted
