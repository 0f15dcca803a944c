"""Check a folder, on its own or against its sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.arguments import as_path
from llava_remap.source.sources import Sources, open_again
from llava_remap.verification import Verification, verify_folder
from llava_remap.verification.record import Record, read_record


def verify(folder: str | Path, against: Sources = (), *, offline: bool = False) -> Verification:
    """Check a folder that `apply` wrote.

    >>> checked = verify("llava-hf", {"model": "llava-v1.5-7b",
    ...                               "vision_tower": "clip-vit-large-patch14-336"})
    >>> checked.problems, checked.strict
    ((), True)

    The files are compared with the digests in the folder's record, and transformers loads names and
    shapes strictly. With `against`, every value is compared with what the sources give.

    Args:
        folder: the folder.
        against: the sources that it was made from, given as to `plan`; empty for no comparison.
        offline: whether to take from the hub only what was downloaded before.

    Returns:
        The result of the checks. The folder is sound if there are no `problems`.

    Raises:
        RemapError: if the folder has no readable record, or a source can't be opened.
    """
    folder = as_path("folder", folder)
    return verify_folder(folder, *open_recorded(folder, against, offline=offline))


def open_recorded(
    folder: Path, against: Sources, *, offline: bool = False
) -> tuple[Record, Mapping[str, Checkpoint] | None]:
    """The record of a folder, and the sources to compare it with; arguments as for `verify`."""
    record = read_record(folder)
    if not against and not isinstance(against, Mapping):  # an empty dict is refused
        return record, None
    return record, open_again(record.locations, against, unused=record.unused, offline=offline)
