"""The one runner. It carries out every kind of job as a whole, or leaves no trace."""

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
    FileDigest,
    Folder,
    Recipe,
    Resumable,
    fresh_folder,
    shard_nbytes,
    write_index,
    write_shards,
)
from llava_remap.jobs.output import refuse_changed
from llava_remap.jobs.resources import Used
from llava_remap.planning import Shard

Verify = Literal["meta", "full", "none"]
#: Called from any thread with the number of bytes handled since the last call.
OnProgress = Callable[[int], None]
#: Called with the name of each phase when it begins.
OnPhase = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Written:
    """A folder that a job writes.

    Attributes:
        name: the folder's name inside the output; empty for the output itself.
        recipe, shards: how the weight files are made.
        small_files: the other files, by name.
    """

    name: str
    recipe: Recipe
    shards: tuple[Shard, ...]
    small_files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(shard_nbytes(shard, self.recipe) for shard in self.shards)

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of the tensors in the weight files."""
        mapped = self.recipe.mapped
        return sum(mapped[name].nbytes for shard in self.shards for name in shard.tensors)


Planned = TypeVar("Planned", bound="Runnable")


class Runnable(Protocol):
    """A planned job of any kind: forward, back by a rule file, or back by a record."""

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
        """Run the job's checks before anything is written, and return the job with their notes.

        Raises:
            RemapError: with every reason not to carry the job out.
        """
        ...

    def resumable(self, on_progress: OnProgress) -> Resumable | None:
        """What `run` needs to continue the job after an interruption; None if it can't."""
        ...

    def check(
        self, weights: Sequence[Path], verify: Verify, on_progress: OnProgress, on_phase: OnPhase
    ) -> list[Problem]:
        """Problems of the written weight files."""
        ...

    def last_files(self, folder: Folder, verify: Verify) -> Mapping[str, bytes]:
        """The files that are written after the index."""
        ...

    def to_json(self, result: Result) -> dict[str, Any]:
        """The document of the command that carries the job out, with its result."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a job that was carried out.

    Attributes:
        job: the job, with the notes of its value checks.
        digests: size and digest of each file that was written, by its path relative to the output.
        nbytes: bytes of the tensors written.
        seconds: duration of the run.
        verified: how the output was checked.
        used: memory and disk that the run took.
        reused: number of weight files that an earlier run had finished.
    """

    job: Runnable = field(repr=False)
    output: Path
    digests: Mapping[str, FileDigest] = field(repr=False)
    nbytes: int
    seconds: float
    verified: Verify
    notes: tuple[Problem, ...]
    used: Used
    reused: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self.digests)

    def to_json(self) -> dict[str, Any]:
        """The document that the command prints with `--format json`."""
        return self.job.to_json(self)

    def facts(self) -> dict[str, Any]:
        """The facts of the run, for a part of that document."""
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
    """Carry out a planned job as a whole.

    The order is: value checks, weights, a check of the weights, small files, index, record. After a
    failure or an interruption everything that this call wrote is removed, except for finished
    weight files from which the same job can continue: `plan(resume=True)`.

    Args:
        on_progress: called with the number of bytes handled since the last call; in all the job's
            `nbytes_to_handle`.
        on_phase: called with the name of each phase when it begins.
        verify: `meta` checks names and shapes of the written tensors; forward, the installed
            transformers loads them strictly on the meta device. `full` also reads every tensor back
            and compares it with its source. `none` checks nothing.
        jobs: number of weight files that are written at the same time.

    Raises:
        RemapError: with the plan's problems, or with those found while running.
    """
    started = time.monotonic()
    job = job.prove(verify, jobs, on_progress)
    resumable = job.resumable(on_progress)
    if resumable is not None and resumable.resume:
        on_phase("comparing digests")
    written = job.written
    inside = [part.name for part in written if part.name]
    with fresh_folder(job.output, inside, resumable) as folder:
        refuse_changed(job.checkpoints)  # so the claim is about the planned sources
        reused = len(folder.digests)
        on_phase("writing")
        places = [(part, folder.inside(part.name) if part.name else folder) for part in written]
        for part, place in places:
            write_shards(part.recipe, part.shards, place, on_progress, jobs)
        weights = [place.path / shard.file for part, place in places for shard in part.shards]
        if found := job.check(weights, verify, on_progress, on_phase):
            raise RemapError(found)
        on_phase("writing small files")
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
        job,
        job.output,
        dict(
            sorted(
                (path.relative_to(job.output).as_posix(), digest)
                for path, digest in folder.digests.items()
            )
        ),
        sum(part.tensor_nbytes for part in written),
        time.monotonic() - started,
        verify,
        job.notes,
        Used.by(folder.digests),
        reused,
    )
