"""The way back by a record: original names and bytes of a folder that `apply` wrote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from llava_remap.checkpoint import BESIDE, Checkpoint, open_checkpoint
from llava_remap.core.arguments import as_path
from llava_remap.core.dtypes import DTYPE_BITS
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.execute import (
    INDEX,
    JOBS,
    FileDigest,
    Folder,
    Recipe,
)
from llava_remap.jobs.output import output_folder, output_problems, refuse_changed
from llava_remap.jobs.resources import disk_nbytes
from llava_remap.jobs.reverse import plan_reverse
from llava_remap.jobs.run import OnPhase, OnProgress, Result, Verify, Written, run
from llava_remap.planning import (
    Box,
    Cast,
    Dropped,
    Mapped,
    Part,
    PostLoadChange,
    Shard,
    aligned,
    holds,
    refuse_uncovered,
)
from llava_remap.post_load.run import find_old_bytes
from llava_remap.routing import SourceName
from llava_remap.verification import file_problems, header_problems
from llava_remap.verification.record import RECORD, Record, read_record

#: The source name of the converted folder.
CONVERTED = "converted"


@dataclass(frozen=True, slots=True)
class Restored:
    """A source as it will be restored.

    Attributes:
        name: the source's name in the rule file.
        location: the source's place during the conversion.
        folder: where it will be written.
        recipe, shards: how its tensors are made from the converted folder's.
        texts: its configs, by file name.
        dropped: tensors that rules dropped, which can't be restored.
        not_taken: number of tensors that were not selected or were replaced, which can't be
            restored.
        not_restored: its other small files. The record has only their digests.
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
                    "from": [origin.name for origin in entry.origins],
                }
                for entry in mapped
            ],
            "files": sorted(self.texts),
            "dropped": [
                {
                    "name": entry.name,
                    "rule": entry.rule,
                    "reason": entry.reason,
                    "in_part": entry.box is not None,
                }
                for entry in self.dropped
            ],
            "not_taken": self.not_taken,
            "files_not_restored": list(self.not_restored),
        }


@dataclass(frozen=True, slots=True)
class Reversion:
    """A planned way back: the converted folder, and the sources that will be made from it."""

    converted: Checkpoint
    record: Record
    output: Path
    parts: tuple[Restored, ...]

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {CONVERTED: self.converted}

    @property
    def written(self) -> tuple[Written, ...]:
        return tuple(
            Written(
                "" if part.folder == self.output else part.name,
                part.recipe,
                part.shards,
                part.texts,
            )
            for part in self.parts
        )

    @property
    def notes(self) -> tuple[Problem, ...]:
        return ()

    @property
    def nbytes_to_handle(self) -> int:
        """Bytes that `run` handles in all: digests of all files, and the weight files written."""
        digested = sum(file.nbytes for file in self.record.outputs.values())
        return digested + sum(part.nbytes for part in self.written)

    def prove(
        self,
        verify: Verify = "none",
        jobs: int = JOBS,
        on_progress: OnProgress = lambda nbytes: None,
    ) -> Reversion:
        """Check that the folder's files are unchanged, and return the job.

        Raises:
            RemapError: LR603 if a file differs, LR102 if one changed since it was opened.
        """
        if problems := file_problems(self.converted.path, self.record, on_progress):
            raise RemapError(problems)
        refuse_changed(self.checkpoints)
        return self

    def resumable(self, on_progress: OnProgress) -> None:
        return None

    def check(
        self, weights: Sequence[Path], verify: Verify, on_progress: OnProgress, on_phase: OnPhase
    ) -> list[Problem]:
        return []

    def last_files(self, folder: Folder, verify: Verify) -> Mapping[str, bytes]:
        return {}

    def to_json(self, result: Result) -> dict[str, Any]:
        """The document of `revert --format json`, once the job was carried out."""
        return {
            "format": "llava-remap/reversion",
            "format_version": 2,
            "reverted": True,
            "folder": str(self.converted.path),
            "rules": self.record.rules,
            "output": str(self.output),
            "sources": {part.name: part.to_json() for part in self.parts},
            "files": list(result.files),
            "nbytes": result.nbytes,
            "seconds": round(result.seconds, 3),
            "problems": [],
        }


