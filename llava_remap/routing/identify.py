"""Decides whether a rule file is for these checkpoints, before anything is derived from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from llava_remap.checkpoint import Checkpoint, gather_command
from llava_remap.core import Problem, counted, quote
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing.advice import advice, behind_prefix, source_advice
from llava_remap.routing.fits import EMPTY, draft_command, fits, other_tower_problem, unmet
from llava_remap.routing.route import Routed, Routes, route
from llava_remap.rulefile import (
    Condition,
    Rename,
    RuleFile,
    Unwrap,
    load_rule_file,
    shipped_folder,
)
from llava_remap.target_model import CLASSIC, nearest_layout

#: The shipped rule file from any layout of transformers to the classic one.
HF_LAYOUTS = "hf-layouts"
#: The most templates in a message.
_TEMPLATES = 6
#: The rules that know the wrappers of frameworks.
_WRAPPERS = "parts/wrappers.yaml"


def identify(
    rules: RuleFile,
    routes: Routes,
    checkpoints: Mapping[str, Checkpoint],
    config: Mapping[str, Any] | None,
    given: Collection[str],
    refusals: Callable[[Checkpoint], Sequence[Problem]],
) -> Iterator[list[Problem]]:
    """The reasons why this rule file isn't for these checkpoints, check by check.

    A reason makes the later checks meaningless, so only the first list that isn't empty counts. If
    no shipped file fits, that list also says what the target would compute differently.

    Args:
        checkpoints: the sources. All are searched for stubs and compared with `detect`, since
            projector, tower and language model may be in different sources. Only the first source
            may be converted already or wrapped.
        config: the config that describes the language model: the first source's own, or that of a
            source given in its place.
        given: the sources that the user gave, without defaults.
        refusals: returns the problems of a checkpoint's plan by `hf-layouts`.
    """
    taken, first, checkpoint = routes.taken, rules.first_source, checkpoints[rules.first_source]
    if rules.target.as_ is not None or config is None:
        # It contains the language model's, or it is a training's, beside which that is missing.
        config = checkpoint.config
    for name, other in checkpoints.items():
        yield _stubs([r for r in taken if r.source == name], other)
    routed = [r for r in taken if r.source == first]
    mapped = sum(r.rewrite.target is not None for r in routed)
    every = all(r.rewrite.target is not None or r.rewrite.reason is not None for r in routed)
    if not (mapped and every) and rules.target.as_ is None:
        yield already_converted(
            checkpoint,
            [r.tensor.name for r in routed],
            mapped,
            refusals,
            lambda problem: _with_parts(rules, checkpoints, problem),
        )
    yield _wrapped(rules, routed, checkpoint)
    yield _nothing_matched(rules, routed, checkpoint)
    yield _unknown_sources(rules, routes, checkpoints)
    main = [r for r in taken if r.source == first or rules.text.sources[r.source].overrides]
    if not contradictions(rules.text.detect, [r.rewrite.prepared for r in main], config):
        main = list(taken)  # a contradiction can only be in another source, such as a tower
    described_by = next(
        (name for name, c in checkpoints.items() if c.config is config and c.config is not None),
        first,
    )
    whose = "its config" if described_by == first else f"the config of `{described_by}`"
    names = [r.rewrite.prepared for r in taken]
    if reasons := contradictions(rules.text.detect, names, config, whose=whose):
        sources = list(dict.fromkeys(r.source for r in main))
        are = "isn't a checkpoint" if len(sources) == 1 else "aren't checkpoints"
        these = " with ".join(checkpoints[name].location for name in sources)
        others = [
            name
            for name in dict.fromkeys((described_by, *sources))
            if name != first and name in given
        ]
        ranked = fits(checkpoint)
        give = source_advice(rules, taken, checkpoints, others, ranked)
        wrong = Problem(
            "LR311",
            f"{these} {are} for {rules.name}: {'; '.join(reasons)}.",
            give or advice(checkpoint, ranked, rules.name),
        )
        yield (
            [wrong] if ranked[0].fits and not give else [wrong, *unmet(rules, names, config, whose)]
        )
    other_tower = other_tower_problem(rules, main, checkpoint, config)
    yield [other_tower] if other_tower is not None else unmet(rules, names, config, whose)


def _stubs(routed: Sequence[Routed], checkpoint: Checkpoint) -> list[Problem]:
    """LR104 for tensors without elements, which DeepSpeed's ZeRO-3 leaves in a checkpoint."""
    stubs = [r.tensor.name for r in routed if 0 in r.tensor.shape]
    if not stubs:
        return []
    fix = "Run DeepSpeed's zero_to_fp32.py in the training folder and give its output."
    if checkpoint.folder is not None and (gather := gather_command(checkpoint.folder)):
        fix = (
            "Merge the values with DeepSpeed, then give the pytorch_model.bin that it writes, or "
            f"its index: {gather}"
        )
    return [
        Problem(
            "LR104",
            f"{len(stubs)} of {len(routed)} tensors in {checkpoint.location} have no elements "
            "(shape [0]).",
            fix,
            tuple(stubs),
        )
    ]


