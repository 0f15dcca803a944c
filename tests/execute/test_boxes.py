"""Tensors that are put together, against numpy: concatenated, split, stacked, seen otherwise, in
another dtype, and taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llava_remap.checkpoint import Checkpoint, Location, Piece, Tensor
from llava_remap.execute import Range, Recipe, blocks
from llava_remap.planning import Box, Cast, Mapped, Part
from llava_remap.planning.mapped import refuse_uncovered

Floats = NDArray[np.float32]


def stored(folder: Path, tensors: dict[str, Floats], stored_otherwise: bool = False) -> Checkpoint:
    """A checkpoint in one file; `stored_otherwise`: strided, with the high byte first."""
    file, catalog, raw = folder / "data.bin", {}, b""
    for name, tensor in tensors.items():
        number = tensor.astype(">f4" if stored_otherwise else "<f4")
        content = (number.T if stored_otherwise else number).tobytes()
        steps = [prod(tensor.shape[:axis]) for axis in range(tensor.ndim)]
        where = Location(
            file,
            len(raw),
            tuple(steps) if stored_otherwise else None,
            stored_otherwise,
            (len(raw), len(content)),
        )
        catalog[name] = Tensor.of(name, "F32", tensor.shape, where)
        raw += content
    file.write_bytes(raw)
    return Checkpoint(file, "made", catalog, {}, folder)


def numbers(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def written(entry: Mapped, sources: dict[str, Checkpoint]) -> NDArray[np.floating]:
    dtype = {"F32": "<f4", "F16": "<f2"}[entry.dtype]
    content = b"".join(blocks(Recipe({entry.target: entry}, {}, sources).pieces(entry.target)))
    return np.frombuffer(content, dtype).reshape(entry.shape)


def whole_of(name: str, shape: tuple[int, ...], placed: Box) -> Part:
    return Part("model", shape, Box.whole(name, shape), placed)


def concatenated() -> tuple[dict[str, Floats], tuple[Part, ...], Floats]:
    """Along the second axis: no part is contiguous in the target."""
    a, b = numbers(3, 2), numbers(3, 4, seed=1)
    parts = (
        whole_of("a", (3, 2), Box("t", (3, 6), (0, 1), (0, 0), (3, 2))),
        whole_of("b", (3, 4), Box("t", (3, 6), (0, 1), (0, 2), (3, 6))),
    )
    return {"a": a, "b": b}, parts, np.concatenate((a, b), axis=1)


def stacked() -> tuple[dict[str, Floats], tuple[Part, ...], Floats]:
    experts = {f"e{n}": numbers(2, 3, seed=n) for n in range(4)}
    parts = tuple(
        Part(
            "model",
            (2, 3),
            Box(name, (1, 2, 3), (0, 1, 2), (0, 0, 0), (1, 2, 3)),
            Box("t", (4, 2, 3), (0, 1, 2), (n, 0, 0), (n + 1, 2, 3)),
        )
        for n, name in enumerate(experts)
    )
    return experts, parts, np.stack([*experts.values()])


def split() -> tuple[dict[str, Floats], tuple[Part, ...], Floats]:
    qkv = numbers(9, 4)
    taken = Box("qkv", (9, 4), (0, 1), (3, 0), (6, 4))
    return {"qkv": qkv}, (Part("model", (9, 4), taken, Box.whole("t", (3, 4))),), qkv[3:6]


def transposed() -> tuple[dict[str, Floats], tuple[Part, ...], Floats]:
    w = numbers(5, 3)
    taken = Box("w", (5, 3), (1, 0), (0, 0), (3, 5))
    return {"w": w}, (Part("model", (5, 3), taken, Box.whole("t", (3, 5))),), w.T


def permuted() -> tuple[dict[str, Floats], tuple[Part, ...], Floats]:
    """Rope's halves, interleaved in the source."""
    w = numbers(2 * 3 * 2, 5)
    taken = Box("w", (2, 3, 2, 5), (0, 2, 1, 3), (0, 0, 0, 0), (2, 2, 3, 5))
    placed = Box.whole("t", (2, 2, 3, 5))
    wanted = w.reshape(2, 3, 2, 5).transpose(0, 2, 1, 3).reshape(12, 5)
    return {"w": w}, (Part("model", (12, 5), taken, placed),), wanted


MADE = [concatenated, stacked, split, transposed, permuted]


@pytest.mark.parametrize("stored_otherwise", [False, True], ids=["plain", "strided"])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("make", MADE)
def test_as_numpy_puts_them_together(
    make: Callable[[], tuple[dict[str, Floats], tuple[Part, ...], Floats]],
    dtype: str,
    stored_otherwise: bool,
    tmp_path: Path,
) -> None:
    tensors, parts, wanted = make()
    sources = {"model": stored(tmp_path, tensors, stored_otherwise)}
    then = (Cast("F32"),) if dtype != "F32" else ()
    entry = Mapped("t", dtype, wanted.shape, parts, then, ())
    assert np.array_equal(written(entry, sources), wanted.astype("f2" if then else "f4"))


@pytest.mark.parametrize("make", [concatenated, stacked, transposed, permuted])
def test_and_back(
    make: Callable[[], tuple[dict[str, Floats], tuple[Part, ...], Floats]], tmp_path: Path
) -> None:
    """Every source tensor from the parts, swapped."""
    tensors, parts, wanted = make()
    converted = {"converted": stored(tmp_path, {"t": wanted})}
    for name, tensor in tensors.items():
        back = tuple(
            part.swapped("converted", wanted.shape) for part in parts if part.taken.name == name
        )
        entry = Mapped(name, "F32", tensor.shape, back, (), ())
        assert np.array_equal(written(entry, converted), tensor)


