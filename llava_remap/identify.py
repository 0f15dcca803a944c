"""What is this checkpoint, and is the rule file for it? Asked before anything is derived from it.

The shipped rule files and layouts are held against its names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.errors import Problem
from llava_remap.fold import counted
from llava_remap.plan import Routed, Routes, route
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.rulefile import (
    Condition,
    Requirement,
    RuleFile,
    load_rule_file,
    shipped_folder,
    shipped_layouts,
    shipped_rule_files,
)
from llava_remap.sources import other_than_default
from llava_remap.target import CLASSIC, layout_program

#: The shipped rule file from any layout of transformers to the classic one.
HF_LAYOUTS = "hf-layouts"
#: Templates that a message shows.
_SHOWN = 6
#: The rules that know what frameworks put around modules.
_WRAPPERS = "parts/wrappers.yaml"


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a rule file fits a checkpoint.

    Attributes:
        mapped, total: of the `total` names that it doesn't drop it maps so many.
        contradictions: what contradicts its `detect`, in words.
        by_config: whether the config alone contradicts it: the names do not.
        source: what it calls the checkpoint: its first source.
        summary: what it is for.
        also: sources that it needs besides.
        other_default: whether the config names another one for some of these than the rule file's default.
    """

    rules: str
    source: str
    mapped: int
    total: int
    contradictions: tuple[str, ...]
    by_config: bool
    also: tuple[str, ...]
    other_default: bool
    summary: str

    @property
    def fits(self) -> bool:
        return self.mapped > 0 and self.mapped == self.total and not self.contradictions


def identify(
    rules: RuleFile,
    routes: Routes,
    checkpoints: Mapping[str, Checkpoint],
    config: Mapping[str, Any] | None,
    given: Collection[str],
) -> list[Problem]:
    """The reasons not to believe that this rule file is for these checkpoints; empty where there are none.

    Each makes the ones after it meaningless, so the first found is returned alone; but where no shipped file fits, also what the
    target would compute otherwise.

    Args:
        checkpoints: the sources. Stubs can be in any; what it is for is asked of all, as projector, tower and language model may
            each be in another; whether it is converted already, and wrapped, of the first alone.
        config: what describes the language model: the first source's own config, or that of a source given in its place.
        given: the sources that were given, not taken as a default.
    """
    taken = routes.taken
    for name, other in checkpoints.items():
        if stubs := _stubs([r for r in taken if r.source == name], other):
            return [stubs]
    checkpoint = checkpoints[rules.first_source]
    routed = [r for r in taken if r.source == rules.first_source]
    for check in (_already_converted, _wrapped, _nothing_matched):
        if problem := check(rules, routed, checkpoint):
            return [problem]
    if unknown := _unknown_sources(rules, routes, checkpoints):
        return unknown
    said_by = next((name for name, c in checkpoints.items() if c.config is config and c.config is not None), rules.first_source)
    whose = "its config" if said_by == rules.first_source else f"the config of `{said_by}`"
    main = [r for r in taken if r.source == rules.first_source or rules.text.sources[r.source].overrides]
    if not contradictions(rules.text.detect, [r.rewrite.prepared for r in main], config):
        main = list(taken)  # what contradicts it, if anything does, is in another source, such as a tower
    names = [r.rewrite.prepared for r in taken]
    if reasons := contradictions(rules.text.detect, names, config, whose=whose):
        these = [checkpoints[name].location for name in dict.fromkeys(r.source for r in main)]
        are = "isn't a checkpoint" if len(these) == 1 else "are no checkpoint"
        cause = f"{' with '.join(these)} {are} for {rules.name}: {'; '.join(reasons)}."
        named = dict.fromkeys((said_by, *(r.source for r in main)))
        others = [name for name in named if name != rules.first_source and name in given]
        found = fits(checkpoint)
        sources = _elsewhere(rules, taken, checkpoints, found) or _without(rules, others, found)
        wrong = Problem("LR311", cause, sources or _better(found))
        if not sources and found[0].fits:
            return [wrong]
        return [wrong, *unmet(rules, names, config, whose)]
    return unmet(rules, names, config, whose)


def unmet(rules: RuleFile, names: Sequence[str], config: Mapping[str, Any] | None, whose: str = "its config") -> list[Problem]:
    """LR314 for each of a rule file's requirements that a checkpoint doesn't meet; `names` as `prepare` left them."""
    return [
        Problem("LR314", f"{'; '.join(reasons)}. {requirement.else_}", _allowing(rules, name, requirement, config or {}))
        for name, requirement in rules.text.requires.items()
        if not contradictions(Condition(config=requirement.when), (), config)
        and (reasons := contradictions(requirement, names, config, whose=whose))
    ]


