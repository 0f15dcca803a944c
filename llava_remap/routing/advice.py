"""What to do with a checkpoint that a rule file doesn't fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from llava_remap.checkpoint import Checkpoint, parts_beside
from llava_remap.core.escaped import quote
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing.commands import draft_command
from llava_remap.routing.fits import EMPTY, Fit, fits, names_alike
from llava_remap.routing.route import Routed, route
from llava_remap.routing.trained_with import projector_place
from llava_remap.rulefile import (
    Condition,
    RuleFile,
    load_rule_file,
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
    if behind := behind_prefix(checkpoint):
        return behind
    command = draft_command(_class_for(checkpoint, found, asked), checkpoint.location)
    return f"None of the shipped rule files fits. Infer one from names and shapes: {command}"


def _part(rules: RuleFile, checkpoint: Checkpoint) -> str:
    """The source, not the first, that a rule file would take tensors of this checkpoint for;
    empty for none.
    """
    for name, source in rules.text.sources.items():
        if name != rules.first_source and not source.overrides and "tensors" in source.use:
            routed = route(
                rules, compile_rules(rules), {rules.first_source: EMPTY, name: checkpoint}
            ).taken
            if any(r.rewrite.target is not None for r in routed):
                return name
    return ""


def behind_prefix(checkpoint: Checkpoint) -> str:
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


def missing_source_advice(
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


def extra_source_advice(rules: RuleFile, others: Sequence[str], found: Sequence[Fit]) -> str:
    """Where the first source alone fits, which others keep it from that; empty otherwise."""
    if not others or not any(fit.fits and fit.rules == rules.name for fit in found):
        return ""
    named = " and ".join(f"`{name}`" for name in others)
    return (
        f"`{rules.first_source}` alone fits {rules.name}: leave out {named}, or give what "
        "belongs to this checkpoint."
    )
