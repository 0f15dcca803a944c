"""Runs the tests of a rule file, finds the rules that no test reaches, and makes tests for them.

A test of a tensor operation runs the steps of a job: the program rewrites the names,
`place_operations` gives boxes for the shapes, and the test's few values are moved by these boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from llava_remap.checkpoint import Tensor
from llava_remap.planning import Box, Part, coverage_gaps
from llava_remap.planning.operations import place_operations
from llava_remap.rewrite import CompiledOperation, Program, Rewrite, compile_all
from llava_remap.routing import Applied, Routed, Routes, operations_on
from llava_remap.rulefile import (
    Condition,
    Given,
    NameTest,
    Numbers,
    RuleFile,
    Template,
    Unwrap,
)

#: Every outcome of a test.
Status = Literal["passed", "failed", "missing", "written"]
DROPPED, UNMAPPED = "(dropped)", "(unmapped)"
#: Made-up values of a template's fields, by kind of field. They are used if no checkpoint gives a
#: name.
_FILLED = ({"": "weight", ":int": "0", "...": "x.weight"}, {"": "x", ":int": "1", "...": "x"})


@dataclass(frozen=True, slots=True)
class TestResult:
    """The outcome of one in-file test.

    Attributes:
        name: the old name, or all old names with commas between them.
        wanted, got: the new name, `(dropped)` or `(unmapped)`. For an operation: its new names,
            with shapes or values if the test has some, or the reason why there are none.
        rules: the labels of the rules that took the name.
    """

    __test__ = False  # pytest: not a test class

    name: str
    wanted: str
    got: str
    rules: tuple[str, ...]

    @property
    def status(self) -> Status:
        return "passed" if self.wanted == self.got else "failed"


def outcome(rewrite: Rewrite) -> str:
    """The new name, `(dropped)` or `(unmapped)`. For a tensor that an operation takes: the names
    that the operation makes.
    """
    if rewrite.operated is not None:
        return ", ".join(rewrite.operated.makes)
    return rewrite.target or (DROPPED if rewrite.reason is not None else UNMAPPED)


def run_tests(rules: RuleFile) -> list[TestResult]:
    """Run the tests of a rule file, in order."""
    program = compile_all(rules)
    return [_run(program, test) for test in rules.text.tests]


def untested(rules: RuleFile) -> list[str]:
    """The labels of this file's own rules that none of its tests reaches, in order."""
    reached = {label for result in run_tests(rules) for label in result.rules}
    return [
        label
        for label, mark in rules.marks.items()
        if mark.file == rules.tree.mark.file and label not in reached
    ]


@dataclass(frozen=True, slots=True)
class Known:
    """Names and config of a checkpoint.

    Attributes:
        names: the names of the first source, as they are stored. A `when` may ask for them.
        taken: the names of all sources, with their prefixes. The program rewrites these names.
        config: the config of the first source.
    """

    names: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None


def new_test(rules: RuleFile, label: str, known: Known) -> NameTest | None:
    """A test that reaches a rule, with the rule's present outcome; None if no name is known that
    the rule takes.

    The test has the first names of the checkpoint that the rule takes, or else made-up names that
    match the rule's templates.
    """
    whole = compile_all(rules)
    rule = next(rule for rule in whole.everything if rule.label == label)
    program = whole.given(known.names, known.config)
    real = _reaching(program, label, known.taken)
    stored = label.startswith("prepare/")
    seen = [(name, name if stored else program.rewrite(name).prepared) for name in known.names]
    given = Given() if rule.when is None else _given(rule.when, seen, known.config)
    made_up: list[tuple[str, ...]]
    if isinstance(rule, CompiledOperation):
        made_up = list(_made_up_tensors(whole, rule))
    else:
        kind = rule.kind
        pattern = kind.pattern.at_start if isinstance(kind, Unwrap) else kind.pattern
        made_up = [(name,) for name in _made_up(pattern)] if isinstance(pattern, Template) else []
    for names in [real] if real else made_up:
        found = _taken(whole, names, given)
        if all(label in routed.rewrite.rules for routed in found):
            from_ = names if len(names) > 1 else names[0]
            return NameTest.model_validate({"from": from_, "given": given, **_becomes(found)})
    return None


