"""Forward: plan a conversion from a rule file and its sources, and carry it out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llava_remap.checkpoint import Checkpoint
from llava_remap.core import Exit, Problem, RemapError, quote, refuse
from llava_remap.core.arguments import not_one_of
from llava_remap.core.wording import quoted
from llava_remap.execute import JOBS
from llava_remap.folder.make import Parts, keep_files, make_files, read_generation_config
from llava_remap.folder.programs import program_notes
from llava_remap.jobs.beside import find_tower
from llava_remap.jobs.derive import Derived, derive
from llava_remap.jobs.finished import to_begin, to_resume
from llava_remap.jobs.job import Job, manifest_problems, noted, refused
from llava_remap.jobs.output import output_folder, output_notes, output_problems
from llava_remap.jobs.run import Result, Verify
from llava_remap.jobs.source_configs import configs_by_source, source_configs
from llava_remap.jobs.suggest import with_suggestions
from llava_remap.planning import Layout, build_plan
from llava_remap.rewrite import Program, compile_rules
from llava_remap.routing import Routes, main_names, route
from llava_remap.routing.identify import HF_LAYOUTS, identify
from llava_remap.routing.trained_with import (
    misplaced_parts,
    naming_notes,
    projector_findings,
    tower_problems,
)
from llava_remap.rulefile import RuleFile, load_rule_file
from llava_remap.source.defaults import open_first, open_needed
from llava_remap.source.sources import Sources, name_sources, open_given, short_name
from llava_remap.target_model import (
    CLASSIC,
    UnknownTowerError,
    check_layout,
    odd_values,
    text_config,
    unknown_target,
)
from llava_remap.verification.record import is_finished

Dtype = Literal["keep", "bfloat16", "float16", "float32"]
Vocab = Literal["keep", "pad"] | int
ProjectorForm = Literal["identity", "gelu"]
_STORED_AS = {"keep": None, "bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a conversion. `plan` explains each."""

    layout: str = CLASSIC
    dtype: Dtype = "keep"
    vocab: Vocab = "pad"
    max_shard_nbytes: int | None = None
    dry_run: bool = False
    offline: bool = False
    projector_form: ProjectorForm | None = None

    @property
    def stored_as(self) -> str | None:
        """The dtype to write, as safetensors spells it; None keeps the dtype of each tensor."""
        return _STORED_AS[self.dtype]

    def refuse_impossible(self) -> None:
        """Raise LR211 for a value that an option can't have."""
        check_layout(self.layout)
        if self.dtype not in (*_STORED_AS,):
            raise not_one_of("dtype", self.dtype, _STORED_AS)
        rows = self.vocab
        if rows not in ("keep", "pad") and not (type(rows) is int and 0 < rows < 2**31):
            raise not_one_of("vocab", rows, ("keep", "pad"), " or a number of rows")
        if self.projector_form not in (None, *(forms := get_args(ProjectorForm))):
            raise not_one_of("projector_form", self.projector_form, forms, " or None")
        limit = self.max_shard_nbytes
        if limit is not None and not (type(limit) is int and limit >= 1):
            raise refuse(
                "LR211",
                f"max_shard_nbytes={self.max_shard_nbytes!r}: the limit is a number of bytes.",
                "Give 1 or more.",
            )


#: Options to plan from headers that are already open, without the hub.
HEADERS_ALONE = Options(dry_run=True, offline=True)


@dataclass(frozen=True, slots=True)
class _Routed:
    """The sources, and the target name of each of their tensors.

    Attributes:
        configs: the sources' configs, in order of precedence.
    """

    checkpoints: Mapping[str, Checkpoint]
    configs: Sequence[Mapping[str, Any]]
    program: Program
    routes: Routes

    @property
    def text(self) -> Mapping[str, Any] | None:
        """The config that describes the language model."""
        return text_config(self.configs)


