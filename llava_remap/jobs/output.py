"""May this folder be written, and are the sources still what they were? Asked before anything is
made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from llava_remap.checkpoint import BESIDE, Checkpoint
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.execute import CLAIM, Facts, is_held, read_claim, refuse_changed_job, refuse_filled
from llava_remap.verify.record import RECORD


def output_folder(text: str | Path) -> Path:
    """The folder that `--output` names.

    Raises:
        RemapError: LR211 for a home folder that isn't known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise refuse("LR211", f"--output {text}: {error}", "Write the path out.") from None


def refuse_changed(checkpoints: Mapping[str, Checkpoint]) -> None:
    """LR102 for a source that is no longer what it was when it was opened."""
    if changed := [
        str(path) for checkpoint in checkpoints.values() for path in checkpoint.changed()
    ]:
        raise refuse(
            "LR102",
            f"{', '.join(changed)}: changed since it was opened.",
            "Leave the sources alone while a job runs.",
        )


def refuse_report(report: Path, output: Path, checkpoints: Mapping[str, Checkpoint]) -> None:
    """LR508 for a report that would be taken for a part of the output, or that would change a
    source.
    """
    if _real(report).is_relative_to(_real(output)):
        raise refuse(
            "LR508",
            f"{report} is inside the output, where it would be taken for a part of it.",
            "Give another --report.",
        )
    if (name := _source_with(report, checkpoints)) is not None:
        raise refuse(
            "LR508",
            f"{report} is inside source `{name}`, and sources are never written to.",
            "Give another --report.",
        )


def _source_with(path: Path, checkpoints: Mapping[str, Checkpoint]) -> str | None:
    """The source that has `path` in its folder or among its files, or would have; None where it
    could be written.
    """
    real = _real(path)
    names = [name for part in BESIDE.values() for name in part]
    for name, source in checkpoints.items():
        beside = [source.folder / file for file in names] if source.folder is not None else []
        if real.is_relative_to(_real(source.path)) or real in map(_real, (*source.stamps, *beside)):
            return name
    return None


def _real(path: Path) -> Path:
    return Path(
        os.path.realpath(path)
    )  # which, unlike `Path.resolve`, takes links that lead in a circle


def output_problems(
    output: Path,
    nbytes: int | None,
    checkpoints: Mapping[str, Checkpoint],
    facts: Facts | None = None,
) -> list[Problem]:
    """LR503 for an output that isn't an empty folder, LR502 for a disk without room, LR508 where it
    can't or mustn't be.

    Also LR505 for one in which a job was begun, and LR504 if that is another one than the job that
    is to be gone on with.

    Args:
        nbytes: how much disk the files will occupy; None where nothing can be, so that no room is
            needed.
        checkpoints: the sources by name.
        facts: of the job, where it is to be gone on with.
    """
    another = "Give another --output."
    try:
        if os.path.lexists(output):
            nbytes = _left_to_write(output, nbytes, facts)
        parent = next(path for path in (output, *output.absolute().parents) if path.exists())
        links = [path for path in (output, *output.absolute().parents) if path.is_symlink()]
        if (odd := next((path for path in links if not path.exists()), None)) is not None:
            return [Problem("LR508", f"{odd} is a link that leads nowhere.", another)]
        free = shutil.disk_usage(parent).free
    except RemapError as error:
        return list(error.problems)
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None) or output
        return [Problem("LR508", f"{where}: {getattr(error, 'strerror', None) or error}.", another)]
    if (name := _source_with(output, checkpoints)) is not None:
        return [
            Problem(
                "LR508",
                f"{output} is inside source `{name}`, and sources are never written to.",
                another,
            )
        ]
    if not parent.is_dir():
        return [
            Problem("LR508", f"{parent} is a file, so there can be no folder {output}.", another)
        ]
    if not os.access(parent, os.W_OK):
        why = (
            "its file system is read-only"
            if os.statvfs(parent).f_flag & os.ST_RDONLY
            else "you may not write there"
        )
        return [Problem("LR508", f"nothing can be written in {parent}: {why}.", another)]
    if nbytes is not None and nbytes > free:
        room = f"{nbytes:,} bytes are needed in {parent}, {free:,} are free."
        return [Problem("LR502", room, "Free some, or give another --output.")]
    return []


def _left_to_write(output: Path, nbytes: int | None, facts: Facts | None) -> int | None:
    """How much more room `nbytes` need than what is there already."""
    if not output.is_dir():
        raise refuse("LR503", f"{output} is there and isn't a folder.", "Give another --output.")
    begun = read_claim(
        output
    )  # first: a job that begins meanwhile is seen to be held, not to be unfinished
    if is_held(output):
        raise refuse(
            "LR503", f"another job writes into {output}.", "Give another --output, or wait for it."
        )
    if not (killed := (output / CLAIM).exists()):
        begun = None  # it has ended meanwhile
    if facts is not None and not killed and (output / RECORD).is_file():
        raise refuse(
            "LR503",
            f"{output} is finished: there is nothing to go on with.",
            "See what it is: llava-remap verify.",
        )
    if facts is None or begun is None:
        refuse_filled(output, begun, killed=killed)
        return nbytes
    refuse_changed_job(output, begun, facts)
    # What is finished is kept, and the rest of what the job left goes before anything is written.
    return (
        None if nbytes is None else nbytes - sum(path.lstat().st_size for path in output.iterdir())
    )