def _reaching(program: Program, label: str, names: Sequence[str]) -> tuple[str, ...]:
    """The first name that a rule takes; for an operation, all names that belong together with that
    name.
    """
    found = [_routed(program, name) for name in names if label in program.rewrite(name).rules]
    for applied in operations_on(found):
        if applied.rule.label == label:
            return tuple(routed.tensor.name for routed in applied.tensors)
    return tuple(routed.tensor.name for routed in found[:1])


def _becomes(found: Sequence[Routed]) -> dict[str, Any]:
    """The outcome of names, in the form of a test."""
    rewrite = found[0].rewrite
    if operations := operations_on(found):
        made = list(_made(operations[0], ()))
        return {"to": tuple(made) if len(made) > 1 else made[0]}
    if rewrite.target is not None:
        return {"to": rewrite.target}
    return {"dropped" if rewrite.reason is not None else "unmapped": True}


def _made_up_tensors(program: Program, rule: CompiledOperation) -> Iterator[tuple[str, ...]]:
    """Made-up names of all tensors that an operation takes. A list gets two tensors."""
    for values in _FILLED:
        names = []
        for end in rule.operation.sources:
            assert end.names is not None
            kinds = {**values, "...": "x", ":each": "0"}
            fields = {field: kinds[kind] for field, kind in end.names.fields.items()}
            numbers = ("0", "1") if end.each else ("",)
            names += [end.names.fill({**fields, end.each: number}) for number in numbers]
        yield tuple(program.inverse_of_taken(name) or name for name in names)


def _made_up(template: Template) -> list[str]:
    return [
        template.fill({field: values[kind] for field, kind in template.fields.items()})
        for values in _FILLED
    ]


def _given(
    when: Condition, seen: Sequence[tuple[str, str]], config: Mapping[str, Any] | None
) -> Given:
    """Names and config values with which a `when` holds: those of the checkpoint, or made-up ones.

    Args:
        seen: names of the checkpoint, each in its stored form and in the form that the condition
            sees.
    """
    names = []
    for template in when.present:
        real = (stored for stored, name in seen if template.match(name) is not None)
        names.append(next(real, None) or _made_up(template)[0])
    values = {}
    for key, wanted in when.config.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        value = config[key] if config is not None and config.get(key) in allowed else allowed[0]
        if value is not None:
            values[key] = value
    return Given(names=tuple(dict.fromkeys(names)), config=values)


def _run(program: Program, test: NameTest) -> TestResult:
    """Run a test, for a checkpoint with the test's names and everything in the test's `given`."""
    found = _taken(program, test.old_names, test.given, test.old)
    operations = operations_on(found)
    wanted = ", ".join(test.new_names) or (DROPPED if test.dropped else UNMAPPED)
    got = ", ".join(_outcomes(found, operations, test.new_names))
    if got == wanted and test.new:
        wanted, got = _spelt(test.new_names, test.new), _sized(test, found, operations)
    rules = dict.fromkeys(label for routed in found for label in routed.rewrite.rules)
    return TestResult(", ".join(test.old_names), wanted, got, tuple(rules))


def _taken(
    program: Program, names: Sequence[str], given: Given, tensors: Sequence[Numbers] = ()
) -> list[Routed]:
    """The names of a test, rewritten by the rules for the checkpoint that the test describes."""
    program = program.given((*names, *given.names), given.config)
    shapes = [tensor.shape for tensor in tensors] or [()] * len(names)
    return [_routed(program, name, shape) for name, shape in zip(names, shapes, strict=True)]


def _routed(program: Program, name: str, shape: tuple[int, ...] = ()) -> Routed:
    return Routed("model", Tensor.of(name, "F32", shape, None), program.rewrite(name))


