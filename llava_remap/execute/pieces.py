"""What each tensor of the output is made of: ranges of source files, and bytes that are computed. To be written, or compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llava_remap.checkpoint import DTYPE_BITS, Checkpoint, Tensor
from llava_remap.execute.values import CHUNK_NBYTES, chunks, find, read_exactly, rows
from llava_remap.plan import Mapped, PostLoadChange
from llava_remap.post_load import OldBytes, make_pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes to copy: `offset` counts from the start of `file`."""

    file: Path
    offset: int
    nbytes: int

    def blocks(self) -> Iterator[bytes]:
        """The bytes, `CHUNK_NBYTES` at a time.

        Raises:
            RemapError: LR102 where the file ends before the range does.
        """
        for start in range(0, self.nbytes, CHUNK_NBYTES):
            yield read_exactly(self.file, self.offset + start, min(CHUNK_NBYTES, self.nbytes - start))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the tensors of an output are made from those of its sources.

    Attributes:
        mapped: entries of the plan by target name.
        post_load: changes of the plan by target name.
        checkpoints: the sources by name.
        runs: by target name, the runs of its source's bytes that a tensor consists of, where those aren't all of them: offset,
            counted from the source tensor's first byte, and number of bytes, both in the dtype that is written.
    """

    mapped: Mapping[str, Mapped]
    post_load: Mapping[str, PostLoadChange]
    checkpoints: Mapping[str, Checkpoint]
    runs: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, mapped: Iterable[Mapped], post_load: Iterable[PostLoadChange], checkpoints: Mapping[str, Checkpoint]) -> Recipe:
        """From the lists of a plan."""
        changes = {change.change.target: change for change in post_load}
        return cls({entry.target: entry for entry in mapped}, changes, checkpoints)

    def source(self, target: str) -> Tensor:
        """The source tensor that a target tensor is made from."""
        return find(self.checkpoints, self.mapped[target].from_[0])

    def pieces(self, target: str) -> Iterator[Range | bytes]:
        """The bytes of a target tensor, in order.

        Raises:
            RemapError: LR102 where a source has become shorter, LR212 without the plug-in, and whatever a plug-in refuses.
        """
        tensor, dtype = self.source(target), self.mapped[target].dtype
        run = _run if dtype == tensor.dtype else _cast_run
        change = self.post_load.get(target)
        if change is None:
            for offset, nbytes in self.runs.get(target, [(0, self.mapped[target].nbytes)]):
                yield from run(tensor, offset, offset + nbytes, dtype)
            return
        for piece in make_pieces(change.use, change.options, change.change, self._read):
            if isinstance(piece, OldBytes):
                yield from run(tensor, piece.offset, piece.offset + piece.nbytes, dtype)
            else:
                yield piece

    def _read(self, target: str, start: int, stop: int) -> NDArray[np.float64]:
        return rows(self.source(target), start, stop)


def _cast_run(tensor: Tensor, start: int, stop: int, dtype: str) -> Iterator[Range | bytes]:
    """A run of what a source tensor's bytes are in another dtype; start and stop count bytes in that one."""
    from llava_remap.dtypes import cast

    old, new = (DTYPE_BITS[name] // 8 for name in (tensor.dtype, dtype))
    at = start - start % new
    for chunk in chunks(tensor, at // new * old, -(-stop // new) * old):
        made = cast(chunk, tensor.dtype, dtype)
        yield made[max(start - at, 0) : stop - at]
        at += len(made)


def _run(tensor: Tensor, start: int, stop: int, dtype: str) -> Iterator[Range | bytes]:
    """A run of a source tensor's bytes in row-major, little-endian order: a range of its file, if that is how they lie there."""
    where = tensor.location
    assert where is not None
    if where.stride is None and not where.big_endian:
        yield Range(where.file, where.offset + start, stop - start)
    else:
        yield from chunks(tensor, start, stop)
