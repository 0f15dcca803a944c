"""Writes an inference as a rule file for a person to read and complete."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from llava_remap.core.escaped import printable
from llava_remap.core.wording import fold_names
from llava_remap.rewrite.infer.engine import Inference
from llava_remap.rewrite.infer.groups import INDEX
from llava_remap.rewrite.infer.joins import UNSURE
from llava_remap.rewrite.infer.rules import rule_line
from llava_remap.rulefile.yaml_write import PLAIN_NAME, flow, quoted

#: The most comment lines of each kind about names without a rule.
MOST_LINES = 40
#: The end of a target name that a checkpoint may lack, so `detect` doesn't require it.
_OPTIONAL = "lm_head.weight"
#: Columns of a comment.
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Frame:
    """All fields of a rule file except those about names.

    Attributes:
        name, summary: the rule file's fields.
        made_from: source and target, in words.
        extends: parts to extend.
        unsure: guesses about anything but names, in words.
        detect: key of the source's config → its value (None: absent).
        sources: lines of `sources`.
        class_name: the target's class; None if it is unknown, so that the file is a part.
        config: key of the target's config → a constant, and the reason for it.
        processor: the processor's class if it differs from the parts'.
        first: the names of the first source, the only ones that `detect` may use; None: all names.
    """

    name: str
    summary: str
    made_from: str
    extends: Sequence[str] = ()
    unsure: Sequence[str] = ()
    detect: Mapping[str, Any] | None = None
    sources: Sequence[str] = ()
    class_name: str | None = None
    config: Mapping[str, tuple[Any, str]] | None = None
    processor: str | None = None
    first: Collection[str] | None = None


def rule_file(frame: Frame, found: Inference) -> str:
    """The text of the whole rule file."""
    lines = [
        *_comment(
            f"Inferred from names and shapes: {frame.made_from}. Check every line marked `unsure`."
        ),
        "schema: 1",
        f"name: {flow(frame.name)}",
        "version: 0.1.0",
        f"summary: {flow(frame.summary)}",
        "changes:",
        "  - {version: 0.1.0, what: inferred}",
    ]
    if frame.extends:
        lines += [f"extends: [{', '.join(frame.extends)}]"]
    for guess in frame.unsure:
        lines += _comment(f"unsure: {guess}")
    lines += ["", *_detect(frame, found)]
    if frame.sources:
        lines += ["", "sources:", *(f"  {line}" for line in frame.sources)]
    if frame.class_name:
        lines += ["", "target:", f"  class: {frame.class_name}"]
        if frame.config:
            lines += ["  config:", *_constants(frame.config)]
    if frame.processor:
        lines += ["", "processor:", f"  class: {frame.processor}"]
    if found.rules:
        lines += ["", *_names(found), *_operations(found), "", *_tests(found)]
    return (
        "\n".join(printable(line) if line.lstrip().startswith("#") else line for line in lines)
        + "\n"
    )


def _detect(frame: Frame, found: Inference) -> list[str]:
    """Lines of `detect`: a name for each renaming rule. A layer's name is used only if there are no
    others.
    """
    names: list[str] = []
    of_layers: list[str] = []
    for rule in found.rules:
        name, target = found.names_of(rule)[0]
        if frame.first is not None and name not in frame.first:
            continue
        if target is not None and not target.endswith(_OPTIONAL) and not rule.is_regex:
            (of_layers if INDEX in rule.patterns[0] else names).append(name)
    shown = names or of_layers[:1]
    lines = ["detect:", "  present:" if shown else "  present: []"]
    lines += [f"    - {quoted(name)}" for name in shown]
    if frame.detect:
        lines += [
            "  config:",
            *(f"    {key}: {flow(value)}" for key, value in frame.detect.items()),
        ]
    return lines


def _constants(config: Mapping[str, tuple[Any, str]]) -> list[str]:
    lines = []
    last_reason = ""
    for key, (value, why) in config.items():
        if why and why != last_reason:
            lines += [f"    {comment}" for comment in _comment(why)]
        lines.append(f"    {key}: {{const: {flow(value)}}}")
        last_reason = why
    return lines


def _names(found: Inference) -> list[str]:
    lines = ["names:"]
    for question in found.questions:
        lines += [
            f"  # unsure, so left out: {question.source.folded} {question.source.shape} could be "
            "any of",
            *(f"  #   {other.folded}" for other in question.candidates),
        ]
    for sum_ in found.adding_up[:MOST_LINES]:
        lines += (f"  {line}" for line in _comment(f"unsure, so left out: {sum_}."))
    for what, groups in (
        ("left out, since no missing parameter of the target fits", found.unplaced),
        ("missing", found.missing),
    ):
        folded = fold_names(name for group in groups for name in group.names)
        lines += [f"  # {what}: {line}" for line in folded[:MOST_LINES]]
        lines += [f"  # {what}: {len(folded) - MOST_LINES} more lines"] * (len(folded) > MOST_LINES)
    ids = max((len(rule.id) for rule in found.rules), default=0) + len("id: ,")
    shown = [rule for rule in found.rules if rule.to is not None]
    froms = max((len(quoted(rule.match)) for rule in shown), default=0) + len("from: ,")
    for rule in found.rules:
        if unsure := found.unsure(rule):
            count = len(found.names_of(rule))
            lines.append(f"  # unsure: {unsure}" + (f" ({count} tensors)" if count > 1 else ""))
        lines.append("  " + rule_line(rule, (ids, froms if rule.to is not None else 0)))
    return lines


def _operations(found: Inference) -> list[str]:
    """The lines of `tensors`, each with the reason to look at it."""
    lines: list[str] = []
    said = ""
    for line, one in found.operation_lines:
        why = UNSURE[one.kind]
        if why != said:
            lines += (f"  {comment}" for comment in _comment(f"unsure: {why}."))
        lines.append(f"  {line}")
        said = why
    return ["", "tensors:", *lines] if lines else []


def _operation_tests(found: Inference) -> Iterator[str]:
    """A test of each line of `tensors`, for the first layer; of a list the first two."""
    for _, one in found.operation_lines:
        count = 1 if one.at < 0 else min(2, len(one.parts[0].members) // len(one.whole.members))
        sides = [
            [name for group in groups for name in group.names[: count if group in one.parts else 1]]
            for groups in (one.sources, one.targets)
        ]
        texts = [flow(names if len(names) > 1 else names[0], PLAIN_NAME) for names in sides]
        yield f"  - {{from: {texts[0]}, to: {texts[1]}}}"


def _tests(found: Inference) -> list[str]:
    operated = {name for one in found.operations for group in one.sources for name in group.names}
    tests = [
        names[0]
        for rule in found.rules
        if (names := [entry for entry in found.names_of(rule) if entry[0] not in operated])
    ]
    width = max((len(quoted(name)) for name, _ in tests), default=0) + 1
    outcomes = (
        f"to: {quoted(target)}" if target is not None else "dropped: true" for _, target in tests
    )
    return [
        "tests:",
        *(
            f"  - {{from: {quoted(name) + ',':<{width}} {outcome}}}"
            for (name, _), outcome in zip(tests, outcomes, strict=True)
        ),
        *_operation_tests(found),
    ]


def _comment(text: str) -> list[str]:
    return fill(
        printable(text), _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    ).splitlines()
