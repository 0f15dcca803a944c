"""The way back: original names and bytes of a folder that `apply` wrote, from its record."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import BESIDE, Checkpoint, open_checkpoint
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.execute import (
    INDEX,
    JOBS,
    FileDigest,
    Recipe,
    fresh_folder,
    weight_nbytes,
    write_index,
    write_shards,
)
from llava_remap.jobs.output import output_folder, output_problems, refuse_changed
from llava_remap.jobs.resources import disk_nbytes
from llava_remap.plan import Dropped, Mapped, Shard, aligned
from llava_remap.post_load.old_bytes import find_old_bytes
from llava_remap.routing import SourceName
from llava_remap.verify import file_problems, header_problems
from llava_remap.verify.record import RECORD, Record, read_record

#: What the folder is called where a source needs a name.
CONVERTED = "converted"


@dataclass(frozen=True, slots=True)
class Part:
    """A source as it will be restored.

    Attributes:
        name: its name in the rule file.
        location: where it was.
        folder: where it will be.
        recipe, shards: its tensors, of those of the converted folder.
        texts: its configs, by file name.
        dropped: its tensors that rules dropped; they can't come back.
        not_taken: how many of its tensors were not selected or were replaced; they can't, either.
        not_restored: its other small files, of which only the digests are known.
    """

    name: str
    location: str
    folder: Path
    recipe: Recipe
    shards: tuple[Shard, ...]
    texts: Mapping[str, bytes]
    dropped: tuple[Dropped, ...]
    not_taken: int
    not_restored: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.recipe.mapped.values())

    def to_json(self) -> dict[str, Any]:
        mapped = sorted(self.recipe.mapped.values(), key=lambda entry: entry.target)
        return {
            "location": self.location,
            "folder": str(self.folder),
            "restored": [
                {
                    "name": entry.target,
                    "dtype": entry.dtype,
                    "shape": list(entry.shape),
                    "from": entry.from_[0].name,
                }
                for entry in mapped
            ],
            "files": sorted(self.texts),
            "dropped": [
                {"name": entry.name, "rule": entry.rule, "reason": entry.reason}
                for entry in self.dropped
            ],
            "not_taken": self.not_taken,
            "files_not_restored": list(self.not_restored),
        }


@dataclass(frozen=True, slots=True)
class Reversion:
    """A way back that was planned: the converted folder, and what will be made of it."""

    converted: Checkpoint
    record: Record
    output: Path
    parts: tuple[Part, ...]

    @property
    def nbytes_to_handle(self) -> int:
        """Bytes of which `revert_job` reports progress: all files digested, all weight files
        written.
        """
        digested = sum(file.nbytes for file in self.record.outputs.values())
        return digested + sum(weight_nbytes(part.recipe, part.shards) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Reverted:
    """A way back that was gone: what was restored, the files written (names relative to the
    output), seconds.
    """

    job: Reversion
    files: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "llava-remap/reversion",
            "format_version": 1,
            "reverted": True,
            "folder": str(self.job.converted.path),
            "rules": self.job.record.rules,
            "output": str(self.job.output),
            "sources": {part.name: part.to_json() for part in self.job.parts},
            "files": list(self.files),
            "nbytes": sum(part.nbytes for part in self.job.parts),
            "seconds": round(self.seconds, 3),
            "problems": [],
        }


def plan_revert(folder: Path, output: str | Path) -> Reversion:
    """Plan the way back from record and headers alone; nothing is written.

    A single source is restored into `output` itself, of several each into a folder of its name
    inside it.

    Raises:
        RemapError: as `read_record`; LR113 for a record that contradicts itself, LR603 where it
            isn't of these files, LR607 where a tensor isn't in the folder any more as it was,
            LR502, LR503 or LR508 for an output that can't be.
    """
    record = read_record(folder)
    output = output_folder(output)
    try:
        converted = replace(open_checkpoint(folder / INDEX), path=folder)
    except (
        RemapError
    ) as error:  # all of it could be opened when it was written, so a digest tells more
        raise RemapError(file_problems(folder, record) or error.problems) from None
    _refuse_contradictions(folder, record)
    if problems := [*header_problems(converted.catalog, record), *_text_problems(folder, record)]:
        raise RemapError(problems)
    names = list(record.locations)
    folders = {name: output / name if len(names) > 1 else output for name in names}
    if len(names) > 1 and (odd := [name for name in names if not _is_plain(name)]):
        raise refuse(
            "LR113",
            f"{folder / RECORD}: source {odd[0]!r} can't be the name of a folder.",
            "Look where it comes from.",
        )
    runs = _old_bytes(record)
    parts = tuple(_part(name, folders[name], record, converted, runs) for name in names)
    job = Reversion(converted, record, output, parts)
    disk = sum(
        disk_nbytes(part.shards, part.recipe, map(len, part.texts.values())) for part in parts
    )
    if problems := output_problems(output, disk, {CONVERTED: converted}):
        raise RemapError(problems)
    return job


def revert_job(
    job: Reversion,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    on_phase: Callable[[str], None] = lambda what: None,
    *,
    jobs: int = JOBS,
) -> Reverted:
    """Go a planned way back, or leave no trace.

    The folder's files are held against their digests before anything is written. Then come weights
    and configs, last the indexes. Whatever fails or interrupts, everything that this call wrote is
    removed.

    Args:
        on_progress: called with the number of bytes handled since the last call,
            `job.nbytes_to_handle` in all, from any thread.
        on_phase: called with what is being done, where that changes.
        jobs: how many weight files are written at a time.

    Raises:
        RemapError: LR603 where files aren't as they were written; LR102, LR502, LR503 or LR508 for
            what happens on the way.
    """
    started = time.monotonic()
    checkpoints = {CONVERTED: job.converted}
    if problems := file_problems(job.converted.path, job.record, on_progress):
        raise RemapError(problems)
    refuse_changed(checkpoints)
    on_phase("writing")
    with fresh_folder(
        job.output, [part.name for part in job.parts if part.folder != job.output]
    ) as folder:
        folders = {
            part.name: folder if part.folder == job.output else folder.inside(part.name)
            for part in job.parts
        }
        for part in job.parts:
            write_shards(part.recipe, part.shards, folders[part.name], on_progress, jobs)
        for part in job.parts:
            for name, content in sorted(part.texts.items()):
                folders[part.name].put(name, content)
        refuse_changed(checkpoints)
        for part in job.parts:
            if part.shards:
                write_index(part.recipe, part.shards, folders[part.name])
    files = tuple(sorted(path.relative_to(job.output).as_posix() for path in folder.digests))
    return Reverted(job, files, time.monotonic() - started)


def revert(folder: str | Path, output: str | Path) -> Reverted:
    """Plan the way back and go it: `plan_revert`, then `revert_job`."""
    return revert_job(plan_revert(Path(folder), output))


def _part(
    name: str,
    folder: Path,
    record: Record,
    converted: Checkpoint,
    runs: Mapping[str, list[tuple[int, int]]],
) -> Part:
    """A source, its tensors in the files and in the order in which the converted folder has
    them.
    """
    source = record.sources[name]
    shapes = {entry.target: entry.shape for entry in record.mapped}
    shapes |= {
        entry.change.target: entry.change.shape_before
        for entry in record.post_load
        if entry.change.shape_before is not None
    }
    here: dict[str, list[Mapped]] = defaultdict(list)
    for entry in (entry for entry in record.mapped if not entry.is_made):
        origin, holder = entry.from_[0], entry.tied_to or entry.target
        if origin.source == name:
            here[holder].append(
                Mapped(
                    origin.name,
                    entry.stored_dtype,
                    shapes[holder],
                    (SourceName(CONVERTED, holder),),
                    entry.rules,
                    None,
                )
            )
    files: dict[Path, list[str]] = defaultdict(list)
    for holder, tensor in converted.catalog.items():
        if holder in here:
            assert tensor.location is not None
            files[tensor.location.file] += [entry.target for entry in here[holder]]
    mapped = {entry.target: entry for entries in here.values() for entry in entries}
    shards = [
        [entry.target for entry in aligned([mapped[name] for name in names])]
        for names in files.values()
    ]
    kept = {
        original: runs[entry.from_[0].name]
        for original, entry in mapped.items()
        if entry.from_[0].name in runs
    }
    beside = {file for files_of_kind in BESIDE.values() for file in files_of_kind}
    return Part(
        name,
        source.location,
        folder,
        Recipe(mapped, {}, {CONVERTED: converted}, kept),
        Shard.numbered(shards),
        source.texts,
        tuple(entry for entry in record.dropped if entry.source == name),
        source.not_taken,
        tuple(file for file in source.files if file in beside and file not in source.texts),
    )


def _old_bytes(record: Record) -> dict[str, list[tuple[int, int]]]:
    """Of each tensor that a post-load rule changed, by target name, the runs of bytes that it was.

    Raises:
        RemapError: LR607 with all of those, and tied ones, that can't be had back.
    """
    runs: dict[str, list[tuple[int, int]]] = {}
    rules: dict[str, str] = {}
    stored = {entry.target: entry.stored_dtype for entry in record.mapped}
    for entry in (entry for entry in record.post_load if entry.change.shape_before is not None):
        change = replace(
            entry.change, dtype=stored[entry.change.target]
        )  # so the runs count bytes as they will be written
        if (found := find_old_bytes(entry.use, entry.options, change)) is not None:
            runs[entry.change.target] = found
        else:
            rules[entry.change.target] = entry.use
    dtypes = {entry.target: entry.dtype for entry in record.mapped}
    lost = []
    for mapped in record.mapped:
        holder = mapped.tied_to or mapped.target
        if mapped.merge is not None:
            lost.append(
                (mapped.from_[0].name, f"was merged with `{mapped.from_[1].name}` and rounded")
            )
        elif holder in rules:
            lost.append(
                (
                    mapped.from_[0].name,
                    f"changed by `{rules[holder]}`, which doesn't keep what was there",
                )
            )
        elif replace(mapped, dtype=dtypes[holder], cast_from=mapped.stored_dtype).is_rounded:
            held = (
                f"it is tied to `{holder}`, which is {dtypes[holder]}"
                if mapped.tied_to
                else f"it is {dtypes[holder]} now"
            )
            lost.append((mapped.from_[0].name, f"was {mapped.stored_dtype}; {held}"))
    if lost:
        cause = f"{len(lost)} tensors of the sources are not in the folder as they were."
        fix = f"Take them from the original: {', '.join(record.locations.values())}."
        raise RemapError(Problem("LR607", cause, fix, tuple(name for name, _ in lost), tuple(lost)))
    return runs


def _refuse_contradictions(folder: Path, record: Record) -> None:
    """LR113 for a record that no job of ours can have written."""
    ops = {entry.target: entry.op for entry in record.mapped}
    shapes = {entry.target: entry.shape for entry in record.mapped}
    changed = {change.change.target for change in record.post_load}
    twice = Counter(origin for entry in record.mapped for origin in entry.from_)
    for entry in (entry for entry in record.mapped if not entry.is_made):
        holder = entry.tied_to or entry.target
        origin = entry.from_[0]
        known = (
            entry.op in (None, "gather", "cast", "tied")
            or entry.target in changed
            or entry.merge is not None
        )
        sound = known and twice[origin] == 1 and shapes[holder] == entry.shape
        if not sound or (ops[holder] == "tied") or not _is_tensor_name(origin.name):
            cause = (
                f"{folder / RECORD}: what it says of `{entry.target}` contradicts the rest of "
                "it, or can't be."
            )
            raise refuse(
                "LR113", cause, "Convert the checkpoint again; a record can't be mended by hand."
            )


def _text_problems(folder: Path, record: Record) -> list[Problem]:
    """LR603 for texts in the record that are not those of the files whose digests are in it."""
    rows = [
        (f"{name}/{file}", "is not the text whose digest is in the record")
        for name, source in record.sources.items()
        for file, text in source.texts.items()
        if (known := source.files.get(file)) is None or known != FileDigest.of(text, known.kind)
    ]
    if not rows:
        return []
    cause = f"{folder / RECORD} was changed: {len(rows)} texts of the sources in it."
    return [
        Problem(
            "LR603",
            cause,
            "Copy the folder again from where it was whole.",
            tuple(name for name, _ in rows),
            tuple(rows),
        )
    ]


def _is_plain(name: str) -> bool:
    """Whether a name is that of a folder inside another one, on any system."""
    return (
        name.isprintable() and not set(name) & set('/\\:*?"<>|') and name.strip(" .") == name != ""
    )


def _is_tensor_name(name: str) -> bool:
    """Whether a safetensors file can have a tensor of this name."""
    return name != "__metadata__" and not any("\ud800" <= letter <= "\udfff" for letter in name)
