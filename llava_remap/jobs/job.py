"""A planned job: a rule file's way forward, or its way back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from llava_remap.checkpoint import Catalog, Checkpoint, Stamp, open_checkpoint, read_file
from llava_remap.core.arguments import not_one_of
from llava_remap.core.cache import code_digest
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.core.version import __version__
from llava_remap.execute import (
    INDEX,
    JOBS,
    PLAN,
    Facts,
    FileDigest,
    Folder,
    Recipe,
    Resumable,
    nbytes_to_check,
    run_value_checks,
)
from llava_remap.jobs.choice import Choice
from llava_remap.jobs.derive import Derived
from llava_remap.jobs.finished import nothing_to_do
from llava_remap.jobs.output import refuse_changed
from llava_remap.jobs.resources import (
    Predicted,
    disk_nbytes,
    memory_problems,
    predict,
    record_nbytes,
)
from llava_remap.jobs.run import OnPhase, OnProgress, Result, Verify, Written, run
from llava_remap.planning import Plan
from llava_remap.post_load.run import provenance
from llava_remap.rulefile import RuleFile
from llava_remap.verification import compare, is_known, strict_load
from llava_remap.verification.record import RECORD, is_finished, read_texts, record_json

#: Parts of a plan that determine the bytes of the weight files.
_WRITTEN = ("mapped", "post_load", "shards")
Self = TypeVar("Self", bound="Job")
AnyJob = TypeVar("AnyJob", bound="Job")


@dataclass(frozen=True, slots=True)
class Job:
    """A planned job: the plan, and what is needed to carry it out.

    Attributes:
        derived: None if a problem kept the target from being derived.
        small_files: the files of the output folder other than weights, by name; empty if a problem
            kept them from being made.
        resume: whether to continue a job that was begun in the output.
        predicted: the memory and disk that the job will need; None if not yet computed.
        choice: how the rule file and the sources were chosen; None if the user named them.
    """

    rules: RuleFile = field(repr=False)
    checkpoints: Mapping[str, Checkpoint]
    output: Path
    plan: Plan = field(repr=False)
    derived: Derived | None = field(repr=False)
    small_files: Mapping[str, bytes] = field(repr=False)
    resume: bool = field(default=False, kw_only=True)
    predicted: Predicted | None = field(default=None, kw_only=True)
    choice: Choice | None = field(default=None, kw_only=True)

    @property
    def from_manifest(self) -> bool:
        """Whether a source is a manifest. Such a job can be planned, but has no values to check or
        copy.
        """
        return any(checkpoint.is_manifest for checkpoint in self.checkpoints.values())

    @property
    def is_done(self) -> bool:
        """Whether the job is resumed and its folder is finished: then nothing is written."""
        return self.resume and is_finished(self.output)

    @property
    def source_files(self) -> dict[str, dict[str, Path]]:
        """The files that are read from each source, by path relative to its folder."""
        sources = self.rules.text.sources
        return {
            name: checkpoint.read(sources[name].use)
            for name, checkpoint in self.checkpoints.items()
            if not checkpoint.is_manifest
        }

    @property
    def recipe(self) -> Recipe:
        """How the tensors of the output are made."""
        return Recipe.of(self.plan.mapped, self.plan.post_load, self.checkpoints)

    @property
    def disk_nbytes(self) -> int:
        """Disk that the output will occupy, in bytes."""
        others = list(map(len, self.small_files.values()))
        if self.derived is not None:
            others.append(record_nbytes(self.plan, (text for _, text in self.rules.texts)))
        return disk_nbytes(self.plan.shards, self.recipe, others)

    def predict(self, verify: Verify, jobs: int = JOBS) -> Predicted:
        """The memory and disk that the job will need from now on; arguments as for `run`."""
        strict = verify != "none" and self.derived is not None and not self._is_known(self.derived)
        return predict(self.plan, self.recipe, self.disk_nbytes, jobs, strict_load=strict)

    def _is_known(self, derived: Derived) -> bool:
        """Whether the cache has the strict load's answer."""
        mapped = {entry.target: entry for entry in self.plan.mapped}
        names = [name for shard in self.plan.shards for name in shard.tensors]
        headers = {name: (mapped[name].dtype, mapped[name].shape) for name in names}
        return is_known(headers, self.plan.target_class, derived.config.config)

    @property
    def nbytes_to_check(self) -> int:
        """Bytes that `check_values` reads in all."""
        return nbytes_to_check(self.plan, self.checkpoints)

    def nbytes_to_handle(self, verify: Verify) -> int:
        """Bytes that `run` handles in all: written or already finished bytes and, with `full`,
        compared bytes.
        """
        compared = self.plan.nbytes_write if verify == "full" else 0
        return sum(part.nbytes for part in self.written) + compared

    @property
    def written(self) -> tuple[Written, ...]:
        return (Written("", self.recipe, self.plan.shards, self.small_files),)

    @property
    def notes(self) -> tuple[Problem, ...]:
        return self.plan.notes

    def prove(
        self: Self,
        verify: Verify = "none",
        jobs: int = JOBS,
        on_progress: OnProgress = lambda nbytes: None,
    ) -> Self:
        """Run the value checks, and return the job with their notes.

        Raises:
            RemapError: with every reason not to carry the job out; LR211 for an unknown `verify`
                or an impossible number of `jobs`.
        """
        if verify not in (choices := get_args(Verify)):
            raise not_one_of("verify", verify, choices)
        if not (type(jobs) is int and jobs >= 1):
            raise refuse(
                "LR211",
                f"jobs={jobs!r}: at least one file is written at a time.",
                "Give 1 or more.",
            )
        job = check_values(self)
        problems = [*job.plan.problems, *manifest_problems(job.checkpoints, dry_run=False)]
        predicted = job.predicted or job.predict(verify, jobs)
        if problems := problems or memory_problems(predicted):
            raise RemapError(dict.fromkeys(problems))
        refuse_changed(job.checkpoints)
        return replace(job, predicted=predicted)

    def run(
        self,
        on_progress: OnProgress = lambda nbytes: None,
        on_phase: OnPhase = lambda what: None,
        *,
        verify: Verify = "meta",
        jobs: int = JOBS,
    ) -> Result:
        """Carry the job out, as `apply` does after planning: see `jobs.run.run`. If the job is
        resumed and its folder is finished, the folder is compared with what the job would write.
        """
        if self.is_done:
            proven = self.prove(verify, jobs, on_progress)
            return nothing_to_do(proven, verify, on_progress, on_phase)
        return run(self, on_progress, on_phase, verify=verify, jobs=jobs)

    @property
    def found(self) -> dict[str, str]:
        """How each source was found, in words: `given`, or what names it or where it lies."""
        chosen: Mapping[str, str] = {} if self.choice is None else self.choice.found
        return {
            name: chosen.get(name) or checkpoint.named_by or "given"
            for name, checkpoint in self.checkpoints.items()
        }

    def to_json(self, result: Result | None = None) -> dict[str, Any]:
        """The document of `apply --format json`: the plan (`llava-remap/plan`, version 2), what the
        job will need, and the result if it was carried out.
        """
        predicted = self.predicted or (self.predict("meta") if self.plan.complete else None)
        return {
            **self.plan.to_json(),
            **(
                {"choice": {"reason": self.choice.reason, "found": self.found}}
                if self.choice is not None
                else {}
            ),
            **({"predicted": predicted.to_json()} if predicted is not None else {}),
            **({"result": result.facts()} if result is not None else {}),
        }

    def resumable(self, on_progress: OnProgress) -> Resumable | None:
        if any(checkpoint.in_memory for checkpoint in self.checkpoints.values()):
            return None  # nothing says whether another process has the same values
        names = [shard.file for shard in self.plan.shards]
        others = (*self.small_files, INDEX, RECORD)
        return Resumable(self.facts, names, others, self.resume, on_progress)

    def check(
        self, weights: Sequence[Path], verify: Verify, on_progress: OnProgress, on_phase: OnPhase
    ) -> list[Problem]:
        """LR601 if transformers doesn't load the written files, LR602 if they don't hold what the
        sources give.
        """
        if verify == "none":
            return []
        assert self.derived is not None
        on_phase("loading strictly")
        found = strict_load(list(weights), self.plan.target_class, self.derived.config.config)
        return found + self.compared(weights, verify, on_progress, on_phase)

    def compared(
        self, weights: Sequence[Path], verify: Verify, on_progress: OnProgress, on_phase: OnPhase
    ) -> list[Problem]:
        """With `full`, LR602 if the weight files don't hold what the sources give."""
        if verify != "full":
            return []
        on_phase("comparing with the sources")
        return compare(written_tensors(weights), self.recipe, self.plan.aliases, on_progress)[1]

    def last_files(self, folder: Folder, verify: Verify) -> Mapping[str, bytes]:
        """The record."""
        read = self.source_files
        texts = {source: read_texts(files) for source, files in read.items()}
        sources = {
            source: _read_files(self.checkpoints[source], files) for source, files in read.items()
        }
        for source, config in self._configs_in_memory(read).items():
            texts[source]["config.json"] = config.decode()
            sources[source]["config.json"] = FileDigest.of(config)
        outputs = {path.name: digest for path, digest in folder.digests.items()}
        record = record_json(self.plan, self.rules, sources, texts, outputs, verify)
        return {RECORD: (json.dumps(record, indent=2) + "\n").encode()}

    def _configs_in_memory(self, read: Mapping[str, Collection[str]]) -> dict[str, bytes]:
        """The text of each config that was given in memory, by source.

        Args:
            read: the names of the files that are read from each source.
        """
        return {
            source: (json.dumps(checkpoint.config, indent=2) + "\n").encode()
            for source, checkpoint in self.checkpoints.items()
            if checkpoint.in_memory
            and checkpoint.config is not None
            and "config.json" not in read[source]
        }

    def facts(self) -> Facts:
        """The present state of everything that the bytes of the weight files depend on."""
        plan = self.plan
        return {
            "llava-remap": f"{__version__} ({code_digest()[:12]})",
            "post-load rules": {change.use: provenance(change.use) for change in plan.post_load},
            **self.plan_facts(plan.to_json()),
            **{
                f"source `{name}`": {
                    os.path.relpath(path, checkpoint.folder): astuple(stamp)
                    if (stamp := Stamp.of(path))
                    else None
                    for path in sorted(checkpoint.stamps)
                }
                for name, checkpoint in self.checkpoints.items()
            },
        }

    @staticmethod
    def plan_facts(plan: Mapping[str, Any]) -> Facts:
        """The part of `facts` that a plan determines.

        Args:
            plan: its JSON, as in a record.
        """
        rules, changes = plan["rules"], plan["post_load"]
        rows = (
            str(change["shape_after"][0])
            for change in changes
            if (before := change["shape_before"]) and before[0] != change["shape_after"][0]
        )
        written = json.dumps([plan[part] for part in _WRITTEN]).encode()
        return {
            "rule file": f"{rules['name']} {rules['version']} ({rules['sha256'][:12]})",
            **{f"options of {change['use']}": change["with"] for change in changes},
            "layout": plan["target"]["layout"],
            "dtypes written": ", ".join(sorted({entry["dtype"] for entry in plan["mapped"]})),
            "rows of what grows": ", ".join(rows),
            "weight files": str(len(plan["shards"])),
            PLAN: hashlib.sha256(written).hexdigest()[:12],
        }


