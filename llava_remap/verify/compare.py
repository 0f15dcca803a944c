"""Bit equality of an output with its sources: each tensor is made again by the plan, in memory,
block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from llava_remap.checkpoint import Catalog, Tensor
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, to_float64
from llava_remap.core.problem import Problem
from llava_remap.execute import Range, Recipe, blocks, equal, find
from llava_remap.plan import Alias, Mapped
from llava_remap.routing import SourceName

_FIX = "It isn't the checkpoint that this was made from, or one of the two has been changed since."


def compare(
    written: Catalog,
    recipe: Recipe,
    aliases: Sequence[Alias] = (),
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> tuple[int, list[Problem]]:
    """Compare every tensor of an output with its sources. The source tensor of an alias, which
    isn't written, is compared with that of the tensor it is tied to.

    Args:
        written: the output's tensors.
        recipe: how the tensors are made.
        aliases: names that the model ties to other tensors.
        on_progress: called with the number of bytes compared since the last call.

    Returns:
        The number of tensors compared, and LR602.

    Raises:
        RemapError: as `Recipe.pieces`.
    """
    found = {
        entry.target: _difference(written.get(entry.target), entry, recipe, on_progress)
        for entry in recipe.mapped.values()
    }
    found |= {alias.target: _tie(written, alias, recipe) for alias in aliases}
    rows = [(name, difference) for name, difference in sorted(found.items()) if difference]
    unknown = sorted(written.keys() - found.keys())
    rows += [(name, "has no source in the record") for name in unknown]
    cause = f"{len(rows)} of {len(found)} tensors are not what the sources give."
    return len(found), tabled("LR602", cause, _FIX, rows)


def tabled(code: str, cause: str, fix: str, rows: Sequence[tuple[str, str]]) -> list[Problem]:
    """The problem of a table of names, each with its own fact; none for an empty table."""
    return [Problem(code, cause, fix, tuple(name for name, _ in rows), tuple(rows))] if rows else []


def _tie(written: Catalog, alias: Alias, recipe: Recipe) -> str:
    """How an alias, which isn't written, differs in its source from the tensor it is tied to."""
    other = recipe.mapped.get(alias.of)
    if alias.target in written or other is None:
        return "is tied to another parameter by the record, and is not in the folder"
    if len(other.parts) != 1 or not other.parts[0].is_whole:
        return f"is tied to `{alias.of}`, which is put together from several tensors"
    if difference := _other_header(
        alias.source, (alias.dtype, alias.shape), recipe
    ) or _other_source(other, recipe):
        return difference
    own, its = (find(recipe.checkpoints, name) for name in (alias.source, *other.origins))
    return "" if equal(own, its) else f"is tied to `{alias.of}`, and has other values in its source"


def _difference(
    tensor: Tensor | None, entry: Mapped, recipe: Recipe, on_progress: Callable[[int], None]
) -> str:
    """How a tensor differs, in words; empty for no difference."""
    if tensor is None:
        return "is not there"
    if (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
        have, said = (f"{t.dtype} {list(t.shape)}" for t in (tensor, entry))
        return f"is {have}, the record says {said}"
    change = recipe.post_load.get(entry.target)
    # New values may be made from other tensors.
    for name in (entry.target, *(change.change.reads if change is not None else ())):
        if difference := _other_source(recipe.mapped[name], recipe):
            return difference
    return _values(tensor, blocks(recipe.pieces(entry.target)), on_progress)


def _other_source(entry: Mapped, recipe: Recipe) -> str:
    """How the source tensors of an entry have changed, by their headers."""
    for part in entry.parts:
        origin = SourceName(part.source, part.taken.name)
        if difference := _other_header(origin, (entry.stored_dtype, part.shape), recipe):
            return difference
    if (lora := entry.lora) is None:
        return ""
    rows, columns = entry.shape_before
    for matrix, size in ((lora.a, (lora.rank, columns)), (lora.b, (rows, lora.rank))):
        other = recipe.checkpoints[matrix.source].catalog.get(matrix.name)
        if other is None or other.shape != size or other.dtype not in FLOATS:
            said = "isn't there" if other is None else f"is {other.dtype} {list(other.shape)}"
            return (
                f"is merged with `{matrix.name}`, a matrix of floats {list(size)}; in source "
                f"`{matrix.source}` it {said}"
            )
    return ""


def _other_header(origin: SourceName, was: tuple[str, tuple[int, ...]], recipe: Recipe) -> str:
    """How the dtype or shape of a source tensor has changed."""
    source = recipe.checkpoints[origin.source].catalog.get(origin.name)
    if source is None:
        return f"comes from `{origin.name}`, which source `{origin.source}` doesn't have"
    if (source.dtype, source.shape) == was:
        return ""
    has, had = (f"{dtype} {list(shape)}" for dtype, shape in ((source.dtype, source.shape), was))
    return f"comes from `{origin.name}`, which is {has} and was {had}"


def _values(tensor: Tensor, wanted: Iterator[bytes], on_progress: Callable[[int], None]) -> str:
    """The share of the values that differ, and the largest difference. Every block has whole
    elements on both sides.
    """
    where = tensor.location
    assert where is not None
    offset, differing, furthest = where.offset, 0, 0.0
    for block in wanted:
        have = b"".join(blocks([Range(where.file, offset, len(block))]))
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
    """The number of elements with other bits, and the largest difference between them (infinite
    beside NaN or infinity).
    """
    import numpy as np

    width = np.dtype(f"u{DTYPE_BITS[dtype] // 8}")
    other = np.frombuffer(have, width) != np.frombuffer(wanted, width)
    with np.errstate(invalid="ignore"):
        apart = np.abs(to_float64(have, dtype) - to_float64(wanted, dtype))[other]
    return int(np.count_nonzero(other)), float(
        np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max()
    )
