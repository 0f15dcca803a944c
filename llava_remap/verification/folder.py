"""Checks that a folder is unchanged since `apply` wrote it: compares its files with its record,
loads them strictly with the installed transformers, and compares them with the sources.

For the last comparison, each tensor is made again by the plan, in memory, block by block.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import (
    Catalog,
    Checkpoint,
    Tensor,
    open_checkpoint,
    read_object,
    readable,
)
from llava_remap.core import Exit, Problem, RemapError, counted
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, to_float64
from llava_remap.core.files import is_regular_file
from llava_remap.execute import INDEX, Range, Recipe, blocks, digest_files, equal, find
from llava_remap.planning import Alias, Mapped
from llava_remap.routing import SourceName
from llava_remap.verification.record import RECORD, Record
from llava_remap.verification.strict import strict_load

#: Files that a loader would read as part of the model, its config, tokenizer or processor. Adding
#: any other file is allowed.
_LOADED = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".py", ".partial")
_LOADED_NAMES = ("merges.txt", "vocab.txt", "additional_chat_templates")
_FIX = "Convert the checkpoint again, or replace the folder with an undamaged copy."
_OTHER_SOURCE = (
    "The folder was made from another checkpoint, or the folder or the checkpoint was changed."
)


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of checking a folder.

    Attributes:
        files, nbytes: number and bytes of the files that were digested.
        strict: whether a strict load succeeded; None if it wasn't tried because files are gone.
        tensors: number of tensors compared with the sources; None if no source was given.
        as_written: whether every file and every header agrees with the record.
        differing: number of tensors that differ from the sources.
    """

    folder: Path
    files: int
    nbytes: int
    strict: bool | None
    tensors: int | None
    problems: tuple[Problem, ...]
    as_written: bool = True
    differing: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "llava-remap/verification",
            "format_version": 1,
            "folder": str(self.folder),
            "verified": not self.problems,
            "files": self.files,
            "nbytes": self.nbytes,
            "strict_load": self.strict,
            "tensors_compared": self.tensors,
            "problems": [problem.to_json() for problem in self.problems],
        }


def verify_folder(
    folder: Path,
    record: Record,
    against: Mapping[str, Checkpoint] | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    on_phase: Callable[[str], None] = lambda what: None,
) -> Verification:
    """Check a folder: digests, a strict load on meta tensors, and, with sources, bit equality of
    every tensor.

    Args:
        record: the folder's record.
        against: every source of the record, by name; None for no comparison.
        on_progress: called with the number of bytes read since the last call.
        on_phase: called with the name of each phase when it begins.

    Raises:
        RemapError: LR100 or LR102 if a file can't be read at all; errors of resources and
            libraries.
    """
    problems = file_problems(folder, record, on_progress)
    strict, tensors, differing, as_written = None, None, 0, not problems
    shards = [folder / name for name in sorted(record.outputs) if name.endswith(".safetensors")]
    if all(path.is_file() for path in (*shards, folder / "config.json", folder / INDEX)):
        on_phase("loading strictly")
        try:
            written = open_checkpoint(folder / INDEX).catalog
            headers = header_problems(written, record)
            failures = strict_load(
                shards,
                record.target_class,
                read_object(folder / "config.json", "LR113", _FIX),
            )
        except RemapError as error:  # everything could be read when the folder was written
            if error.exit in (Exit.RESOURCES, Exit.LIBRARY):  # the folder may be sound
                raise
            headers = []
            failures = [replace(problem, code="LR601", fix=_FIX) for problem in error.problems]
        problems += headers + failures
        as_written = as_written and not headers
        strict = not failures
        if against is not None and strict:
            on_phase("comparing with the sources")
            tensors, found = compare(
                written,
                Recipe.of(record.mapped, record.post_load, against),
                record.aliases,
                on_progress,
            )
            problems += found
            differing = sum(len(problem.names) for problem in found)
    return Verification(
        folder,
        len(record.outputs),
        record.nbytes_to_read(compared=False),
        strict,
        tensors,
        tuple(problems),
        as_written,
        differing,
    )