def check_values(job: AnyJob, on_progress: OnProgress = lambda nbytes: None) -> AnyJob:
    """Run the plan's value checks, which read tensors, and return the job with their findings in
    its plan.

    Args:
        on_progress: called with the number of bytes read since the last call; in all
            `job.nbytes_to_check`.
    """
    if job.plan.values_checked or not job.plan.complete or job.from_manifest:
        return job
    refuse_changed(job.checkpoints)
    problems, notes = run_value_checks(job.plan, job.checkpoints, on_progress)
    return refused(
        replace(job, plan=replace(job.plan, notes=(*job.plan.notes, *notes), values_checked=True)),
        problems,
    )


def refused(job: AnyJob, problems: Sequence[Problem]) -> AnyJob:
    """The job with more problems in its plan."""
    return replace(job, plan=replace(job.plan, problems=(*job.plan.problems, *problems)))


def noted(job: AnyJob, notes: Sequence[Problem]) -> AnyJob:
    """The job with more notes in its plan."""
    return replace(job, plan=replace(job.plan, notes=(*job.plan.notes, *notes)))


def manifest_problems(checkpoints: Mapping[str, Checkpoint], *, dry_run: bool) -> list[Problem]:
    """LR111 for sources that are manifests, unless the job is only planned."""
    manifests = [checkpoint.path for checkpoint in checkpoints.values() if checkpoint.is_manifest]
    if dry_run or not manifests:
        return []
    return [
        Problem(
            "LR111",
            f"{', '.join(map(str, manifests))}: a manifest has only names and shapes, so there is "
            "nothing to convert.",
            "Give the checkpoint itself, or add --dry-run to plan from the manifest.",
        )
    ]


def written_tensors(weights: Sequence[Path]) -> Catalog:
    """The tensors of weight files, by name. One of several files may hold only a projector."""
    opened = (open_checkpoint(path, part=True) for path in weights)
    return {name: tensor for file in opened for name, tensor in file.catalog.items()}


def _read_files(checkpoint: Checkpoint, files: Mapping[str, Path]) -> dict[str, FileDigest | int]:
    """The record's entries for the files that were read from a source: the size of each weight
    file, and size and digest of each other file.
    """
    weights = set(checkpoint.files)
    return {
        name: checkpoint.stamps[path].nbytes if path in weights else FileDigest.of(read_file(path))
        for name, path in files.items()
    }
