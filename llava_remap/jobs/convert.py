"""Converts a checkpoint by the rule file that fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llava_remap.checkpoint import (
    Checkpoint,
    InMemory,
    PartOnlyError,
    PartsApartError,
    StepsError,
    parts_beside,
)
from llava_remap.core import Problem, RemapError, counted, quote, refuse
from llava_remap.execute import JOBS
from llava_remap.jobs.apply import (
    HEADERS_ALONE,
    Dtype,
    ProjectorForm,
    Vocab,
    plan,
    plan_checkpoints,
)
from llava_remap.jobs.choice import Choice
from llava_remap.jobs.derived_problems import config_problems
from llava_remap.jobs.further_sources import Ask, Further, Request, further_sources
from llava_remap.jobs.inspect_parts import inspect_parts
from llava_remap.jobs.inspection import Inspection, inspect_checkpoint
from llava_remap.jobs.run import Result, Verify
from llava_remap.rewrite import contradictions
from llava_remap.routing.fits import Fit
from llava_remap.rulefile import (
    Condition,
    RuleFile,
    Source,
    load_rule_file,
    shipped_folder,
    shipped_rule_files,
)
from llava_remap.source.hub import parse_repository
from llava_remap.source.sources import (
    AnySource,
    Sources,
    as_source,
    is_there,
    name_sources,
    open_given,
    open_source,
    short_name,
    shown,
)
from llava_remap.target_model import CLASSIC

#: The source that a whole checkpoint is.
_MODEL = "model"
#: Keys of a config that a reason shows.
_KEYS = 3


def convert(
    source: AnySource,
    output: str | Path | None = None,
    *,
    rules: str | Path | None = None,
    sources: Sources = (),
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
    """Convert a checkpoint by the rule file that fits it: `choose`, `plan`, then `Job.run`.

    >>> result = convert("llava-v1.5-7b", "llava-converted",
    ...                  sources={"vision_tower": "clip-vit-large-patch14-336"})
    >>> str(result.output), "config.json" in result.files
    ('llava-converted', True)

    Args:
        source: a checkpoint, an adapter, a projector or a folder with several parts: a folder, a
            file, a hub id with an optional `@revision`, or tensors in memory.
        output: the folder to write. The default is the last part of the source's path with `-hf`,
            in the current folder; tensors in memory have none.
        rules: a rule file to use instead of the shipped one that fits.
        sources: further sources, by name. Other needed sources are looked for (`choose`).
        layout, dtype, vocab, max_shard_nbytes, resume, offline, projector_form: as for `plan`.
        verify, jobs: as for `apply`.

    Raises:
        RemapError: as `choose` and `plan`; with the plan's problems, or with those found while
            running.
    """
    asked = as_source(source)
    choice = choose(asked, rules=rules, sources=sources, offline=offline)
    job = plan(
        choice.rules,
        choice.sources,
        default_output(source) if output is None and isinstance(asked, str) else output,
        layout=layout,
        dtype=dtype,
        vocab=vocab,
        max_shard_nbytes=max_shard_nbytes,
        resume=resume,
        offline=offline,
        projector_form=projector_form,
    )
    return replace(job, choice=choice).run(verify=verify, jobs=jobs)


def default_output(source: AnySource) -> Path:
    """The folder that a SRC is written to if the user names none."""
    return Path(f"{short_name(shown(as_source(source)))}-hf")


def choose(
    source: AnySource,
    *,
    rules: str | Path | None = None,
    sources: Sources = (),
    offline: bool = False,
    ask: Ask | None = None,
) -> Choice:
    """Choose the rule file for a checkpoint, and find the other sources that it needs
    (`further_sources`).

    Raises:
        RemapError: LR109 for a checkpoint that needs no conversion, LR216 if several rule files
            fit, LR320 if none does; as `open_source` and `further_sources`.
    """
    places = [rules] if rules is not None else [*shipped_rule_files().values()]
    files = [load_rule_file(place) for place in places]
    names = list(dict.fromkeys(name for file in files for name in file.text.sources))
    given = name_sources(names, sources)
    asked = as_source(source)
    first = files[0].first_source if rules is not None else _MODEL
    try:
        parts, checkpoint = _recognised(asked, first, offline)
    except StepsError as steps:
        command = Request(steps.newest, rules, {}, given, offline).command()
        fix = f"Convert the newest: {steps.download}{command}"
        raise RemapError(replace(problem, fix=fix) for problem in steps.problems) from None
    if twice := [name for name in parts if name in given]:
        raise refuse(
            "LR211",
            f"source `{twice[0]}` is given twice: {shown(parts[twice[0]])} and "
            f"{shown(given[twice[0]])}.",
            "With --source NAME=SRC, give the other sources that the checkpoint needs, for "
            "instance its tower: --source vision_tower=DIR.",
        )
    request = Request(shown(asked), rules, {**parts, **given}, given, offline)
    if rules is not None:
        further = further_sources(files[0], request, ask=ask)
        return Choice(str(rules), further.sources, "is the rule file that was named", further.found)
    request, inspection = _inspected(request, checkpoint)
    fit, further = _fitting(request, inspection, ask)
    return Choice(fit.rules, further.sources, _reason(fit, inspection), further.found)


def _recognised(
    source: str | InMemory, first: str, offline: bool
) -> tuple[Mapping[str, str | InMemory], Checkpoint | None]:
    """The SRC of each part of a SRC, by its source's name; and the checkpoint, if the SRC is a
    whole one.
    """
    try:
        checkpoint = open_source(first, source, Source().use, first=True, offline=offline)
    except PartsApartError as apart:
        return apart.parts, None
    except PartOnlyError as only:
        return {only.source: source}, None
    return {first: source}, checkpoint


def _inspected(request: Request, checkpoint: Checkpoint | None) -> tuple[Request, Inspection]:
    """Compare the shipped rule files with everything that was given. The returned request also has
    the parts in folders inside the checkpoint, if they belong to it.

    Raises:
        RemapError: for a checkpoint in a layout of transformers that needs no conversion (LR109),
            or can't be converted.
    """
    overriding = {
        name
        for file in map(load_rule_file, shipped_rule_files().values())
        for name, source in file.text.sources.items()
        if source.overrides
    }
    if checkpoint is None or overriding & set(request.parts):
        return request, inspect_parts(request.parts, offline=request.offline)
    inspection = inspect_checkpoint(checkpoint)
    inside = {} if checkpoint.folder is None else parts_beside(checkpoint.folder)
    if inside and not _candidates(inspection):
        parts = {**inside, **request.parts}
        together = inspect_parts(parts, offline=request.offline)
        if _candidates(together):
            return replace(request, parts=parts), together
    if inspection.problems and (inspection.layout == CLASSIC or not inspection.fits[0].fits):
        raise RemapError(inspection.problems)
    return request, inspection


def _candidates(inspection: Inspection) -> list[Fit]:
    """The rule files that fit; if none fits, those that take every name and are refused only by
    the plan, which may lack a further source.
    """
    return [fit for fit in inspection.fits if fit.fits] or [
        fit for fit in inspection.fits if fit.mapped == fit.total > 0 and not fit.contradictions
    ]


def _fitting(request: Request, inspection: Inspection, ask: Ask | None) -> tuple[Fit, Further]:
    """The rule file that fits, with the sources that it needs.

    Raises:
        RemapError: LR216 or LR320; as `further_sources`.
    """
    candidates = _candidates(inspection)
    if not candidates:
        raise _none_fits(request, inspection)
    found: Mapping[str, str] = {}
    if len(candidates) > 1 and not (inspection.planned and candidates[0].fits):
        complete = [fit for fit in candidates if _is_complete(fit, request)]
        if not complete and ask is not None and inspection.given:
            # The sources that are found or answered may fit several candidates.
            further = further_sources(
                load_rule_file(candidates[0].rules), request, candidates[0], ask
            )
            found, places = further.found, further.sources
            given = {**request.given, **{name: places[name] for name in found}}
            request = replace(request, parts=places, given=given)
            complete = [fit for fit in candidates if _is_complete(fit, request)]
        candidates = complete or candidates[:1]
    if len(candidates) > 1:
        raise _undecided(request, candidates)
    [fit] = candidates
    if fit.refusals and not inspection.given:
        # The plan is refused even with a made-up tower, so asking for a source wouldn't help.
        try:
            return fit, further_sources(load_rule_file(fit.rules), request, fit)
        except RemapError:
            raise _none_fits(request, inspection) from None
    further = further_sources(load_rule_file(fit.rules), request, fit, ask)
    return fit, replace(further, found={**found, **further.found})


def _none_fits(request: Request, inspection: Inspection) -> RemapError:
    """LR320, with what speaks against the nearest rule file; or the problem that a part was trained
    from another model than the given one, which keeps every rule file from fitting.
    """
    nearest = inspection.fits[0]
    if disagreeing := _disagreeing(request, load_rule_file(nearest.rules)):
        return RemapError(disagreeing)
    maps = f"{nearest.mapped} of {counted(nearest.total, 'name')}"
    near = f"The nearest rule file to {request.source} is {nearest.rules}, which maps {maps}"
    why = f"{': ' + '; '.join(nearest.contradictions) if nearest.contradictions else ''}."
    unknown = f"{request.source}: every shipped rule file knows less than a tenth of its names."
    cause = near + why if nearest.is_near else unknown
    if not nearest.refusals or nearest.remedy:
        return RemapError([Problem("LR320", cause, inspection.advice), *nearest.refusals])
    fix = (
        f"{nearest.rules} takes every name, but refuses the checkpoint for the reasons above. "
        f"After correcting them: {request.command(rules=nearest.rules)}"
    )
    return RemapError([*nearest.refusals, Problem("LR320", cause, fix)])


def _disagreeing(request: Request, rules: RuleFile) -> list[Problem]:
    """LR112 if the configs of a given model and of a part for it describe different language
    models.
    """
    if rules.first_source not in request.parts or len(request.parts) == 1:
        return []
    try:
        return config_problems(rules, open_given(rules, request.parts, request.offline))
    except RemapError:  # a config that can't be read as a language model's
        return []


def _is_complete(fit: Fit, request: Request) -> bool:
    """Whether a rule file's plan is complete with the sources that can be found."""
    rules = load_rule_file(fit.rules)
    try:
        further = further_sources(rules, request, fit)
    except RemapError:
        return False
    return plan_checkpoints(
        rules, further.opened, list(further.sources), HEADERS_ALONE
    ).plan.complete


