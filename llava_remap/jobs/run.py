"""The one runner: it carries every kind of job out, whole, or leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import Problem, RemapError
from llava_remap.execute import (
    JOBS,
    Folder,
    Recipe,
    Resumable,
    fresh_folder,
    weight_nbytes,
    write_index,
    write_shards,
)
from llava_remap.jobs.output import refuse_changed
from llava_remap.jobs.resources import Used
from llava_remap.plan import Shard

Verify = Literal["meta", "full", "none"]
#: Called with a number of bytes that were handled since the last call, from any thread.
OnProgress = Callable[[int], None]
#: Called with what is being done, where that changes.
OnPhase = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Written:
    """A folder that a job writes.

    Attributes:
        name: of the folder inside the output; empty for the output itself.
        recipe, shards: its weight files.
        small_files: the others, by name.
    """

    name: str
    recipe: Recipe
    shards: tuple[Shard, ...]
    small_files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return weight_nbytes(self.recipe, self.shards)

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of the tensors in them."""
        mapped = self.recipe.mapped
        return sum(mapped[name].nbytes for shard in self.shards for name in shard.tensors)


Planned = TypeVar("Planned", bound="Runnable")


class Runnable(Protocol):
    """A job that was planned: forward, by a rule file's way back, or by a record."""

    @property
    def output(self) -> Path: ...

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]: ...

    @property
    def written(self) -> tuple[Written, ...]: ...

    @property
    def notes(self) -> tuple[Problem, ...]: ...

    def prove(
        self: Planned, verify: Verify = ..., jobs: int = ..., on_progress: OnProgress = ...
    ) -> Planned:
        """The job with its value checks run.

        Raises:
            RemapError: with whatever keeps it from being carried out.
        """
        ...

    def resumable(self, on_progress: OnProgress) -> Resumable | None:
        """What makes it a job that can be gone on with; None where it can't."""
        ...

    def check(
        self, weights: Sequence[Path], verify: Verify, on_progress: OnProgress, on_phase: OnPhase
    ) -> list[Problem]:
        """What is wrong with the weight files that were written."""
        ...

    def last_files(self, folder: Folder, verify: Verify) -> Mapping[str, bytes]:
        """What is written behind the index."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """A job that was carried out.

    Attributes:
        files: names relative to the output.
        nbytes: bytes of weights.
        seconds: that it took.
        verified: how it was checked.
        used: memory and disk that it took.
        reused: how many weight files were finished by an earlier try.
    """

    output: Path
    files: tuple[str, ...]
    nbytes: int
    seconds: float
    verified: Verify
    notes: tuple[Problem, ...]
    used: Used
    reused: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "files": list(self.files),
            "nbytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "memory": self.used.memory,
            "disk": self.used.disk,
            "verified": self.verified,
            "reused": self.reused,
            "notes": [note.to_json() for note in self.notes],
        }


def run(
    job: Runnable,
    on_progress: OnProgress = lambda nbytes: None,
    on_phase: OnPhase = lambda what: None,
    *,
    verify: Verify = "meta",
    jobs: int = JOBS,
) -> Result:
    """Carry a planned job out, whole.

    Value checks come first, then the weights, a check of them, the small files, the index, and last
    the record. Whatever fails or interrupts, what this call wrote is removed, but for weight files
    that are finished and that the same job can go on from: `plan_job(resume=True)`.

    Args:
        on_progress: called with the number of bytes handled since the last call, as many in all as
            the job's `nbytes_to_handle` tells.
        on_phase: called with what is being done, where that changes.
        verify: `meta`: names and shapes of what was written are checked, forward by the installed
            transformers, which is asked to load it on meta tensors; `full`: every tensor is also
            read back and compared with what its source gives; `none`: neither.
        jobs: how many weight files are written at a time.

    Raises:
        RemapError: with the plan's problems, or what was found since.
    """
    started = time.monotonic()
    job = job.prove(verify, jobs, on_progress)
    resumable = job.resumable(on_progress)
    if resumable is not None and resumable.resume:
        on_phase("comparing digests")
    written = job.written
    inside = [part.name for part in written if part.name]
    with fresh_folder(job.output, inside, resumable) as folder:
        refuse_changed(job.checkpoints)  # so what is claimed now is what was planned
        reused = len(folder.digests)
        on_phase("writing")
        places = [(part, folder.inside(part.name) if part.name else folder) for part in written]
        for part, place in places:
            write_shards(part.recipe, part.shards, place, on_progress, jobs)
        weights = [place.path / shard.file for part, place in places for shard in part.shards]
        if found := job.check(weights, verify, on_progress, on_phase):
            raise RemapError(found)
        on_phase("writing what belongs to them")
        for part, place in places:
            for name, content in sorted(part.small_files.items()):
                place.put(name, content)
        refuse_changed(job.checkpoints)
        for part, place in places:
            if part.shards:
                write_index(part.recipe, part.shards, place)
        for name, content in job.last_files(folder, verify).items():
            folder.put(name, content)
    return Result(
        job.output,
        tuple(sorted(path.relative_to(job.output).as_posix() for path in folder.digests)),
        sum(part.tensor_nbytes for part in written),
        time.monotonic() - started,
        verify,
        job.notes,
        Used.by(folder.digests),
        reused,
    )
