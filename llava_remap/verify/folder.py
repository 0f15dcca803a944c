"""Is a folder still what `apply` made? Its files are compared with its record, loaded strictly by
the installed transformers, and compared with the sources.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Catalog, Checkpoint, open_checkpoint, read_object, readable
from llava_remap.core.codes import Exit
from llava_remap.core.files import is_regular_file
from llava_remap.core.problem import Problem, RemapError
from llava_remap.core.wording import counted
from llava_remap.execute import INDEX, Recipe, digest_files
from llava_remap.verify.compare import compare, tabled
from llava_remap.verify.record import RECORD, Record
from llava_remap.verify.strict import strict_load

#: Files that a loader would take for a part of the model, its config, tokenizer or processor. Other
#: files may be added.
_LOADED = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".py", ".partial")
_LOADED_NAMES = ("merges.txt", "vocab.txt", "additional_chat_templates")
_FIX = "Convert the checkpoint again, or copy the folder again from where it was whole."


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of checking a folder.

    Attributes:
        files, nbytes: number and bytes of the files that were digested.
        strict: whether a strict load succeeded; None where files are gone, so that it wasn't tried.
        tensors: number of tensors compared with the sources; None where no source was given.
        as_written: whether every file and every header is as the record says.
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
        RemapError: LR100 or LR102 where a file can't be read at all; errors of resources and
            libraries.
    """
    problems = file_problems(folder, record, on_progress)
    strict, tensors, differing, as_written = None, None, 0, not problems
    shards = [folder / name for name in sorted(record.outputs) if name.endswith(".safetensors")]
    if all(path.is_file() for path in (*shards, folder / "config.json", folder / INDEX)):
        on_phase("loading strictly")
        try:
            written = open_checkpoint(folder / INDEX).catalog
            config = read_object(folder / "config.json", "LR113", _FIX)
            headers = header_problems(written, record)
            failures = strict_load(shards, record.target_class, config)
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
    """LR603 where names, dtypes or shapes of the tensors aren't as the record says."""
    said = {entry.target: (entry.dtype, entry.shape) for entry in record.mapped}
    have = {name: (tensor.dtype, tensor.shape) for name, tensor in written.items()}
    rows = [
        (name, f"is {_said(have.get(name))} in the files, {_said(said.get(name))} in the record")
        for name in sorted(said.keys() | have.keys())
        if have.get(name) != said.get(name)
    ]
    cause = f"the record and the files disagree on {len(rows)} tensors."
    return tabled("LR603", cause, _FIX, rows)


def _said(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{tensor[0]} {list(tensor[1])}" if tensor is not None else "not there"


def file_problems(
    folder: Path, record: Record, on_progress: Callable[[int], None] = lambda nbytes: None
) -> list[Problem]:
    """LR603 for files that are gone or have changed, and for files that a loader would read and the
    record doesn't have.

    Raises:
        RemapError: LR100 where a file can't be read at all.
    """
    with readable(folder):
        every = {path.name for path in folder.iterdir()}
        gone = {
            name: reason for name in record.outputs if (reason := _gone(folder / name)) is not None
        }
    files = [folder / name for name in record.outputs if name not in gone]
    digests = {path.name: digest for path, digest in digest_files(files, on_progress).items()}
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
    cause = f"{folder} has {counted(len(rows), 'file')} that {are} not as written."
    return tabled("LR603", cause, _FIX, rows)


def _gone(path: Path) -> str | None:
    """Why a file isn't there any more, or isn't a file; None where it is there.

    Raises:
        OSError: where reading it isn't allowed, or the disk fails.
    """
    try:
        return None if is_regular_file(path) else "is gone"
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EIO):
            raise
        return f"can't be read: {error.strerror}"
