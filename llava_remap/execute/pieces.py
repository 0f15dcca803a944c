"""What each tensor of the output is made of: ranges of source files, and bytes that are
computed. To be written, or compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core.dtypes import DTYPE_BITS
from llava_remap.execute.values import CHUNK_NBYTES, chunks, find, read_exactly, stored_rows
from llava_remap.plan import Mapped, PostLoadChange
from llava_remap.post_load import OldBytes
from llava_remap.post_load.run import PostLoad

if TYPE_CHECKING:
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
            yield read_exactly(
                self.file, self.offset + start, min(CHUNK_NBYTES, self.nbytes - start)
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the tensors of an output are made from those of its sources.

    Attributes:
        mapped: entries of the plan by target name.
        post_load: changes of the plan by target name.
        checkpoints: the sources by name.
        runs: by target name, the runs of its source's bytes that a tensor consists of, where those
            aren't all of them: offset, counted from the source tensor's first byte, and number of
            bytes, both in the dtype that is written.
        on_read: called before every read for what is computed; what it raises ends the computation.
    """

    mapped: Mapping[str, Mapped]
    post_load: Mapping[str, PostLoadChange]
    checkpoints: Mapping[str, Checkpoint]
    runs: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    on_read: Callable[[], None] = field(default=lambda: None)
    _rules: PostLoad = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        changes = ((entry.use, entry.options, entry.change) for entry in self.post_load.values())
        object.__setattr__(self, "_rules", PostLoad(changes, self._read))

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

    def source(self, target: str) -> Tensor:
        """The source tensor that a target tensor is made from; where an adapter is merged, that
        of the base.
        """
        return find(self.checkpoints, self.mapped[target].from_[0])

    def copied(self, target: str) -> Range | None:
        """Where the bytes of a target tensor are copied from, if they are, and all of them lie
        there one behind the other.
        """
        entry = self.mapped[target]
        runs = self.runs.get(target, [(0, entry.nbytes)])
        if entry.is_made or target in self.post_load or entry.merge is not None or len(runs) != 1:
            return None
        tensor, (offset, nbytes) = self.source(target), runs[0]
        where = tensor.location
        if (
            where is None
            or where.stride is not None
            or where.big_endian
            or tensor.dtype != entry.dtype
        ):
            return None
        return Range(where.file, where.offset + offset, nbytes)

    def pieces(self, target: str) -> Iterator[Range | bytes]:
        """The bytes of a target tensor, in order.

        Raises:
            RemapError: LR102 where a source has become shorter, LR212 without the plug-in, and
                whatever a plug-in refuses.
        """
        if target not in self.post_load:
            for offset, nbytes in self.runs.get(target, [(0, self.mapped[target].nbytes)]):
                yield from self._run(target, offset, offset + nbytes)
            return
        for piece in self._rules.pieces(target):
            if isinstance(piece, OldBytes):
                yield from self._run(target, piece.offset, piece.offset + piece.nbytes)
            else:
                yield piece

    def _run(self, target: str, start: int, stop: int) -> Iterator[Range | bytes]:
        """A run of the bytes that a target tensor has before post-load rules, in the dtype that
        is written.
        """
        tensor, entry = self.source(target), self.mapped[target]
        if entry.merge is not None:
            yield from self._merged(target, entry.dtype, start, stop)
        elif entry.dtype != tensor.dtype:
            yield from _cast_run(tensor, start, stop, entry.dtype)
        else:
            yield from _run(tensor, start, stop)

    def _merged(self, target: str, dtype: str, start: int, stop: int) -> Iterator[bytes]:
        from llava_remap.execute.merge import merged_bytes

        entry = self.mapped[target]
        assert entry.merge is not None
        assert entry.merge.scale is not None, "a manifest alone doesn't tell it"
        w, a, b = (find(self.checkpoints, origin) for origin in entry.from_)
        return merged_bytes(w, a, b, entry.merge.scale, dtype, start, stop)

    def _read(self, target: str, start: int, stop: int, *, as_stored: bool = False) -> NDArray[Any]:
        from llava_remap.core.dtypes import numbers

        self.on_read()
        source = self.source(target)
        if self.mapped[target].merge is None:
            found = stored_rows(source, start, stop)
        else:
            width = source.nbytes // source.shape[0]
            made = b"".join(self._merged(target, source.dtype, start * width, stop * width))
            found = numbers(made, source.dtype).reshape(stop - start, *source.shape[1:])
        return found if as_stored else found.astype("f8")


def _cast_run(tensor: Tensor, start: int, stop: int, dtype: str) -> Iterator[Range | bytes]:
    """A run of what a source tensor's bytes are in another dtype; start and stop count bytes in
    that one.
    """
    from llava_remap.core.dtypes import cast

    old, new = (DTYPE_BITS[name] // 8 for name in (tensor.dtype, dtype))
    at = start - start % new
    for chunk in chunks(tensor, at // new * old, -(-stop // new) * old):
        made = cast(chunk, tensor.dtype, dtype)
        yield made[max(start - at, 0) : stop - at]
        at += len(made)


def _run(tensor: Tensor, start: int, stop: int) -> Iterator[Range | bytes]:
    """A run of a source tensor's bytes in row-major, little-endian order: a range of its file,
    if that is how they lie there.
    """
    where = tensor.location
    assert where is not None
    if where.stride is None and not where.big_endian:
        yield Range(where.file, where.offset + start, stop - start)
    else:
        yield from chunks(tensor, start, stop)