def plan_revert(folder: Path, output: str | Path | None) -> Reversion:
    """Plan the way back from record and headers alone; nothing is written.

    A single source is restored into `output` itself. Each of several sources is restored into a
    folder with its name inside `output`.

    Raises:
        RemapError: as `read_record`; LR113 for a record that contradicts itself, LR603 for a record
            of other files, LR607 if the folder doesn't hold a source tensor as it was, LR502, LR503
            or LR508 for an output that can't be written, LR211 without one.
    """
    if output is None:
        raise refuse("LR211", "revert needs --output.", "Give the folder to write.")
    record = read_record(folder)
    output = output_folder(output)
    try:
        converted = replace(open_checkpoint(folder / INDEX), path=folder)
    except RemapError as error:
        # Every file could be opened when it was written, so a wrong digest is the better cause.
        raise RemapError(file_problems(folder, record) or error.problems) from None
    if problems := [*header_problems(converted.catalog, record), *_text_problems(folder, record)]:
        raise RemapError(problems)
    names = list(record.locations)
    folders = {name: output / name if len(names) > 1 else output for name in names}
    if len(names) > 1 and (odd := [name for name in names if not _is_plain(name)]):
        raise refuse(
            "LR113",
            f"{folder / RECORD}: source {odd[0]!r} can't be the name of a folder.",
            "Check where the record comes from.",
        )
    originals = _originals(record)
    _refuse_impossible(folder, originals)
    parts = tuple(_restored(name, folders[name], record, converted, originals) for name in names)
    job = Reversion(converted, record, output, parts)
    disk = sum(
        disk_nbytes(part.shards, part.recipe, map(len, part.texts.values())) for part in parts
    )
    if problems := output_problems(output, disk, {CONVERTED: converted}):
        raise RemapError(problems)
    return job


def revert(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    rules: str | Path | None = None,
    verify: Verify | None = None,
    jobs: int = JOBS,
    offline: bool = False,
) -> Result:
    """Restore the original names, bytes and configs from a converted folder.

    >>> result = revert("llava-hf", "original")
    >>> "model/config.json" in result.files
    True

    Nothing is written unless every file of the folder is unchanged.

    Args:
        folder: a folder that `apply` wrote. With `rules`, a checkpoint in a layout of transformers,
            given like a source of `plan`.
        output: the folder to write; new or empty. With `rules`, the default is the last part of
            `folder` with `-original`, in the current folder.
        rules: a rule file to use instead of the record. Only weights are then written.
        verify: with `rules`, how the output is checked, as for `apply`; `meta` by default.
        jobs: number of weight files that are written at the same time.
        offline: whether to take from the hub only what was downloaded before.

    Raises:
        RemapError: with every reason not to write, as `plan_revert`; LR211 without `output`, or for
            `verify` without `rules`.
    """
    if rules is not None:
        job = plan_reverse(rules, folder, output, offline=offline)
        return job.run(verify=verify or "meta", jobs=jobs)
    if verify is not None:
        raise refuse(
            "LR211",
            f"verify={verify!r} is only for a reversal by a rule file.",
            "Give rules too, or leave out verify.",
        )
    return run(plan_revert(as_path("folder", folder), output), verify="none", jobs=jobs)


