"""LoRA pairs follow their rows through any operation: numpy adds the products, then divides, joins
and reorders the matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llava_remap.checkpoint import Checkpoint, Location, Tensor
from llava_remap.core.dtypes import from_float64, to_float64
from llava_remap.execute import Recipe, blocks
from llava_remap.planning import AddLora, Mapped, Part
from llava_remap.planning.place import PartOfWhole, place, viewed
from llava_remap.routing import SourceName
from llava_remap.rulefile import AS_STORED, Join, Seen

Matrix = NDArray[np.float64]
RANK, SCALE = 3, 0.75


class Source:
    """Random matrices in a file, with a LoRA pair for some."""

    def __init__(self, **shapes: tuple[int, int]) -> None:
        self._draw = np.random.default_rng(7)
        self.values: dict[str, Matrix] = {}
        self._tensors: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            self._store(name, shape)

    def _store(self, name: str, shape: tuple[int, ...]) -> Matrix:
        raw = from_float64(self._draw.normal(size=shape), "F32")
        path = Path(f"{name}.bytes")
        path.write_bytes(raw)
        where = Location(path, 0, None, False, (0, len(raw)))
        self._tensors[name] = Tensor.of(name, "F32", shape, where)
        self.values[name] = to_float64(raw, "F32").reshape(shape)
        return self.values[name]

    def pair(self, name: str, shape: tuple[int, ...], *, made: bool = False) -> AddLora:
        """A pair on a matrix, or on the one that the parts make."""
        a, b = f"{name}.a", f"{name}.b"
        product = SCALE * self._store(b, (shape[0], RANK)) @ self._store(a, (RANK, shape[1]))
        self.values[name] = self.values.get(name, np.zeros(shape)) + product
        base = None if made else SourceName("m", name)
        return AddLora(base, SourceName("m", a), SourceName("m", b), RANK, SCALE)

    def made(self, entry: Mapped) -> Matrix:
        checkpoint = Checkpoint(Path(), "", self._tensors, {}, Path())
        raw = b"".join(blocks(Recipe({entry.target: entry}, {}, {"m": checkpoint}).pieces("t")))
        return to_float64(raw, "F32").reshape(entry.shape)


Joined = Callable[[list[Matrix]], Matrix]
#: What numpy makes of the matrices, and the same as an operation.
OPERATIONS: dict[str, tuple[Joined, Seen, Join, list[Seen]]] = {
    "rows": (lambda m: np.concatenate(m), AS_STORED, Join(along=0), []),
    "columns": (lambda m: np.concatenate(m, 1), AS_STORED, Join(along=1), []),
    "stacked": (lambda m: np.stack(m), AS_STORED, Join(stacked=0), []),
    "stacked-inside": (lambda m: np.stack(m, 1), AS_STORED, Join(stacked=1), []),
    "stacked-last": (lambda m: np.stack(m, 2), AS_STORED, Join(stacked=2), []),
    "turns": (
        lambda m: np.stack(m, 1).reshape(-1, m[0].shape[1]),
        Seen(0, ("*", 2)),
        Join(stacked=1),
        [],
    ),
    "turned": (lambda m: np.concatenate(m).T, Seen(axes=(1, 0)), Join(along=0), []),
    "one-turned": (
        lambda m: np.concatenate([m[0].T, m[1].T], 1),
        AS_STORED,
        Join(along=1),
        [Seen(axes=(1, 0))] * 2,
    ),
    "rope": (
        lambda m: np.concatenate(
            [one.reshape(4, -1, 2, one.shape[1]).swapaxes(1, 2).reshape(one.shape) for one in m]
        ),
        AS_STORED,
        Join(along=0),
        [Seen(0, (4, "*", 2), (0, 2, 1))] * 2,
    ),
}


@pytest.mark.parametrize("pairs", [("x",), ("x", "y")], ids="-".join)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_pairs_of_matrices_that_are_joined(operation: str, pairs: tuple[str, ...]) -> None:
    join, seen, joined, parts_seen = OPERATIONS[operation]
    shape = (16, 12)
    source = Source(x=shape, y=shape)
    then = tuple(source.pair(name, shape) for name in pairs)
    wanted = join([source.values["x"], source.values["y"]])
    views = parts_seen or [AS_STORED, AS_STORED]
    ends = [
        [PartOfWhole(viewed(name, shape, view, {}))] for name, view in zip("xy", views, strict=True)
    ]
    parts = []
    for [region] in place(viewed("t", wanted.shape, seen, {}), joined, ends):
        assert region.in_part is not None
        parts.append(Part("m", shape, region.in_part, region.in_whole))
    entry = Mapped("t", "F32", wanted.shape, tuple(parts), then, ())
    np.testing.assert_allclose(source.made(entry), wanted, rtol=2e-7, atol=2e-7)


DIVISIONS: dict[str, tuple[Callable[[Matrix], Matrix], Seen, Join]] = {
    "rows": (lambda m: np.split(m, 3)[1], AS_STORED, Join(along=0)),
    "columns": (lambda m: np.split(m, 3, 1)[1], AS_STORED, Join(along=1)),
    "turns": (lambda m: m[1::3], Seen(0, ("*", 3)), Join(stacked=1)),
    "turned": (lambda m: np.split(m.T, 3)[1], Seen(axes=(1, 0)), Join(along=0)),
}


@pytest.mark.parametrize("made", [False, True], ids=["taken", "made"])
@pytest.mark.parametrize("division", DIVISIONS)
def test_a_pair_of_a_matrix_that_is_divided(division: str, made: bool) -> None:
    """A pair on the matrix that is taken, or on the part that is made."""
    divide, seen, join = DIVISIONS[division]
    shape = (24, 36)
    source = Source(w=shape)
    then = () if made else (source.pair("w", shape),)
    wanted = divide(source.values["w"])
    if made:
        then = (source.pair("t", wanted.shape, made=True),)
        wanted = wanted + source.values["t"]
    ends = [[PartOfWhole(viewed(name, wanted.shape, AS_STORED, {}))] for name in "qtv"]
    [region] = place(viewed("w", shape, seen, {}), join, ends)[1]
    assert region.in_part is not None
    entry = Mapped(
        "t", "F32", wanted.shape, (Part("m", shape, region.in_whole, region.in_part),), then, ()
    )
    np.testing.assert_allclose(source.made(entry), wanted, rtol=2e-7, atol=2e-7)
    assert prod(wanted.shape) * 3 == prod(shape)
