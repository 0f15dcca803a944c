"""Whether a rule file that fits by names and config also gives a complete plan, from headers alone
and without the hub. If the tower is missing, a made-up one is used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core import Problem, RemapError
from llava_remap.jobs.apply import HEADERS_ALONE, plan_checkpoints
from llava_remap.jobs.source_configs import source_configs
from llava_remap.rewrite import Program, compile_rules, contradictions
from llava_remap.routing import main_names, route
from llava_remap.routing.fits import Fit, shipped
from llava_remap.rulefile import Condition, RuleFile
from llava_remap.target_model import shapes_config, text_config

#: The layers of a made-up tower, which are enough for the feature layers of every config, and the
#: patches on each side of a tile.
_LAYERS, _PATCHES = 48, 2


def planned(fit: Fit, given: Mapping[str, Checkpoint]) -> Fit:
    """A rule file that fits by names and config, with the refusals of its plan.

    If the plan is not complete, a second plan is made with a made-up tower. Refusals of only the
    first plan concern the tower's own folder, which the user still has to give.

    Args:
        given: the checkpoints by source, the first source among them.
    """
    if not fit.fits:
        return fit
    rules, parts = shipped()[fit.rules], list(given)[1:]
    found = refusals(rules, given, parts)
    if not found:
        return replace(fit, also=())
    source = next(
        (
            name
            for name, source in rules.text.sources.items()
            if name not in given and "processor" in source.use
        ),
        None,
    )
    if source is None:
        return replace(fit, refusals=found)
    own = Checkpoint(Path("DIR"), "", {}, _tower_config(rules, given), None)
    if source in fit.also:
        own = replace(own, catalog=_tower(rules, {**given, source: own}, source))
    given = _ordered(rules, {**given, source: own})
    of_tower = (*rules.target.towers, *({rules.target.projector} if source in fit.also else ()))
    still = tuple(
        problem
        for problem in refusals(rules, given, parts)
        if not problem.names or not all(name.startswith(of_tower) for name in problem.names)
    )
    if still:
        return replace(fit, refusals=still)
    return replace(
        fit,
        also=tuple(dict.fromkeys((*fit.also, source))),
        needs=() if source in fit.also else found,
    )


def _tower_config(rules: RuleFile, given: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """A config for the tower inside the checkpoints or, without a tower, for the made-up one."""
    prefix, tensors = next(iter(rules.target.towers)), _produced(rules, given)
    try:
        return {"vision_config": shapes_config(prefix, tensors)}
    except RemapError:  # LR302
        return {"vision_config": shapes_config(prefix, _seen(rules, given))}


def _produced(rules: RuleFile, given: Mapping[str, Checkpoint]) -> Mapping[str, Tensor]:
    return route(rules, _program(rules, given), given).produced


def _program(rules: RuleFile, given: Mapping[str, Checkpoint]) -> Program:
    return compile_rules(rules, main_names(rules, given), text_config(source_configs(rules, given)))


def refusals(
    rules: RuleFile, given: Mapping[str, Checkpoint], parts: Collection[str]
) -> tuple[Problem, ...]:
    """The problems of a plan from these headers.

    Args:
        parts: the sources that the user gave beside the first one.
    """
    return plan_checkpoints(rules, given, parts, HEADERS_ALONE).plan.problems


def _ordered(rules: RuleFile, given: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints in the order of the rule file's sources."""
    return {name: given[name] for name in rules.text.sources if name in given}


def _seen(rules: RuleFile, given: Mapping[str, Checkpoint]) -> dict[str, Tensor]:
    """The tensors that determine the sizes of a made-up tower: its width is the projector's, its
    picture size divides every tiled size.
    """
    projector = next(
        (
            tensor
            for name, tensor in sorted(_produced(rules, given).items())
            if name.startswith(rules.target.projector) and len(tensor.shape) == 2
        ),
        None,
    )
    width = projector.shape[-1] if projector is not None else 1
    config = text_config(source_configs(rules, given)) or {}
    patch = _tile(rules, config) // _PATCHES
    prefix = next(iter(rules.target.towers))
    has_class = not _refuses(rules, given, f"{prefix}embeddings.class_embedding")
    shapes = {
        **(
            {"embeddings.class_embedding": (width,)}
            if has_class
            else {"embeddings.patch_embedding.bias": (width,)}
        ),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (has_class + _PATCHES**2, width),
        f"encoder.layers.{_LAYERS - 1}.mlp.fc1.weight": (1, width),
    }
    return {
        prefix + name: Tensor.of(prefix + name, "F16", shape, None)
        for name, shape in shapes.items()
    }


def _refuses(rules: RuleFile, given: Mapping[str, Checkpoint], target: str) -> bool:
    """Whether a rule file's `detect` refuses every checkpoint that has this parameter, because the
    rule file is for another kind of tower.
    """
    source = _program(rules, given).inverse(target)
    return bool(contradictions(Condition(absent=rules.text.detect.absent), (str(source),), None))


def _tile(rules: RuleFile, config: Mapping[str, Any]) -> int:
    """A side in pixels that divides all sizes of tiled pictures."""
    keys = [
        value.from_
        for value in rules.target_config.values()
        if value.as_ is not None and value.from_ is not None
    ]
    sides = gcd(
        *(int(number) for key in keys for number in re.findall(r"\d{1,9}", str(config.get(key))))
    )
    return sides if sides and sides % _PATCHES == 0 else _PATCHES


def _tower(rules: RuleFile, given: Mapping[str, Checkpoint], source: str) -> dict[str, Tensor]:
    """All tensors of the made-up tower, under their names in the tower's own folder."""
    program = _program(rules, given)
    taken_off = rules.text.sources[source].prefix
    towers = tuple(rules.target.towers)
    shapes = {name: tensor.shape for name, tensor in _seen(rules, given).items()}

    def catalog() -> dict[str, Tensor]:
        names = {
            str(program.inverse(target)).removeprefix(taken_off): shape
            for target, shape in shapes.items()
        }
        return {name: Tensor.of(name, "F16", shape, None) for name, shape in names.items()}

    whole = {**given, source: replace(given[source], catalog=catalog())}
    plan = plan_checkpoints(rules, _ordered(rules, whole), options=HEADERS_ALONE).plan
    shapes |= {
        missing.target: missing.shape
        for missing in plan.missing
        if missing.target.startswith(towers)
    }
    return catalog()