def _restored(
    name: str,
    folder: Path,
    record: Record,
    converted: Checkpoint,
    originals: Mapping[SourceName, Mapped],
) -> Restored:
    """A source to restore. Its tensors keep the order and the division into files of the converted
    folder.
    """
    source = record.sources[name]
    place = {tensor: number for number, tensor in enumerate(converted.catalog)}
    mapped = {
        origin.name: entry
        for origin, entry in sorted(
            originals.items(), key=lambda item: place[item[1].origins[0].name]
        )
        if origin.source == name
    }
    files: dict[Path, list[Mapped]] = defaultdict(list)
    for entry in mapped.values():
        where = converted.catalog[entry.origins[0].name].location
        assert where is not None
        files[where.file].append(entry)
    shards = [[entry.target for entry in aligned(entries)] for entries in files.values()]
    beside = {file for files_of_kind in BESIDE.values() for file in files_of_kind}
    return Restored(
        name,
        source.location,
        folder,
        Recipe(mapped, {}, {CONVERTED: converted}),
        Shard.numbered(shards),
        source.texts,
        tuple(entry for entry in record.dropped if entry.source == name),
        source.not_taken,
        tuple(file for file in source.files if file in beside and file not in source.texts),
    )


def _originals(record: Record) -> dict[SourceName, Mapped]:
    """How each source tensor is made from the folder's tensors: the record's parts, swapped. A
    tensor with a dropped part isn't among them.

    Raises:
        RemapError: LR607 with every tensor that can't be restored.
    """
    changes = {entry.change.target: entry for entry in record.post_load}
    kept = {
        entry.target: _old_spans(entry, changes[entry.target])
        for entry in record.mapped
        if entry.post_load is not None and not entry.is_made
    }
    holders = {entry.target: entry for entry in record.mapped}
    incomplete = {SourceName(entry.source, entry.name) for entry in record.dropped}
    every = [
        moved
        for entry in record.mapped
        for part in entry.parts
        for origin in [SourceName(part.source, part.taken.name)]
        for moved in [_Moved(entry.target, part, entry, entry.dtype_of(origin), entry.rules)]
        if moved.origin not in incomplete
    ]
    for alias in record.aliases:
        part = Part.whole(alias.source.source, alias.source.name, alias.of, alias.shape)
        every.append(_Moved(alias.target, part, holders[alias.of], alias.dtype, alias.rules))
    every.sort(key=lambda moved: moved.target)
    changed_by = {name: changes[name].use for name, spans in kept.items() if spans is None}
    _refuse_lost(record, [(moved.origin.name, moved.loss(changed_by)) for moved in every])
    originals: dict[SourceName, Mapped] = {}
    for moved in every:
        parts = tuple(_swapped(moved.part, moved.holder, kept.get(moved.holder.target)))
        stored, written = moved.dtype, moved.holder.dtype
        then = (Cast(written),) if written != stored else ()
        made = Mapped(moved.origin.name, stored, moved.part.shape, parts, then, moved.rules)
        if (other := originals.get(moved.origin)) is not None:
            parts = (*other.parts, *parts) if replace(made, parts=other.parts) == other else ()
        originals[moved.origin] = replace(made, parts=parts)
    return originals


class _Moved(NamedTuple):
    """A part of a source tensor, which became part of a target name.

    Attributes:
        holder: the tensor of the folder that holds the part; for a tied name, the other tensor.
        dtype: the source tensor's dtype.
    """

    target: str
    part: Part
    holder: Mapped
    dtype: str
    rules: tuple[str, ...]

    @property
    def origin(self) -> SourceName:
        return SourceName(self.part.source, self.part.taken.name)

    def loss(self, changed_by: Mapping[str, str]) -> str:
        """Why the source tensor can't be restored; empty if it can.

        Args:
            changed_by: name of a tensor → the post-load rule that didn't keep all its old values.
        """
        holder = self.holder
        is_tied = holder.target != self.target
        if merged := [lora for lora in holder.loras if is_tied or lora.base in (None, self.origin)]:
            return f"was merged with `{merged[0].a.name}` and rounded"
        if holder.target in changed_by:
            return f"changed by `{changed_by[holder.target]}`, which doesn't keep the old values"
        if holds(holder.dtype, self.dtype):
            return ""
        if is_tied:
            return f"was {self.dtype}; now it is tied to `{holder.target}`, which is {holder.dtype}"
        return f"was {self.dtype}; now it is {holder.dtype}"


