"""A folder that is finished already: whether this job would write it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llava_remap.core.escaped import quote
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.execute import Facts, FileDigest, Unfinished, digest_files
from llava_remap.jobs.resources import Used
from llava_remap.jobs.run import OnPhase, OnProgress, Result, Runnable, Verify
from llava_remap.planning import Plan
from llava_remap.verification.record import RECORD, Record, read_record


class _Job(Runnable, Protocol):
    """The parts of a job that this module uses."""

    @property
    def plan(self) -> Plan: ...

    @property
    def small_files(self) -> Mapping[str, bytes]: ...

    def plan_facts(self, plan: Mapping[str, Any], /) -> Facts: ...

    def compared(
        self, weights: Sequence[Path], verify: Verify, on_progress: OnProgress, on_phase: OnPhase
    ) -> list[Problem]: ...


def to_resume(job: _Job) -> list[Problem]:
    """Reasons not to resume a job whose folder is finished: LR503 if another job wrote the folder,
    as `read_record` if its record can't be read.
    """
    try:
        return _other_job(job, read_record(job.output))
    except RemapError as error:
        return list(error.problems)


def to_begin(job: _Job) -> list[Problem]:
    """LR503 for a job that would begin in a finished folder. The message says whether this job or
    another one wrote the folder. There is no problem if the folder's record can't be read.
    """
    try:
        record = read_record(job.output)
    except RemapError:
        return []
    if other := _other_job(job, record):
        return other
    in_memory = any(checkpoint.in_memory for checkpoint in job.checkpoints.values())
    again = (
        "Give another --output, or delete the folder."
        if in_memory
        else "Add --resume to the same command: it compares the folder with what the job would "
        "write, and does nothing if both are equal. To write it again, give another --output."
    )
    return [
        Problem("LR503", f"{job.output} is finished: a job with the same plan wrote it.", again)
    ]


def _other_job(job: _Job, record: Record) -> list[Problem]:
    """LR503 if a finished folder is of another plan, or has other small files, than this job."""
    differences = Unfinished(job.plan_facts(record.plan), (), {}).changed(
        job.plan_facts(job.plan.to_json())
    )
    files = [
        name
        for name, content in sorted(job.small_files.items())
        if record.outputs.get(name) != FileDigest.of(content)
    ]
    if files and not differences:
        differences.append(f"content of {', '.join(files)}")
    if not differences:
        return []
    what = "; ".join(differences)
    cause = f"{job.output} is finished, and another job wrote it. What differs: {what}."
    return [Problem("LR503", cause, "Give another --output, or delete the folder.")]


def nothing_to_do(job: _Job, verify: Verify, on_progress: OnProgress, on_phase: OnPhase) -> Result:
    """The result of a job whose folder is finished, after checking that every file is unchanged and
    every tensor equals what the sources give now. Nothing is written.

    Raises:
        RemapError: LR503 if a file or a tensor differs, LR601 if transformers doesn't load the
            folder.
    """
    started = time.monotonic()
    wanted = read_record(job.output).outputs
    on_phase("comparing digests")
    names = sorted((*wanted, RECORD))
    there = [job.output / name for name in names if (job.output / name).is_file()]
    digests = {path.name: digest for path, digest in digest_files(there, on_progress).items()}
    if changed := sorted(name for name in wanted if digests.get(name) != wanted[name]):
        raise refuse(
            "LR503",
            f"{job.output} is finished, but was changed since: {', '.join(changed)}.",
            f"To check the folder: llava-remap verify {quote(str(job.output))}",
        )
    weights = [job.output / shard.file for shard in job.plan.shards]
    if differing := job.compared(weights, "full", on_progress, on_phase):
        raise refuse(
            "LR503",
            f"{job.output} is finished, but its source has changed since: tensors differ from what "
            "the sources give now.",
            "Give another --output, or delete the folder.",
            [name for problem in differing for name in problem.names],
        )
    if found := job.check(weights, "none" if verify == "none" else "meta", on_progress, on_phase):
        raise RemapError(found)
    seconds, used = time.monotonic() - started, Used.by(())
    reused = len(job.plan.shards)
    return Result(job, job.output, digests, 0, seconds, verify, job.notes, used, reused)
