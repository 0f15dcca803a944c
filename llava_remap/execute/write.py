"""A plan to safetensors files. What is only renamed goes from file to file as byte ranges and never enters Python's heap.

The index is written by a call of its own, to come after everything else.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

from llava_remap.execute.files import whole_file, write_all
from llava_remap.execute.pieces import Range, Recipe
from llava_remap.execute.values import CHUNK_NBYTES, too_short
from llava_remap.plan import Mapped, Shard

INDEX = "model.safetensors.index.json"

#: copy_file_range can't do it between these two files; a read and write loop can.
_NOT_HERE = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


def write_shards(
    recipe: Recipe,
    shards: Sequence[Shard],
    output: Path,
    written: list[Path],
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write the weight files of a complete plan into an existing folder.

    Args:
        recipe: how the tensors in `shards` are made.
        written: the paths of finished files are entered here.
        on_progress: called with the number of bytes written since the last call.

    Raises:
        RemapError: LR102 where a source has become shorter, LR502 for a full disk, LR508 for any other write error.
    """
    for shard in shards:
        header = shard_header(shard, recipe.mapped)
        with whole_file(output / shard.file, written) as file:
            write_all(file, header)
            for piece in _coalesced(piece for name in shard.tensors for piece in recipe.pieces(name)):
                if isinstance(piece, bytes):
                    write_all(file, piece)
                    on_progress(len(piece))
                else:
                    _copy(piece, file, on_progress)
            planned = len(header) + sum(recipe.mapped[name].nbytes for name in shard.tensors)
            assert file.tell() == planned, f"{shard.file}: {file.tell()} bytes written, {planned} planned"


def write_index(recipe: Recipe, shards: Sequence[Shard], output: Path, written: list[Path]) -> None:
    """Write the index. With it the folder can be loaded, so it comes after everything else."""
    files = {name: shard.file for shard in shards for name in shard.tensors}
    total = sum(recipe.mapped[name].nbytes for name in files)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    with whole_file(output / INDEX, written) as file:
        write_all(file, (json.dumps(content, indent=2) + "\n").encode())


def shard_header(shard: Shard, mapped: Mapping[str, Mapped]) -> bytes:
    """The head of a safetensors file: 8 bytes of length, then JSON, padded with spaces to a multiple of 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in shard.tensors:
        entry = mapped[name]
        start, end = end, end + entry.nbytes
        entries[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _coalesced(pieces: Iterator[Range | bytes]) -> Iterator[Range | bytes]:
    """Neighbouring ranges of one file as one."""
    run: Range | None = None
    for piece in pieces:
        if isinstance(piece, Range) and run is not None and piece.file == run.file and piece.offset == run.offset + run.nbytes:
            run = Range(run.file, run.offset, run.nbytes + piece.nbytes)
            continue
        if run is not None:
            yield run
        run = piece if isinstance(piece, Range) else None
        if not isinstance(piece, Range):
            yield piece
    if run is not None:
        yield run


def _copy(piece: Range, target: FileIO, on_progress: Callable[[int], None]) -> None:
    """Append a range of a file to `target` (opened without a buffer)."""
    kernel_copies = hasattr(os, "copy_file_range")
    done = 0
    with piece.file.open("rb", buffering=0) as source:
        while done < piece.nbytes:
            if kernel_copies:
                try:
                    wanted = min(piece.nbytes - done, 1 << 28)  # a call returns often enough to show progress
                    count = os.copy_file_range(source.fileno(), target.fileno(), wanted, piece.offset + done)
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
                    kernel_copies = False
                    continue
            else:
                data = os.pread(source.fileno(), min(piece.nbytes - done, CHUNK_NBYTES), piece.offset + done)
                count = len(data)
                write_all(target, data)
            if count == 0:
                raise too_short(piece.file, piece.nbytes - done)
            done += count
            on_progress(count)