def _outcomes(
    found: Sequence[Routed], operations: Sequence[Applied], wanted: Sequence[str]
) -> Iterator[str]:
    """The outcome of each name; for an operation, all of its new names."""
    yield from (outcome(routed.rewrite) for routed in found if routed.rewrite.operated is None)
    for applied in operations:
        yield from _made(applied, wanted)
        for number, end in enumerate(applied.rule.operation.sources):
            if all(at != number for at, _ in applied.sources):
                yield f"(no tensor for {end.names})"


def _made(applied: Applied, wanted: Sequence[str]) -> Iterator[str]:
    """The names of new tensors. A list has as many tensors as the test wants, or two if it wants
    none.
    """
    names = applied.made_of(wanted)
    for number, end in enumerate(applied.rule.operation.targets):
        own = [name for (at, _), name in names.items() if at == number]
        if end.each and not own:
            own = [str(applied.made(number, each)) for each in range(2)]
        yield from own


def _sized(test: NameTest, found: Sequence[Routed], operations: Sequence[Applied]) -> str:
    """The new tensors of a test in words, or why there are none (sizes don't add up, or rows go
    nowhere).
    """
    if not operations or any(routed.rewrite.operated is None for routed in found):
        return "(no operation takes the tensors: `shapes` and `values` are for operations)"
    keys = {key for applied in operations for key in applied.rule.operation.sizes.values()}
    if lacking := keys - {*test.given.target}:
        return f"(`given.target` doesn't say {', '.join(sorted(lacking))})"
    new = dict(zip(test.new_names, test.new, strict=True))
    shapes = {name: numbers.shape for name, numbers in new.items()}
    routes = Routes(tuple(found), operations=tuple(operations))
    placed = place_operations(routes, shapes, (), test.given.target)
    for problem in placed.problems:
        return f"({problem.table[0][1]})"
    if twice := [name for name, entries in placed.provided.items() if len(entries) > 1]:
        return f"(several operations make {twice[0]})"
    parts = {name: [*entry.parts] for name, [entry] in placed.provided.items()}
    old = {
        name: (numbers.shape, [*_taken_boxes(parts, name)])
        for name, numbers in zip(test.old_names, test.old, strict=True)
    }
    for dropped in placed.dropped:
        if dropped.box is not None:
            old[dropped.name][1].append(dropped.box)
    placed_in = {name: (shapes[name], [part.placed for part in own]) for name, own in parts.items()}
    for name, (shape, boxes) in {**old, **placed_in}.items():
        if (gaps := coverage_gaps(shape, boxes)) != ([], []):
            rows = [f"{span.start}..{span.stop - 1}" for span in gaps[0] or gaps[1]]
            return f"(rows {', '.join(rows)} of {name} {'are left' if gaps[0] else 'are twice'})"
    if test.values is None:
        return _spelt(test.new_names, test.new)
    elements = {name: one.elements for name, one in zip(test.old_names, test.old, strict=True)}
    return _spelt(
        test.new_names,
        [Numbers(shapes[name], _moved(parts[name], elements, shapes[name])) for name in new],
    )


def _taken_boxes(parts: Mapping[str, Sequence[Part]], name: str) -> Iterator[Box]:
    return (part.taken for own in parts.values() for part in own if part.taken.name == name)


def _moved(
    parts: Sequence[Part], elements: Mapping[str, Sequence[float]], shape: tuple[int, ...]
) -> tuple[float, ...]:
    """The elements of a new tensor. The parts must cover the whole tensor."""
    made = [0.0] * prod(shape)
    for part in parts:
        old = elements[part.taken.name]
        for run in part.runs():
            made[run.placed : run.placed + run.size] = old[run.taken : run.taken + run.size]
    return tuple(made)


def _spelt(names: Sequence[str], tensors: Sequence[Numbers]) -> str:
    """Names with their values, or with their shapes if there are no values."""
    return ", ".join(
        f"{name} {one.nested() if one.elements else list(one.shape)}"
        for name, one in zip(names, tensors, strict=True)
    )