def plan(
    rules: str | Path,
    sources: Sources = (),
    output: str | Path | None = None,
    *,
    layout: str = CLASSIC,
    dtype: Dtype = "keep",
    vocab: Vocab = "pad",
    max_shard_nbytes: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    offline: bool = False,
    projector_form: ProjectorForm | None = None,
) -> Job:
    """Plan a job from headers alone. Only downloads and the cache are written.

    >>> job = plan("llava-v1.5", {"model": "llava-v1.5-7b",
    ...                           "vision_tower": "clip-vit-large-patch14-336"})
    >>> job.plan.complete, job.plan.problems, str(job.output)
    (True, (), 'llava-v1.5-7b-hf')

    `job.run()` carries it out, `job.to_json()` is the document of `apply --dry-run --format json`.

    Args:
        rules: path of a rule file, or the name of a shipped one.
        sources: a SRC, a list of `[NAME=]SRC`, or a dict {name: SRC}; a bare SRC is the rule file's
            first source. A SRC is a folder, a file, a manifest or a hub id with an optional
            `@revision`; or tensors in memory, a dict {tensor name: tensor}, with config and
            tokenizer as `InMemory(tensors, config, folder)`. A source that is needed and not given
            is the rule file's default.
        output: the folder to write. The default is the last part of the first source's path with
            `-hf`, in the current folder; tensors in memory have none.
        layout: the names to write: `classic`, which every version of transformers loads, or
            `module-4.52` or `module-5.6`, the module names of some versions.
        dtype: the dtype of every parameter that is written; `keep` writes each parameter in the
            dtype in which it is stored.
        vocab: the number of rows of the embedding. `pad` follows the rule file, `keep` leaves the
            rows as they are.
        max_shard_nbytes: bytes of tensors in a weight file. A larger tensor has a file to itself.
            None divides the tensors into files as the sources do.
        resume: whether to continue a job that was begun in the output.
        dry_run: whether the job is only planned. Then a manifest can be a source.
        offline: whether to take from the hub only what was downloaded before.
        projector_form: how a projector of one linear layer is written: `identity` for programs
            that take the activation from the config, `gelu` for programs that always put a GELU
            between two layers. None follows the rule file.

    Raises:
        RemapError: for a rule file, a source or a command line that can't be read; LR211 for a
            value that an option can't have. Tensors that don't map are in `plan.problems`.
    """
    folder = None if output is None else output_folder(output)
    options = Options(layout, dtype, vocab, max_shard_nbytes, dry_run, offline, projector_form)
    job = plan_mapping(rules, sources, options)
    _refuse_unfit_for_memory(job, named=folder is not None, resume=resume)
    job = replace(job, output=folder or job.output, resume=resume)
    nbytes = None if job.from_manifest else job.disk_nbytes
    facts = job.facts() if resume else None
    found: list[Problem] = []
    if is_finished(job.output) and (resume or job.plan.complete):
        found = to_resume(job) if resume else to_begin(job)
    filled = dry_run or bool(found)
    if dry_run:
        job, found = noted(job, found or output_notes(job.output, facts)), []
    found += output_problems(job.output, nbytes, job.checkpoints, facts, filled=filled)
    return refused(job, found)


def _refuse_unfit_for_memory(job: Job, *, named: bool, resume: bool) -> None:
    """Raise LR211 for a job with tensors in memory that has no output or would be resumed.

    Args:
        named: whether the output was named.
    """
    in_memory = [name for name, source in job.checkpoints.items() if source.in_memory]
    if resume and in_memory:
        raise refuse(
            "LR211",
            f"source `{in_memory[0]}` is in memory, so it is unknown whether its values are still "
            "those of the unfinished job.",
            "Leave out resume, and remove the unfinished folder.",
        )
    if not named and job.rules.first_source in in_memory:
        raise refuse(
            "LR211",
            f"source `{in_memory[0]}` is in memory, so it has no path from which the output could "
            "get its name.",
            "Give output.",
        )


def plan_mapping(rules: str | Path, sources: Sources = (), options: Options | None = None) -> Job:
    """Like `plan`, but without checking the output folder."""
    options = options or Options()
    options.refuse_impossible()
    file = load_rule_file(rules)
    _ = file.target
    given = name_sources(list(file.text.sources), sources)
    checkpoints = open_first(file, open_given(file, given, options.offline), options.offline)
    return plan_checkpoints(file, checkpoints, given, options)


