"""Gathers numbers that aren't contiguous in the source: reads large pieces, and orders the numbers
in memory.

Copying rows one by one takes a system call for each row, and exchanging axes takes a system call
for each element. So the target tensor is filled window by window. Each part has only a few blocks
in a window, and each block is read in long runs. Whole rows are copied without numpy, whose import
takes 10 MiB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from llava_remap.checkpoint import Tensor, readable
from llava_remap.core import DTYPE_BITS
from llava_remap.core.dtypes import cast
from llava_remap.execute.apart import READ_NBYTES, ROW_NBYTES, window_nbytes
from llava_remap.execute.values import CHUNK_NBYTES, is_plain, read, too_short
from llava_remap.planning import Axis, Block, Part, blocks_between

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llava_remap.execute.merge import Merged

#: Reading over a gap of this size takes no longer than another call.
_GAP_NBYTES = 8 << 10
#: Elements of the last axis that are copied at once if axes are exchanged. The number is so small
#: that their cache lines stay in the cache until they are written.
_STRIP = 16
#: The most rows of any size that are copied one by one.
_FEW_ROWS = 16
#: Elements of padding between runs, and the fewest bytes of a run that is padded.
_PADDING, _PADDED_NBYTES = 32, 2 << 10


def in_order(
    parts: Sequence[Part],
    tensor_of: Callable[[Part], Tensor],
    dtype: str,
    start: int,
    stop: int,
    on_read: Callable[[], None],
    merged_of: Callable[[Part], Merged | None] = lambda part: None,
) -> Iterator[bytes]:
    """A run of a target tensor's bytes.

    Args:
        parts: the parts of the target tensor; they cover it.
        tensor_of: gives the source tensor of a part.
        dtype: the written dtype.
        start, stop: the run's bytes, counted from the tensor's first byte in that dtype.
        on_read: called before every window.
        merged_of: gives the merged tensor if a LoRA pair changes the source tensor of a part.

    Raises:
        RemapError: LR102 if a source became shorter or can't be read; as `Merged.block`.
    """
    width = DTYPE_BITS[dtype] // 8
    begin, last = start // width, -(-stop // width)
    step = min(window_nbytes(parts, width) // width, last - begin)
    # A window that ends inside a row would have a block more, which reads from all of the source.
    step -= step % row if (row := _row(parts[0])) < step else 0
    memory = memoryview(bytearray(step * width))
    with ExitStack() as stack:
        sources: list[tuple[Part, _Source | _Sum]] = []
        for part in parts:
            merged = merged_of(part)
            source = (
                _Source(tensor_of(part), dtype, stack)
                if merged is None
                else _Sum(merged, part.shape[1], width)
            )
            sources.append((part, source))
        for first in range(begin, last, step or 1):
            on_read()
            count = min(step, last - first)
            window = memory[: count * width]
            placed = sum(
                source.place(block._replace(placed=block.placed - first), window)
                for part, source in sources
                for block in blocks_between(part, first, first + count)
            )
            if placed != count:  # not an `assert`, which -O removes
                raise AssertionError(f"{placed} elements placed, {count} planned")
            data = window[max(start - first * width, 0) : stop - first * width]
            for at in range(0, len(data), CHUNK_NBYTES):
                yield bytes(data[at : at + CHUNK_NBYTES])


def _row(part: Part) -> int:
    """The distance of rows of the target tensor, in elements."""
    axes = () if (block := part.block) is None else block.axes
    return axes[-2].placed if len(axes) > 1 else 1


class _Source:
    """A source tensor, whose file stays open."""

    def __init__(self, tensor: Tensor, dtype: str, stack: ExitStack) -> None:
        self._tensor, self._dtype = tensor, dtype
        self._width = DTYPE_BITS[tensor.dtype] // 8
        where = tensor.location
        assert where is not None
        self._path, self._offset, self._file = where.file, where.offset, None
        if len(tensor.pieces) == 1 and where.memory is None and is_plain(tensor):
            with readable(where.file):
                self._file = os.open(where.file, os.O_RDONLY)
            stack.callback(os.close, self._file)

    def place(self, block: Block, window: memoryview) -> int:
        """Put the numbers of a block into the window, and return how many there are."""
        axes = sorted(block.axes, key=lambda axis: -axis.taken)
        span, number = 1, len(axes)
        # The last axes are read in one run, including its gaps.
        while number:
            axis = axes[number - 1]
            longer = (axis.size - 1) * axis.taken + span
            gap = (axis.taken - span) * self._width
            if gap > _GAP_NBYTES or longer * self._width > READ_NBYTES:
                break
            span, number = longer, number - 1
        outer, inner = axes[:number], axes[number:]
        nbytes = prod(axis.size for axis in outer) * span * self._width
        if nbytes > READ_NBYTES:
            axis, count = outer[0], max(1, outer[0].size * READ_NBYTES // nbytes)
            return sum(
                self.place(block.between(axis, at, min(at + count, axis.size)), window)
                for at in range(0, axis.size, count)
            )
        # Rows whose distance is a power of two would all share the same cache lines.
        padded = (
            outer and span * self._width >= _PADDED_NBYTES and self._tensor.dtype == self._dtype
        )
        step = span + (_PADDING if padded else 0)
        values = self._read(block.taken, outer, span, step)
        strides = {axis: axis.taken for axis in inner}
        for axis in reversed(outer):
            strides[axis] = step
            step *= axis.size
        steps = [strides[axis] for axis in block.axes]
        return _copy(values, steps, window, block, DTYPE_BITS[self._dtype] // 8)

    def _read(self, first: int, outer: Sequence[Axis], span: int, step: int) -> memoryview:
        """Runs of `span` elements, each starting `step` elements after the previous run, in the
        written dtype.
        """
        width, tensor = self._width, self._tensor
        data = memoryview(bytearray(prod(axis.size for axis in outer) * step * width))
        at, length = 0, span * width
        steps = (range(0, axis.size * axis.taken, axis.taken) for axis in outer)
        starts = ((first + sum(offsets)) * width for offsets in product(*steps))
        with readable(self._path):
            for start in starts:
                run = data[at : at + length]
                if self._file is None:
                    run[:] = read(tensor, start, start + length)
                elif (count := os.preadv(self._file, [run], self._offset + start)) < length:
                    self._read_on(run[count:], self._offset + start + count)
                at += step * width
        same = tensor.dtype == self._dtype
        return data if same else memoryview(cast(data, tensor.dtype, self._dtype))

    def _read_on(self, run: memoryview, offset: int) -> None:
        """Read the rest of a run after a call that read only its beginning."""
        assert self._file is not None
        while run:
            if (count := os.preadv(self._file, [run], offset)) == 0:
                raise too_short(self._path, len(run))
            run, offset = run[count:], offset + count


class _Sum:
    """A source tensor with a LoRA pair added to it, a block of rows at a time."""

    def __init__(self, merged: Merged, columns: int, width: int) -> None:
        self._merged, self._columns, self._width = merged, columns, width

    def place(self, block: Block, window: memoryview) -> int:
        """As `_Source.place`."""
        from llava_remap.execute.merge import BLOCK_ELEMENTS

        columns, axes = self._columns, block.axes
        end = block.taken + sum((axis.size - 1) * axis.taken for axis in axes)
        top, bottom = block.taken // columns, end // columns + 1
        if bottom - top > 1 and (size := (bottom - top) * columns) > BLOCK_ELEMENTS:
            axis = max(axes, key=lambda axis: axis.taken)
            count = max(1, axis.size * BLOCK_ELEMENTS // size)
            return sum(
                self.place(block.between(axis, at, min(at + count, axis.size)), window)
                for at in range(0, axis.size, count)
            )
        # If each axis steps only through rows or only through columns, only the needed columns are
        # computed.
        left = block.taken % columns
        right = left + 1 + sum((a.size - 1) * a.taken for a in axes if a.taken < columns)
        if right > columns or any(a.taken >= columns and a.taken % columns for a in axes):
            left, right = 0, columns
        made = self._merged.block(top, bottom, slice(left, right))
        values = memoryview(made)[(block.taken - top * columns - left) * self._width :]
        steps = [_among(axis.taken, columns, right - left) for axis in axes]
        return _copy(values, steps, window, block, self._width)


def _among(step: int, columns: int, kept: int) -> int:
    """A step through a matrix, for a copy that has only `kept` of its columns."""
    rows, rest = divmod(step, columns)
    return rows * kept + rest


def _copy(
    values: memoryview, steps: Sequence[int], window: memoryview, block: Block, width: int
) -> int:
    """Copy the numbers of a block, and return how many there are.

    Args:
        values: the source's numbers, from the block's first number on.
        steps: elements from one number to the next in `values`, for each axis of the block.
        width: bytes of an element.
    """
    axes = block.axes
    sizes, there = [axis.size for axis in axes], [axis.placed for axis in axes]
    window = window[block.placed * width :]
    if axes and steps[-1] == there[-1] == 1:
        row, outer = sizes[-1], sizes[:-1]
    else:
        row, outer = 1, sizes
    if row * width >= ROW_NBYTES or prod(outer) <= _FEW_ROWS:
        starts = (
            [
                range(0, size * step * width, step * width)
                for size, step in zip(outer, by[: len(outer)], strict=True)
            ]
            for by in (steps, there)
        )
        for taken, placed in zip(*(map(sum, product(*each)) for each in starts), strict=True):
            window[placed : placed + row * width] = values[taken : taken + row * width]
    else:
        _exchange(_strided(values, sizes, steps, width), _strided(window, sizes, there, width))
    return prod(sizes)


def _strided(
    values: memoryview, sizes: Sequence[int], steps: Sequence[int], width: int
) -> NDArray[Any]:
    import numpy as np

    array = np.frombuffer(values, f"u{width}")
    strides = [step * width for step in steps]
    return np.lib.stride_tricks.as_strided(array, sizes, strides)


def _exchange(taken: NDArray[Any], placed: NDArray[Any]) -> None:
    """Copy numbers into an array with another order of axes."""
    if not taken.ndim or taken.strides[-1] == taken.itemsize:
        placed[...] = taken
        return
    for at in range(0, taken.shape[-1], _STRIP):
        placed[..., at : at + _STRIP] = taken[..., at : at + _STRIP]