def _allowing(rules: RuleFile, name: str, requirement: Requirement, config: Mapping[str, Any]) -> str:
    """How to convert all the same: lines for a rule file, where the config's values can stand in one."""
    values = {key: config.get(key) for key in requirement.config}
    if not values or any(isinstance(value, (list, dict)) for value in values.values()):
        return "Mend the config.json, if the message says so; no class of transformers computes it as it is."
    allowed = {key: [*(said if isinstance(said, tuple) else (said,)), values[key]] for key, said in requirement.config.items()}
    lines = ", ".join(f"{key}: {json.dumps(list(dict.fromkeys(entries)))}" for key, entries in allowed.items())
    return (
        "If that doesn't matter for what you want to do, write a rule file with "
        f"`extends: [{rules.name}.yaml]` and `requires: {{{name}: {{config: {{{lines}}}}}}}`."
    )


def fits(checkpoint: Checkpoint) -> list[Fit]:
    """Every shipped rule file held against a checkpoint; those that fit first, then by share of mapped names.

    Of two that fit by names that one comes first whose default tower is the one that the config names.
    """
    found = []
    for path in shipped_rule_files().values():
        rules = load_rule_file(path)
        program = compile_rules(rules, checkpoint.catalog, checkpoint.config)
        routes = route(rules, program, {rules.first_source: checkpoint})
        taken = routes.taken
        mapped = sum(r.rewrite.target is not None for r in taken)
        total = sum(r.rewrite.reason is None for r in taken)
        detect, names = rules.text.detect, [r.rewrite.prepared for r in taken]
        reasons = contradictions(detect, names, checkpoint.config)
        reasons += [problem.cause.removesuffix(".") for problem in unmet(rules, names, checkpoint.config)]
        by_config = bool(reasons) and not contradictions(detect.model_copy(update={"config": {}}), names, None)
        found.append(
            Fit(
                rules.name,
                rules.first_source,
                mapped,
                total,
                tuple(reasons),
                by_config,
                routes.not_given,
                any(other_than_default(rules.text.sources[name], checkpoint.config) is not None for name in routes.not_given),
                rules.text.summary or "",
            )
        )

    def order(fit: Fit) -> tuple[object, ...]:
        return (not fit.fits, fit.fits and fit.other_default, -fit.mapped / max(fit.total, 1), len(fit.contradictions), fit.rules)

    return sorted(found, key=order)


def _stubs(routed: Sequence[Routed], checkpoint: Checkpoint) -> Problem | None:
    stubs = [r.tensor.name for r in routed if 0 in r.tensor.shape]
    if not stubs:
        return None
    return Problem(
        "LR104",
        f"{len(stubs)} of {len(routed)} tensors in {checkpoint.location} have no elements (shape [0]).",
        "Run DeepSpeed's zero_to_fp32.py in the training folder and give its output.",
        tuple(stubs),
    )


def nearest_layout(names: Collection[str]) -> tuple[str, dict[str, str]]:
    """The layout of transformers that takes most of these names, and what they are in the classic layout."""
    found = [(layout, _classic(layout, names)) for layout in shipped_layouts()]
    return max(found, key=lambda entry: len(entry[1]))


def _classic(layout: str, names: Collection[str]) -> dict[str, str]:
    """What those of the names that a layout takes are in the classic one."""
    program = layout_program(layout)
    return {name: target for name in names if (target := program.rewrite(name).target) is not None}


