"""Checks before anything is written: the output can be written, and the sources haven't changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from llava_remap.checkpoint import BESIDE, Checkpoint
from llava_remap.core.arguments import as_path
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.core.wording import quoted, several
from llava_remap.execute import CLAIM, Facts, is_held, read_claim, refuse_changed_job, refuse_filled
from llava_remap.verification.record import RECORD, is_finished


def output_folder(text: str | Path) -> Path:
    """The folder that `--output` names.

    Raises:
        RemapError: LR211 for an unknown home folder.
    """
    try:
        return as_path("output", text).expanduser()
    except RuntimeError as error:
        raise refuse("LR211", f"--output {text}: {error}", "Write the whole path.") from None


def holds_others(folder: Path) -> bool:
    """Whether a path is a file, or a folder with files that no job wrote. False for a path that the
    system doesn't accept, which the plan refuses.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
    except NotADirectoryError:
        return folder.is_file()
    except OSError:
        return False
    return bool(names) and not names & {RECORD, CLAIM}


def refuse_changed(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raise LR102 if a file or a tensor of a source changed since it was opened."""
    if changed := [name for checkpoint in checkpoints.values() for name in checkpoint.changed()]:
        raise refuse(
            "LR102",
            f"{several(changed, 6)}: changed since it was opened.",
            "Leave the sources alone while a job runs.",
        )


def refuse_report(
    report: Path, output: Path, checkpoints: Mapping[str, Checkpoint], option: str = "--report"
) -> None:
    """Raise LR508 for a report inside the output or inside a source.

    Args:
        option: the option that named the report.
    """
    if _real(report).is_relative_to(_real(output)):
        raise refuse(
            "LR508",
            f"{report} is inside the output, so it would look like a part of the output.",
            f"Give another {option}.",
        )
    refuse_inside(report, checkpoints, option)


def refuse_inside(path: Path, checkpoints: Mapping[str, Checkpoint], option: str) -> None:
    """Raise LR508 for a file to write inside a source.

    Args:
        option: the option that named the file.
    """
    if (name := _source_with(path, checkpoints)) is not None:
        raise refuse(
            "LR508",
            f"{path} is inside source `{name}`, and sources are never written to.",
            f"Give another {option}.",
        )


def refuse_report_unopened(
    report: Path, output: Path | None, given: Iterable[str], option: str = "--report"
) -> None:
    """As `refuse_report`, for sources that aren't open. An existing file that isn't from
    llava-remap is refused too: it may belong to a source that wasn't named.

    Args:
        given: the sources as the user names them, with or without `NAME=`.
    """
    if output is not None:
        refuse_report(report, output, {}, option)
    beside = [name for part in BESIDE.values() for name in part]
    for text in given:
        for path in map(_real, {Path(text), Path(text.partition("=")[2] or text)}):
            in_folder = _real(report) != path and _real(report).is_relative_to(path)
            as_part = _real(report).parent == path.parent and report.name in (path.name, *beside)
            if in_folder or as_part:
                raise refuse(
                    "LR508",
                    f"{report} is inside source {quoted(text)}, and sources are never written to.",
                    f"Give another {option}.",
                )
    try:
        is_other = b"llava-remap" not in report.read_bytes()[:1000]
    except OSError as error:  # mostly there is none
        is_other = isinstance(error, PermissionError)
    if is_other:
        raise refuse(
            "LR508",
            f"{report} exists already, and was not written by llava-remap.",
            f"Give another {option}.",
        )


def _source_with(path: Path, checkpoints: Mapping[str, Checkpoint]) -> str | None:
    """The name of the source to whose folder or files `path` belongs or would belong; None if it
    belongs to no source.
    """
    real = _real(path)
    names = [name for part in BESIDE.values() for name in part]
    for name, source in checkpoints.items():
        beside = [source.folder / file for file in names] if source.folder is not None else []
        if real.is_relative_to(_real(source.path)) or real in map(_real, (*source.stamps, *beside)):
            return name
    return None


def _real(path: Path) -> Path:
    # Unlike `Path.resolve`, `realpath` accepts links that lead in a circle.
    return Path(os.path.realpath(path))


def output_notes(output: Path, facts: Facts | None = None) -> list[Problem]:
    """Notes of a dry run about an output folder in which the job couldn't be carried out."""
    try:
        if os.path.lexists(output):
            _left_to_write(output, None, facts)
    except RemapError as error:
        return list(error.problems)
    except OSError:  # a problem for `output_problems`
        pass
    return []


def output_problems(
    output: Path,
    nbytes: int | None,
    checkpoints: Mapping[str, Checkpoint],
    facts: Facts | None = None,
    *,
    filled: bool = False,
) -> list[Problem]:
    """Reasons not to write into an output folder.

    LR502: the disk has too little room. LR503: the output isn't an empty folder. LR504: it holds an
    unfinished job other than the one to continue. LR505: it holds an unfinished job, and this is a
    new job. LR508: the system or a source forbids writing there.

    Args:
        nbytes: disk that the files will occupy; None for a job that can't be carried out.
        checkpoints: the sources, by name.
        facts: the facts of the job to continue; None for a new job.
        filled: whether the folder may have content, because nothing will be written.
    """
    another = "Give another --output."
    try:
        if os.path.lexists(output) and not filled:
            nbytes = _left_to_write(output, nbytes, facts)
        parent = next(path for path in (output, *output.absolute().parents) if path.exists())
        links = [path for path in (output, *output.absolute().parents) if path.is_symlink()]
        if (odd := next((path for path in links if not path.exists()), None)) is not None:
            return [Problem("LR508", f"{odd} is a link to a path that doesn't exist.", another)]
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
        room = f"{nbytes:,} bytes are needed in {parent}, but only {free:,} are free."
        return [Problem("LR502", room, "Free some space, or give another --output.")]
    return []


def _left_to_write(output: Path, nbytes: int | None, facts: Facts | None) -> int | None:
    """The part of `nbytes` that is still needed, given the files that an unfinished job left."""
    if not output.is_dir():
        raise refuse("LR503", f"{output} exists and isn't a folder.", "Give another --output.")
    # The claim is read first, so a job that begins meanwhile looks held and not unfinished.
    begun = read_claim(output)
    if is_held(output):
        raise refuse(
            "LR503", f"another job writes into {output}.", "Give another --output, or wait for it."
        )
    if not (killed := (output / CLAIM).exists()):
        begun = None  # the job has ended meanwhile
    if facts is not None and is_finished(output):
        return None
    if facts is None or begun is None:
        refuse_filled(output, begun, killed=killed)
        return nbytes
    refuse_changed_job(output, begun, facts)
    # Finished files are kept. The other files of the job are removed before anything is written.
    return (
        None if nbytes is None else nbytes - sum(path.lstat().st_size for path in output.iterdir())
    )
