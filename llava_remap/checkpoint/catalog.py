"""The words of this room: where a tensor lies, what it is, what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.beside import BESIDE, files_for
from llava_remap.core.dtypes import DTYPE_BITS


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a tensor lie.

    Attributes:
        file: the file on disk.
        offset: bytes from the start of the file to the tensor's first element.
        stride: step of each dimension in elements, or None where the elements lie one behind the
            other in row-major order.
        big_endian: whether elements of more than one byte are stored with the high byte first.
        storage: the storage it is a view of: bytes from the start of the file to the storage, and
            the storage's size in bytes. Two tensors of one file with the same `storage` share
            memory.
    """

    file: Path
    offset: int
    stride: tuple[int, ...] | None
    big_endian: bool
    storage: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written again: its size in bytes, time of change in
    nanoseconds, number in the file system.
    """

    nbytes: int
    changed: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """None where there is nothing any more that could be looked at."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and where its bytes lie.

    Attributes:
        start, stop: the box, for each axis.
        location: where the elements of the box lie.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    location: Location

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor without its bytes.

    Attributes:
        pieces: the boxes that the tensor consists of, in the order of their files; none in a
            manifest.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...], location: Location | None) -> Tensor:
        """A tensor that lies in one piece, or, without a location, that of a manifest."""
        whole = () if location is None else (Piece((0,) * len(shape), shape, location),)
        return cls(name, dtype, shape, whole)

    @property
    def location(self) -> Location | None:
        """Where the first piece lies; None in a manifest."""
        return self.pieces[0].location if self.pieces else None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without gaps."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


Catalog = Mapping[str, Tensor]
"""Tensors by name, in the order of files and, within a file, of their offsets."""


@dataclass(frozen=True, slots=True)
class LoraPair:
    """Two matrices of an adapter. B times A, times `scale`, is added to a tensor of the base.

    Attributes:
        base: the tensor's name, behind the wrappers that the names of the matrices have.
        a, b: names of A, [rank, columns], and of B, [rows, rank].
        scale: None in a manifest, which doesn't tell it.
    """

    base: str
    a: str
    b: str
    scale: float | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a person has: a folder, a file or a manifest, read from headers alone.

    Attributes:
        path: what was named by the user.
        form: one line for the report, e.g. `torch .bin, 2 shards (pytorch_model.bin.index.json)`.
        catalog: its tensors.
        config: its `config.json` (or that of the manifest), or None.
        folder: where config, tokenizer and processor files lie, or None for a manifest.
        passed_over: weight files or indexes in the folder that were not read since another form
            takes precedence, and parts of a file with several that hold tensors besides the state
            dict.
        stamps: the files that it was read from, and those beside them that may be read, as they
            were when it was opened.
        origin: the hub id and the commit that it was downloaded from; empty for one that was on
            this disk.
        aliases: groups of names that are one and the same tensor: the same bytes, dtype and shape.
        pairs: of an adapter, its pairs of matrices; both of each are in the catalog, too.
        base: the model that it was trained from, as its own files name it: a hub id or a path;
            empty where none does.
    """

    path: Path
    form: str
    catalog: Catalog
    config: Mapping[str, Any] | None
    folder: Path | None
    passed_over: tuple[str, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    pairs: tuple[LoraPair, ...] = ()
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    origin: str = ""
    base: str = ""

    @property
    def location(self) -> str:
        """Where it is, in words that lead there again: its path, or the hub's id and commit."""
        return self.origin or str(self.path)

    @property
    def is_manifest(self) -> bool:
        return self.folder is None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.catalog.values())

    @property
    def unpaired(self) -> dict[str, Tensor]:
        """The tensors that aren't matrices of `pairs`."""
        matrices = {name for pair in self.pairs for name in (pair.a, pair.b)}
        return {name: tensor for name, tensor in self.catalog.items() if name not in matrices}

    def same_tensor(self, one: str, other: str) -> bool:
        """Whether two names are one and the same tensor, so that their values need no comparing."""
        return any(one in group and other in group for group in self.aliases)

    def changed(self) -> list[Path]:
        """The files that are no longer as they were when it was opened."""
        return [path for path, stamp in self.stamps.items() if Stamp.of(path) != stamp]

    def read(self, use: Collection[str]) -> dict[str, Path]:
        """The files that are read of it, by their names in its folder.

        Args:
            use: for what it is used: keys of `BESIDE`, and `tensors`.
        """
        left = {name for names in BESIDE.values() for name in names} - set(files_for(use))
        paths = (
            {path.relative_to(self.folder).as_posix(): path for path in self.stamps}
            if self.folder
            else {}
        )
        return {name: path for name, path in sorted(paths.items()) if name not in left}

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in the order in which they are read."""
        every = (piece for tensor in self.catalog.values() for piece in tensor.pieces)
        return tuple(dict.fromkeys(piece.location.file for piece in every))
