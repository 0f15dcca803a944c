"""Makes a rule file from a conversion of the installed transformers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_remap.authoring.conversion_rules import (
    InexpressibleError,
    OperationDraft,
    Rules,
    conversion_rules,
)
from llava_remap.authoring.draft_target import loaded
from llava_remap.authoring.in_file_tests import run_tests
from llava_remap.core.problem import RemapError, refuse
from llava_remap.rewrite import Operated, Program, compile_all
from llava_remap.rewrite.infer import rule_line
from llava_remap.rulefile.yaml_write import flow, quoted
from llava_remap.target_model import Conversion, Moved, read_conversion

#: `load`: from a checkpoint to the model's own names. `save`: the way back.
Direction = Literal["load", "save"]
#: Columns of a line.
_WIDTH = 130
#: The most unused conversions that a rule file lists.
_MOST_UNUSED = 20


@dataclass(frozen=True, slots=True)
class Imported:
    """A rule file that was made from a conversion.

    Attributes:
        text: the rule file.
        conversion: the conversion from which the file was made.
        rules, operations: how many of them the file has.
        tensors: the number of tensors on which the file was tried.
    """

    text: str
    conversion: Conversion
    rules: int
    operations: int
    tensors: int


def import_rules(
    model_type: str, config: Path | None = None, direction: Direction = "load"
) -> Imported:
    """Make a rule file from transformers' conversion of a model type.

    The rules are tried on every name of the model before they are returned.

    Args:
        model_type: a `model_type`, or a class.
        config: the config.json of a model; by default the config of the class.

    Raises:
        RemapError: as `read_conversion`; LR113 for an unreadable config; LR217 for a conversion
            that the rule language can't express.
    """
    return imported(read_conversion(model_type, _config(config)), model_type, direction)


def imported(conversion: Conversion, model_type: str, direction: Direction = "load") -> Imported:
    """Turn a conversion into a rule file.

    Raises:
        RemapError: LR217 for a conversion that the rule language can't express.
    """
    save = direction == "save"
    wrong: list[str] = []
    try:
        for exact in (False, True):
            rules = conversion_rules(conversion.moved, save=save, exact=exact)
            text = _text(conversion, model_type, rules, direction)
            file = loaded(text)
            wrong = [*_disagreements(compile_all(file), conversion.moved, save=save)]
            if failed := [test for test in run_tests(file) if test.status == "failed"]:
                raise InexpressibleError(
                    f"transformers turns `{failed[0].name}` into {failed[0].wanted}, but the "
                    f"rules turn it into {failed[0].got}"
                )
            if not wrong:
                count = sum(len(names) for one in conversion.moved for names in one.sources)
                return Imported(text, conversion, len(rules.names), len(rules.tensors), count)
    except InexpressibleError as error:
        raise _inexpressible(model_type, f"{error}.") from None
    raise _inexpressible(
        model_type,
        "the rules don't give these tensors the names that transformers gives them.",
        wrong,
    )


def _inexpressible(model_type: str, reason: str, names: list[str] | None = None) -> RemapError:
    return refuse(
        "LR217",
        f"the conversion of `{model_type}` isn't a rule file: {reason}",
        "Convert such a checkpoint with transformers itself.",
        names or [],
    )


def _config(path: Path | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refuse("LR113", f"{path}: {error}.", "Give a model's config.json.") from None
    if not isinstance(found, dict):
        raise refuse("LR113", f"{path} has no mapping.", "Give a model's config.json.")
    return found


def _disagreements(program: Program, moved: tuple[Moved, ...], *, save: bool) -> Iterator[str]:
    """Old names that the program doesn't turn into the conversion's new names."""
    for one in moved:
        sources: Sequence[Sequence[str]] = one.sources
        targets: Sequence[Sequence[str]] = [(name,) for name in one.targets]
        if save:
            sources, targets = targets, sources
        if not one.steps:
            [[old]], [[new]] = sources, targets
            rewrite = program.rewrite(old)
            if rewrite.operated is not None or rewrite.target != new:
                yield old
            continue
        operated = [program.rewrite(name).operated for names in sources for name in names]
        if None in operated or not _makes(operated, {n for names in targets for n in names}):
            yield sources[0][0]


def _makes(operated: Sequence[Operated | None], wanted: Collection[str]) -> bool:
    """Whether one operation takes all tensors of a group and makes the wanted names."""
    rules = {one.rule.label: one for one in operated if one is not None}
    [first, *others] = rules.values()
    operation, fields = first.rule.operation, first.taken.fields
    count = len(wanted) // len(operation.targets)
    made = {
        operation.made(end, fields, number)
        for end, target in enumerate(operation.targets)
        for number in range(count if target.each else 1)
    }
    return not others and made == {*wanted}


def _text(conversion: Conversion, model_type: str, rules: Rules, direction: Direction) -> str:
    way = {
        "load": "from the names of its checkpoints to those of its parameters",
        "save": "from the names of its parameters to those of its checkpoints",
    }[direction]
    lines = [
        f"# Made from the conversion of `{model_type}` in transformers {conversion.version},",
        f"# for {conversion.class_name}: {way}.",
    ]
    if conversion.unused:
        lines += ["# These conversions took no name of the model from which this file was made:"]
        lines += [f"#   {one}" for one in conversion.unused[:_MOST_UNUSED]]
        if len(conversion.unused) > _MOST_UNUSED:
            lines.append(f"#   {len(conversion.unused) - _MOST_UNUSED} more")
    lines += [
        "schema: 1",
        f"name: {flow(f'{model_type}-{direction}')}",
        "version: 0.1.0",
        f"summary: {flow(f'{conversion.class_name} of transformers, {way}')}",
        "changes:",
        f"  - {{version: 0.1.0, what: {flow(f'made from transformers {conversion.version}')}}}",
    ]
    if rules.names:
        ids = max(len(rule.id) for rule in rules.names) + len("id: ,")
        froms = max(len(quoted(rule.match)) for rule in rules.names) + len("from: ,")
        lines += ["", "names:", *(f"  {rule_line(rule, (ids, froms))}" for rule in rules.names)]
    if rules.tensors:
        lines += ["", "tensors:"]
        lines += [line for one in rules.tensors for line in _operation(one)]
    program = compile_all(loaded("\n".join(lines) + "\n"))
    save = direction == "save"
    lines += ["", "tests:", *_tests(program, conversion.moved, save=save)]
    lines += [line for one in rules.tensors for line in _operation_test(one, save=save)]
    return "\n".join(lines) + "\n"


def _operation(operation: OperationDraft) -> list[str]:
    fields = {"id": operation.id, "from": operation.from_, "to": operation.to, "how": operation.how}
    return _entry(fields | ({"let": operation.let} if operation.let else {}))


def _operation_test(operation: OperationDraft, *, save: bool) -> list[str]:
    """A test with small tensors; transformers itself computed the new tensors."""
    moved = operation.members[0]
    example = moved.example
    assert example is not None
    names = [
        name
        for listed, tensors in zip(moved.sources, example.old, strict=True)
        for name in listed[: len(tensors)]
    ]
    old = (names, [tensor for tensors in example.old for tensor in tensors])
    new = ([*moved.targets[: len(example.new)]], [*example.new])
    (from_, before), (to, after) = (new, old) if save else (old, new)
    fields: dict[str, Any] = {
        "from": from_ if len(from_) > 1 else from_[0],
        "to": to if len(to) > 1 else to[0],
        "values": {
            "from": before if len(from_) > 1 else before[0],
            "to": after if len(to) > 1 else after[0],
        },
    }
    if len(names) < len(old[1]):  # a list of one tensor: the test has names, but no values
        del fields["values"]
        return _entry(fields)
    return _entry(fields | ({"given": {"target": example.sizes}} if example.sizes else {}))


def _entry(fields: Mapping[str, Any]) -> list[str]:
    """An item of a list, on one line or with a line for each field."""
    entries = [f"{key}: {_flow(value)}" for key, value in fields.items()]
    line = f"  - {{{', '.join(entries)}}}"
    if len(line) <= _WIDTH:
        return [line]
    return [f"  - {entries[0]}", *(f"    {entry}" for entry in entries[1:])]


def _flow(value: Any) -> str:
    """A value in flow style; names are in quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return flow(value)


def _tests(program: Program, moved: tuple[Moved, ...], *, save: bool) -> Iterator[str]:
    """A test for each rule, with the first name of the model that the rule takes."""
    reached: set[str] = set()
    for one in moved:
        if one.steps:
            continue
        [old], new = one.sources[0], one.targets[0]
        if save:
            old, new = new, old
        rules = {*program.rewrite(old).rules}
        if rules - reached:
            reached |= rules
            yield f"  - {{from: {quoted(old)}, to: {quoted(new)}}}"
