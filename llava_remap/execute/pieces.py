"""The bytes of each output tensor: ranges of source files, and computed bytes. They are written, or
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core import DTYPE_BITS
from llava_remap.core.dtypes import cast, numbers
from llava_remap.execute.apart import lies_apart
from llava_remap.execute.values import (
    CHUNK_NBYTES,
    chunks,
    find,
    is_plain,
    pieces_between,
    read_exactly,
    taken_between,
)
from llava_remap.planning import AddLora, Mapped, Part, PostLoadChange
from llava_remap.post_load import OldBytes
from llava_remap.post_load.run import PostLoadRules
from llava_remap.routing import SourceName

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llava_remap.execute.merge import Merged


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes to copy: `offset` counts from the start of `file`. If the bytes are in memory, `file`
    stands for the file that safetensors would write.
    """

    file: Path
    offset: int
    nbytes: int
    in_memory: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the tensors of an output are made from its sources' tensors.

    Attributes:
        mapped: entries of the plan by target name.
        post_load: changes of the plan by target name.
        checkpoints: the sources by name.
        on_read: called before every read for a computation; an exception ends the computation.
    """

    mapped: Mapping[str, Mapped]
    post_load: Mapping[str, PostLoadChange]
    checkpoints: Mapping[str, Checkpoint]
    on_read: Callable[[], None] = field(default=lambda: None)
    _rules: PostLoadRules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        changes = ((entry.use, entry.options, entry.change) for entry in self.post_load.values())
        object.__setattr__(self, "_rules", PostLoadRules(changes, self._read))

    @classmethod
    def of(
        cls,
        mapped: Iterable[Mapped],
        post_load: Iterable[PostLoadChange],
        checkpoints: Mapping[str, Checkpoint],
    ) -> Recipe:
        """From the lists of a plan."""
        changes = {change.change.target: change for change in post_load}
        return cls({entry.target: entry for entry in mapped}, changes, checkpoints)

    def computes(self, target: str) -> bool:
        """Whether numpy is needed: for a computation, and to gather elements that lie apart."""
        entry = self.mapped[target]
        return (
            bool(entry.then)
            or any(not is_plain(find(self.checkpoints, origin)) for origin in entry.origins)
            or lies_apart(entry.parts)
        )

    def copied(self, target: str) -> Range | None:
        """The range that a target tensor is copied from, if nothing is computed and its bytes are
        contiguous there.
        """
        entry = self.mapped[target]
        if len(entry.parts) != 1 or self.computes(target):
            return None
        [part] = entry.parts
        run = next(part.runs(), None)  # None for an empty tensor
        tensor = self._tensor(part)
        where = tensor.location
        if where is None or run is None or len(tensor.pieces) > 1 or run.size != prod(entry.shape):
            return None
        offset = where.offset + run.taken * _width(entry.dtype)
        return Range(where.file, offset, entry.nbytes, where.memory is not None)

    def pieces(self, target: str) -> Iterator[Range | bytes]:
        """The bytes of a target tensor, in order.

        Raises:
            RemapError: LR102 if a source has become shorter, LR212 without the plug-in, and any
                refusal of a plug-in.
        """
        entry = self.mapped[target]
        if target not in self.post_load:
            yield from self._moved(entry, 0, entry.nbytes)
            return
        for piece in self._rules.pieces(target):
            if isinstance(piece, OldBytes):
                old = self._moved(entry, piece.offset, piece.offset + piece.nbytes)
                yield from _negated(old, entry.dtype) if piece.negated else old
            else:
                yield piece

    def _moved(self, entry: Mapped, start: int, stop: int) -> Iterator[Range | bytes]:
        """A run of the bytes that a target tensor has before post-load rules, in the dtype that is
        written.
        """
        if start == stop:
            return
        if entry.merges_whole:
            yield from self._merged(entry, start, stop)
            return
        if entry.loras or lies_apart(entry.parts):
            from llava_remap.execute.gather import in_order

            merged = {
                lora.base: self._sum(lora.base, lora, entry.dtype)
                for lora in entry.loras
                if lora.base is not None
            }
            yield from in_order(
                entry.parts,
                self._tensor,
                entry.dtype,
                start,
                stop,
                self.on_read,
                lambda part: merged.get(SourceName(part.source, part.taken.name)),
            )
            return
        for part, first, last in taken_between(entry.parts, _width(entry.dtype), start, stop):
            yield from _run(self._tensor(part), first, last, entry.dtype)

    def _read(self, target: str, start: int, stop: int, *, as_stored: bool = False) -> NDArray[Any]:
        self.on_read()
        entry = self.mapped[target]
        stored = replace(
            entry,
            dtype=entry.stored_dtype,
            then=tuple(step for step in entry.then if isinstance(step, AddLora)),
        )
        row = entry.shape_before[1:]
        width = prod(row) * _width(stored.dtype)
        raw = gathered(self._moved(stored, start * width, stop * width), (stop - start) * width)
        values = numbers(memoryview(raw), stored.dtype).reshape(stop - start, *row)
        return values if as_stored else values.astype("f8")

    def _sum(self, base: SourceName, lora: AddLora, dtype: str) -> Merged:
        from llava_remap.execute.merge import Merged

        return Merged(find(self.checkpoints, base), *self._pair(lora), dtype)

    def _merged(self, entry: Mapped, start: int, stop: int) -> Iterator[bytes]:
        """As `_moved`, for a matrix with one LoRA pair."""
        from llava_remap.execute.merge import Pair, blocks_of_rows

        [lora], columns = entry.loras, entry.shape_before[1]
        stored = replace(entry, dtype=entry.stored_dtype, then=())
        row, width = (columns * _width(dtype) for dtype in (entry.dtype, stored.dtype))
        first, last = start // row, -(-stop // row)
        raw = blocks(self._moved(stored, first * width, last * width))
        name = entry.target if lora.base is None else lora.base.name
        pair = Pair(name, *self._pair(lora), entry.dtype)
        yield from pair.added_to_all(blocks_of_rows(raw, stored.dtype, columns), first, start, stop)

    def _pair(self, lora: AddLora) -> tuple[Tensor, Tensor, float]:
        assert lora.scale is not None, "only a manifest has no scale"
        a, b = (find(self.checkpoints, name) for name in (lora.a, lora.b))
        return a, b, lora.scale

    def _tensor(self, part: Part) -> Tensor:
        """The source tensor of a part."""
        return find(self.checkpoints, SourceName(part.source, part.taken.name))


def blocks(pieces: Iterable[Range | bytes]) -> Iterator[bytes]:
    """The bytes of pieces, at most `CHUNK_NBYTES` of a range at a time.

    Raises:
        RemapError: LR102 if a file ends before a range of it does.
    """
    for piece in pieces:
        if not isinstance(piece, Range):
            yield piece
            continue
        for start in range(0, piece.nbytes, CHUNK_NBYTES):
            yield read_exactly(
                piece.file, piece.offset + start, min(CHUNK_NBYTES, piece.nbytes - start)
            )


def _negated(pieces: Iterable[Range | bytes], dtype: str) -> Iterator[bytes]:
    """Change the sign of numbers. The sign is the highest bit of an element's last byte."""
    import numpy as np

    width, at = _width(dtype), 0
    for block in blocks(pieces):
        turned = np.frombuffer(block, "u1").copy()
        turned[(width - 1 - at) % width :: width] ^= 0x80
        at += len(block)
        yield turned.tobytes()


