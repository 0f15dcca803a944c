"""Reads files of weights. The first bytes of a file show its format, not its name. A checkpoint of
several files has an index, or `-00001-of-00002` in their names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from os.path import lexists
from pathlib import Path, PurePosixPath, PureWindowsPath

from llava_remap.checkpoint.catalog import WeightFile
from llava_remap.checkpoint.form import Form, choose_form, shard_sets
from llava_remap.checkpoint.safetensors_file import read_safetensors
from llava_remap.checkpoint.source_file import (
    LARGEST,
    DamagedError,
    UnreadableError,
    has_file,
    read_object,
)
from llava_remap.checkpoint.torch_file import read_torch_legacy, read_torch_zip
from llava_remap.core import Problem, RemapError, quote, quoted, refuse, several

_LFS = b"version https://git-lfs.github.com/spec/v1"
#: The largest published mixtures of experts have about 150,000.
MOST_TENSORS = 300_000
_FETCH = "Download the shards and the index again, all from the same revision."
_OUTSIDE = "Put the shards beside the index and correct their names in it."


def read_weight_file(file: Path) -> WeightFile:
    """The tensors of `file`.

    Raises:
        RemapError: LR100 if it can't be read, LR101, LR102, LR105, LR106.
    """
    has_file(file)  # refuses a pipe, which open() would wait for
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(_LFS):
        raise _pointers([file])
    # Tested before pickles, since a safetensors file may start with any byte: the lowest byte of
    # its header's length.
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
            "Load it with a version of torch that can still read it, and save it again with "
            "`torch.save`.",
        )
    if head.startswith(b"GGUF"):
        raise refuse(
            "LR106",
            f"{quoted(file.name)} is a GGUF file for llama.cpp, which can't be turned back into a "
            "training checkpoint.",
            "Give the checkpoint from which it was made.",
        )
    if file.suffix == ".safetensors":
        return WeightFile("safetensors", read_safetensors(file))
    start = f"its first bytes are {head[:8].hex(' ')}" if head else "it has 0 bytes"
    raise refuse(
        "LR102",
        f"{quoted(file.name)} is neither a safetensors file nor a file of `torch.save`: {start}.",
        "Download or copy it again, or give another file.",
    )


def read_weight_files(files: list[Path]) -> dict[Path, WeightFile]:
    """The tensors of several files. All problems are raised together; LFS pointers are one problem.

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
        f"{several(file.name for file in files)} {count} in place of {missing} bytes of weights, "
        "which Git LFS hasn't downloaded.",
        "Run `git lfs pull` in the folder, or download the files again.",
    )


def read_index(index: Path) -> dict[Path, WeightFile]:
    """The shards that the JSON file `index` names, by path. They hold exactly the tensors listed in
    the index.

    Raises:
        RemapError: LR103 if index and shards disagree, otherwise as `read_weight_file`.
    """
    weight_map = shards_beside(
        read_weight_map(index, _instead(index) or _OUTSIDE),
        lambda name: lexists(index.parent / name),
    )
    names = sorted(set(weight_map.values()))
    if absent := [name for name in names if not has_file(index.parent / name)]:
        raise refuse(
            "LR103",
            f"{len(absent)} of the {len(names)} shards in {quoted(index.name)} are missing: "
            f"{several(absent)}.",
            _elsewhere(index, absent) or _instead(index) or "Copy or download the missing shards.",
            [n for n, file in weight_map.items() if file in absent],
        )
    shards = read_weight_files([index.parent / name for name in names])
    _refuse_disagreement(index, weight_map, shards)
    return shards


def read_weight_map(index: Path, outside: str = _OUTSIDE) -> dict[str, str]:
    """The tensor names of the JSON file `index` with their shards, all in the index's folder or
    below it.

    Args:
        outside: the advice for an index that names files elsewhere.

    Raises:
        RemapError: LR103.
    """
    weight_map = read_object(index, "LR103", _FETCH).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise refuse(
            "LR103", f"{quoted(index.name)} has no `weight_map` from tensor names to files.", _FETCH
        )
    if len(weight_map) > MOST_TENSORS:
        raise refuse(
            "LR103",
            f"{quoted(index.name)} lists {len(weight_map)} tensors, more than {MOST_TENSORS}.",
            _FETCH,
        )
    if foreign := [name for name in sorted(set(weight_map.values())) if not _is_inside(name)]:
        raise refuse(
            "LR103",
            f"{quoted(index.name)} names files outside its folder: {several(foreign)}.",
            outside,
        )
    return weight_map