def _undecided(request: Request, fitting: Sequence[Fit]) -> RemapError:
    """LR216, with what distinguishes the rule files and the command for each."""
    commands = (request.command(rules=fit.rules) for fit in fitting)
    return RemapError(
        Problem(
            "LR216",
            f"{' and '.join(fit.rules for fit in fitting)} fit {request.source}. Nothing in the "
            "checkpoint says which of the models below it should become.",
            "\n".join(("Choose one:", *commands)),
            table=tuple((fit.rules, f"{fit.class_name}: {fit.summary}") for fit in fitting),
        )
    )


def _reason(fit: Fit, inspection: Inspection) -> str:
    """Why a rule file was chosen: the names that it takes, and the values of the config that
    exclude the other rule files that take every name.
    """
    takes = f"takes {fit.mapped} of {counted(fit.total, 'name')}"
    others = [
        other
        for other in inspection.fits
        if other is not fit and other.mapped == other.total and other.total > 0
    ]
    config = next((f.checkpoint.config for f in inspection.facts if f.checkpoint.config), None)
    if not others or config is None:
        return takes
    keys: list[str] = []
    for other in others:
        detect = load_rule_file(other.rules).text.detect
        for key in (*detect.config, *detect.config_not):
            condition = Condition(
                config={k: v for k, v in detect.config.items() if k == key},
                config_not={k: v for k, v in detect.config_not.items() if k == key},
            )
            if contradictions(condition, (), config):
                keys.append(key)
                break
    if not keys:
        return takes
    values = {key: config.get(key) for key in dict.fromkeys(keys)}
    first = {key: v[0] if isinstance(v, list) and v else v for key, v in values.items()}
    said = ", ".join(f"{key} {'absent' if v is None else v}" for key, v in first.items())
    do = "so does 1 other" if len(keys) == 1 else f"so do {len(keys)} others"
    return f"{takes}; {do}, which the config excludes: {said}"


