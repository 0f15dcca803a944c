"""What is this checkpoint, and is the rule file for it? Asked before anything is derived from it.

The shipped rule files and layouts are compared with its names and its config.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, gather_command, parts_beside
from llava_remap.core.escaped import quote
from llava_remap.core.fold import counted, fold_names
from llava_remap.core.problem import Problem
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing.advice import draft_command
from llava_remap.routing.route import Routed, Routes, route
from llava_remap.routing.trained_with import PROJECTOR, projector_place
from llava_remap.rulefile import (
    Condition,
    Rename,
    Requirement,
    RuleFile,
    Template,
    Unwrap,
    Wrapper,
    load_rule_file,
    shipped_folder,
    shipped_layouts,
    shipped_rule_files,
)
from llava_remap.source.sources import other_than_default
from llava_remap.target_model import CLASSIC, layout_program

#: The shipped rule file from any layout of transformers to the classic one.
HF_LAYOUTS = "hf-layouts"
#: Templates that a message shows.
_TEMPLATES = 6
#: The rules that know what frameworks put around modules.
_WRAPPERS = "parts/wrappers.yaml"
_NUMBER = re.compile(r"[0-9]+")
#: Folded names in a sentence.
_SHOWN = 2
#: Stands for the first source where only another one is looked at.
_EMPTY = Checkpoint(Path(), "", {}, None, None)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a rule file fits a checkpoint.

    Attributes:
        mapped, total: of the `total` names that it doesn't drop it maps so many.
        unknown: the names that it neither maps nor drops.
        contradictions: why it isn't for the checkpoint, in words.
        guard: what of the rule file refuses the config, `detect` or `requires`; empty where names
            contradict it, or nothing does.
        source: what it calls the checkpoint: its first source.
        summary: what it is for.
        also: sources that it needs besides.
        other_default: whether the config names another one for some of these than the rule file's
            default.
        agreeing: how many values of the config are those that its `detect` asks for.
        class_name: its target; empty where that is the source's own class.
        remedy: what would help, where that is known of the contradictions; empty otherwise.
        refusals: what a plan from the same headers finds; empty before there is one.
        needs: what that plan finds and a further source (`also`) settles.
    """

    rules: str
    source: str
    mapped: int
    total: int
    unknown: tuple[str, ...]
    contradictions: tuple[str, ...]
    guard: str
    also: tuple[str, ...]
    other_default: bool
    summary: str
    agreeing: int = 0
    class_name: str = ""
    remedy: str = ""
    refusals: tuple[Problem, ...] = ()
    needs: tuple[Problem, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """All that speaks against it."""
        unknown = (
            [f"it has no rule for {_some(self.unknown)}"]
            if self.unknown and not self.contradictions
            else []
        )
        refusals = [
            f"{problem.code} {problem.cause} {problem.fix}".strip() for problem in self.refusals
        ]
        return [*self.contradictions, *unknown, *refusals]

    @property
    def is_near(self) -> bool:
        """Whether it knows more of the names than chance has it: a tower may have more names
        than all the rest.
        """
        return 10 * self.mapped >= self.total > 0

    @property
    def fits(self) -> bool:
        return (
            self.mapped > 0
            and self.mapped == self.total
            and not self.contradictions
            and not self.refusals
        )


def identify(
    rules: RuleFile,
    routes: Routes,
    checkpoints: Mapping[str, Checkpoint],
    config: Mapping[str, Any] | None,
    given: Collection[str],
    refusals: Callable[[Checkpoint], Sequence[Problem]],
) -> list[Problem]:
    """The reasons not to believe that this rule file is for these checkpoints; empty where there
    are none.

    Each makes the ones after it meaningless, so the first found is returned alone; but where no
    shipped file fits, also what the target would compute otherwise.

    Args:
        checkpoints: the sources. Stubs can be in any; what it is for is asked of all, as projector,
            tower and language model may each be in another; whether it is converted already, and
            wrapped, of the first alone.
        config: what describes the language model: the first source's own config, or that of a
            source given in its place.
        given: the sources that were given, not taken as a default.
        refusals: what the plan of `hf-layouts` finds against a checkpoint.
    """
    taken = routes.taken
    for name, other in checkpoints.items():
        if stubs := _stubs([r for r in taken if r.source == name], other):
            return [stubs]
    checkpoint = checkpoints[rules.first_source]
    if rules.target.as_ is not None:
        config = checkpoint.config  # its language model's is inside
    routed = [r for r in taken if r.source == rules.first_source]
    if problems := _already_converted(rules, routed, checkpoint, refusals):
        return [
            _with_parts(rules, routes, checkpoints, p) if p.code == "LR109" else p for p in problems
        ]
    for check in (_wrapped, _nothing_matched):
        if problem := check(rules, routed, checkpoint):
            return [problem]
    if unknown := _unknown_sources(rules, routes, checkpoints):
        return unknown
    said_by = next(
        (name for name, c in checkpoints.items() if c.config is config and c.config is not None),
        rules.first_source,
    )
    whose = "its config" if said_by == rules.first_source else f"the config of `{said_by}`"
    main = [
        r for r in taken if r.source == rules.first_source or rules.text.sources[r.source].overrides
    ]
    if not contradictions(rules.text.detect, [r.rewrite.prepared for r in main], config):
        main = list(
            taken
        )  # what contradicts it, if anything does, is in another source, such as a tower
    names = [r.rewrite.prepared for r in taken]
    if reasons := contradictions(rules.text.detect, names, config, whose=whose):
        these = [checkpoints[name].location for name in dict.fromkeys(r.source for r in main)]
        are = "isn't a checkpoint" if len(these) == 1 else "are no checkpoint"
        cause = f"{' with '.join(these)} {are} for {rules.name}: {'; '.join(reasons)}."
        named = dict.fromkeys((said_by, *(r.source for r in main)))
        others = [name for name in named if name != rules.first_source and name in given]
        found = fits(checkpoint)
        sources = _elsewhere(rules, taken, checkpoints, found) or _without(rules, others, found)
        wrong = Problem("LR311", cause, sources or advice(checkpoint, found, rules.name))
        if not sources and found[0].fits:
            return [wrong]
        return [wrong, *unmet(rules, names, config, whose)]
    if other_tower := _other_tower(rules, main, checkpoint, config):
        return [other_tower]
    return unmet(rules, names, config, whose)


def unmet(
    rules: RuleFile,
    names: Sequence[str],
    config: Mapping[str, Any] | None,
    whose: str = "its config",
) -> list[Problem]:
    """LR314 for each of a rule file's requirements that a checkpoint doesn't meet; `names` as
    `prepare` left them.
    """
    return [
        Problem(
            "LR314",
            f"{'; '.join(reasons)}. {requirement.else_}",
            _allowing(rules, name, requirement, config or {}),
        )
        for name, requirement in rules.text.requires.items()
        if not contradictions(Condition(config=requirement.when), (), config)
        and (reasons := contradictions(requirement, names, config, whose=whose))
    ]


def _allowing(
    rules: RuleFile, name: str, requirement: Requirement, config: Mapping[str, Any]
) -> str:
    """How to convert all the same: lines for a rule file, where the config's values can stand in
    one.
    """
    values = {key: config.get(key) for key in requirement.config}
    if not values or any(isinstance(value, (list, dict)) for value in values.values()):
        return "Mend the config.json, if the message says so."
    allowed = {
        key: [*(said if isinstance(said, tuple) else (said,)), values[key]]
        for key, said in requirement.config.items()
    }
    lines = ", ".join(
        f"{key}: {json.dumps(list(dict.fromkeys(entries)))}" for key, entries in allowed.items()
    )
    return (
        "If that doesn't matter for what you want to do, write a rule file with "
        f"`extends: [{rules.name}.yaml]` and `requires: {{{name}: {{config: {{{lines}}}}}}}`."
    )


def fits(checkpoint: Checkpoint) -> list[Fit]:
    """Every shipped rule file compared with a checkpoint's names and config, the nearest first.

    Those that fit come first, of two of them that one whose default tower is the one that the
    config names; then those that keep more of the names, that less contradicts, and of which the
    config says more, such as their architecture.
    """
    groups = names_alike(checkpoint)
    found = [
        _fit(load_rule_file(path), checkpoint, groups) for path in shipped_rule_files().values()
    ]

    def order(fit: Fit) -> tuple[object, ...]:
        near = (
            (fit.other_default,)
            if fit.fits
            else (-fit.mapped, len(fit.contradictions), -fit.agreeing)
        )
        return (not fit.fits, near, fit.rules)

    return sorted(found, key=order)


def _fit(rules: RuleFile, checkpoint: Checkpoint, groups: Mapping[str, Sequence[str]]) -> Fit:
    """One rule file compared with a checkpoint. Of each of the `groups` of its names that no
    rule tells apart, one is tried.
    """
    few = replace(checkpoint, catalog={name: checkpoint.catalog[name] for name in groups}, pairs=())
    routes = route(rules, compile_rules(rules, few.catalog, few.config), {rules.first_source: few})
    taken, detect = routes.taken, rules.text.detect
    names = [r.rewrite.prepared for r in taken]
    reasons = contradictions(detect, names, checkpoint.config)
    problems = [*unmet(rules, names, checkpoint.config)]
    if other_tower := _other_tower(rules, taken, checkpoint, checkpoint.config):
        every = [
            replace(r, tensor=checkpoint.catalog[name])
            for r in taken
            for name in groups[r.tensor.name]
        ]
        other_tower = _other_tower(rules, every, checkpoint, checkpoint.config) or other_tower
        problems.insert(0, other_tower)
    if (
        contradictions(detect.model_copy(update={"config": {}, "config_not": {}}), names, None)
        or other_tower
    ):
        guard = ""
    else:
        guard = "detect" if reasons else "requires" if problems else ""
    causes = [problem.cause.removesuffix(".") for problem in problems]
    reasons = [
        reason for reason in reasons if not any(cause.startswith(reason) for cause in causes)
    ] + causes
    left = [r.tensor.name for r in taken if r.rewrite.target is None and r.rewrite.reason is None]
    unknown = tuple(name for one in left for name in groups[one])
    mapped = sum(len(groups[r.tensor.name]) for r in taken if r.rewrite.target is not None)
    return Fit(
        rules.name,
        rules.first_source,
        mapped,
        mapped + len(unknown),
        unknown,
        tuple(reasons),
        guard,
        routes.not_given,
        any(
            other_than_default(rules.text.sources[name], checkpoint.config) is not None
            for name in routes.not_given
        ),
        rules.text.summary or "",
        _agreeing(detect, checkpoint.config or {}),
        rules.target.class_ or "",
        other_tower.fix if other_tower else "",
    )


def _agreeing(detect: Condition, config: Mapping[str, Any]) -> int:
    """How many values of a config are those that a rule file asks for."""
    said = {key: wanted for key, wanted in detect.config.items() if config.get(key) is not None}
    return sum(
        not contradictions(Condition(config={key: wanted}), (), config)
        for key, wanted in said.items()
    )


def names_alike(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The names that no shipped rule tells apart, by the first of them: names by the ten thousand
    are to be refused soon, too.

    Two names are alike if they differ in nothing but segments that no template spells out, and if
    these are numbers in both or in none. The matrices of an adapter's pairs are left out.
    """
    spelt, partly = _spelt_segments()
    matrices = {name for pair in checkpoint.pairs for name in (pair.a, pair.b)}
    kinds: dict[str, str] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in checkpoint.catalog:
        if name in matrices:
            continue
        key = []
        for segment in name.split("."):
            if (kind := kinds.get(segment)) is None:
                told = segment in spelt or partly.fullmatch(segment) is not None or not segment
                kind = kinds[segment] = (
                    segment if told else "{int}" if _NUMBER.fullmatch(segment) else "{x}"
                )
            key.append(kind)
        groups.setdefault(tuple(key), []).append(name)
    return {names[0]: names for names in groups.values()}


@cache
def _spelt_segments() -> tuple[frozenset[str], re.Pattern[str]]:
    """The segments that templates of the shipped rule files spell out, and a regex for those
    that they spell out in part.
    """
    templates: list[Template] = []
    texts: list[str] = []
    partly: set[str] = set()
    for path in shipped_rule_files().values():
        rules = load_rule_file(path)
        text, sources = rules.text, rules.text.sources.values()
        every = [
            *text.prepare,
            *text.names,
            *(rule for layout in rules.layouts for rule in layout.text.names),
        ]
        conditions = [
            text.detect,
            *text.requires.values(),
            *(rule.when for rule in every if rule.when is not None),
        ]
        for condition in conditions:
            templates += [*condition.present, *condition.absent]
        templates += [source.used_if_absent for source in sources if source.used_if_absent]
        templates += [template for source in sources for template in source.selected]
        for pattern in (rule.kind.pattern for rule in every):
            if isinstance(pattern, Template):
                templates.append(pattern)
            elif isinstance(pattern, Wrapper):
                texts.append(pattern.text)
            else:
                partly.add(".*")  # a regex may ask for anything
        texts += [
            *(source.prefix for source in sources),
            *(text.target.towers if text.target is not None else ()),
        ]
    partly.update(regex for template in templates for regex in template.partial_segments)
    spelt = {segment for text in texts for segment in text.split(".")}
    spelt.update(segment for template in templates for segment in template.segments)
    return frozenset(spelt), re.compile("|".join(partly))


def _part(rules: RuleFile, checkpoint: Checkpoint) -> str:
    """The source, not the first, that a rule file would take tensors of this checkpoint for;
    empty for none.
    """
    for name, source in rules.text.sources.items():
        if name != rules.first_source and not source.overrides and "tensors" in source.use:
            routed = route(
                rules, compile_rules(rules), {rules.first_source: _EMPTY, name: checkpoint}
            ).taken
            if any(r.rewrite.target is not None for r in routed):
                return name
    return ""


def _some(names: Collection[str]) -> str:
    folded = fold_names(names)
    more = ", …" if len(folded) > _SHOWN else ""
    return (
        f"{', '.join(f'`{line}`' for line in folded[:_SHOWN])}{more} "
        f"({counted(len(names), 'tensor')})"
    )


def _stubs(routed: Sequence[Routed], checkpoint: Checkpoint) -> Problem | None:
    stubs = [r.tensor.name for r in routed if 0 in r.tensor.shape]
    if not stubs:
        return None
    gather = gather_command(checkpoint.folder) if checkpoint.folder is not None else ""
    return Problem(
        "LR104",
        f"{len(stubs)} of {len(routed)} tensors in {checkpoint.location} have no elements (shape "
        "[0]).",
        f"DeepSpeed puts the values together: {gather}. Then give the pytorch_model.bin that it "
        "writes, or its index."
        if gather
        else "Run DeepSpeed's zero_to_fp32.py in the training folder and give its output.",
        tuple(stubs),
    )


def nearest_layout(names: Collection[str]) -> tuple[str, dict[str, str]]:
    """The layout of transformers that takes most of these names, and what they are in the
    classic layout.
    """
    found = [(layout, _classic(layout, names)) for layout in shipped_layouts()]
    return max(found, key=lambda entry: len(entry[1]))


def _classic(layout: str, names: Collection[str]) -> dict[str, str]:
    """What those of the names that a layout takes are in the classic one."""
    program = layout_program(layout)
    return {name: target for name in names if (target := program.rewrite(name).target) is not None}


def already_converted(
    checkpoint: Checkpoint,
    names: Sequence[str],
    mapped: int,
    refusals: Callable[[Checkpoint], Sequence[Problem]],
) -> list[Problem]:
    """LR109: a layout of transformers takes more of the names than the `mapped` ones that a rule
    file does.

    A quarter of them at least: an original shares `lm_head.weight` with some layouts, and a layout
    unknown here (the mixtures that some versions saved) still has its language model, nearly half
    of the names, in a known one.

    Names prove nothing: LR109 is what the plan of `hf-layouts` proves. What that plan refuses comes
    behind an LR311.
    """
    if mapped >= len(names):
        return []
    layout, classic = nearest_layout(names)
    if len(classic) <= max(mapped, len(names) // 4):
        return []
    there = f"{len(classic)} of {len(names)} names in {checkpoint.location} are in layout {layout}"
    command = f"llava-remap apply {HF_LAYOUTS} --source {quote(checkpoint.location)}"
    if refused := refusals(checkpoint):
        if behind := _behind_prefix(checkpoint):
            cause = (
                f"names in {checkpoint.location} are those of a layout of transformers, "
                "behind "
                "a prefix."
            )
            return [Problem("LR311", cause, behind)]
        cause = (
            f"{there} of transformers, and {HF_LAYOUTS}, the rule file for these, refuses it "
            "for the other reasons given."
        )
        return [Problem("LR311", cause, f"When they are mended: {command}."), *refused]
    if layout == CLASSIC and len(classic) == len(names):
        cause = (
            f"{there}; names, shapes and dtypes are those of the class that its config.json names."
        )
        return [
            Problem("LR109", cause, "Nothing is to be done: load it with transformers as it is.")
        ]
    return [
        Problem(
            "LR109",
            f"{there}.",
            f"For the classic layout, which every transformers loads: {command}.",
        )
    ]


def _already_converted(
    rules: RuleFile,
    routed: Sequence[Routed],
    checkpoint: Checkpoint,
    refusals: Callable[[Checkpoint], Sequence[Problem]],
) -> list[Problem]:
    mapped = sum(r.rewrite.target is not None for r in routed)
    known = mapped and all(
        r.rewrite.target is not None or r.rewrite.reason is not None for r in routed
    )
    if known or rules.target.as_ is not None:
        return []  # it knows every name, or is for layouts itself
    return already_converted(checkpoint, [r.tensor.name for r in routed], mapped, refusals)


def _with_parts(
    rules: RuleFile, routes: Routes, checkpoints: Mapping[str, Checkpoint], problem: Problem
) -> Problem:
    """LR109 for a converted model that is to be the base of an adapter or of a projector, which
    isn't in it.
    """
    first = rules.first_source
    if not (parts := [name for name in checkpoints if rules.text.sources[name].overrides]):
        return problem
    named = " and ".join(f"`{name}`" for name in parts)
    cause = f"{problem.cause} {named} {'are' if len(parts) > 1 else 'is'} not in it."
    layouts = load_rule_file(HF_LAYOUTS)
    for name in parts:
        pairs = route(
            layouts,
            compile_rules(layouts),
            {layouts.first_source: _EMPTY, "adapter": checkpoints[name]},
        ).pairs
        if pairs and all(pair.rewrite.target is not None for pair in pairs):
            base, adapter = checkpoints[first].location, checkpoints[name].location
            options = f"--source {quote(f'model={base}')} --source {quote(f'adapter={adapter}')}"
            fix = (
                f"`{name}` was trained on a model of transformers. To merge it: llava-remap "
                f"apply {HF_LAYOUTS} {options}"
            )
            return Problem("LR109", cause, fix)
    base = next(
        (
            f" ({checkpoints[name].base}, by its own files)"
            for name in parts
            if checkpoints[name].base
        ),
        "",
    )
    return Problem(
        "LR109",
        cause,
        f"Give the model that {named} was trained from{base}, under its own names: --source "
        f"{first}=DIR.",
    )


def _other_tower(
    rules: RuleFile,
    routed: Sequence[Routed],
    checkpoint: Checkpoint,
    config: Mapping[str, Any] | None,
) -> Problem | None:
    """LR301 where the checkpoint has a tower inside of which the rule file takes no name."""
    for prefix, named in rules.target.towers.items():
        segment = prefix.split(".")[0]
        inside = [
            r
            for r in routed
            if segment in r.rewrite.prepared.split(".") and r.rewrite.reason is None
        ]
        if inside and not any(r.rewrite.target is not None for r in inside):
            return _tower_problem(rules, inside, checkpoint, config or {}, str(named.from_))
    return None


def _tower_problem(
    rules: RuleFile,
    inside: Sequence[Routed],
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    key: str,
) -> Problem:
    said = config.get(key)
    if rules.target.as_ is not None and isinstance(part := config.get("vision_config"), Mapping):
        said = part.get("model_type")
    kind = f", which its config calls {said!r}," if isinstance(said, str) else ""
    names = tuple(r.tensor.name for r in inside)
    return Problem(
        "LR301",
        f"{checkpoint.location} has a tower inside{kind} of a kind that {rules.name} doesn't know: "
        f"{_some(names)}.",
        "Another tower in its place would see other features. If a class of transformers has this "
        "one, infer a rule file for it: "
        f"{draft_command('CLASS', checkpoint.location)}",
        names,
    )


def _wrapped(rules: RuleFile, routed: Sequence[Routed], checkpoint: Checkpoint) -> Problem | None:
    bare = compile_rules(load_rule_file(shipped_folder() / _WRAPPERS))
    made = {
        r.tensor.name: r.rewrite.target or r.rewrite.prepared
        for r in routed
        if r.rewrite.reason is None
    }
    on = {name: found for name, after in made.items() if (found := bare.rewrite(after).rules)}
    if not on:
        return None
    names = dict.fromkeys(rule for found in on.values() for rule in found)
    wrappers = ", ".join(
        f"`{rule.kind.pattern.text}.`"
        for rule in bare.prepare
        if rule.label in names and isinstance(rule.kind, Unwrap)
    )
    cause = (
        f"{len(on)} of {len(routed)} names in {checkpoint.location} have {wrappers} in them, "
        f"which {rules.name} leaves there."
    )
    return Problem("LR110", cause, f"Add {_WRAPPERS} to its `extends`.", tuple(on))


def _nothing_matched(
    rules: RuleFile, routed: Sequence[Routed], checkpoint: Checkpoint
) -> Problem | None:
    left = [r for r in routed if r.rewrite.reason is None]
    if not left or any(r.rewrite.target is not None for r in left):
        return None  # where all is dropped, that is what the plan finds
    return Problem(
        "LR305",
        f"no rule of {rules.name} takes any of the {len(routed)} names in {checkpoint.location}.",
        advice(checkpoint, fits(checkpoint), rules.name),
        tuple(r.tensor.name for r in routed),
    )


def _unknown_sources(
    rules: RuleFile, routes: Routes, checkpoints: Mapping[str, Checkpoint]
) -> list[Problem]:
    """LR305 for each further source of which no name is known, with the names that are asked for
    in their place.
    """
    every = [*routes.taken, *routes.beside, *(routed for routed, _ in routes.replaced)]
    known = {
        r.source for r in every if r.rewrite.target is not None or r.rewrite.reason is not None
    }
    unknown = [
        name
        for name in {r.source: None for r in every}
        if name not in known and name != rules.first_source
    ]
    used = {r.rewrite.rules[-1] for r in every if r.rewrite.target is not None}
    renames = {
        rule.label: rule.kind
        for rule in compile_rules(rules).names
        if isinstance(rule.kind, Rename)
    }
    left = [kind for label, kind in renames.items() if label not in used] or [*renames.values()]
    # What is no tower brings a projector at the least; only pairs change a language model.
    left = [kind for kind in left if kind.target.text.startswith(PROJECTOR)] or left
    problems = []
    for name in (*routes.unselected, *unknown):
        checkpoint = checkpoints[name]
        if not checkpoint.catalog:  # a config alone
            continue
        wanted = rules.text.sources[name].selected or [kind.pattern for kind in left]
        cause = (
            f"source `{name}` ({checkpoint.location}) was read, and {rules.name} knows none of its "
            f"{counted(len(checkpoint.catalog), 'name')}."
        )
        places = {
            other: c.location
            for other, c in checkpoints.items()
            if c.catalog and (other == name or not c.pairs)
        }
        places |= dict.fromkeys(routes.not_given, "DIR")
        command = draft_command(
            rules.target.class_ or "CLASS", places.pop(rules.first_source), **places
        )
        fix = (
            "Give a checkpoint with names like "
            f"{' or '.join(f'`{text}`' for text in wanted[:_TEMPLATES])}, or infer a rule file "
            f"for these: {command}"
        )
        problems.append(Problem("LR305", cause, fix, tuple(checkpoint.catalog)))
    return problems


def _elsewhere(
    rules: RuleFile,
    taken: Sequence[Routed],
    checkpoints: Mapping[str, Checkpoint],
    found: Sequence[Fit],
) -> str:
    """Where names are missing that a source apart may bring, which it is; empty otherwise.

    Such sources stand in the order of a training. Behind one that is given, none brings what an
    earlier one should have.
    """
    names = [r.rewrite.prepared for r in taken]
    missing = [
        text
        for text in rules.text.detect.present
        if contradictions(Condition(present=(text,)), names, None)
    ]
    if not missing or any(fit.fits for fit in found):
        return ""
    if any(r.rewrite.target is None and r.rewrite.reason is None for r in taken):
        return ""  # what is missing is there, under names that the rule file doesn't know
    parts = [name for name, source in rules.text.sources.items() if source.overrides]
    given = [number for number, name in enumerate(parts) if name in checkpoints]
    if left := parts[: given[0]] if given else parts:
        program = compile_rules(rules)
        for name in (name for name in parts if name in checkpoints):
            if lies := projector_place(rules, program, name, checkpoints[name]):
                return f"A projector was trained with `{name}`. {lies}"
        return _give_too(checkpoints[rules.first_source], left)
    if not given:
        return ""
    wanted = " and ".join(f"`{text}`" for text in missing)
    return (
        f"Give a checkpoint that has {wanted}, a later one of the same training: no other "
        "source brings it."
    )


def _give_too(checkpoint: Checkpoint, names: Sequence[str]) -> str:
    """How to give one of these sources beside a checkpoint; where one lies in a folder inside of
    it, that one.
    """
    there = parts_beside(checkpoint.folder) if checkpoint.folder is not None else {}
    if found := [f"--source {quote(f'{name}={there[name]}')}" for name in names if name in there]:
        return (
            "What is missing may be what lies in a folder beside it, so give that too: "
            f"{' '.join(found)}"
        )
    return (
        "If what is missing lies elsewhere, give that too: "
        f"{' or '.join(f'--source {name}=DIR' for name in names)}."
    )


def _without(rules: RuleFile, others: Sequence[str], found: Sequence[Fit]) -> str:
    """Where the first source alone fits, which others keep it from that; empty otherwise."""
    if not others or not any(fit.fits and fit.rules == rules.name for fit in found):
        return ""
    named = " and ".join(f"`{name}`" for name in others)
    return (
        f"`{rules.first_source}` alone fits {rules.name}: leave out {named}, or give what "
        "belongs to this checkpoint."
    )


def advice(checkpoint: Checkpoint, found: Sequence[Fit], asked: str = "") -> str:
    """What to do with a checkpoint: the rule file that fits, or what would make one.

    Args:
        found: `fits` of it.
        asked: the rule file that the user asked for.
    """
    # Of those that take as many names as the nearest, the one that was asked for is the nearest.
    found = sorted(
        found,
        key=lambda fit: (
            fit.fits < found[0].fits or fit.rules != asked or fit.mapped < found[0].mapped
        ),
    )
    best = found[0]
    if best.fits:
        return (
            f"By names and config, this rule file fits: {best.rules} ({best.mapped} of "
            f"{best.total} names)."
        )
    if best.mapped == 0:
        some = _without_prefix(checkpoint, "", list(names_alike(checkpoint)))
        if part := next(
            filter(None, (_part(load_rule_file(fit.rules), some) for fit in found)), ""
        ):
            beside = f"--source {best.source}=DIR --source {part}={quote(checkpoint.location)}"
            return (
                f"It is no model but a part of one, a `{part}`. Give it beside the model: "
                f"llava-remap apply RULES {beside}."
            )
    if best.is_near and best.remedy:
        return best.remedy
    if planned := next((fit for fit in found if fit.refusals), None):
        command = f"llava-remap apply {planned.rules} --source {quote(checkpoint.location)}"
        return (
            f"{planned.rules} takes every name, and refuses what is told above. When that is "
            f"mended: {command}"
        )
    whole = [fit for fit in found if not fit.unknown and fit.mapped == best.mapped]
    refusing = [fit for fit in whole if fit.guard]
    if near := next((fit for fit in refusing if fit.rules == asked), next(iter(refusing), None)):
        return (
            f"None of the shipped rule files fits. {near.rules} takes every name, and its "
            f"`{near.guard}` refuses this config "
            f"since a model with it computes something else: override `{near.guard}` only if you "
            "know that transformers "
            "computes the same."
        )
    if whole:
        sources = load_rule_file(whole[0].rules).text.sources
        give = _give_too(checkpoint, [name for name, source in sources.items() if source.overrides])
        return f"Every name is known, and something is missing. {give}"
    if behind := _behind_prefix(checkpoint):
        return behind
    command = draft_command(_class_for(checkpoint, found, asked), checkpoint.location)
    return f"None of the shipped rule files fits. Infer one from names and shapes: {command}"


def _behind_prefix(checkpoint: Checkpoint) -> str:
    """What to do where a rule file fits but for a prefix that all names have; empty otherwise."""
    first = next(iter(checkpoint.catalog), "").split(".")
    some = list(names_alike(checkpoint))
    for segments in range(1, len(first)):
        prefix = ".".join(first[:segments]) + "."
        if not all(name.startswith(prefix) for name in checkpoint.catalog):
            return ""
        if (
            any(not fit.unknown for fit in fits(_without_prefix(checkpoint, prefix, some)))
            and (best := fits(_without_prefix(checkpoint, prefix, checkpoint.catalog))[0]).fits
        ):
            lines = _taking_off(prefix, load_rule_file(best.rules), checkpoint)
            written = f"printf '%s\\n' {' '.join(map(quote, lines))} > mine.yaml"
            return (
                f"All names fit {best.rules} once the prefix `{prefix}` is taken off. Write a "
                f"rule file that does it: {written}"
            )
    return ""


def _taking_off(prefix: str, rules: RuleFile, checkpoint: Checkpoint) -> list[str]:
    """The lines of a rule file that takes a prefix off, by the word behind it: `model.` itself
    begins other names, too.
    """
    bare = _without_prefix(checkpoint, prefix, checkpoint.catalog)
    program = compile_rules(rules, bare.catalog, checkpoint.config)
    examples = {
        name.partition(".")[0]: program.rewrite(name) for name in reversed(list(bare.catalog))
    }
    renames, tests = [], []
    for number, (word, example) in enumerate(examples.items(), 1):
        behind, kept = ("", "") if example.source == word else (".{rest...}", ".{rest}")
        renames.append(
            {"id": f"prefix-{number}", "from": prefix + word + behind, "to": word + kept}
        )
        becomes = {"dropped": True} if example.target is None else {"to": example.target}
        tests.append({"from": prefix + example.source, **becomes})
    lines = [
        *("schema: 1", "name: mine", "version: 1.0.0", f"summary: {rules.name} behind a prefix"),
        *(
            f"extends: [{rules.name}.yaml]",
            f"prepare: {json.dumps(renames)}",
            f"tests: {json.dumps(tests)}",
        ),  # JSON is YAML
    ]
    # Names of a source that has a prefix of its own get this one too, for the rules to take off.
    sources = {
        name: {"prefix": prefix + source.prefix}
        for name, source in rules.text.sources.items()
        if source.prefix
    }
    return [*lines, f"sources: {json.dumps(sources)}"] if sources else lines


def _without_prefix(checkpoint: Checkpoint, prefix: str, names: Collection[str]) -> Checkpoint:
    bare = {name: name.removeprefix(prefix) for name in names}
    return replace(
        checkpoint,
        catalog={new: replace(checkpoint.catalog[name], name=new) for name, new in bare.items()},
    )


def _class_for(checkpoint: Checkpoint, found: Sequence[Fit], asked: str) -> str:
    """The class that most probably computes what a checkpoint does: that of the nearest rule file,
    if one is near.

    Of rule files that know as many names, the one that was asked for is the nearest. If none is
    near, the class that most of the rule files have whose `detect`, but for the architecture,
    agrees with the config.
    """
    families = [fit for fit in found if fit.class_name]
    if families[0].is_near:
        nearest = [fit for fit in families if fit.mapped == families[0].mapped]
        return next((fit for fit in nearest if fit.rules == asked), nearest[0]).class_name
    agreeing = []
    for fit in families:
        wanted = load_rule_file(fit.rules).text.detect.config
        others = {key: value for key, value in wanted.items() if key != "architectures"}
        if not contradictions(Condition(config=others), (), checkpoint.config or {}):
            agreeing.append(fit.class_name)
    return Counter(agreeing or [families[0].class_name]).most_common(1)[0][0]