def header_problems(written: Catalog, record: Record) -> list[Problem]:
    """LR603 if names, dtypes or shapes of the tensors differ from the record."""
    said = {entry.target: (entry.dtype, entry.shape) for entry in record.mapped}
    have = {name: (tensor.dtype, tensor.shape) for name, tensor in written.items()}
    rows = [
        (
            name,
            f"is {_describe(have.get(name))} in the files, "
            f"{_describe(said.get(name))} in the record",
        )
        for name in sorted(said.keys() | have.keys())
        if have.get(name) != said.get(name)
    ]
    return tabled("LR603", f"the record and the files disagree on {len(rows)} tensors.", _FIX, rows)


def _describe(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{tensor[0]} {list(tensor[1])}" if tensor is not None else "not there"


def file_problems(
    folder: Path, record: Record, on_progress: Callable[[int], None] = lambda nbytes: None
) -> list[Problem]:
    """LR603 for files that are gone or changed, and for files that a loader would read but the
    record doesn't have.

    Raises:
        RemapError: LR100 if a file can't be read at all.
    """
    with readable(folder):
        every = {path.name for path in folder.iterdir()}
        gone = {
            name: reason for name in record.outputs if (reason := _gone(folder / name)) is not None
        }
    there = [folder / name for name in record.outputs if name not in gone]
    digests = {path.name: digest for path, digest in digest_files(there, on_progress).items()}
    rows = []
    for name, wanted in sorted(record.outputs.items()):
        if name in gone:
            rows.append((name, gone[name]))
        elif (have := digests[name]).nbytes != wanted.nbytes:
            rows.append((name, f"has {have.nbytes:,} bytes, the record says {wanted.nbytes:,}"))
        elif have != wanted:
            said = f"{have.xxh3_128[:12]}…, the record says {wanted.xxh3_128[:12]}…"
            rows.append((name, f"has xxh3_128 {said}"))
    rows += [
        (name, "is not in the record")
        for name in sorted(every - {RECORD, *record.outputs})
        if name in _LOADED_NAMES or (name.endswith(_LOADED) and not name.startswith("."))
    ]
    are = "are" if len(rows) > 1 else "is"
    return tabled(
        "LR603",
        f"{folder} has {counted(len(rows), 'file')} that {are} not as written.",
        _FIX,
        rows,
    )


def _gone(path: Path) -> str | None:
    """Why a file is gone, or isn't a file; None if it is there.

    Raises:
        OSError: if reading isn't allowed, or the disk fails.
    """
    try:
        return None if is_regular_file(path) else "is gone"
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EIO):
            raise
        return f"can't be read: {error.strerror}"