def already_converted(checkpoint: Checkpoint, names: Sequence[str], mapped: int) -> Problem | None:
    """LR109: a layout of transformers takes more of the names than the `mapped` ones that a rule file does.

    A quarter of them at least: an original shares `lm_head.weight` with some layouts, and a layout unknown here (the mixtures
    that some versions saved) still has its language model, nearly half of the names, in a known one.
    """
    if mapped >= len(names):
        return None
    layout, classic = nearest_layout(names)
    if len(classic) <= max(mapped, len(names) // 4):
        return None
    cause = f"{len(classic)} of {len(names)} names in {checkpoint.location} are in layout {layout}."
    if layout == CLASSIC and len(classic) == len(names):
        return Problem("LR109", cause, "Nothing is to be done: load it with transformers as it is.")
    command = f"llava-remap apply {HF_LAYOUTS} --source {quote(checkpoint.location)}"
    if len(classic) < len(names):
        return Problem("LR109", cause, f"To see which are not: {command} --dry-run.")
    return Problem("LR109", cause, f"For the classic layout, which every transformers loads: {command}.")


def _already_converted(rules: RuleFile, routed: Sequence[Routed], checkpoint: Checkpoint) -> Problem | None:
    mapped = sum(r.rewrite.target is not None for r in routed)
    if mapped and all(r.rewrite.target is not None or r.rewrite.reason is not None for r in routed):
        return None  # it knows every name
    return already_converted(checkpoint, [r.tensor.name for r in routed], mapped)


def _wrapped(rules: RuleFile, routed: Sequence[Routed], checkpoint: Checkpoint) -> Problem | None:
    bare = compile_rules(load_rule_file(shipped_folder() / _WRAPPERS))
    made = {r.tensor.name: r.rewrite.target or r.rewrite.prepared for r in routed if r.rewrite.reason is None}
    on = {name: found for name, after in made.items() if (found := bare.rewrite(after).rules)}
    if not on:
        return None
    names = dict.fromkeys(rule for found in on.values() for rule in found)
    wrappers = ", ".join(f"`{rule.rule.unwrap}.`" for rule in bare.prepare if rule.label in names)
    cause = f"{len(on)} of {len(routed)} names in {checkpoint.location} have {wrappers} in them, which {rules.name} leaves there."
    return Problem("LR110", cause, f"Add {_WRAPPERS} to its `extends`.", tuple(on))


def _nothing_matched(rules: RuleFile, routed: Sequence[Routed], checkpoint: Checkpoint) -> Problem | None:
    left = [r for r in routed if r.rewrite.reason is None]
    if not left or any(r.rewrite.target is not None for r in left):
        return None  # where all is dropped, that is what the plan finds
    return Problem(
        "LR305",
        f"no rule of {rules.name} takes any of the {len(routed)} names in {checkpoint.location}.",
        _better(fits(checkpoint)),
        tuple(r.tensor.name for r in routed),
    )


def _unknown_sources(rules: RuleFile, routes: Routes, checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """LR305 for each further source of which no name is known, with the names that are asked for in their place."""
    every = [*routes.taken, *routes.beside, *(routed for routed, _ in routes.replaced)]
    known = {r.source for r in every if r.rewrite.target is not None or r.rewrite.reason is not None}
    unknown = [name for name in {r.source: None for r in every} if name not in known and name != rules.first_source]
    used = {r.rewrite.rules[-1] for r in every if r.rewrite.target is not None}
    renames = [rule for rule in compile_rules(rules).names if rule.rule.to is not None]
    unused = [rule for rule in renames if rule.label not in used]
    problems = []
    for name in (*routes.unselected, *unknown):
        checkpoint = checkpoints[name]
        if not checkpoint.catalog:  # a config alone
            continue
        wanted = rules.text.sources[name].selected or [str(rule.rule.from_) for rule in unused or renames]
        cause = (
            f"source `{name}` ({checkpoint.location}) was read, and {rules.name} knows none of its "
            f"{counted(len(checkpoint.catalog), 'name')}."
        )
        fix = (
            f"Give a checkpoint with names like {' or '.join(f'`{text}`' for text in wanted[:_SHOWN])}, or write a rule file "
            f"that maps these, with `extends: [{rules.name}.yaml]`."
        )
        problems.append(Problem("LR305", cause, fix, tuple(checkpoint.catalog)))
    return problems


def _elsewhere(rules: RuleFile, taken: Sequence[Routed], checkpoints: Mapping[str, Checkpoint], found: Sequence[Fit]) -> str:
    """Where names are missing that a source apart may bring, which it is; empty otherwise.

    Such sources stand in the order of a training. Behind one that is given, none brings what an earlier one should have.
    """
    names = [r.rewrite.prepared for r in taken]
    missing = [text for text in rules.text.detect.present if contradictions(Condition(present=(text,)), names, None)]
    if not missing or any(fit.fits for fit in found):
        return ""
    parts = [name for name, source in rules.text.sources.items() if source.overrides]
    given = [number for number, name in enumerate(parts) if name in checkpoints]
    if left := parts[: given[0]] if given else parts:
        return f"If what is missing lies elsewhere, give that too: {' or '.join(f'--source {name}=DIR' for name in left)}."
    if not given:
        return ""
    wanted = " and ".join(f"`{text}`" for text in missing)
    return f"Give a checkpoint that has {wanted}, a later one of the same training: no other source brings it."


def _without(rules: RuleFile, others: Sequence[str], found: Sequence[Fit]) -> str:
    """Where the first source alone fits, which others keep it from that; empty otherwise."""
    if not others or not any(fit.fits and fit.rules == rules.name for fit in found):
        return ""
    named = " and ".join(f"`{name}`" for name in others)
    return f"`{rules.first_source}` alone fits {rules.name}: leave out {named}, or give what belongs to this checkpoint."


def _better(found: Sequence[Fit]) -> str:
    best = found[0]
    if best.fits:
        return f"This rule file fits: {best.rules} ({best.mapped} of {best.total} names)."
    if (near := next((fit for fit in found if fit.by_config and fit.mapped == fit.total), None)) is not None:
        return (
            f"None of the shipped rule files fits. {near.rules} takes every name, and its `detect` refuses this config since a "
            "model with it computes something else: override `detect` only if you know that transformers computes the same."
        )
    return "None of the shipped rule files fits: write one that extends the nearest. `llava-remap inspect` shows how far each is."