def plan_checkpoints(
    file: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    given: Collection[str] = (),
    options: Options | None = None,
) -> Job:
    """Like `plan_mapping`, for sources that are open already.

    Args:
        checkpoints: the sources, by their names in the rule file.
        given: names of the sources that the user gave; the others are defaults.
    """
    options = options or Options()
    routed = _route(file, checkpoints)
    if misplaced := misplaced_parts(file, checkpoints, routed.routes):
        raise RemapError(misplaced)
    problems = _fit_problems(file, routed, given)
    problems += manifest_problems(checkpoints, dry_run=options.dry_run)
    recognised, notes = not problems, list[Problem]()
    if recognised and (unknown := unknown_target(file)):  # the first question to transformers
        raise RemapError(unknown)
    if recognised and routed.routes.not_given:
        routed, problems, notes = _with_needed_sources(file, routed, given, options.offline)
    if not problems:
        problems += _config_problems(file, routed)
    incomplete, told = _projector_findings(file, routed) if recognised else ([], [])
    notes += naming_notes(file, routed.checkpoints, given, routed.routes, routed.text)
    notes += told
    derived = None if problems else _derived(file, routed, options, problems)
    small_files: Mapping[str, bytes] = {}
    if derived is not None and not derived.problems:
        small_files = _small_files(file, routed, derived, problems, notes)
    layout = Layout(options.layout)
    if derived is not None:
        layout = Layout(derived.target.layout, derived.target.names)
    plan = build_plan(
        file,
        routed.program,
        routed.checkpoints,
        derived.routes if derived else routed.routes,
        derived.target if derived else None,
        derived.post_load if derived else (),
        (*problems, *incomplete, *(derived.problems if derived else ())),
        (*(derived.notes if derived else ()), *notes),
        layout=layout,
        chat_template=derived.config.chat_template if derived else None,
        dtype=options.stored_as,
        max_shard_nbytes=options.max_shard_nbytes,
        recognised=recognised,
        norms_about_one=derived is not None and derived.norms_about_one,
    )
    with_rules = recognised and derived is not None
    plan = with_suggestions(plan, routed.routes, layout, with_rules=with_rules)
    output = Path(short_name(routed.checkpoints[file.first_source].location) + "-hf")
    return Job(file, routed.checkpoints, output, plan, derived, small_files)


def _route(
    file: RuleFile, checkpoints: Mapping[str, Checkpoint], program: Program | None = None
) -> _Routed:
    """The target name of every source tensor."""
    configs = source_configs(file, checkpoints)
    program = program or compile_rules(file, main_names(file, checkpoints), text_config(configs))
    return _Routed(checkpoints, configs, program, route(file, program, checkpoints))


def needed_sources(
    file: RuleFile, checkpoints: Mapping[str, Checkpoint]
) -> tuple[tuple[str, ...], Mapping[str, Any] | None]:
    """The sources that a rule file needs beside these, and the config that may name them."""
    routed = _route(file, checkpoints)
    return routed.routes.not_given, routed.text


def _fit_problems(file: RuleFile, routed: _Routed, given: Collection[str]) -> list[Problem]:
    """Signs that the rule file is not for these sources."""
    checkpoints, text = routed.checkpoints, routed.text
    checks = identify(file, routed.routes, checkpoints, text, given, layout_refusals)
    return next(filter(None, checks), [])


def _with_needed_sources(
    file: RuleFile, routed: _Routed, given: Collection[str], offline: bool
) -> tuple[_Routed, list[Problem], list[Problem]]:
    """Open the sources that are needed and were not given, and route the names again.

    Which sources are needed is known only after the names of the others are routed.

    Returns:
        The sources with their routes, problems, and notes.
    """
    checkpoints, problems, notes = open_needed(
        file, routed.checkpoints, routed.routes.not_given, routed.text, offline
    )
    routed = _route(file, checkpoints, routed.program)
    return routed, [*problems, *_fit_problems(file, routed, given)], list(notes)


def _config_problems(file: RuleFile, routed: _Routed) -> list[Problem]:
    """Impossible values in the sources' configs, and a second tower that the rule file doesn't
    convert.
    """
    problems: list[Problem] = []
    for name, config in configs_by_source(file, routed.checkpoints).items():
        problems += odd_values(quoted(routed.checkpoints[name].location), config)
    return [*problems, *tower_problems(file, routed.checkpoints, routed.text)]


def _projector_findings(file: RuleFile, routed: _Routed) -> tuple[list[Problem], list[Problem]]:
    return projector_findings(file, routed.program, routed.checkpoints, routed.routes)


def _derived(
    file: RuleFile, routed: _Routed, options: Options, problems: list[Problem]
) -> Derived | None:
    """Target, config and tokens; None if they can't be derived. The reasons are added to
    `problems`.
    """
    try:
        return derive(
            file,
            routed.checkpoints,
            routed.configs,
            routed.routes,
            options.layout,
            options.stored_as,
            options.vocab,
            options.projector_form,
        )
    except UnknownTowerError as error:
        found = find_tower(file, routed.checkpoints, routed.text)
        problems += error.problems if found is None else _with_tower(error, *found)
        return None
    except RemapError as error:
        problems += _of_sources(error)
        return None


