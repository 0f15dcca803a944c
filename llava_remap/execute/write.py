"""A plan to safetensors files. Tensors that are only renamed go from file to file as byte ranges
and never enter Python's heap.

The index is written by a call of its own, so that it comes after everything else.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import FileIO
from pathlib import Path

from llava_remap.checkpoint import readable
from llava_remap.core.threads import finished
from llava_remap.execute.digests import FileDigest
from llava_remap.execute.files import Closed, Folder
from llava_remap.execute.pieces import Range, Recipe
from llava_remap.execute.writer import BLOCK, Writer
from llava_remap.planning import Shard

INDEX = "model.safetensors.index.json"
#: The default number of files that are written at a time.
JOBS = 2
#: The tensors of a safetensors file start at a multiple of this. Each tensor is then aligned, if
#: the tensors before it are.
_ALIGNMENT = 8


def write_shards(
    recipe: Recipe,
    shards: Sequence[Shard],
    folder: Folder,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    jobs: int = JOBS,
) -> None:
    """Write the weight files of a complete plan, except those that the folder has already. After
    a file fails, no other file is begun.

    Args:
        recipe: how the tensors in `shards` are made.
        on_progress: called with the number of bytes written since the last call, from any thread.
        jobs: how many files are written at a time.

    Raises:
        RemapError: LR102 if a source has become shorter or can't be read, LR502 for a full disk,
            LR508 for any other write error; and any refusal of a post-load rule.
    """
    # One recipe for all files: a value that two files share is computed once for a recipe.
    recipe = replace(recipe, on_read=folder.gate.check)
    left = [shard for shard in shards if folder.path / shard.file not in folder.digests]
    # Even one job has a thread of its own: this thread can then be interrupted, whatever the disk
    # is busy with.
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in finished(
                [pool.submit(_write_shard, recipe, shard, folder, on_progress) for shard in left]
            ):
                if not isinstance(done.exception(), Closed):  # `Closed`: another file failed
                    done.result()
            folder.gate.check()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            folder.gate.close()
            raise


def shard_nbytes(shard: Shard, recipe: Recipe) -> int:
    """Bytes of a weight file. `write_shards` reports all of them as progress."""
    return len(shard_header(shard, recipe)) + sum(
        recipe.mapped[name].nbytes for name in shard.tensors
    )


def write_index(recipe: Recipe, shards: Sequence[Shard], folder: Folder) -> None:
    """Write the index. It makes the folder loadable, so it comes after everything else."""
    files = {name: shard.file for shard in shards for name in shard.tensors}
    content = {
        "metadata": {"total_size": sum(recipe.mapped[name].nbytes for name in files)},
        "weight_map": dict(sorted(files.items())),
    }
    folder.put(INDEX, (json.dumps(content, indent=2) + "\n").encode())


def shard_header(shard: Shard, recipe: Recipe) -> bytes:
    """The head of a safetensors file: 8 bytes of length, then JSON, padded with spaces.

    The head is padded further if most tensor bytes then have the same offset within a block as in
    the source: a file system that can share blocks needn't copy them. Torch files have gaps between
    tensors, so hardly any two tensors would fit. The padding doesn't depend on the file system, so
    the same bytes are written everywhere.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    # Bytes by the distance of source and target within a block.
    shifts: dict[int, int] = defaultdict(int)
    end = 0
    for name in shard.tensors:
        entry = recipe.mapped[name]
        start, end = end, end + entry.nbytes
        entries[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        if (run := recipe.copied(name)) is not None:
            shifts[(run.offset - start) % BLOCK] += run.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    aligned = {shift: nbytes for shift, nbytes in shifts.items() if shift % _ALIGNMENT == 0}
    if aligned and 2 * max(aligned.values()) > end:
        text += b" " * (
            (max(aligned, key=lambda shift: (aligned[shift], shift)) - 8 - len(text)) % BLOCK
        )
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_shard(
    recipe: Recipe, shard: Shard, folder: Folder, on_progress: Callable[[int], None]
) -> None:
    header = shard_header(shard, recipe)

    def fill(file: FileIO) -> FileDigest:
        opened: dict[Path, int] = {}
        with (
            contextlib.ExitStack() as sources,
            Writer(file, on_progress, folder.gate.check) as writer,
        ):
            writer.write(header)
            for piece in _coalesced(
                piece for name in shard.tensors for piece in recipe.pieces(name)
            ):
                if isinstance(piece, bytes):
                    writer.write(piece)
                    continue
                if piece.file not in opened:
                    with readable(piece.file):
                        opened[piece.file] = os.open(piece.file, os.O_RDONLY)
                    sources.callback(os.close, opened[piece.file])
                writer.copy(opened[piece.file], piece.file, piece.offset, piece.nbytes)
            planned = shard_nbytes(shard, recipe)
            if writer.nbytes != planned:  # no `assert`, which -O takes out
                raise AssertionError(
                    f"{shard.file}: {writer.nbytes} bytes written, {planned} planned"
                )
            return writer.finish()

    folder.write(shard.file, fill)


def _coalesced(pieces: Iterator[Range | bytes]) -> Iterator[Range | bytes]:
    """Neighbouring ranges of one file as one."""
    run: Range | None = None
    for piece in pieces:
        if (
            isinstance(piece, Range)
            and run is not None
            and piece.file == run.file
            and piece.offset == run.offset + run.nbytes
        ):
            run = Range(run.file, run.offset, run.nbytes + piece.nbytes)
            continue
        if run is not None:
            yield run
        run = piece if isinstance(piece, Range) else None
        if not isinstance(piece, Range):
            yield piece
    if run is not None:
        yield run
