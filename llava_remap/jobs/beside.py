"""Sources that lie near a checkpoint, in a folder with the name that its files give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, has_file, parts_beside, read_object
from llava_remap.rulefile import RuleFile
from llava_remap.source.defaults import named_tower
from llava_remap.source.sources import is_there, last_part
from llava_remap.target_model import STOCK, stock_name


def find_beside(checkpoint: Checkpoint, name: str, named: str, by: str) -> tuple[str, str] | None:
    """Where a source lies near a checkpoint, and how it was found.

    Args:
        named: the path or hub id that the checkpoint's files name, or else the default; may be
            empty.
        by: what names it, in words.
    """
    folder = checkpoint.folder or checkpoint.path.parent
    if checkpoint.folder is not None and name in (inside := parts_beside(folder)):
        return inside[name], "a folder inside the checkpoint"
    if not named or is_there(Path(named).expanduser()):
        return None
    around = folder.resolve() if folder.name in ("", "..") else folder
    for above in (around.parent, folder, Path()):
        place = above / last_part(named)
        is_other = not has_file(place / "config.json") or place.resolve() == folder.resolve()
        if not is_other and not _is_other_kind(place, named):
            return str(place), f"a folder beside the checkpoint with the name that {by}: {named}"
    return None


def find_tower(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], config: Mapping[str, Any] | None
) -> tuple[str, str, str] | None:
    """A source that could bring the config of a tower inside the checkpoint: its name, where the
    tower's own checkpoint lies, and how it was found. None if it wasn't found, or was given.

    Args:
        checkpoints: the sources that are open.
        config: the config that describes the language model; it may name the tower.
    """
    if (main := checkpoints.get(rules.first_source)) is None or main.in_memory:
        return None
    named = named_tower(rules, config)
    for name, source in rules.text.sources.items():
        if name in checkpoints or source.overrides or not {"config", "processor"} <= {*source.use}:
            continue
        if named and has_file(Path(named).expanduser() / "config.json"):
            return name, named, f"named by its config: {named}"
        if (near := find_beside(main, name, named, "its config gives")) is not None:
            return name, *near
    return None


def _is_other_kind(folder: Path, named: str) -> bool:
    """Whether a folder's config is of another kind of tower than the named stock tower: for
    example `siglip_vision_model`, not `clip_vision_model`.
    """
    if (stock := STOCK.get(stock_name(named) or "")) is None:
        return False
    config = read_object(folder / "config.json", "LR113", "Download or copy it again.")
    kinds = (str(values.get("model_type")).partition("_")[0] for values in (stock, config))
    return len({*kinds}) > 1
