"""A checkpoint in several files: with an index, or recognised by `-00001-of-00002` in their
names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from os.path import lexists
from pathlib import Path, PurePosixPath, PureWindowsPath

from llava_remap.checkpoint.catalog import WeightFile
from llava_remap.checkpoint.form import choose_form, missing_shards, shard_sets
from llava_remap.checkpoint.small_file import has_file, read_object
from llava_remap.checkpoint.weight_file import read_weight_files
from llava_remap.core import Problem, RemapError, quote, quoted, refuse, several

#: The largest mixtures of experts published have about 150,000.
MOST_TENSORS = 300_000
_FETCH = "Download the shards and the index again, all from one revision."
_OUTSIDE = "Put the shards beside the index and correct their names in it."


def read_index(index: Path) -> dict[Path, WeightFile]:
    """The shards that the JSON file `index` names, by path. They hold exactly the tensors that the
    index lists.

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
            f"{len(absent)} of the {len(names)} shards in {quoted(index.name)} are not there: "
            f"{several(absent)}.",
            _elsewhere(index, absent) or _instead(index) or "Copy or download what is missing.",
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

    An index may have been written for the folder above,
    `checkpoint-500/model-00001-of-00002.safetensors`, or be copied from it. The shards' tensors are
    compared with the index all the same.
    """
    places = {}
    for name in set(weight_map.values()):
        alone = PureWindowsPath(name).name  # understands the paths of any system
        places[name] = alone if not is_there(name) and is_there(alone) else name
    return {tensor: places[name] for tensor, name in weight_map.items()}


def _elsewhere(index: Path, absent: Sequence[str]) -> str:
    """How to move shards that lie in one sub-folder of the index's folder beside the index; empty
    if they lie elsewhere.
    """
    names = [PureWindowsPath(name).name for name in absent]
    for folder in sorted(path for path in index.parent.iterdir() if path.is_dir()):
        sets = shard_sets(name for name in names if has_file(folder / name))
        if len(sets) == 1 and sum(map(len, sets.values())) == len(names):
            ((stem, suffix, total),) = sets
            files = f"{quote(str(folder / stem))}-*-of-{total:05}{suffix}"
            return (
                f"They lie in {quoted(str(folder))}. Move them beside the index: mv {files} "
                f"{quote(str(index.parent))}"
            )
    return ""


def _instead(index: Path) -> str:
    """How to read complete weights that lie beside an index and don't belong to it; empty if there
    are none.
    """
    names = {path.name for path in index.parent.iterdir() if path.is_file()}
    form = choose_form(names - {index.name})
    if (
        form is None
        or form.is_aside
        or form.is_index
        or (form.shards and len(form.shards) != form.total)
    ):
        return ""
    what = (
        f"a complete set, {quoted(form.shards[0])} to {quoted(form.shards[-1])},"
        if form.shards
        else quoted(form.file)
    )
    aside = f"mv {quote(str(index))} {quote(str(index))}.old"
    return (
        f"Beside it lies {what} to which this index doesn't belong. Put the index aside, and "
        f"that is read: {aside}"
    )


def _is_inside(name: str) -> bool:
    """Whether a file name leads only downwards, on any system."""
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
        f"{quoted(name)} lies in {several(f.name for f in files[name])}, not in "
        f"{quoted(weight_map[name])}"
        for name in moved[:1]
    ]
    unlisted = [name for name in files if name not in weight_map]
    causes = (
        (
            f"{len(lost)} tensors that {quoted(index.name)} lists are not in their shards "
            f"({shards_of_lost}): {several(lost)}.",
            lost,
        ),
        (
            f"{len(moved)} tensors lie in another shard than {quoted(index.name)} says: "
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
    # Tensors that the shards lack or have twice are no fault of the index.
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


def read_shard_set(folder: Path, shards: Sequence[str], total: int) -> dict[Path, WeightFile]:
    """The shards of a set of `total` files without an index.

    Raises:
        RemapError: LR103 if a shard is missing or a tensor is in two of them, otherwise as
            `read_weight_file`.
    """
    if len(shards) != total or missing_shards(shards, total):
        raise refuse(
            "LR103",
            f"{len(shards)} of the {total} shards that names like {quoted(shards[0])} promise "
            "are there, and no index.",
            "Download the missing shards, and the index.",
        )
    return read_together([folder / name for name in shards])


def read_together(files: list[Path]) -> dict[Path, WeightFile]:
    """The files of one checkpoint.

    Raises:
        RemapError: LR103 if a tensor is in two of them, otherwise as `read_weight_file`.
    """
    read = read_weight_files(files)
    if problems := _in_two_shards(_files_by_name(read)):
        raise RemapError(problems)
    return read