def compare(
    written: Catalog,
    recipe: Recipe,
    aliases: Sequence[Alias] = (),
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> tuple[int, list[Problem]]:
    """Compare every tensor of an output with its sources. An alias isn't written, so its source
    tensor is compared with the source tensor of the parameter that it is tied to.

    Args:
        written: the output's tensors.
        recipe: how the tensors are made.
        aliases: names that the model ties to other tensors.
        on_progress: called with the number of bytes compared since the last call.

    Returns:
        The number of tensors compared, and LR602.

    Raises:
        RemapError: as `Recipe.pieces`.
    """
    found = {
        entry.target: _difference(written.get(entry.target), entry, recipe, on_progress)
        for entry in recipe.mapped.values()
    }
    found |= {alias.target: _tie(written, alias, recipe) for alias in aliases}
    rows = [(name, difference) for name, difference in sorted(found.items()) if difference]
    unknown = sorted(written.keys() - found.keys())
    rows += [(name, "has no source in the record") for name in unknown]
    cause = f"{len(rows)} of {len(found)} tensors differ from the sources."
    return len(found), tabled("LR602", cause, _OTHER_SOURCE, rows)


def tabled(code: str, cause: str, fix: str, rows: Sequence[tuple[str, str]]) -> list[Problem]:
    """A problem with a table of names and a fact for each; no problem for an empty table."""
    return [Problem(code, cause, fix, tuple(name for name, _ in rows), tuple(rows))] if rows else []


def _tie(written: Catalog, alias: Alias, recipe: Recipe) -> str:
    """How the source tensor of an alias differs from that of the parameter that it is tied to."""
    other = recipe.mapped.get(alias.of)
    if alias.target in written or other is None:
        return "is tied to another parameter by the record, and isn't in the folder"
    if not other.is_renamed:
        return f"is tied to `{alias.of}`, which consists of several tensors"
    if difference := _other_header(
        alias.source, (alias.dtype, alias.shape), recipe
    ) or _other_source(other, recipe):
        return difference
    own, its = (find(recipe.checkpoints, name) for name in (alias.source, *other.origins))
    return "" if equal(own, its) else f"is tied to `{alias.of}`, but its source has other values"


def _difference(
    tensor: Tensor | None, entry: Mapped, recipe: Recipe, on_progress: Callable[[int], None]
) -> str:
    """How a tensor differs, in words; empty for no difference."""
    if tensor is None:
        return "is not there"
    if (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
        have, said = (f"{t.dtype} {list(t.shape)}" for t in (tensor, entry))
        return f"is {have}, the record says {said}"
    change = recipe.post_load.get(entry.target)
    # New values may be made from other tensors.
    for name in (entry.target, *(change.change.reads if change is not None else ())):
        if difference := _other_source(recipe.mapped[name], recipe):
            return difference
    return _values(tensor, blocks(recipe.pieces(entry.target)), on_progress)


def _other_source(entry: Mapped, recipe: Recipe) -> str:
    """How the source tensors of an entry have changed, by their headers."""
    for part in entry.parts:
        origin = SourceName(part.source, part.taken.name)
        if difference := _other_header(origin, (entry.dtype_of(origin), part.shape), recipe):
            return difference
    for lora in entry.loras:
        rows, columns = entry.base_shape(lora)
        for matrix, size in ((lora.a, (lora.rank, columns)), (lora.b, (rows, lora.rank))):
            other = recipe.checkpoints[matrix.source].catalog.get(matrix.name)
            if other is None or other.shape != size or other.dtype not in FLOATS:
                said = "isn't there" if other is None else f"is {other.dtype} {list(other.shape)}"
                return (
                    f"is merged with `{matrix.name}`, a matrix of floats {list(size)}; in source "
                    f"`{matrix.source}` it {said}"
                )
    return ""


def _other_header(origin: SourceName, was: tuple[str, tuple[int, ...]], recipe: Recipe) -> str:
    """How the dtype or shape of a source tensor has changed."""
    source = recipe.checkpoints[origin.source].catalog.get(origin.name)
    if source is None:
        return f"comes from `{origin.name}`, which source `{origin.source}` doesn't have"
    if (source.dtype, source.shape) == was:
        return ""
    has, had = (f"{dtype} {list(shape)}" for dtype, shape in ((source.dtype, source.shape), was))
    return f"comes from `{origin.name}`, which is {has} and was {had}"


def _values(tensor: Tensor, wanted: Iterator[bytes], on_progress: Callable[[int], None]) -> str:
    """The number of differing values and the largest difference, in words. Every block holds whole
    elements on both sides.
    """
    where = tensor.location
    assert where is not None
    offset, differing, furthest = where.offset, 0, 0.0
    for block in wanted:
        have = b"".join(blocks([Range(where.file, offset, len(block))]))
        offset += len(block)
        on_progress(len(block))
        if have != block:
            count, distance = _distance(have, block, tensor.dtype)
            differing, furthest = differing + count, max(furthest, distance)
    if offset != where.offset + tensor.nbytes:
        return f"has {tensor.nbytes:,} bytes, but the sources give {offset - where.offset:,}"
    if not differing:
        return ""
    return (
        f"{differing:,} of {tensor.nbytes * 8 // DTYPE_BITS[tensor.dtype]:,} values differ, by "
        f"up to {furthest:.3g}"
    )


def _distance(have: bytes, wanted: bytes, dtype: str) -> tuple[int, float]:
    """The number of elements with different bits, and the largest difference (infinite if NaN or
    infinity is among them).
    """
    import numpy as np

    width = np.dtype(f"u{DTYPE_BITS[dtype] // 8}")
    other = np.frombuffer(have, width) != np.frombuffer(wanted, width)
    with np.errstate(invalid="ignore"):
        apart = np.abs(to_float64(have, dtype) - to_float64(wanted, dtype))[other]
    return int(np.count_nonzero(other)), float(
        np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max()
    )
