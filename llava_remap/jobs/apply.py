"""The order of a whole job, once, for the command line and the Python API alike: rule file →
program → plan → result.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llava_remap.checkpoint import Checkpoint, Stamp, open_checkpoint, read_file
from llava_remap.core.cache import code_digest
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.core.version import __version__
from llava_remap.core.wording import quoted
from llava_remap.execute import (
    INDEX,
    JOBS,
    PLAN,
    Facts,
    FileDigest,
    Recipe,
    Resumable,
    fresh_folder,
    nbytes_to_check,
    run_value_checks,
    weight_nbytes,
    write_index,
    write_shards,
)
from llava_remap.folder import Parts, keep_files, make_files, read_generation_config
from llava_remap.jobs.derive import Derived, configs_by_source, derive, source_configs
from llava_remap.jobs.output import output_folder, output_problems, refuse_changed
from llava_remap.jobs.resources import Used, job_disk_nbytes, memory_problems, predict
from llava_remap.plan import Plan, build_plan, in_layout
from llava_remap.post_load.run import provenance
from llava_remap.rewrite import compile_rules
from llava_remap.routing import main_names, route
from llava_remap.routing.identify import HF_LAYOUTS, identify
from llava_remap.routing.trained_with import naming_notes, projector_findings, tower_problems
from llava_remap.rulefile import RuleFile, load_rule_file
from llava_remap.source.sources import name_sources, open_first, open_given, open_needed, short_name
from llava_remap.target_model import CLASSIC, check_layout, odd_values, text_config, unknown_target
from llava_remap.verify import compare, strict_load
from llava_remap.verify.record import RECORD, read_texts, record_json

Verify = Literal["meta", "full", "none"]
Dtype = Literal["keep", "bfloat16", "float16", "float32"]
Vocab = Literal["keep", "pad"] | int
#: What of a plan says what is written.
_WRITTEN = ("mapped", "post_load", "shards")
_STORED_AS = {"keep": None, "bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was planned: the plan, and what is needed to carry it out.

    Attributes:
        derived: None where a problem prevented it.
        small_files: everything in the output folder beside the weights, by name; empty where a
            problem prevented it.
        resume: whether it is gone on with, if it was begun in the output.
    """

    rules: RuleFile
    checkpoints: Mapping[str, Checkpoint]
    output: Path
    plan: Plan
    derived: Derived | None
    small_files: Mapping[str, bytes]
    resume: bool = field(default=False, kw_only=True)

    @property
    def from_manifest(self) -> bool:
        """Whether a source is a manifest, so that the job can be planned but has no values to
        check or copy.
        """
        return any(checkpoint.is_manifest for checkpoint in self.checkpoints.values())

    @property
    def source_files(self) -> dict[str, dict[str, Path]]:
        """The files read of each source, by name relative to its folder."""
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
    def nbytes_to_check(self) -> int:
        """Bytes of which `check_values` reports progress."""
        return nbytes_to_check(self.plan, self.checkpoints)

    def nbytes_to_handle(self, verify: Verify) -> int:
        """Bytes of which `apply_job` reports progress: written, or found finished, and compared
        where everything is.
        """
        return weight_nbytes(self.recipe, self.plan.shards) + (
            self.plan.nbytes_write if verify == "full" else 0
        )

    def facts(self) -> Facts:
        """All that the bytes of the weight files depend on, as it is now."""
        plan = self.plan
        whole = plan.to_json()
        dtypes = ", ".join(sorted({entry.dtype for entry in plan.mapped}))
        rows = ", ".join(
            str(entry.change.shape_after[0]) for entry in plan.post_load if entry.change.shape_after
        )
        return {
            "llava-remap": f"{__version__} ({code_digest()[:12]})",
            "rule file": f"{plan.rules_name} {plan.rules_version} ({plan.rules_sha256[:12]})",
            "post-load rules": {change.use: provenance(change.use) for change in plan.post_load},
            "layout": plan.layout,
            "dtypes written": dtypes,
            "rows of what grows": rows,
            "weight files": str(len(plan.shards)),
            PLAN: hashlib.sha256(
                json.dumps([whole[part] for part in _WRITTEN]).encode()
            ).hexdigest()[:12],
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


@dataclass(frozen=True, slots=True)
class Result:
    """A job that was carried out: the folder's files, bytes of weights, seconds, how it was
    checked, what is worth telling, and what it took of memory and disk.

    Attributes:
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


def plan_job(
    rules: str | Path,
    sources: Sequence[str | Path] = (),
    output: str | Path | None = None,
    *,
    layout: str = CLASSIC,
    dtype: Dtype = "keep",
    vocab: Vocab = "pad",
    max_shard_nbytes: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    offline: bool = False,
) -> Job:
    """Plan a job from headers alone; nothing is written but what is downloaded and cached.

    Args:
        rules: path of a rule file, or the name of a shipped one.
        sources: `SRC` or `NAME=SRC` each; a bare SRC is the rule file's first source. A SRC is a
            folder, a file, a manifest or a hub id with an optional `@revision`. What isn't given
            and is needed is the rule file's default.
        output: the folder to be written; by default the first source's last part with `-hf`, in the
            current folder.
        layout: the names that are written: `classic`, which every version of transformers loads, or
            `module-4.52` or `module-5.6`, the module names of some versions.
        dtype: the dtype that every parameter is written in; `keep`: each in the one that it is
            stored in.
        vocab: how many rows the vocabulary will have. `pad`: as the rule file says; `keep`: as many
            as there are; or a number.
        max_shard_nbytes: how many bytes of tensors a weight file may have; one that is larger alone
            has a file to itself. None: the files are divided as the sources' are.
        resume: whether the job is gone on with, if it was begun in the output.
        dry_run: whether the job is only to be planned; then a manifest will do for a source.
        offline: whether only what was downloaded before is taken from the hub.

    Raises:
        RemapError: for a rule file, a source or a command line that can't be read, LR211 for a
            `dtype`, `vocab` or `max_shard_nbytes` that can't be. What doesn't map is in
            `plan.problems`.
    """
    folder = None if output is None else output_folder(output)
    job = plan_mapping(
        rules,
        sources,
        layout=layout,
        dtype=dtype,
        vocab=vocab,
        max_shard_nbytes=max_shard_nbytes,
        dry_run=dry_run,
        offline=offline,
    )
    job = replace(job, output=folder or job.output, resume=resume)
    nbytes = None if job.from_manifest else job_disk_nbytes(job)
    return refused(
        job, output_problems(job.output, nbytes, job.checkpoints, job.facts() if resume else None)
    )


def plan_mapping(
    rules: str | Path,
    sources: Sequence[str | Path] = (),
    *,
    layout: str = CLASSIC,
    dtype: Dtype = "keep",
    vocab: Vocab = "pad",
    max_shard_nbytes: int | None = None,
    dry_run: bool = False,
    offline: bool = False,
) -> Job:
    """`plan_job` without the question whether the output can be written: for what writes none."""
    check_layout(layout)
    if dtype not in _STORED_AS:
        raise refuse(
            "LR211", f"dtype={dtype!r}: it is one of {', '.join(_STORED_AS)}.", "Write one of them."
        )
    if vocab not in ("keep", "pad") and not (type(vocab) is int and 0 < vocab < 2**31):
        raise refuse(
            "LR211", f"vocab={vocab!r}: it is keep, pad or a number of rows.", "Write one of them."
        )
    if max_shard_nbytes is not None and max_shard_nbytes < 1:
        raise refuse(
            "LR211",
            f"max_shard_nbytes={max_shard_nbytes!r}: it is a number of bytes.",
            "Give 1 or more.",
        )
    file = load_rule_file(rules)
    _ = file.target
    given = name_sources(
        list(file.text.sources), [sources] if isinstance(sources, str) else sources
    )
    return plan_checkpoints(
        file,
        open_first(file, open_given(file, given, offline), offline),
        given,
        layout=layout,
        dtype=dtype,
        vocab=vocab,
        max_shard_nbytes=max_shard_nbytes,
        dry_run=dry_run,
        offline=offline,
    )


def plan_checkpoints(
    file: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    given: Collection[str] = (),
    *,
    layout: str = CLASSIC,
    dtype: Dtype = "keep",
    vocab: Vocab = "pad",
    max_shard_nbytes: int | None = None,
    dry_run: bool = False,
    offline: bool = False,
) -> Job:
    """`plan_mapping` for sources that are open, under the names that the rule file has for them.

    Args:
        given: those of them that were given by hand, not taken as a default.
    """
    configs = source_configs(file, checkpoints)
    program = compile_rules(file, main_names(file, checkpoints), text_config(configs))
    routes = route(file, program, checkpoints)
    problems = identify(file, routes, checkpoints, text_config(configs), given, layout_refusals)
    problems += manifest_problems(checkpoints, dry_run=dry_run)
    if not problems and (
        unknown := unknown_target(file)
    ):  # the first question to transformers, which takes long to import
        raise RemapError(unknown)
    derived, recognised = None, not problems
    notes: list[Problem] = []
    if recognised and routes.not_given:  # whether a further source is needed is known only now
        checkpoints, problems, named = open_needed(
            file, checkpoints, routes.not_given, text_config(configs), offline
        )
        notes += named
        routes = route(file, program, checkpoints)
        configs = source_configs(file, checkpoints)
        problems += identify(
            file, routes, checkpoints, text_config(configs), given, layout_refusals
        )
    if not problems:
        for name, config in configs_by_source(file, checkpoints).items():
            problems += odd_values(quoted(checkpoints[name].location), config)
        problems += tower_problems(file, checkpoints, text_config(configs))
    halves, told = (
        projector_findings(file, program, checkpoints, routes) if recognised else ([], [])
    )
    notes += [*naming_notes(file, checkpoints, given, routes, text_config(configs)), *told]
    if not problems:
        try:
            derived = derive(file, checkpoints, configs, routes, layout, _STORED_AS[dtype], vocab)
        except RemapError as error:
            problems += error.problems
    small_files: Mapping[str, bytes] = {}
    if derived is not None and not derived.problems:
        try:
            small_files, told = _small_files(file, checkpoints, configs, derived)
            notes += told
        except RemapError as error:
            problems += error.problems
    plan = build_plan(
        file,
        program,
        checkpoints,
        routes,
        derived.target if derived else None,
        derived.post_load if derived else (),
        (*problems, *halves, *(derived.problems if derived else ())),
        (*(derived.notes if derived else ()), *notes),
        chat_template=derived.config.chat_template if derived else None,
        dtype=_STORED_AS[dtype],
        max_shard_nbytes=max_shard_nbytes,
        recognised=recognised,
        norms_about_one=derived is not None and derived.norms_about_one,
    )
    plan = in_layout(plan, layout, derived.target.names if derived else {})
    return Job(
        file,
        checkpoints,
        Path(short_name(checkpoints[file.first_source].location) + "-hf"),
        plan,
        derived,
        small_files,
    )


def layout_refusals(checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """What `hf-layouts` has against a checkpoint: empty where it is a whole model in a layout of
    transformers.
    """
    rules = load_rule_file(HF_LAYOUTS)
    return plan_checkpoints(
        rules, {rules.first_source: checkpoint}, dry_run=True, offline=True
    ).plan.problems


def check_values(job: Job, on_progress: Callable[[int], None] = lambda nbytes: None) -> Job:
    """Run the plan's value checks (they read tensors); what they find is in the plan of the job
    that comes back.

    Args:
        on_progress: called with the number of bytes read since the last call, `job.nbytes_to_check`
            in all.
    """
    if job.plan.values_checked or not job.plan.complete or job.from_manifest:
        return job
    refuse_changed(job.checkpoints)
    problems, notes = run_value_checks(job.plan, job.checkpoints, on_progress)
    return refused(
        replace(job, plan=replace(job.plan, notes=(*job.plan.notes, *notes), values_checked=True)),
        problems,
    )


def proven(job: Job, verify: Verify = "none", jobs: int = JOBS) -> Job:
    """The job with its value checks run, as it may be carried out.

    Raises:
        RemapError: with whatever keeps it from that; LR211 for a `verify` or a number of `jobs`
            that can't be.
    """
    if verify not in get_args(Verify):
        raise refuse(
            "LR211",
            f"verify={verify!r}: it is one of {', '.join(get_args(Verify))}.",
            "Write one of them.",
        )
    if jobs < 1:
        raise refuse(
            "LR211", f"jobs={jobs!r}: at least one file is written at a time.", "Give 1 or more."
        )
    job = check_values(job)
    problems = [*job.plan.problems, *manifest_problems(job.checkpoints, dry_run=False)]
    if problems := problems or memory_problems(predict(job, verify, jobs)):
        raise RemapError(dict.fromkeys(problems))
    refuse_changed(job.checkpoints)
    return job


def apply_job(
    job: Job,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    on_phase: Callable[[str], None] = lambda what: None,
    *,
    verify: Verify = "meta",
    jobs: int = JOBS,
) -> Result:
    """Carry a planned job out, whole.

    Value checks come first, then the weights, a check of them, the small files, the index, and last
    the record. Whatever fails or interrupts, what this call wrote is removed, but for weight files
    that are finished and that the same job can go on from: `plan_job(resume=True)`.

    Args:
        on_progress: called with the number of bytes handled since the last call,
            `job.nbytes_to_handle(verify)` in all, from any thread.
        on_phase: called with what is being done, where that changes.
        verify: `meta`: the installed transformers is asked to load what was written, on meta
            tensors; `full`: every tensor is also read back and compared with what its source gives;
            `none`: neither.
        jobs: how many weight files are written at a time.

    Raises:
        RemapError: with the plan's problems, or what was found since.
    """
    started = time.monotonic()
    job = proven(job, verify, jobs)
    assert job.derived is not None
    output, config, plan, recipe = job.output, job.derived.config.config, job.plan, job.recipe
    read = job.source_files
    texts = {source: read_texts(files) for source, files in read.items()}
    sources = {
        source: _read_files(job.checkpoints[source], files) for source, files in read.items()
    }
    weights = [shard.file for shard in plan.shards]
    resumable = Resumable(
        job.facts, weights, (*job.small_files, INDEX, RECORD), job.resume, on_progress
    )
    if job.resume:
        on_phase("comparing digests")
    with fresh_folder(output, job=resumable) as folder:
        refuse_changed(
            job.checkpoints
        )  # so that the facts that were entered there are those of what was planned
        reused = len(folder.digests)
        on_phase("writing")
        write_shards(recipe, plan.shards, folder, on_progress, jobs)
        written = [output / name for name in weights]
        if verify != "none":
            on_phase("loading strictly")
        found = strict_load(written, plan.target_class, config) if verify != "none" else []
        if verify == "full":
            on_phase("comparing with the sources")
            catalog = {
                name: tensor
                for path in written
                for name, tensor in open_checkpoint(path).catalog.items()
            }
            found += compare(catalog, recipe, plan.aliases, on_progress)[1]
        if found:
            raise RemapError(found)
        on_phase("writing what belongs to them")
        for name, content in sorted(job.small_files.items()):
            folder.put(name, content)
        refuse_changed(job.checkpoints)
        write_index(recipe, plan.shards, folder)
        outputs = {path.name: digest for path, digest in folder.digests.items()}
        record = record_json(plan, job.rules, sources, texts, outputs, verify)
        folder.put(RECORD, (json.dumps(record, indent=2) + "\n").encode())
    files = tuple(sorted(path.name for path in folder.digests))
    used = Used.by(folder.digests)
    return Result(
        output,
        files,
        plan.nbytes_write,
        time.monotonic() - started,
        verify,
        plan.notes,
        used,
        reused,
    )


def apply(
    rules: str | Path,
    sources: Sequence[str | Path] = (),
    output: str | Path | None = None,
    *,
    layout: str = CLASSIC,
    dtype: Dtype = "keep",
    vocab: Vocab = "pad",
    max_shard_nbytes: int | None = None,
    resume: bool = False,
    verify: Verify = "meta",
    jobs: int = JOBS,
    offline: bool = False,
) -> Result:
    """Plan a job and carry it out: `plan_job`, then `apply_job`."""
    job = plan_job(
        rules,
        sources,
        output,
        layout=layout,
        dtype=dtype,
        vocab=vocab,
        max_shard_nbytes=max_shard_nbytes,
        resume=resume,
        offline=offline,
    )
    return apply_job(job, verify=verify, jobs=jobs)


def refused(job: Job, problems: Sequence[Problem]) -> Job:
    """The job with what was found since it was planned."""
    return replace(job, plan=replace(job.plan, problems=(*job.plan.problems, *problems)))


def manifest_problems(checkpoints: Mapping[str, Checkpoint], *, dry_run: bool) -> list[Problem]:
    """LR111 for manifests, unless the job is only planned."""
    manifests = [checkpoint.path for checkpoint in checkpoints.values() if checkpoint.is_manifest]
    if dry_run or not manifests:
        return []
    return [
        Problem(
            "LR111",
            f"{', '.join(map(str, manifests))}: names and shapes only, there is nothing to "
            "convert.",
            "Give the checkpoint itself, or add --dry-run to plan from the manifest.",
        )
    ]


def _read_files(checkpoint: Checkpoint, files: Mapping[str, Path]) -> dict[str, FileDigest | int]:
    """What the record says of the files read of a source: the size of weight files, size and
    digest of the others.
    """
    weights = set(checkpoint.files)
    return {
        name: checkpoint.stamps[path].nbytes if path in weights else FileDigest.of(read_file(path))
        for name, path in files.items()
    }


def _small_files(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    configs: Sequence[Mapping[str, Any]],
    derived: Derived,
) -> tuple[dict[str, bytes], list[Problem]]:
    """Config, tokenizer, processor and chat template, made and tried before a byte of weights
    moves; and notes.
    """
    counts = [c for name, c in checkpoints.items() if "config" in rules.text.sources[name].use]
    folders = [checkpoint.folder for checkpoint in counts if checkpoint.folder is not None]
    generation = read_generation_config(folders)
    if rules.target.as_ is not None:
        return keep_files(
            checkpoints[rules.first_source].folder,
            derived.config.config,
            derived.vocabulary,
            generation,
        ), []
    pads = (text_config(configs) or {}).get("image_aspect_ratio") == "pad"
    parts = Parts(
        rules,
        derived.config,
        derived.tokens,
        derived.vocabulary,
        derived.image_processor,
        generation,
        pads,
    )
    return make_files(parts)