def _old_spans(entry: Mapped, changed: PostLoadChange) -> list[tuple[int, int]] | None:
    """Where a tensor that a post-load rule changed holds its old elements: offset and count of each
    span, in order. None unless all old elements were kept.
    """
    found = find_old_bytes(changed.use, changed.options, changed.change)
    width = DTYPE_BITS[entry.dtype] // 8
    return found and [(offset // width, nbytes // width) for offset, nbytes in found]


def _swapped(part: Part, entry: Mapped, spans: Sequence[tuple[int, int]] | None) -> Iterator[Part]:
    """The way back of a part of a tensor. If a post-load rule changed the tensor, the old elements
    lie in `spans`.
    """
    if spans is None:
        yield part.swapped(CONVERTED, entry.shape)
        return
    now, then = prod(entry.shape), prod(part.shape)
    for moved in part.runs():
        at = 0  # offset in the tensor before the change
        for offset, count in spans:
            first, last = max(moved.placed, at), min(moved.placed + moved.size, at + count)
            if first < last:
                taken = Box.flat(entry.target, now, offset + first - at, last - first)
                start = moved.taken + first - moved.placed
                placed = Box.flat(part.taken.name, then, start, last - first)
                yield Part(CONVERTED, entry.shape, taken, placed)
            at += count


def _refuse_lost(record: Record, losses: Iterable[tuple[str, str]]) -> None:
    """Raise LR607 for the names in `losses` that have a reason."""
    if lost := tuple(dict.fromkeys((name, why) for name, why in losses if why)):
        raise RemapError(
            Problem(
                "LR607",
                f"the folder no longer has the original values of {len(lost)} tensors of the "
                "sources.",
                f"Take them from the original: {', '.join(record.locations.values())}.",
                tuple(name for name, _ in lost),
                lost,
            )
        )


def _refuse_impossible(folder: Path, originals: Mapping[SourceName, Mapped]) -> None:
    """Raise LR113 for a record that no job can have written: its parts don't cover a source tensor
    exactly once, or it has a tensor name that no file can have.
    """
    odd = [o.name for o, entry in originals.items() if not entry.parts or not _is_possible(o.name)]
    cause = f"its entry for `{odd[0]}` is impossible, or contradicts other entries" if odd else ""
    try:
        refuse_uncovered(originals.values())
    except ValueError as error:
        cause = cause or str(error)
    if cause:
        raise refuse(
            "LR113",
            f"{folder / RECORD}: {cause}.",
            "Convert the checkpoint again; a record can't be corrected by hand.",
        )


def _text_problems(folder: Path, record: Record) -> list[Problem]:
    """LR603 for configs in the record that don't match their digest in the record."""
    rows = [
        (f"{name}/{file}", "doesn't match its digest in the record")
        for name, source in record.sources.items()
        for file, text in source.texts.items()
        if source.files.get(file) != FileDigest.of(text)
    ]
    if not rows:
        return []
    return [
        Problem(
            "LR603",
            f"{folder / RECORD} was changed: {len(rows)} of the sources' configs in it.",
            "Replace the folder with an unchanged copy.",
            tuple(name for name, _ in rows),
            tuple(rows),
        )
    ]


def _is_plain(name: str) -> bool:
    """Whether a folder inside another folder can have this name on any system."""
    return (
        name.isprintable() and not set(name) & set('/\\:*?"<>|') and name.strip(" .") == name != ""
    )


def _is_possible(name: str) -> bool:
    """Whether a safetensors file can have a tensor of this name."""
    return name != "__metadata__" and not any("\ud800" <= letter <= "\udfff" for letter in name)
