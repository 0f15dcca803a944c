"""One file of weights, whatever its format: recognised by its first bytes, never by its name."""

from __future__ import annotations

import re
from pathlib import Path

from llava_remap.checkpoint.catalog import WeightFile
from llava_remap.checkpoint.errors import DamagedError, UnreadableError
from llava_remap.checkpoint.safetensors_file import read_safetensors
from llava_remap.checkpoint.small_file import LARGEST, has_file
from llava_remap.checkpoint.torch_file import read_torch_legacy, read_torch_zip
from llava_remap.core import RemapError, quoted, refuse, several

_LFS = b"version https://git-lfs.github.com/spec/v1"


def read_weight_file(file: Path) -> WeightFile:
    """The tensors of `file`.

    Raises:
        RemapError: LR100 if it can't be read, LR101, LR102, LR105, LR106.
    """
    has_file(file)  # refuses a pipe, which would take for ever to open
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(_LFS):
        raise _pointers([file])
    # Before the test for a pickle: a safetensors file may start with any byte, the lowest of its
    # header's length.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST:
        return WeightFile("safetensors", read_safetensors(file))
    if head.startswith(b"PK\3\4"):
        return read_torch_zip(file)
    if head.startswith(b"\x80"):
        return read_torch_legacy(file)
    if head[257:262] == b"ustar":
        raise refuse(
            "LR102",
            f"{quoted(file.name)} is in the tar format that torch wrote before 0.1.10.",
            "Load it with a torch that still can, and save it again with `torch.save`.",
        )
    if head.startswith(b"GGUF"):
        raise refuse(
            "LR106",
            f"{quoted(file.name)} is a GGUF file, which llama.cpp reads; it doesn't lead back "
            "to a training checkpoint.",
            "Give the checkpoint it was made from.",
        )
    if file.suffix == ".safetensors":
        return WeightFile("safetensors", read_safetensors(file))
    start = f"its first bytes are {head[:8].hex(' ')}" if head else "it has 0 bytes"
    raise refuse(
        "LR102",
        f"{quoted(file.name)} is neither a safetensors file nor one that `torch.save` wrote: "
        f"{start}.",
        "Download or copy it again, or give another file.",
    )


def read_weight_files(files: list[Path]) -> dict[Path, WeightFile]:
    """The tensors of several files. All problems are raised together, those of LFS pointers as one.

    Raises:
        RemapError: as `read_weight_file`.
    """
    read: dict[Path, WeightFile] = {}
    errors: list[RemapError] = []
    pointers: list[Path] = []
    for file in files:
        try:
            read[file] = read_weight_file(file)
        except _PointerError:
            pointers.append(file)
        except RemapError as error:
            errors.append(error)
    if pointers:
        errors.insert(0, _pointers(pointers))
    if errors:
        kind = RemapError
        if any(isinstance(error, UnreadableError) for error in errors):
            alike = all(type(error) is UnreadableError for error in errors)
            kind = UnreadableError if alike else DamagedError
        raise kind(problem for error in errors for problem in error.problems)
    return read


class _PointerError(RemapError):
    """A file is a Git LFS pointer."""


def _pointers(files: list[Path]) -> _PointerError:
    missing = 0
    for file in files:
        with file.open("rb") as stream:
            size = re.search(rb"^size (\d{1,18})$", stream.read(512), re.MULTILINE)
        missing += int(size[1]) if size else 0
    count = "is a text" if len(files) == 1 else f"are {len(files)} texts"
    return _PointerError.of(
        "LR101",
        f"{several(file.name for file in files)} {count} that Git LFS put in place of "
        f"{missing} bytes of weights.",
        "Fetch them: `git lfs pull` in the folder, or download the files again.",
    )