def _with_tower(error: RemapError, name: str, place: str, how: str) -> list[Problem]:
    """The problems of an unknown tower, with the tower's own checkpoint, which was found."""
    option = f"--source {quote(f'{name}={place}')}"
    fix = f"Give the tower's own checkpoint. This may be it ({how}): {option}"
    return [replace(problem, fix=fix) for problem in error.problems]


def _small_files(
    file: RuleFile,
    routed: _Routed,
    derived: Derived,
    problems: list[Problem],
    notes: list[Problem],
) -> Mapping[str, bytes]:
    """Make config, tokenizer, processor and chat template, and try them, before a byte of weights
    moves. The findings are added to `problems` and `notes`.
    """
    sources = file.text.sources
    counts = [c for name, c in routed.checkpoints.items() if "config" in sources[name].use]
    folders = [checkpoint.folder for checkpoint in counts if checkpoint.folder is not None]
    try:
        generation = read_generation_config(folders)
        if file.target.as_ is not None:
            kept = keep_files(
                derived.image_processor, derived.config, derived.vocabulary, generation
            )
            notes += program_notes(kept)
            return kept
        pads = (routed.text or {}).get("image_aspect_ratio") == "pad"
        parts = Parts(
            file,
            derived.config,
            derived.tokens,
            derived.vocabulary,
            derived.image_processor,
            generation,
            pads,
        )
        made, told = make_files(parts)
    except RemapError as error:
        problems += _of_sources(error)
        return {}
    notes += [*told, *program_notes(made)]
    return made


def _of_sources(error: RemapError) -> tuple[Problem, ...]:
    """The problems of a refusal. A refusal by this machine says nothing about the sources, and is
    raised again.
    """
    if any(problem.exit in (Exit.RESOURCES, Exit.LIBRARY) for problem in error.problems):
        raise error
    return error.problems


def layout_refusals(checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """The problems of `hf-layouts` with a checkpoint. There are none if the checkpoint is a whole
    model in a layout of transformers.
    """
    rules = load_rule_file(HF_LAYOUTS)
    given = {rules.first_source: checkpoint}
    return plan_checkpoints(rules, given, options=HEADERS_ALONE).plan.problems


def apply(
    rules: str | Path,
    sources: Sources = (),
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
    projector_form: ProjectorForm | None = None,
) -> Result:
    """Convert a checkpoint by a rule file: `plan`, then `Job.run`.

    >>> result = apply("llava-v1.5", ["llava-v1.5-7b", "vision_tower=clip-vit-large-patch14-336"],
    ...                "llava-hf")
    >>> "config.json" in result.files, result.verified
    (True, 'meta')

    A model in memory, for example in a callback of a training, is given with the folder that has
    its tokenizer:

    >>> import torch
    >>> from pathlib import Path
    >>> from llava_remap import InMemory
    >>> tensors = {}  # in a training: model.state_dict()
    >>> for file in Path("llava-v1.5-7b").glob("*.bin"):
    ...     tensors |= torch.load(file)
    >>> model = InMemory(tensors, folder="llava-v1.5-7b")
    >>> result = apply("llava-v1.5", {"model": model,
    ...                               "vision_tower": "clip-vit-large-patch14-336"}, "step-100-hf")

    Nothing is written unless every tensor and every parameter has its place.

    Args:
        rules, sources, output, layout, dtype, vocab: as for `plan`.
        max_shard_nbytes, resume, offline, projector_form: as for `plan`.
        verify: `meta` lets transformers load the written names and shapes strictly. `full` also
            reads every tensor back and compares it with its source. `none` checks nothing.
        jobs: number of weight files that are written at the same time.

    Returns:
        The written files and facts. `result.to_json()` is the document of `apply --format json`.

    Raises:
        RemapError: with every problem that was found.
    """
    job = plan(
        rules,
        sources,
        output,
        layout=layout,
        dtype=dtype,
        vocab=vocab,
        max_shard_nbytes=max_shard_nbytes,
        resume=resume,
        offline=offline,
        projector_form=projector_form,
    )
    return job.run(verify=verify, jobs=jobs)
