"""Whether a rule file is for these checkpoints, asked before anything is derived from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llava_remap.checkpoint import Checkpoint, gather_command
from llava_remap.core.escaped import quote
from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing.advice import (
    advice,
    behind_prefix,
    extra_source_advice,
    missing_source_advice,
)
from llava_remap.routing.commands import draft_command
from llava_remap.routing.fits import EMPTY, fits, other_tower_problem, unmet
from llava_remap.routing.route import Routed, Routes, route
from llava_remap.routing.trained_with import PROJECTOR
from llava_remap.rulefile import (
    Rename,
    RuleFile,
    Unwrap,
    load_rule_file,
    shipped_folder,
    shipped_layouts,
)
from llava_remap.target_model import CLASSIC, layout_program

#: The shipped rule file from any layout of transformers to the classic one.
HF_LAYOUTS = "hf-layouts"
#: Templates that a message shows.
_TEMPLATES = 6
#: The rules that know what frameworks put around modules.
_WRAPPERS = "parts/wrappers.yaml"


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
    mapped = sum(r.rewrite.target is not None for r in routed)
    every = all(r.rewrite.target is not None or r.rewrite.reason is not None for r in routed)
    if not (mapped and every) and rules.target.as_ is None:
        problems = already_converted(
            checkpoint,
            [r.tensor.name for r in routed],
            mapped,
            refusals,
            lambda problem: _with_parts(rules, routes, checkpoints, problem),
        )
        if problems:
            return problems
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
        sources = missing_source_advice(rules, taken, checkpoints, found) or extra_source_advice(
            rules, others, found
        )
        wrong = Problem("LR311", cause, sources or advice(checkpoint, found, rules.name))
        if not sources and found[0].fits:
            return [wrong]
        return [wrong, *unmet(rules, names, config, whose)]
    if other_tower := other_tower_problem(rules, main, checkpoint, config):
        return [other_tower]
    return unmet(rules, names, config, whose)


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
    complete: Callable[[Problem], Problem] = lambda problem: problem,
) -> list[Problem]:
    """LR109: a layout of transformers takes more of the names than the `mapped` ones that a rule
    file does.

    A quarter of them at least: an original shares `lm_head.weight` with some layouts, and a layout
    unknown here (the mixtures that some versions saved) still has its language model, nearly half
    of the names, in a known one.

    Names prove nothing: LR109 is what the plan of `hf-layouts` proves. What that plan refuses comes
    behind an LR311.

    Args:
        complete: says more in the LR109.
    """
    if mapped >= len(names):
        return []
    layout, classic = nearest_layout(names)
    if len(classic) <= max(mapped, len(names) // 4):
        return []
    there = f"{len(classic)} of {len(names)} names in {checkpoint.location} are in layout {layout}"
    command = f"llava-remap apply {HF_LAYOUTS} --source {quote(checkpoint.location)}"
    if refused := refusals(checkpoint):
        if behind := behind_prefix(checkpoint):
            return [
                Problem(
                    "LR311",
                    f"names in {checkpoint.location} are those of a layout of transformers, "
                    "behind a prefix.",
                    behind,
                )
            ]
        return [
            Problem(
                "LR311",
                f"{there} of transformers, and {HF_LAYOUTS}, the rule file for these, refuses it "
                "for the other reasons given.",
                f"When they are mended: {command}.",
            ),
            *refused,
        ]
    if layout == CLASSIC and len(classic) == len(names):
        return [
            complete(
                Problem(
                    "LR109",
                    f"{there}; names, shapes and dtypes are those of the class that its "
                    f"config.json names.",
                    "Nothing is to be done: load it with transformers as it is.",
                )
            )
        ]
    return [
        complete(
            Problem(
                "LR109",
                f"{there}.",
                f"For the classic layout, which every transformers loads: {command}.",
            )
        )
    ]


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
            {layouts.first_source: EMPTY, "adapter": checkpoints[name]},
        ).pairs
        if pairs and all(pair.rewrite.target is not None for pair in pairs):
            base, adapter = checkpoints[first].location, checkpoints[name].location
            options = f"--source {quote(f'model={base}')} --source {quote(f'adapter={adapter}')}"
            return Problem(
                "LR109",
                cause,
                f"`{name}` was trained on a model of transformers. To merge it: llava-remap "
                f"apply {HF_LAYOUTS} {options}",
            )
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
    return Problem(
        "LR110",
        f"{len(on)} of {len(routed)} names in {checkpoint.location} have {wrappers} in them, "
        f"which {rules.name} leaves there.",
        f"Add {_WRAPPERS} to its `extends`.",
        tuple(on),
    )


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
        problems.append(
            Problem(
                "LR305",
                cause,
                "Give a checkpoint with names like "
                f"{' or '.join(f'`{text}`' for text in wanted[:_TEMPLATES])}, or infer a rule file "
                f"for these: {command}",
                tuple(checkpoint.catalog),
            )
        )
    return problems
