"""`llava-remap inspect`: what a checkpoint is, and which rule file is for it; by the check that
`apply` makes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core.problem import Problem, RemapError
from llava_remap.jobs.apply import HEADERS_ALONE, layout_refusals, plan_checkpoints
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing import route
from llava_remap.routing.advice import advice
from llava_remap.routing.fits import Fit, fits
from llava_remap.routing.identify import HF_LAYOUTS, already_converted, nearest_layout
from llava_remap.routing.trained_with import PROJECTOR
from llava_remap.rulefile import Condition, RuleFile, load_rule_file
from llava_remap.target_model import shapes_config

#: A made-up tower's layers, more than any config takes features from, and the patches on each side
#: of a tile.
_LAYERS, _PATCHES = 48, 2


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of inspecting a checkpoint.

    Attributes:
        fits: every shipped rule file, the nearest first. Those whose names fit were planned.
        layout: a layout of transformers that has `named` of the names; empty for an original.
        problems: reasons not to convert a checkpoint in a layout of transformers; LR109 says that
            a conversion is not needed.
        advice: what to do if no rule file fits; empty if one does.
        parts: the checkpoints, if parts of a model were inspected.
        sources: the options that give the parts to `apply`.
        planned: whether fitting rule files were planned. Parts without their model are only
            compared.
    """

    checkpoint: Checkpoint
    fits: tuple[Fit, ...]
    layout: str
    named: int
    problems: tuple[Problem, ...]
    advice: str
    parts: tuple[Checkpoint, ...] = ()
    sources: str = ""
    planned: bool = True


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Compare a checkpoint with every shipped rule file, from headers alone and without the hub.

    A rule file whose names and `detect` fit is planned as `apply` plans it. It fits only if the
    plan is complete.
    """
    found = fits(checkpoint)
    names = list(checkpoint.catalog)
    layout, classic = nearest_layout(names)
    others = max(fit.mapped for fit in found if fit.rules != HF_LAYOUTS)
    problems = already_converted(checkpoint, names, others, layout_refusals)
    found = sorted((_planned(fit, checkpoint) for fit in found), key=lambda fit: not fit.fits)
    return Inspection(
        checkpoint,
        tuple(found),
        layout if problems else "",
        len(classic),
        tuple(problems),
        "" if found[0].fits else advice(checkpoint, found),
    )


def _planned(fit: Fit, checkpoint: Checkpoint) -> Fit:
    """A rule file that fits by names and config, with the refusals of its plan.

    If the plan is not complete, a second one gets a made-up tower. A refusal of the first plan
    alone concerns the tower's own folder, which the user still has to give.
    """
    if not fit.fits:
        return fit
    rules = load_rule_file(fit.rules)
    given = {rules.first_source: checkpoint}
    refusals = plan_checkpoints(rules, given, options=HEADERS_ALONE).plan.problems
    if not refusals:
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
        return replace(fit, refusals=refusals)
    given[source] = Checkpoint(Path("DIR"), "", {}, _tower_config(rules, checkpoint), None)
    if source in fit.also:
        given[source] = replace(given[source], catalog=_tower(rules, given, source))
    of_tower = (*rules.target.towers, *({PROJECTOR} if source in fit.also else ()))
    still = tuple(
        problem
        for problem in plan_checkpoints(rules, given, options=HEADERS_ALONE).plan.problems
        if not problem.names or not all(name.startswith(of_tower) for name in problem.names)
    )
    if still:
        return replace(fit, refusals=still)
    return replace(
        fit,
        also=tuple(dict.fromkeys((*fit.also, source))),
        needs=() if source in fit.also else refusals,
    )


def _tower_config(rules: RuleFile, checkpoint: Checkpoint) -> dict[str, Any]:
    """A config for the tower inside a checkpoint; without one, for the made-up tower."""
    prefix, tensors = next(iter(rules.target.towers)), _produced(rules, checkpoint)
    try:
        return {"vision_config": shapes_config(prefix, tensors)}
    except RemapError:  # LR302
        return {"vision_config": shapes_config(prefix, _seen(rules, checkpoint))}


def _produced(rules: RuleFile, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    program = compile_rules(rules, checkpoint.catalog, checkpoint.config)
    return route(rules, program, {rules.first_source: checkpoint}).produced


def _seen(rules: RuleFile, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors that determine the sizes of a made-up tower: its width is the projector's, its
    picture size divides every tiled size.
    """
    projector = _produced(rules, checkpoint).get(f"{PROJECTOR}linear_1.weight")
    width = projector.shape[-1] if projector is not None and projector.shape else 1
    patch = _tile(rules, checkpoint.config or {}) // _PATCHES
    prefix = next(iter(rules.target.towers))
    has_class = not _refuses(rules, checkpoint, f"{prefix}embeddings.class_embedding")
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


def _refuses(rules: RuleFile, checkpoint: Checkpoint, target: str) -> bool:
    """Whether `detect` of a rule file refuses every checkpoint with a target name, because the rule
    file is for another kind of tower.
    """
    source = compile_rules(rules, checkpoint.catalog, checkpoint.config).inverse(target)
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
    checkpoint = given[rules.first_source]
    program = compile_rules(rules, checkpoint.catalog, checkpoint.config)
    taken_off = rules.text.sources[source].prefix
    towers = tuple(rules.target.towers)
    shapes = {name: tensor.shape for name, tensor in _seen(rules, checkpoint).items()}

    def catalog() -> dict[str, Tensor]:
        names = {
            str(program.inverse(target)).removeprefix(taken_off): shape
            for target, shape in shapes.items()
        }
        return {name: Tensor.of(name, "F16", shape, None) for name, shape in names.items()}

    whole = {**given, source: replace(given[source], catalog=catalog())}
    plan = plan_checkpoints(rules, whole, options=HEADERS_ALONE).plan
    shapes |= {
        missing.target: missing.shape
        for missing in plan.missing
        if missing.target.startswith(towers)
    }
    return catalog()
