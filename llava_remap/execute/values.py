"""Values of source tensors, for computations and checks. Tensors that are only renamed are copied
as byte ranges and don't come here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_remap.checkpoint import Checkpoint, Tensor, readable
from llava_remap.core import DTYPE_BITS, RemapError, refuse
from llava_remap.core.dtypes import to_float64
from llava_remap.planning import Box, Part, runs_in_order
from llava_remap.routing import SourceName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Bytes read at once. Larger buffers were slower on ext4.
CHUNK_NBYTES = 1 << 20
#: Elements in a chunk of values: the same for every dtype and layout, so that two tensors can be
#: compared chunk by chunk.
CHUNK_ELEMENTS = 1 << 18


def find(checkpoints: Mapping[str, Checkpoint], origin: SourceName) -> Tensor:
    """The catalog entry of a source name."""
    return checkpoints[origin.source].catalog[origin.name]


def chunks(tensor: Tensor, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The elements in row-major, little-endian order, `CHUNK_ELEMENTS` at a time.

    Args:
        start, stop: the run of bytes, counted in that order from the tensor's first byte; by
            default all bytes.
    """
    stop = tensor.nbytes if stop is None else stop
    width = CHUNK_ELEMENTS * DTYPE_BITS[tensor.dtype] // 8
    for at in range(start, stop, width):
        yield read(tensor, at, min(at + width, stop))


def rows(
    tensor: Tensor, start: int, stop: int, columns: slice | None = None
) -> NDArray[np.float64]:
    """Rows start..stop along the first dimension, [stop - start, …], as float64; of a matrix, all
    columns or some.
    """
    import numpy as np

    size = DTYPE_BITS[tensor.dtype] // 8
    row = prod(tensor.shape[1:]) * size
    raw = np.frombuffer(read(tensor, start * row, stop * row), f"u{size}")
    found = raw.reshape(stop - start, *tensor.shape[1:])
    if columns is not None:
        found = np.ascontiguousarray(found[:, columns])
    return to_float64(found.data, tensor.dtype).reshape(found.shape)


def pieces_between(tensor: Tensor, start: int, stop: int) -> Iterator[tuple[Tensor, int, int]]:
    """Divide a run of a tensor's elements into runs of its pieces. Each piece is given as a tensor.
    All runs are in row-major order, in bytes from the first element.
    """
    if len(tensor.pieces) == 1:
        yield tensor, start, stop
        return
    pieces = [Tensor.of(tensor.name, tensor.dtype, p.shape, p.location) for p in tensor.pieces]
    axes, width = tuple(range(len(tensor.shape))), DTYPE_BITS[tensor.dtype] // 8
    parts = [
        Part("", p.shape, Box.whole(str(number), p.shape), Box("", tensor.shape, axes, *ends))
        for number, p in enumerate(tensor.pieces)
        for ends in [(p.start, p.stop)]
    ]
    for part, first, last in taken_between(parts, width, start, stop):
        yield pieces[int(part.taken.name)], first, last


def taken_between(
    parts: Sequence[Part], width: int, start: int, stop: int
) -> Iterator[tuple[Part, int, int]]:
    """The source bytes for a run of a target tensor: for each piece of the run its part, and the
    start and stop of the bytes in the part's source tensor.

    Args:
        width: bytes of an element, on both sides.
        start, stop: the run, in bytes from the first element.
    """
    for part, run in runs_in_order(parts):
        first, last = max(run.placed * width, start), min((run.placed + run.size) * width, stop)
        if first < last:
            offset = (run.taken - run.placed) * width
            yield part, first + offset, last + offset


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's elements are contiguous and little-endian, so that they can be copied."""
    places = (piece.location for piece in tensor.pieces)
    return all(where.stride is None and not where.big_endian for where in places)


def read(tensor: Tensor, start: int, stop: int) -> bytes:
    """A run of the elements in row-major, little-endian order; start and stop count bytes from
    the first element. Only these bytes are read.
    """
    if len(tensor.pieces) > 1:
        return b"".join(read(*piece) for piece in pieces_between(tensor, start, stop))
    where = tensor.location
    assert where is not None
    if where.memory is not None:
        return where.memory.read(start, stop)
    if where.stride is None and not where.big_endian:
        return read_exactly(where.file, where.offset + start, stop - start)
    size = DTYPE_BITS[tensor.dtype] // 8
    first, last = start // size, -(-stop // size)
    if where.stride is None:
        import numpy as np

        elements = np.frombuffer(
            read_exactly(where.file, where.offset + first * size, (last - first) * size),
            _stored(tensor),
        )
    else:
        elements = _view(tensor).flat[first:last]
    elements = elements.astype(elements.dtype.newbyteorder("<"), copy=False)
    return elements.tobytes()[start - first * size : stop - first * size]


def _stored(tensor: Tensor) -> np.dtype[Any]:
    """The numpy dtype of the stored elements, whatever their bits mean. Complex numbers have a kind
    of their own, because each half has a byte order.
    """
    import numpy as np

    assert tensor.location is not None
    kind = "c" if tensor.dtype == "C64" else "u"
    return np.dtype(
        f"{'>' if tensor.location.big_endian else '<'}{kind}{DTYPE_BITS[tensor.dtype] // 8}"
    )


def _view(tensor: Tensor) -> NDArray[Any]:
    """A memory map of a tensor whose elements aren't contiguous. Reading such a tensor row by row
    would read the whole storage for each row.

    A file that becomes shorter while it is mapped ends the process, so its length is checked each
    time.
    """
    import numpy as np

    where, stored = tensor.location, _stored(tensor)
    assert where is not None
    assert where.stride is not None
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, stored)
    start, nbytes = where.storage
    with readable(where.file):
        if (missing := start + nbytes - where.file.stat().st_size) > 0:
            raise too_short(where.file, missing)
        try:
            storage = np.memmap(where.file, np.uint8, "r", offset=start, shape=(nbytes,))
        except ValueError:  # the file became shorter after its length was checked
            raise too_short(where.file, start + nbytes - where.file.stat().st_size) from None
    strides = tuple(step * stored.itemsize for step in where.stride)
    return np.ndarray(tensor.shape, stored, storage, where.offset - start, strides)


def read_exactly(file: Path, offset: int, nbytes: int) -> bytes:
    """A run of bytes of a file.

    Raises:
        RemapError: LR102 if the file ends before the run does, LR100 or LR102 if it can't be read.
    """
    with readable(file), file.open("rb", buffering=0) as opened:
        data = os.pread(opened.fileno(), nbytes, offset)
        while len(data) < nbytes:
            more = os.pread(opened.fileno(), nbytes - len(data), offset + len(data))
            if not more:
                raise too_short(file, nbytes - len(data))
            data += more
    return data


def too_short(file: Path, nbytes: int) -> RemapError:
    """LR102 for a file that ends `nbytes` bytes before a range of it does."""
    return refuse(
        "LR102",
        f"{file} ends {nbytes} bytes early: it became shorter after its header was read.",
        "Leave the sources alone while a job runs.",
    )
