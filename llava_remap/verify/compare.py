"""Bit equality of an output with its sources: what the plan says of each tensor is done again,
in memory, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llava_remap.checkpoint import Catalog, Tensor
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS
from llava_remap.core.problem import Problem
from llava_remap.execute import Range, Recipe, equal
from llava_remap.plan import Mapped

_FIX = "It isn't the checkpoint that this was made from, or one of the two has been changed since."


def compare(
    written: Catalog, recipe: Recipe, on_progress: Callable[[int], None] = lambda nbytes: None
) -> tuple[int, list[Problem]]:
    """Hold every tensor of an output against what its sources give; gives the number of tensors
    compared, and LR602.

    A tied one, which isn't written, is held against the one that it is tied to.

    Args:
        written: the output's tensors.
        recipe: how they are made.
        on_progress: called with the number of bytes compared since the last call.

    Raises:
        RemapError: as `Recipe.pieces`.
    """
    rows = []
    for entry in recipe.mapped.values():
        if entry.op == "tied":
            difference = _tie(written, entry, recipe)
        else:
            difference = _difference(written.get(entry.target), entry, recipe, on_progress)
        if difference:
            rows.append((entry.target, difference))
    rows += [
        (name, "comes from nowhere, by the record")
        for name in sorted(written.keys() - recipe.mapped.keys())
    ]
    count = len(recipe.mapped)
    if not rows:
        return count, []
    cause = f"{len(rows)} of {count} tensors are not what the sources give."
    return count, [Problem("LR602", cause, _FIX, tuple(name for name, _ in rows), tuple(rows))]


def _tie(written: Catalog, entry: Mapped, recipe: Recipe) -> str:
    """How a tensor that the model ties to another one, and that isn't written, is another one in
    its source.
    """
    other = recipe.mapped.get(entry.tied_to or "")
    if entry.target in written or other is None:
        return "is tied to another parameter by the record, and is not in the folder"
    if difference := _other_source(entry, recipe) or _other_source(other, recipe):
        return difference
    same = equal(recipe.source(entry.target), recipe.source(other.target))
    return "" if same else f"is tied to `{other.target}`, and has other values in its source"


def _difference(
    tensor: Tensor | None, entry: Mapped, recipe: Recipe, on_progress: Callable[[int], None]
) -> str:
    """How a tensor differs, in words; empty where it doesn't."""
    if tensor is None:
        return "is not there"
    if (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
        return (
            f"is {tensor.dtype} {list(tensor.shape)}, the record says {entry.dtype} "
            f"{list(entry.shape)}"
        )
    change = recipe.post_load.get(entry.target)
    for name in (
        entry.target,
        *(change.change.reads if change is not None else ()),
    ):  # new values may be made from others
        if difference := _other_source(recipe.mapped[name], recipe):
            return difference
    return _values(tensor, _blocks(recipe, entry.target), on_progress)


def _other_source(entry: Mapped, recipe: Recipe) -> str:
    """How the tensor that a source has for an entry isn't what it was, by its header."""
    if entry.is_made:
        return ""
    origin, *matrices = entry.from_
    source = recipe.checkpoints[origin.source].catalog.get(origin.name)
    if source is None:
        return f"comes from `{origin.name}`, which source `{origin.source}` doesn't have"
    change = recipe.post_load.get(entry.target if entry.op != "tied" else entry.tied_to or "")
    shape = (
        entry.shape
        if change is None or change.change.shape_before is None
        else change.change.shape_before
    )
    if (source.dtype, source.shape) != (entry.stored_dtype, shape):
        was = f"{entry.stored_dtype} {list(shape)}"
        return (
            f"comes from `{origin.name}`, which is {source.dtype} {list(source.shape)} and was "
            f"{was}"
        )
    sizes = (
        []
        if entry.merge is None
        else [(entry.merge.rank, *shape[1:]), (*shape[:1], entry.merge.rank)]
    )
    for matrix, size in zip(matrices, sizes, strict=True):
        other = recipe.checkpoints[matrix.source].catalog.get(matrix.name)
        if other is None or other.shape != size or other.dtype not in FLOATS:
            said = "isn't there" if other is None else f"is {other.dtype} {list(other.shape)}"
            return (
                f"is merged with `{matrix.name}`, a matrix of floats {list(size)}; in source "
                f"`{matrix.source}` it {said}"
            )
    return ""


def _blocks(recipe: Recipe, target: str) -> Iterator[bytes]:
    for piece in recipe.pieces(target):
        if isinstance(piece, Range):
            yield from piece.blocks()
        else:
            yield piece


def _values(tensor: Tensor, wanted: Iterator[bytes], on_progress: Callable[[int], None]) -> str:
    """Which share of the values differs, and by how much at most; both sides have whole elements
    in every block.
    """
    where = tensor.location
    assert where is not None
    offset, differing, furthest = where.offset, 0, 0.0
    for block in wanted:
        have = b"".join(Range(where.file, offset, len(block)).blocks())
        offset += len(block)
        on_progress(len(block))
        if have != block:
            count, distance = _distance(have, block, tensor.dtype)
            differing, furthest = differing + count, max(furthest, distance)
    if offset != where.offset + tensor.nbytes:
        return (
            f"has {tensor.nbytes:,} bytes, and {offset - where.offset:,} are made from the sources"
        )
    if not differing:
        return ""
    return (
        f"{differing:,} of {tensor.nbytes * 8 // DTYPE_BITS[tensor.dtype]:,} values differ, by "
        f"up to {furthest:.3g}"
    )


def _distance(have: bytes, wanted: bytes, dtype: str) -> tuple[int, float]:
    """How many elements have other bits, and the largest difference between them (infinite where
    one of two is no number).
    """
    import numpy as np

    from llava_remap.core.dtypes import to_float64

    width = np.dtype(f"u{DTYPE_BITS[dtype] // 8}")
    other = np.frombuffer(have, width) != np.frombuffer(wanted, width)
    with np.errstate(invalid="ignore"):
        apart = np.abs(to_float64(have, dtype) - to_float64(wanted, dtype))[other]
    return int(np.count_nonzero(other)), float(
        np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max()
    )