def already_converted(
    checkpoint: Checkpoint,
    names: Sequence[str],
    mapped: int,
    refusals: Callable[[Checkpoint], Sequence[Problem]],
    complete: Callable[[Problem], Problem] = lambda problem: problem,
) -> list[Problem]:
    """LR109 if a layout of transformers takes more names than the `mapped` names that a rule file
    takes.

    The layout must take at least a quarter of the names, since an original shares `lm_head.weight`
    with some layouts. In an unknown layout (a mixture that some version saved), the language model,
    nearly half of the names, still has a known layout. If the config names another class, the
    layout must take all names.

    Names alone prove nothing: LR109 is reported only if the plan of `hf-layouts` succeeds. If that
    plan is refused, its problems follow an LR311.

    Args:
        complete: adds to the LR109.
    """
    if mapped >= len(names):
        return []
    layout, classic = nearest_layout(names)
    classes = Condition(config=load_rule_file(HF_LAYOUTS).text.detect.config)
    of_another_class = contradictions(classes, (), checkpoint.config or {})
    least = len(names) - 1 if of_another_class else len(names) // 4
    if len(classic) <= max(mapped, least):
        return []
    there = f"{len(classic)} of {len(names)} names in {checkpoint.location} are in layout {layout}"
    command = f"llava-remap apply {HF_LAYOUTS} --source {quote(checkpoint.location)}"
    if refused := refusals(checkpoint):
        if behind := behind_prefix(checkpoint):
            return [
                Problem(
                    "LR311",
                    f"names in {checkpoint.location} are names of a layout of transformers, after "
                    "a prefix.",
                    behind,
                )
            ]
        return [
            Problem(
                "LR311",
                f"{there} of transformers, but {HF_LAYOUTS}, the rule file for these layouts, "
                "refuses the checkpoint for the other reasons given.",
                f"After correcting them: {command}.",
            ),
            *refused,
        ]
    problem = Problem(
        "LR109",
        f"{there}.",
        f"For the classic layout, which every transformers loads: {command}.",
    )
    if layout == CLASSIC and len(classic) == len(names):
        problem = Problem(
            "LR109",
            f"{there}; names, shapes and dtypes are those of the class that its config.json names.",
            "No conversion is needed: load it with transformers as it is.",
        )
    return [complete(problem)]


def _with_parts(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], problem: Problem
) -> Problem:
    """LR109 for a converted model that was given as the base of an adapter or a projector. It
    doesn't contain them.
    """
    first = rules.first_source
    if not (parts := [name for name in checkpoints if rules.text.sources[name].overrides]):
        return problem
    named = " and ".join(f"`{name}`" for name in parts)
    cause = f"{problem.cause} {named} {'are' if len(parts) > 1 else 'is'} not in it."
    layouts = load_rule_file(HF_LAYOUTS)
    for name in parts:
        sources = {layouts.first_source: EMPTY, "adapter": checkpoints[name]}
        pairs = route(layouts, compile_rules(layouts), sources).pairs
        if pairs and all(pair.rewrite.target is not None for pair in pairs):
            base, adapter = checkpoints[first].location, checkpoints[name].location
            options = f"--source {quote(f'model={base}')} --source {quote(f'adapter={adapter}')}"
            return Problem(
                "LR109",
                cause,
                f"`{name}` was trained on a model of transformers. To merge it: llava-remap apply "
                f"{HF_LAYOUTS} {options}",
            )
    base = next((checkpoints[name].base for name in parts if checkpoints[name].base), "")
    return Problem(
        "LR109",
        cause,
        f"Give the model that {named} was trained from{base and f' ({base}, by its own files)'}, "
        f"under its own names: --source {first}=DIR.",
    )