def refuse_checkpoint(rules: str, sources: Sequence[str], offline: bool) -> None:
    """Raise LR200 if `apply` got a checkpoint in place of a rule file, with the commands that
    convert the checkpoint.
    """
    path = Path(rules)
    called = rules.removeprefix("rules/")
    if path.suffix in (".yaml", ".yml") or (shipped_folder() / f"{called}.yaml").is_file():
        return
    options = "".join(f" --source {quote(text)}" for text in sources)
    command = f"llava-remap convert {quote(rules)}{options}"
    if not is_there(path):
        if parse_repository(rules) is not None and not is_there(path.parent):
            raise refuse(
                "LR200",
                f"{rules} isn't a rule file, but may be a checkpoint on the hub.",
                f"If it is: {command}",
            )
        return
    try:
        parts, checkpoint = _recognised(rules, _MODEL, offline)
        request = Request(rules, None, parts, {}, offline)
        fitting = _candidates(_inspected(request, checkpoint)[1])
    except RemapError:
        if path.is_dir():
            raise refuse(
                "LR200",
                f"{rules} is a folder, not a rule file.",
                f"To see its content: llava-remap inspect {quote(rules)}",
            ) from None
        return  # a file without a known ending may be a rule file
    either = ""
    if len(fitting) == 1:
        own = "".join(
            f" --source {quote(f'{name}={shown(place)}')}" for name, place in parts.items()
        )
        lacks = (n for n in fitting[0].also if not any(s.startswith(f"{n}=") for s in sources))
        also = "".join(f" --source {name}=DIR" for name in lacks)
        either = f"\nllava-remap apply {fitting[0].rules}{own}{options}{also}"
    raise refuse(
        "LR200", f"{rules} is a checkpoint, not a rule file.", f"Convert it:\n{command}{either}"
    )