def test_a_split_is_one_range(tmp_path: Path) -> None:
    tensors, parts, _ = split()
    source = stored(tmp_path, tensors)
    recipe = Recipe({"t": Mapped("t", "F32", (3, 4), parts, (), ())}, {}, {"model": source})
    wanted = Range(source.path, 3 * 4 * 4, 3 * 4 * 4)
    assert recipe.copied("t") == wanted
    assert [*recipe.pieces("t")] == [wanted]


def test_a_post_load_rule_reads_what_is_put_together(tmp_path: Path) -> None:
    """In the dtype that is stored, whatever is written."""
    tensors, parts, wanted = concatenated()
    entry = Mapped("t", "F16", wanted.shape, parts, (Cast("F32"),), ())
    recipe = Recipe({"t": entry}, {}, {"model": stored(tmp_path, tensors)})
    assert np.array_equal(recipe._read("t", 1, 3, as_stored=True), wanted[1:3])
    assert np.array_equal(recipe._read("t", 0, 3), wanted.astype("f8"))


@pytest.mark.parametrize("make", MADE)
def test_json_and_back(
    make: Callable[[], tuple[dict[str, Floats], tuple[Part, ...], Floats]],
) -> None:
    _, parts, wanted = make()
    entry = Mapped("t", "F32", wanted.shape, parts, (), ("tensors/x",))
    assert Mapped.from_json(entry.to_json()) == entry
    with pytest.raises(ValueError, match="don't cover it"):
        refuse_uncovered([replace(entry, parts=(*parts, parts[0]))])


def test_each_of_two_tensors_of_one_name_is_covered_by_its_own_parts() -> None:
    """As two towers have them, restored into two folders."""
    one, other = (
        Mapped("t", "F32", shape, (Part.whole("converted", "a", "t", shape),), (), ())
        for shape in ((2, 3), (4, 5))
    )
    refuse_uncovered([one, other])
    rows = ((2, 3), (0, 1), (0, 0), (1, 3))
    half = Part("converted", (2, 3), Box("a", *rows), Box("t", *rows))
    with pytest.raises(ValueError, match="don't cover it"):
        refuse_uncovered([replace(one, parts=(half,)), one])


def in_pieces(folder: Path, tensor: Floats, rows: int, columns: int) -> Checkpoint:
    """A matrix in files of their own for each block of so many rows and columns, as sharded
    checkpoints have them; the blocks at the end are smaller.
    """
    pieces = []
    for top in range(0, tensor.shape[0], rows):
        for left in range(0, tensor.shape[1], columns):
            block = tensor[top : top + rows, left : left + columns]
            file = folder / f"{top}-{left}.bin"
            file.write_bytes(b"head" + block.astype("<f4").tobytes())
            stop = (top + block.shape[0], left + block.shape[1])
            where = Location(file, 4, None, False, (4, block.nbytes))
            pieces.append(Piece((top, left), stop, where))
    whole = Tensor("w", "F32", tensor.shape, tuple(reversed(pieces)))
    return Checkpoint(folder, "made", {"w": whole}, {}, folder)


@pytest.mark.parametrize(("rows", "columns"), [(2, 8), (7, 3), (3, 5), (1, 1)])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_a_tensor_in_pieces(rows: int, columns: int, dtype: str, tmp_path: Path) -> None:
    """Whole, and of it a transposed part; copied and in another dtype."""
    tensor = numbers(7, 8)
    sources = {"model": in_pieces(tmp_path, tensor, rows, columns)}
    then = (Cast("F32"),) if dtype != "F32" else ()
    whole = Mapped("t", dtype, (7, 8), (Part.whole("model", "w", "t", (7, 8)),), then, ())
    assert np.array_equal(written(whole, sources), tensor.astype("f2" if then else "f4"))
    taken = Box("w", (7, 8), (1, 0), (2, 1), (7, 6))
    part = Part("model", (7, 8), taken, Box.whole("t", (5, 5)))
    turned = Mapped("t", dtype, (5, 5), (part,), then, ())
    wanted = tensor.T[2:7, 1:6]
    assert np.array_equal(written(turned, sources), wanted.astype("f2" if then else "f4"))


def test_rows_of_blocks_are_ranges_of_their_files(tmp_path: Path) -> None:
    """What is sharded along the first axis is copied, a range for each file."""
    source = in_pieces(tmp_path, numbers(6, 4), 2, 4)
    entry = Mapped("t", "F32", (6, 4), (Part.whole("model", "w", "t", (6, 4)),), (), ())
    recipe = Recipe({"t": entry}, {}, {"model": source})
    assert not recipe.computes("t")
    assert recipe.copied("t") is None
    ranges = [Range(tmp_path / f"{top}-0.bin", 4, 2 * 4 * 4) for top in (0, 2, 4)]
    assert [*recipe.pieces("t")] == ranges


def test_an_empty_tensor_has_no_bytes(tmp_path: Path) -> None:
    source = stored(tmp_path, {"w": numbers(0, 4)})
    entry = Mapped("t", "F32", (0, 4), (Part.whole("model", "w", "t", (0, 4)),), (), ())
    recipe = Recipe({"t": entry}, {}, {"model": source})
    assert recipe.copied("t") is None
    assert b"".join(blocks(recipe.pieces("t"))) == b""