def _wrapped(rules: RuleFile, routed: Sequence[Routed], checkpoint: Checkpoint) -> list[Problem]:
    """LR110 for names with a framework's wrappers that the rule file doesn't remove."""
    bare = compile_rules(load_rule_file(shipped_folder() / _WRAPPERS))
    unwrapped = {
        r.tensor.name: bare.rewrite(r.rewrite.target or r.rewrite.prepared).rules
        for r in routed
        if r.rewrite.reason is None
    }
    wrapped = tuple(name for name, labels in unwrapped.items() if labels)
    if not wrapped:
        return []
    wrappers = ", ".join(
        f"`{rule.kind.pattern.text}.`"
        for rule in bare.prepare
        if isinstance(rule.kind, Unwrap)
        and any(rule.label in labels for labels in unwrapped.values())
    )
    return [
        Problem(
            "LR110",
            f"{len(wrapped)} of {len(routed)} names in {checkpoint.location} contain {wrappers}, "
            f"which {rules.name} doesn't remove.",
            f"Add {_WRAPPERS} to its `extends`.",
            wrapped,
        )
    ]


def _nothing_matched(
    rules: RuleFile, routed: Sequence[Routed], checkpoint: Checkpoint
) -> list[Problem]:
    """LR305 if no rule maps any name. If all names are dropped, the plan reports it instead."""
    left = [r for r in routed if r.rewrite.reason is None]
    if not left or any(r.rewrite.target is not None for r in left):
        return []
    return [
        Problem(
            "LR305",
            f"no rule of {rules.name} takes any of the {len(routed)} names in "
            f"{checkpoint.location}.",
            advice(checkpoint, fits(checkpoint), rules.name),
            tuple(r.tensor.name for r in routed),
        )
    ]


def _unknown_sources(
    rules: RuleFile, routes: Routes, checkpoints: Mapping[str, Checkpoint]
) -> list[Problem]:
    """LR305 for each further source without a known name, with the names that are expected."""
    every = [*routes.taken, *routes.beside, *(routed for routed, _ in routes.replaced)]
    known = {
        r.source for r in every if r.rewrite.target is not None or r.rewrite.reason is not None
    }
    unknown = [
        name
        for name in dict.fromkeys(r.source for r in every)
        if name not in known and name != rules.first_source
    ]
    used = {r.rewrite.rules[-1] for r in every if r.rewrite.target is not None}
    renames = {
        rule.label: rule.kind
        for rule in compile_rules(rules).names
        if isinstance(rule.kind, Rename)
    }
    left = [kind for label, kind in renames.items() if label not in used] or [*renames.values()]
    # A source other than a tower has at least a projector; only pairs change a language model.
    left = [kind for kind in left if kind.target.text.startswith(rules.target.projector)] or left
    problems = []
    for name in (*routes.unselected, *unknown):
        checkpoint = checkpoints[name]
        if not checkpoint.catalog:  # a config alone
            continue
        wanted = rules.text.sources[name].selected or [kind.pattern for kind in left]
        like = " or ".join(f"`{text}`" for text in wanted[:_TEMPLATES])
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
                f"source `{name}` ({checkpoint.location}) was read, but {rules.name} knows none "
                f"of its {counted(len(checkpoint.catalog), 'name')}.",
                _parts_for(rules, name, checkpoint)
                or f"Give a checkpoint with names like {like}, or infer a rule file for these: "
                f"{command}",
                tuple(checkpoint.catalog),
            )
        )
    return problems


def _parts_for(rules: RuleFile, name: str, checkpoint: Checkpoint) -> str:
    """How to have the names of a further source taken by a shipped part, which says what its
    tensors don't show; empty if none takes them all.
    """
    found = []
    for path in sorted((shipped_folder() / "parts").glob("*.yaml")):
        part = load_rule_file(path)
        source, target = part.text.sources.get(name), part.text.target
        if source is None or not source.select or target is None or not target.config:
            continue
        given = {part.first_source: EMPTY, name: checkpoint}
        taken = route(part, compile_rules(part), given).taken
        if taken and all(r.rewrite.target or r.rewrite.reason for r in taken):
            found.append(f"parts/{path.name}")
    if not found:
        return ""
    return (
        f"Write a rule file with `extends: [{rules.name}.yaml, {found[0]}]`, which takes these "
        f"names{''.join(f', or {other}' for other in found[1:])}. These files say how they "
        f"differ: {shipped_folder()}."
    )
