"""Memory and disk: the job's needs, the free resources, and the resources that the job took."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.core.limits import limits, status
from llava_remap.core.problem import Problem
from llava_remap.execute import JOBS, Recipe, computes, shard_nbytes, working_nbytes
from llava_remap.planning import Plan, Shard

_MIB = 1 << 20
#: Memory of libraries after their import: numpy; torch (a CPU build) with transformers' loader; and
#: memory of a strict load.
_NUMPY, _TORCH, _STRICT_LOAD = 16 * _MIB, 320 * _MIB, 40 * _MIB
#: Bytes of a record: for each tensor beside its names, and for configs and versions.
_RECORDED, _RECORD = 400, 64 << 10
#: Bytes of a line of the index beside the tensor's name and its file.
_LINE = 8
#: The largest ratio of predicted to real need. A job that gets less than the prediction divided by
#: this factor can't succeed.
_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Predicted:
    """The most that a job will need, in bytes.

    Attributes:
        process: peak memory of this process so far: interpreter, libraries, plan.
        libraries: memory of the libraries that the job will import.
        working: memory for buffers and for computed tensors.
        disk: all files of the output. A job writes no temporary files.
    """

    process: int
    libraries: int
    working: int
    disk: int

    @property
    def memory(self) -> int:
        return self.process + self.libraries + self.working

    def to_json(self) -> dict[str, Any]:
        parts = {"process": self.process, "libraries": self.libraries, "working": self.working}
        return {"memory": self.memory, "memory_parts": parts, "disk": self.disk}


@dataclass(frozen=True, slots=True)
class Used:
    """The resources that a process took, in bytes: its peak memory, and the disk of its files."""

    memory: int
    disk: int

    @classmethod
    def by(cls, files: Iterable[Path]) -> Used:
        """The resources that this process took so far, given the files that it wrote."""
        # POSIX counts `st_blocks` in units of 512 bytes, whatever the file system's block is.
        return cls(peak_nbytes(), sum(path.stat().st_blocks * 512 for path in files))


def predict(
    plan: Plan, recipe: Recipe, disk: int, jobs: int = JOBS, *, strict_load: bool
) -> Predicted:
    """The memory and disk that a planned job will need from now on.

    Args:
        disk: bytes of all files of the output.
        jobs: number of weight files that are written at the same time.
        strict_load: whether the output will be loaded by transformers.
    """
    libraries = _NUMPY * (computes(plan, recipe) and "numpy" not in sys.modules)
    if strict_load:
        libraries = _TORCH * ("transformers.modeling_utils" not in sys.modules) + _STRICT_LOAD
    working = working_nbytes(plan, recipe, min(jobs, len(plan.shards)))
    return Predicted(peak_nbytes(), libraries, working, disk)


def disk_nbytes(shards: Sequence[Shard], recipe: Recipe, others: Iterable[int]) -> int:
    """Disk that weight files, their index and other files of these sizes will occupy, in bytes."""
    weights = [shard_nbytes(shard, recipe) for shard in shards]
    index = sum(
        len(json.dumps({name: shard.file})) + _LINE for shard in shards for name in shard.tensors
    )
    # Files occupy whole blocks, and on ext4 some more for the list of their extents.
    return sum(nbytes + nbytes // 4096 + 4096 for nbytes in (*weights, index, *others))


def record_nbytes(plan: Plan, rule_files: Iterable[str]) -> int:
    """The size of a job's record in bytes, at most.

    Args:
        rule_files: the texts of the rule file and of those that it extends.
    """
    mapped = sum(
        _RECORDED + len(e.target) + sum(len(o.name) for o in e.origins) + sum(map(len, e.rules))
        for e in plan.mapped
    )
    mapped += sum(
        _RECORDED + sum(len(origin.name) for origin in (lora.base, lora.a, lora.b) if origin)
        for e in plan.mapped
        for lora in e.loras
    )
    mapped += sum(
        _RECORDED + len(a.target) + len(a.of) + len(a.source.name) + sum(map(len, a.rules))
        for a in plan.aliases
    )
    dropped = sum(_RECORDED + len(d.name) + len(d.reason) for d in plan.dropped)
    return _RECORD + mapped + dropped + sum(map(len, rule_files))


def memory_problems(needed: Predicted) -> list[Problem]:
    """LR501 if the memory is clearly not enough."""
    still = needed.libraries + needed.working
    free_by_limit = list(limits())
    if not free_by_limit or (free := min(free_by_limit))[0] * _MARGIN >= still:
        return []
    return [
        Problem(
            "LR501",
            f"the job needs up to {still:,} bytes more than it has now, but only "
            f"{max(free[0], 0):,} are free ({free[1]}).",
            "Close other programs, raise the limit, or use a larger machine.",
        )
    ]


def peak_nbytes() -> int:
    """Peak memory of this process, in bytes.

    On Linux, `getrusage` also counts memory from before the process started this program, when it
    was a copy of its parent, which may be larger. `/proc` has the figure of the program alone.
    """
    if (peak := status("VmHWM")) is not None:
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
