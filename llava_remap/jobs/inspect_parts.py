"""`llava-remap inspect` for parts of a model: an adapter, a projector, or a folder for
each part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llava_remap.checkpoint import (
    Checkpoint,
    InMemory,
    PartOnlyError,
    PartsApartError,
    parts_beside,
)
from llava_remap.core.escaped import quote
from llava_remap.jobs.facts import describe
from llava_remap.jobs.fit_plans import planned, refusals
from llava_remap.jobs.inspection import PLACEHOLDER, Inspection, inspect_checkpoint
from llava_remap.jobs.source_configs import source_configs
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing import draft_command, main_names, route
from llava_remap.routing.fits import EMPTY, Fit, agreeing, shipped
from llava_remap.rulefile import Condition, RuleFile, Source
from llava_remap.source.hub.repository import parse_repository
from llava_remap.source.sources import AnySource, as_source, last_part, open_source
from llava_remap.target_model import text_config

#: The source for which all other sources are parts.
_MODEL = "model"
#: The source as which a tower is given.
_TOWER = "vision_tower"


def inspect(source: AnySource, *, offline: bool = False) -> Inspection:
    """Say what a checkpoint is, and which shipped rule files fit it, from headers alone.

    >>> found = inspect("llava-v1.5-7b")
    >>> found.fits[0].fits, found.fits[0].rules
    (True, 'llava-v1.5')

    Args:
        source: a checkpoint, a part of one, or a folder with several parts; given like a source of
            `plan`.
        offline: whether to take from the hub only what was downloaded before.

    Raises:
        RemapError: as `open_source`.
    """
    given = as_source(source)
    found = _inspected(given, offline)
    return replace(found, source=given) if isinstance(given, str) else found


def _inspected(given: str | InMemory, offline: bool) -> Inspection:
    try:
        checkpoint = open_source(_MODEL, given, Source().use, first=True, offline=offline)
    except PartsApartError as apart:
        return replace(inspect_parts(apart.parts, offline=offline), apart=len(apart.parts) > 1)
    except PartOnlyError as only:
        return inspect_parts({only.source: given}, offline=offline)
    found = inspect_checkpoint(checkpoint)
    if found.fits[0].fits or found.problems:
        return found
    kinds = {part.kind for facts in found.facts for part in facts.components}
    if "vision_tower" in kinds and kinds <= {"vision_tower", "text_encoder"}:
        together = inspect_parts({_TOWER: given}, offline=offline)
    elif checkpoint.folder is not None and (beside := parts_beside(checkpoint.folder)):
        together = inspect_parts({_MODEL: given, **beside}, offline=offline)
    else:
        return found
    return together if together.fits[0].fits else found


def inspect_parts(parts: Mapping[str, str | InMemory], *, offline: bool = False) -> Inspection:
    """Find the shipped rule files that take these parts together.

    If the model is among the parts, or if the files of an adapter or projector name a local one,
    each rule file is planned as `apply` plans it. Otherwise only names and config of the parts are
    compared with the rule file, and the model itself is not checked.

    Args:
        parts: source → SRC.

    Raises:
        RemapError: as `open_source`.
    """
    files = [
        rules
        for rules in shipped().values()
        if rules.first_source == _MODEL and {_MODEL, *parts} <= set(rules.text.sources)
    ]
    sources = files[0].text.sources
    given = {
        name: open_source(
            name,
            parts[name],
            source.use,
            first=name == _MODEL,
            part=source.overrides,
            offline=offline,
        )
        for name, source in sources.items()
        if name in parts
    }
    base = next((part.base for part in given.values() if part.base), "")
    named = {
        name: PLACEHOLDER if checkpoint.in_memory else checkpoint.location
        for name, checkpoint in given.items()
    }
    if _MODEL not in given and base and Path(base).is_dir():
        given = {
            _MODEL: open_source(_MODEL, base, sources[_MODEL].use, first=True, offline=offline),
            **given,
        }
    if _MODEL not in named:
        is_known = base and (Path(base).is_dir() or parse_repository(base))
        named = {_MODEL: base if is_known else PLACEHOLDER, **named}
    fits = [
        _planned(rules, given) if _MODEL in given else _compared(rules, given) for rules in files
    ]
    fits.sort(
        key=lambda fit: (
            not fit.fits,
            fit.other_default,
            -fit.mapped,
            len(fit.contradictions),
            -fit.agreeing,
            fit.rules,
        )
    )
    command = " ".join(f"--source {quote(f'{name}={place}')}" for name, place in named.items())
    advice = "" if fits[0].fits else _advice(fits[0], named, command)
    return Inspection(
        next(given[name] for name in sources if name in parts),
        tuple(fits),
        "",
        0,
        (),
        advice,
        tuple(map(describe, given.values())),
        named,
        _MODEL in given,
    )


def _planned(rules: RuleFile, given: Mapping[str, Checkpoint]) -> Fit:
    """Plan a rule file for parts with their model, unless the config contradicts it."""
    fit = _compared(rules, given)
    if fit.contradictions or fit.fits:
        return planned(fit, given)
    return replace(fit, refusals=refusals(rules, given, list(given)[1:]))


def _compared(rules: RuleFile, given: Mapping[str, Checkpoint]) -> Fit:
    """Compare a rule file with the names of the parts, and with the config that describes the
    language model. If the model isn't given, it may have the missing names.
    """
    whole = _MODEL in given
    checkpoints = given if whole else {_MODEL: EMPTY, **given}
    config = text_config(source_configs(rules, given))
    if rules.target.as_ is not None and whole:
        config = given[_MODEL].config
    if config is None or given.keys() == {_TOWER}:
        config = {}
    program = compile_rules(rules, main_names(rules, checkpoints), config)
    routes = route(rules, program, checkpoints)
    every = [(r.tensor.name, r.rewrite) for r in routes.taken]
    every += [(pair.a.name, pair.rewrite) for pair in routes.pairs]
    unknown = [name for name, rewrite in every if rewrite.target is None and rewrite.reason is None]
    unknown += [name for source in routes.unselected for name in checkpoints[source].catalog]
    detect, absent = rules.text.detect, 0
    of_config = Condition(config=detect.config, config_not=detect.config_not)
    reasons = contradictions(of_config, (), config) if config else []
    if not whole:
        prepared = [rewrite.prepared for _, rewrite in every]
        reasons += contradictions(Condition(absent=detect.absent), prepared, None)
        # The model may have names that the parts lack. A rule file is nearer if the parts lack
        # fewer names.
        absent = sum(
            bool(contradictions(Condition(present=(text,)), prepared, None))
            for text in detect.present
        )
    base = next((part.base for part in given.values() if part.base), "")
    default = rules.text.sources[_MODEL].default
    other = (
        not (base and isinstance(default, str) and last_part(base) == last_part(default))
        and absent > 0
    )
    mapped = sum(rewrite.target is not None for _, rewrite in every)
    summary, class_name = rules.text.summary or "", rules.target.class_ or ""
    return Fit(
        rules.name,
        _MODEL,
        mapped,
        mapped + len(unknown),
        tuple(unknown),
        tuple(reasons),
        "",
        tuple(name for name in routes.not_given if name != _MODEL),
        other,
        summary,
        agreeing(rules, config),
        class_name,
    )


def _advice(best: Fit, named: Mapping[str, str], command: str) -> str:
    """What to do if no rule file takes the parts."""
    if not best.unknown and best.refusals:
        mended = f"llava-remap apply {best.rules} {command}"
        return (
            f"{best.rules} takes every name, but refuses the parts for the reasons above. After "
            f"correcting them: {mended}"
        )
    places = dict(named)
    infer = draft_command(best.class_name or "CLASS", places.pop(_MODEL), **places)
    return f"None of the shipped rule files fits. Infer one from names and shapes: {infer}"
