"""What each tensor of the output is made of: ranges of source files, and bytes that are computed. To be written, or compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.errors import refuse
from llava_remap.execute.values import CHUNK_NBYTES, chunks, find, read_exactly, rows
from llava_remap.plan import Mapped, PostLoadChange
from llava_remap.post_load import OldBytes, load_post_load_rule

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
    """

    mapped: Mapping[str, Mapped]
    post_load: Mapping[str, PostLoadChange]
    checkpoints: Mapping[str, Checkpoint]

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
        tensor = self.source(target)
        where = tensor.location
        assert where is not None
        op = self.mapped[target].op
        if op is None:
            yield Range(where.file, where.offset, tensor.nbytes)
            return
        if op == "gather":
            yield from chunks(tensor)
            return
        change = self.post_load[target]
        for piece in load_post_load_rule(change.use, change.options).pieces(change.change, self._read):
            if not isinstance(piece, OldBytes):
                _check_made(piece, change)
                yield piece
                continue
            end = piece.offset + piece.nbytes
            assert 0 <= piece.offset <= end <= tensor.nbytes, f"`{change.use}` wants bytes of `{target}` that it doesn't have"
            if where.stride is None and not where.big_endian:
                yield Range(where.file, where.offset + piece.offset, piece.nbytes)
            else:
                yield from chunks(tensor, piece.offset, end)

    def _read(self, target: str, start: int, stop: int) -> NDArray[np.float64]:
        return rows(self.source(target), start, stop)


def _check_made(made: bytes, change: PostLoadChange) -> None:
    """LR406 for new values that are not finite; those that they were made from were, so they don't fit into the dtype."""
    import numpy as np

    from llava_remap.dtypes import to_float64

    target, dtype = change.change.target, change.change.dtype
    bad = int(np.count_nonzero(~np.isfinite(to_float64(made, dtype))))
    if bad:
        raise refuse(
            "LR406",
            f"{bad} values that `{change.use}` makes for `{target}` don't fit into {dtype}: they are inf or NaN.",
            "Look for values close to the largest ones in the checkpoint, and at the options of the rule.",
            [target],
        )
