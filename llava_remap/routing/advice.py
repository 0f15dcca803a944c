"""Advises what to do with a checkpoint that a rule file doesn't fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from llava_remap.checkpoint import Checkpoint, parts_beside
from llava_remap.core import quote
from llava_remap.rewrite import compile_rules, contradictions
from llava_remap.routing.fits import EMPTY, Fit, draft_command, fits, names_alike
from llava_remap.routing.route import Routed, route
from llava_remap.routing.trained_with import projector_place
from llava_remap.rulefile import Condition, RuleFile, load_rule_file
from llava_remap.target_model import TOWER_KIND


def advice(checkpoint: Checkpoint, ranked: Sequence[Fit], asked: str = "") -> str:
    """What to do with a checkpoint: the rule file that fits, or how to get one.

    Args:
        ranked: the checkpoint's `fits`, the nearest first.
        asked: the rule file that the user asked for.
    """
    # Among files that map as many names as the nearest, the requested rule file comes first.
    nearest = ranked[0]
    ranked = sorted(
        ranked,
        key=lambda fit: (
            fit.fits < nearest.fits or fit.rules != asked or fit.mapped < nearest.mapped
        ),
    )
    best = ranked[0]
    if best.fits:
        return (
            f"By names and config, this rule file fits: {best.rules} ({best.mapped} of "
            f"{best.total} names)."
        )
    if best.unknown:
        alike = names_alike(checkpoint)
        some = _without_prefix(checkpoint, "", alike)
        names = (_part(load_rule_file(fit.rules), some, alike, best.mapped) for fit in ranked)
        if part := next(filter(None, names), ""):
            beside = f"--source {best.source}=DIR --source {part}={quote(checkpoint.location)}"
            return (
                f"The checkpoint isn't a model but a part of one, a `{part}`. Give it beside the "
                f"model: llava-remap apply RULES {beside}."
            )
    if best.is_near and best.remedy:
        return best.remedy
    if planned := next((fit for fit in ranked if fit.refusals), None):
        command = f"llava-remap apply {planned.rules} --source {quote(checkpoint.location)}"
        return (
            f"{planned.rules} takes every name, but refuses the checkpoint for the reasons above. "
            f"After correcting them: {command}"
        )
    whole = [fit for fit in ranked if not fit.unknown and fit.mapped == best.mapped]
    refusing = (fit for fit in whole if fit.guard)
    if near := min(refusing, key=lambda fit: fit.rules != asked, default=None):
        return (
            f"None of the shipped rule files fits. {near.rules} takes every name, but its "
            f"`{near.guard}` refuses this config, since a model with it computes something else. "
            f"Override `{near.guard}` only if you know that transformers computes the same."
        )
    if whole:
        sources = load_rule_file(whole[0].rules).text.sources
        parts = [name for name, source in sources.items() if source.overrides]
        give = "Every name is known, but something is missing."
        if not parts:
            return give
        give = f"{give} {_give_too(checkpoint, parts)}"
        if not give.endswith("."):  # the missing part lies beside the checkpoint
            return give
        model = quote(f"{whole[0].source}={checkpoint.location}")
        return (
            f"{give} In full, with the rule file that `llava-remap inspect DIR` names for it: "
            f"llava-remap apply RULES --source {model} --source {parts[0]}=DIR"
        )
    if behind := behind_prefix(checkpoint):
        return behind
    command = draft_command(_class_for(checkpoint, ranked, asked), checkpoint.location)
    return f"None of the shipped rule files fits. Infer one from names and shapes: {command}"


def _part(
    rules: RuleFile, checkpoint: Checkpoint, alike: Mapping[str, Sequence[str]], mapped: int
) -> str:
    """The further source of a rule file that this checkpoint can be; empty if there is none.

    Args:
        checkpoint: one name of each kind.
        alike: these names → the names of the kind.
        mapped: the number of names that a rule file maps as those of a model. A part has more.
    """
    for name, source in rules.text.sources.items():
        if name != rules.first_source and not source.overrides and "tensors" in source.use:
            sources = {rules.first_source: EMPTY, name: checkpoint}
            taken = route(rules, compile_rules(rules), sources).taken
            found = (alike[r.tensor.name] for r in taken if r.rewrite.target is not None)
            if sum(map(len, found)) > mapped:
                return name
    return ""


def behind_prefix(checkpoint: Checkpoint) -> str:
    """What to do if a rule file fits once a common prefix of all names is removed; else empty."""
    first = next(iter(checkpoint.catalog), "").split(".")
    some = names_alike(checkpoint)
    for segments in range(1, len(first)):
        prefix = ".".join(first[:segments]) + "."
        if not all(name.startswith(prefix) for name in checkpoint.catalog):
            return ""
        if all(fit.unknown for fit in fits(_without_prefix(checkpoint, prefix, some))):
            continue
        bare = _without_prefix(checkpoint, prefix, checkpoint.catalog)
        best = fits(bare)[0]
        if best.fits:
            lines = _taking_off(prefix, load_rule_file(best.rules), bare)
            return (
                f"All names fit {best.rules} without the prefix `{prefix}`. Write a rule file "
                f"that removes it: printf '%s\\n' {' '.join(map(quote, lines))} > mine.yaml"
            )
    return ""


def _taking_off(prefix: str, rules: RuleFile, bare: Checkpoint) -> list[str]:
    """The lines of a rule file that removes a prefix: a rule for each first segment behind it,
    since a prefix such as `model.` also begins other names.

    Args:
        bare: the checkpoint without the prefix.
    """
    program = compile_rules(rules, bare.catalog, bare.config)
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
    # A source's own prefix gets this prefix, too, so that the rules remove it again.
    sources = {
        name: {"prefix": prefix + source.prefix}
        for name, source in rules.text.sources.items()
        if source.prefix
    }
    return [
        "schema: 1",
        "name: mine",
        "version: 1.0.0",
        f"summary: {rules.name} behind a prefix",
        f"extends: [{rules.name}.yaml]",
        f"prepare: {json.dumps(renames)}",  # JSON is YAML
        f"tests: {json.dumps(tests)}",
        *([f"sources: {json.dumps(sources)}"] if sources else []),
    ]


def _without_prefix(checkpoint: Checkpoint, prefix: str, names: Iterable[str]) -> Checkpoint:
    bare = {name.removeprefix(prefix): checkpoint.catalog[name] for name in names}
    catalog = {name: replace(tensor, name=name) for name, tensor in bare.items()}
    return replace(checkpoint, catalog=catalog)


def _class_for(checkpoint: Checkpoint, ranked: Sequence[Fit], asked: str) -> str:
    """The class that most probably fits a checkpoint: the nearest rule file's, if one is near.

    Of rule files that know as many names, the requested one is the nearest. If none is near, it is
    the most common class of the rule files whose `detect`, without the architecture, agrees with
    the config.
    """
    # A draft reads towers from their tensors, and these are CLIPs and SigLIPs.
    families = [
        fit
        for fit in ranked
        if fit.class_name and TOWER_KIND not in load_rule_file(fit.rules).target.config
    ]
    if families[0].is_near:
        nearest = [fit for fit in families if fit.mapped == families[0].mapped]
        return min(nearest, key=lambda fit: fit.rules != asked).class_name

    def agrees(fit: Fit) -> bool:
        wanted = load_rule_file(fit.rules).text.detect.config
        others = {key: value for key, value in wanted.items() if key != "architectures"}
        return not contradictions(Condition(config=others), (), checkpoint.config or {})

    agreeing = [fit.class_name for fit in families if agrees(fit)] or [families[0].class_name]
    return Counter(agreeing).most_common(1)[0][0]


def source_advice(
    rules: RuleFile,
    taken: Sequence[Routed],
    checkpoints: Mapping[str, Checkpoint],
    others: Sequence[str],
    ranked: Sequence[Fit],
) -> str:
    """Which sources to leave out if the first source alone fits, or which one to give if a further
    source may have missing names; else empty.

    Sources with `overrides` stand in the order of a training: if one is given, only an earlier one
    can have the missing names.

    Args:
        others: the further sources that were given.
        ranked: the `fits` of the first source, the nearest first.
    """
    if fitting := [fit.rules for fit in ranked if fit.fits]:
        if not others or rules.name not in fitting:
            return ""
        return (
            f"`{rules.first_source}` alone fits {rules.name}: leave out "
            f"{' and '.join(f'`{name}`' for name in others)}, or give sources that belong to this "
            "checkpoint."
        )
    names = [r.rewrite.prepared for r in taken]
    missing = [
        f"`{text}`"
        for text in rules.text.detect.present
        if contradictions(Condition(present=(text,)), names, None)
    ]
    # The missing tensors may be present under names that the rule file doesn't know.
    unknown = any(r.rewrite.target is None and r.rewrite.reason is None for r in taken)
    if not missing or unknown:
        return ""
    parts = [name for name, source in rules.text.sources.items() if source.overrides]
    given = [number for number, name in enumerate(parts) if name in checkpoints]
    if left := parts[: given[0]] if given else parts:
        program = compile_rules(rules)
        for name in (parts[number] for number in given):
            if lies := projector_place(rules, program, name, checkpoints[name]):
                return f"A projector was trained with `{name}`. {lies}"
        return _give_too(checkpoints[rules.first_source], left)
    if not given:
        return ""
    return (
        f"Give a checkpoint that has {' and '.join(missing)}, a later one of the same training. "
        "No other source has these tensors."
    )


def _give_too(checkpoint: Checkpoint, names: Sequence[str]) -> str:
    """How to give one of these sources beside a checkpoint; those that lie in a folder inside of
    it, if any do.
    """
    there = parts_beside(checkpoint.folder) if checkpoint.folder is not None else {}
    if options := [f"--source {quote(f'{name}={there[name]}')}" for name in names if name in there]:
        return (
            f"A folder beside it may have the missing tensors, so give it too: {' '.join(options)}"
        )
    options = [f"--source {name}=DIR" for name in names]
    return f"If another checkpoint has the missing tensors, give it too: {' or '.join(options)}."