def shards_beside(weight_map: Mapping[str, str], is_there: Callable[[str], bool]) -> dict[str, str]:
    """A `weight_map` in which each absent shard is replaced by the file of the same name beside the
    index, if there is one.

    An index may have been written for the folder above, with names like
    `checkpoint-500/model-00001-of-00002.safetensors`, or copied from there. The shards' tensors are
    still compared with the index.
    """
    places = {}
    for name in set(weight_map.values()):
        alone = PureWindowsPath(name).name  # understands the paths of any system
        places[name] = alone if not is_there(name) and is_there(alone) else name
    return {tensor: places[name] for tensor, name in weight_map.items()}


def _elsewhere(index: Path, absent: Sequence[str]) -> str:
    """The command that moves shards from one sub-folder beside the index, in words; empty if they
    lie elsewhere.
    """
    names = [PureWindowsPath(name).name for name in absent]
    for folder in sorted(path for path in index.parent.iterdir() if path.is_dir()):
        sets = shard_sets(name for name in names if has_file(folder / name))
        if len(sets) == 1 and sum(map(len, sets.values())) == len(names):
            ((stem, suffix, total),) = sets
            return (
                f"The shards are in {quoted(str(folder))}. Move them beside the index: mv "
                f"{quote(str(folder / stem))}-*-of-{total:05}{suffix} {quote(str(index.parent))}"
            )
    return ""


def _instead(index: Path) -> str:
    """How to read complete weights beside an index that aren't its shards; empty without such."""
    names = {path.name for path in index.parent.iterdir() if path.is_file()}
    form = choose_form(names - {index.name})
    if form is None or form.is_aside or form.is_index or form.total not in (None, len(form.files)):
        return ""
    what = (
        f"a complete set, {quoted(form.file)} to {quoted(form.files[-1])},"
        if form.total is not None
        else quoted(form.file)
    )
    return (
        f"Beside it is {what} that this index doesn't belong to. To read those weights, put the "
        f"index aside: mv {quote(str(index))} {quote(str(index))}.old"
    )


def _is_inside(name: str) -> bool:
    """Whether a file name stays inside its folder, on any system."""
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return (
        name.isprintable()
        and not any(path.is_absolute() or path.anchor or ".." in path.parts for path in paths)
        and name != ""
    )


def _refuse_disagreement(
    index: Path, weight_map: Mapping[str, str], shards: Mapping[Path, WeightFile]
) -> None:
    files = _files_by_name(shards)
    absent = [n for n, file in weight_map.items() if index.parent / file not in files.get(n, [])]
    lost = [name for name in absent if name not in files]
    shards_of_lost = several(dict.fromkeys(weight_map[name] for name in lost))
    moved = [name for name in absent if name in files]
    first_moved = [
        f"{quoted(name)} is in {several(f.name for f in files[name])}, not in "
        f"{quoted(weight_map[name])}"
        for name in moved[:1]
    ]
    unlisted = [name for name in files if name not in weight_map]
    causes = (
        (
            f"{len(lost)} tensors that {quoted(index.name)} lists are missing in their shards "
            f"({shards_of_lost}): {several(lost)}.",
            lost,
        ),
        (
            f"{len(moved)} tensors are in another shard than {quoted(index.name)} says: "
            f"{''.join(first_moved)}.",
            moved,
        ),
        (
            f"{len(unlisted)} tensors in the shards are not listed in {quoted(index.name)}: "
            f"{several(unlisted)}.",
            unlisted,
        ),
    )
    twice = _in_two_shards(files)
    # Missing or repeated tensors are the shards' fault, not the index's.
    fix = _FETCH if lost or twice or not (moved or unlisted) else _instead(index) or _FETCH
    if problems := twice + [Problem("LR103", c, fix, tuple(names)) for c, names in causes if names]:
        raise RemapError(problems)


def _files_by_name(shards: Mapping[Path, WeightFile]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    for file, shard in shards.items():
        for tensor in shard.tensors:
            files[tensor.name].append(file)
    return files


def _in_two_shards(files: Mapping[str, list[Path]]) -> list[Problem]:
    twice = [name for name, places in files.items() if len(places) > 1]
    if not twice:
        return []
    first = f"{quoted(twice[0])} in {several(file.name for file in files[twice[0]])}"
    cause = f"{len(twice)} tensors are in more than one file: {first}."
    return [Problem("LR103", cause, _FETCH, tuple(twice))]


def read_form(folder: Path, form: Form) -> dict[Path, WeightFile]:
    """The files of a form without an index.

    Raises:
        RemapError: LR103 if a shard is missing or a tensor is in two files, otherwise as
            `read_weight_file`.
    """
    if form.total not in (None, len(form.files)) or form.missing:
        raise refuse(
            "LR103",
            f"{len(form.files)} of the {form.total} shards that names like {quoted(form.file)} "
            "promise exist, and there is no index.",
            "Download the missing shards, and the index.",
        )
    read = read_weight_files([folder / name for name in form.files])
    if problems := _in_two_shards(_files_by_name(read)):
        raise RemapError(problems)
    return read