def gathered(pieces: Iterable[Range | bytes], nbytes: int) -> bytearray:
    """The bytes of pieces, `nbytes` in all, in one buffer."""
    buffer, end = bytearray(nbytes), 0
    for block in blocks(pieces):
        buffer[end : end + len(block)] = block
        end += len(block)
    if end != nbytes:  # no `assert`, which -O takes out
        raise AssertionError(f"{end} bytes made, {nbytes} planned")
    return buffer


def _width(dtype: str) -> int:
    """Bytes of one element."""
    return DTYPE_BITS[dtype] // 8


def _run(tensor: Tensor, start: int, stop: int, dtype: str) -> Iterator[Range | bytes]:
    """A run of a source tensor's elements, in row-major, little-endian order and in the given
    dtype. Elements that the file has in this form are ranges of the file.

    Args:
        start, stop: the run, in bytes of the given dtype.
    """
    if tensor.dtype == dtype:
        for piece, first, last in pieces_between(tensor, start, stop):
            where = piece.location
            assert where is not None
            if is_plain(piece) and where.memory is None:
                yield Range(where.file, where.offset + first, last - first)
            else:
                yield from chunks(piece, first, last)
        return
    old, new = _width(tensor.dtype), _width(dtype)
    at = start - start % new
    for chunk in chunks(tensor, at // new * old, -(-stop // new) * old):
        made = cast(chunk, tensor.dtype, dtype)
        yield made[max(start - at, 0) : stop - at]
        at += len(made)
