"""The values of this room: checkpoints, their tensors, and the tensors' locations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_remap.core import DTYPE_BITS

if TYPE_CHECKING:
    from llava_remap.checkpoint.elements import Memory

#: Use → the files of a checkpoint, other than weights, that it reads.
BESIDE: Mapping[str, tuple[str, ...]] = {
    "config": ("config.json", "generation_config.json", "params.json"),
    "tokenizer": (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tekken.json",
    ),
    "processor": (
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "chat_template.jinja",
        "chat_template.json",
    ),
}
ADAPTER_CONFIG = "adapter_config.json"
#: PEFT writes one of these files; LLaVA's LoRA training writes the other file beside it.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
BESIDE_ADAPTER = "non_lora_trainables.bin"
#: The file that LLaVA's pretraining writes.
PROJECTOR_FILE = "mm_projector.bin"
#: torch and numpy allow no more dimensions.
_MOST_DIMENSIONS = 64
#: With this limit, the addresses of elements of up to 8 bytes fit into 63 bits.
_MOST_ELEMENTS = 2**60


def files_for(use: Collection[str]) -> list[str]:
    """The files to read for the uses of a checkpoint. Uses that aren't keys of `BESIDE` need no
    file of their own. `config.json` is read for every use.
    """
    used = (name for part, names in BESIDE.items() if part in use for name in names)
    return list(dict.fromkeys(["config.json", *used]))


def is_count(number: object) -> bool:
    """Whether a value is an integer (not a bool) from 0 to the largest signed 64-bit number."""
    return type(number) is int and 0 <= number < 2**63


def is_shape(sizes: Sequence[object]) -> bool:
    """Whether a tensor of these sizes can exist."""
    if len(sizes) > _MOST_DIMENSIONS or not all(map(is_count, sizes)):
        return False
    return prod(size for size in sizes if isinstance(size, int)) < _MOST_ELEMENTS


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a tensor lie.

    Attributes:
        file: the file on disk.
        offset: bytes from the start of the file to the tensor's first element.
        stride: step of each dimension in elements; None if the elements are contiguous in row-major
            order.
        big_endian: whether elements of more than one byte are stored with the high byte first.
        storage: the storage that the tensor is a view of: its offset from the start of the file and
            its size, in bytes. Two tensors of one file with the same `storage` share memory.
        memory: the elements, for a tensor in memory. The other attributes then describe the file
            that safetensors would write, except that `storage` has an address in memory.
    """

    file: Path
    offset: int
    stride: tuple[int, ...] | None
    big_endian: bool
    storage: tuple[int, int]
    memory: Memory | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Stamp:
    """Facts that change when a file is written again: its size in bytes, its time of change in
    nanoseconds, and its number in the file system.
    """

    nbytes: int
    changed: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """The stamp of a file; None if the file is gone or inaccessible."""
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
        """A tensor that lies in one piece; without a location, a tensor of a manifest."""
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
class WeightFile:
    """The content of one file of weights.

    Attributes:
        kind: its format, for the report.
        tensors: its tensors, ordered by offset.
        inside: keys of the wrappers around the state dict, the outermost first.
        passed_over: keys beside the wrappers that hold tensors too.
    """

    kind: str
    tensors: list[Tensor]
    inside: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoraPair:
    """Two matrices of an adapter. B times A, times `scale`, is added to a tensor of the base.

    Attributes:
        base: the tensor's name, with the same wrappers as the names of the matrices.
        a, b: names of A, [rank, columns], and of B, [rows, rank].
        scale: None in a manifest, which has no alpha.
    """

    base: str
    a: str
    b: str
    scale: float | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder, a file, a manifest, or tensors in memory. Files are read from headers alone.

    Attributes:
        path: the path that the user gave.
        form: one line for the report, e.g. `torch .bin, 2 shards (pytorch_model.bin.index.json)`.
        catalog: its tensors.
        config: its `config.json` (or that of the manifest), or None.
        folder: the folder with config, tokenizer and processor files; None for a manifest.
        passed_over: weight files or indexes in the folder that were not read because another form
            takes precedence, and entries of a file that hold tensors beside the state dict.
        aliases: groups of names of one tensor: the same bytes, dtype and shape.
        pairs: the pairs of matrices of an adapter; both matrices are in the catalog, too.
        stamps: the stamps, at the time of opening, of the weight files and of the other files that
            may be read.
        origin: the hub id and the commit of a download; empty for a checkpoint on this disk.
        base: the model that the checkpoint was trained from: a hub id or a path from its own files;
            empty if they name none.
        in_memory: whether its tensors are in memory; `folder` then has only the other files.
        named_by: what names the checkpoint, in words, if the user didn't give it.
    """

    path: Path
    form: str
    catalog: Catalog = field(repr=False)
    config: Mapping[str, Any] | None = field(repr=False)
    folder: Path | None
    passed_over: tuple[str, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    pairs: tuple[LoraPair, ...] = field(default=(), repr=False)
    stamps: Mapping[Path, Stamp] = field(default_factory=dict, repr=False)
    origin: str = ""
    base: str = ""
    in_memory: bool = False
    named_by: str = ""

    @property
    def location(self) -> str:
        """Its path, its hub id and commit, or `IN_MEMORY`."""
        return self.origin or str(self.path)

    @property
    def is_manifest(self) -> bool:
        return self.folder is None and not self.in_memory

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.catalog.values())

    @property
    def unpaired(self) -> dict[str, Tensor]:
        """The tensors that aren't matrices of `pairs`."""
        matrices = {name for pair in self.pairs for name in (pair.a, pair.b)}
        return {name: tensor for name, tensor in self.catalog.items() if name not in matrices}

    def same_tensor(self, one: str, other: str) -> bool:
        """Whether two names are one tensor, so that their values need no comparing."""
        return any(one in group and other in group for group in self.aliases)

    def changed(self) -> list[str]:
        """The files, and the tensors in memory, that have changed since the checkpoint was
        opened.
        """
        files = [str(path) for path, stamp in self.stamps.items() if Stamp.of(path) != stamp]
        if not self.in_memory:
            return files
        memories = {
            name: tensor.location.memory for name, tensor in self.catalog.items() if tensor.location
        }
        return files + [name for name, memory in memories.items() if memory and memory.has_changed]

    def read(self, use: Collection[str]) -> dict[str, Path]:
        """The files that the given uses read: name in the checkpoint's folder → path.

        Args:
            use: keys of `BESIDE`, and `tensors`.
        """
        if self.folder is None:
            return {}
        unused = {name for names in BESIDE.values() for name in names} - set(files_for(use))
        paths = {path.relative_to(self.folder).as_posix(): path for path in self.stamps}
        return {name: path for name, path in sorted(paths.items()) if name not in unused}

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in the order in which they are read."""
        every = (piece for tensor in self.catalog.values() for piece in tensor.pieces)
        return tuple(dict.fromkeys(piece.location.file for piece in every))
