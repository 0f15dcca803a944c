"""Checkpoints of which only the names are at hand: an index without its shards, or a list of names,
one a line.

Names are enough to begin a rule file with. Whatever needs shapes or bytes opens the checkpoint
itself.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from llava_remap.checkpoint import (
    Checkpoint,
    Tensor,
    has_file,
    read_file,
    read_object,
    read_weight_map,
)
from llava_remap.core.problem import refuse
from llava_remap.source.sources import open_source

#: `Checkpoint.form` where only the names are known.
NAMES_ALONE = "names alone"
_INDEX = "*.index.json"
_LIST = (".txt", ".names")
#: Bytes. 300,000 names of 100 characters.
_LARGEST_LIST = 30_000_000


def open_names(
    name: str,
    text: str,
    use: Collection[str],
    *,
    first: bool,
    part: bool = False,
    offline: bool = False,
) -> Checkpoint:
    """As `open_source`, for what needs no more than the names: they may be all that there is.

    The tensors of such a checkpoint have no dtype and the shape ().

    Raises:
        RemapError: as `open_source`; LR103 for an index that can't be read, LR102 for a list that
            can't.
    """
    path = Path(text).expanduser()
    if path.suffix in _LIST and has_file(path):
        return _checkpoint(path, path.parent, _listed(path))
    indexes = (
        [path]
        if path.name.endswith(_INDEX[1:]) and has_file(path)
        else sorted(path.glob(_INDEX))
        if path.is_dir()
        else []
    )
    if len(indexes) == 1:
        files = read_weight_map(indexes[0])
        if not any(os.path.lexists(indexes[0].parent / file) for file in set(files.values())):
            return _checkpoint(path, indexes[0].parent, list(files))
    return open_source(name, text, use, first=first, part=part, offline=offline)


def _listed(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _LARGEST_LIST:
            raise refuse(
                "LR102",
                f"{path} has more than {_LARGEST_LIST} bytes.",
                "Give a list of names, one a line.",
            )
        names = [line.strip() for line in read_file(path).decode("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise refuse("LR102", f"{path}: {error}.", "Give a list of names, one a line.") from None
    names = [name for name in names if name]
    if odd := [name for name in names if any(letter.isspace() for letter in name)]:
        raise refuse(
            "LR102",
            f"{path} is no list of names: a line is `{odd[0][:60]}`.",
            "Give a list of names, one a line.",
        )
    if not names:
        raise refuse("LR102", f"{path} has no names.", "Give a list of names, one a line.")
    return names


def _checkpoint(path: Path, folder: Path, names: Collection[str]) -> Checkpoint:
    config = folder / "config.json"
    content = (
        read_object(config, "LR113", "Download or copy it again.", unique=False)
        if has_file(config)
        else None
    )
    return Checkpoint(
        path, NAMES_ALONE, {name: Tensor.of(name, "", (), None) for name in names}, content, folder
    )
