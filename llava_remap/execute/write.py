"""A plan to safetensors files. What is only renamed goes from file to file as byte ranges and never enters Python's heap.

Every file is written as `*.partial`, flushed to disk and renamed; the index comes last, by a call of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.errors import RemapError, refuse
from llava_remap.execute.values import CHUNK_NBYTES, chunks, find, rows
from llava_remap.plan import Mapped, Plan, Shard
from llava_remap.post_load import OldBytes, load_post_load_rule

INDEX = "model.safetensors.index.json"

#: copy_file_range can't do it between these two files; a read and write loop can.
_NOT_HERE = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes to copy: `offset` counts from the start of `file`."""

    file: Path
    offset: int
    nbytes: int


def write_shards(
    plan: Plan, checkpoints: Mapping[str, Checkpoint], output: Path, on_progress: Callable[[int], None] = lambda nbytes: None
) -> list[Path]:
    """Write the weight files of a complete plan into an existing folder and return their paths.

    Nothing is left of a file that could not be finished; finished ones stay, for the caller to keep or remove.

    Args:
        on_progress: called with the number of bytes written since the last call.

    Raises:
        RemapError: LR102 where a source has become shorter, LR502 for a full disk, LR508 for any other write error.
    """
    assert plan.complete
    return [_write_shard(plan, shard, checkpoints, output, on_progress) for shard in plan.shards]


def write_index(plan: Plan, output: Path) -> Path:
    """Write the index. With it the folder can be loaded, so it comes after everything else."""
    sizes = {mapped.target: Tensor(mapped.target, mapped.dtype, mapped.shape, None).nbytes for mapped in plan.mapped}
    files = {name: shard.file for shard in plan.shards for name in shard.tensors}
    content = {"metadata": {"total_size": sum(sizes[name] for name in files)}, "weight_map": dict(sorted(files.items()))}
    with _partial(output / INDEX) as file:
        _write_all(file, (json.dumps(content, indent=2) + "\n").encode())
    return output / INDEX


def shard_header(shard: Shard, mapped: Mapping[str, Mapped]) -> bytes:
    """The head of a safetensors file: 8 bytes of length, then JSON, padded with spaces to a multiple of 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in shard.tensors:
        entry = mapped[name]
        start, end = end, end + Tensor(name, entry.dtype, entry.shape, None).nbytes
        entries[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_shard(
    plan: Plan, shard: Shard, checkpoints: Mapping[str, Checkpoint], output: Path, on_progress: Callable[[int], None]
) -> Path:
    mapped = {entry.target: entry for entry in plan.mapped}
    header = shard_header(shard, mapped)
    with _partial(output / shard.file) as file:
        _write_all(file, header)
        for piece in _coalesced(piece for name in shard.tensors for piece in _pieces(plan, mapped, name, checkpoints)):
            if isinstance(piece, bytes):
                _write_all(file, piece)
                on_progress(len(piece))
            else:
                _copy(piece, file, on_progress)
        expected = len(header) + sum(Tensor(n, mapped[n].dtype, mapped[n].shape, None).nbytes for n in shard.tensors)
        assert file.tell() == expected, f"{shard.file}: {file.tell()} bytes written, {expected} planned"
    return output / shard.file


def _pieces(
    plan: Plan, mapped: Mapping[str, Mapped], name: str, checkpoints: Mapping[str, Checkpoint]
) -> Iterator[Range | bytes]:
    """What a target tensor is made of, in order."""
    entry = mapped[name]
    tensor = find(checkpoints, entry.from_[0])
    where = tensor.location
    assert where is not None
    if entry.op is None:
        yield Range(where.file, where.offset, tensor.nbytes)
        return
    if entry.op == "gather":
        yield from chunks(tensor)
        return
    change = next(change for change in plan.post_load if change.change.target == name)

    def read(target: str, start: int, stop: int) -> object:
        return rows(find(checkpoints, mapped[target].from_[0]), start, stop)

    for piece in load_post_load_rule(change.use, change.options).pieces(change.change, read):  # type: ignore[arg-type]
        if not isinstance(piece, OldBytes):
            yield piece
        elif where.stride is None and not where.big_endian:
            yield Range(where.file, where.offset + piece.offset, piece.nbytes)
        else:
            yield b"".join(chunks(tensor))[piece.offset : piece.offset + piece.nbytes]


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
                _write_all(target, data)
            if count == 0:
                raise refuse(
                    "LR102",
                    f"{piece.file} ends {piece.nbytes - done} bytes early: it has become shorter since its header was read.",
                    "Leave the sources alone while a job runs.",
                )
            done += count
            on_progress(count)


def _write_all(target: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[FileIO]:
    """A file under its name plus `.partial`, flushed to disk and renamed; removed if anything fails, Ctrl-C included."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("xb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_error(error, path) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(error: OSError, path: Path) -> RemapError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return refuse("LR502", f"the disk filled up while {path.name} was written.", "Free some, or give another --output.")
    return refuse("LR508", f"{path}: {error.strerror or error}.", "Give another --output.")
