"""Runs the tests of a rule file, finds the rules that no test reaches, and makes tests for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llava_remap.rewrite.program import Program, Rewrite, compile_all
from llava_remap.rulefile import Condition, Given, NameTest, RuleFile, Template, Unwrap

#: Every outcome of a test.
Status = Literal["passed", "failed", "missing", "written"]
DROPPED, UNMAPPED = "(dropped)", "(unmapped)"
#: What the fields of a template are filled with, by kind, where no checkpoint gives a name.
_FILLED = ({"": "weight", ":int": "0", "...": "x.weight"}, {"": "x", ":int": "1", "...": "x"})


@dataclass(frozen=True, slots=True)
class TestResult:
    """Outcome of one in-file test.

    Attributes:
        wanted, got: a name, `(dropped)` or `(unmapped)`.
        rules: the labels of the rules that took the name there.
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
    """The new name, `(dropped)` or `(unmapped)`."""
    return rewrite.target or (DROPPED if rewrite.reason is not None else UNMAPPED)


def run_tests(rules: RuleFile) -> list[TestResult]:
    """Run the tests that stand in a rule file, in order."""
    program = compile_all(rules)
    return [_run(program, test) for test in rules.text.tests]


def untested(rules: RuleFile) -> list[str]:
    """The labels of the rules that were written in this very file and that none of its tests
    reaches, in order.
    """
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
        names: the names of the first source, as they are stored; a `when` may ask for them.
        taken: the names of all sources, behind their prefixes; the program is asked about them.
        config: the config of the first source.
    """

    names: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None


def new_test(rules: RuleFile, label: str, known: Known) -> NameTest | None:
    """A test that reaches a rule, with the present outcome; None where no name is known that the
    rule takes.

    The name is the first one of the checkpoint that the rule takes, else a made-up one that matches
    the rule's template.
    """
    everything = compile_all(rules)
    rule = next(rule for rule in everything.rules if rule.label == label)
    program = everything.given(known.names, known.config)
    real = next((name for name in known.taken if label in program.rewrite(name).rules), None)
    stored = label.startswith("prepare/")
    seen = [(name, name if stored else program.rewrite(name).prepared) for name in known.names]
    given = Given() if rule.when is None else _given(rule.when, seen, known.config)
    pattern = rule.kind.pattern.at_start if isinstance(rule.kind, Unwrap) else rule.kind.pattern
    made_up = _made_up(pattern) if isinstance(pattern, Template) else []
    for name in [real] if real is not None else made_up:
        found = everything.given((name, *given.names), given.config).rewrite(name)
        if label in found.rules:
            becomes: dict[str, Any] = {"dropped" if found.reason is not None else "unmapped": True}
            if found.target is not None:
                becomes = {"to": found.target}
            return NameTest.model_validate({"from": name, "given": given, **becomes})
    return None


def _made_up(template: Template) -> list[str]:
    return [
        template.fill({field: values[kind] for field, kind in template.fields.items()})
        for values in _FILLED
    ]


def _given(
    when: Condition, seen: Sequence[tuple[str, str]], config: Mapping[str, Any] | None
) -> Given:
    """What makes a `when` hold: names and values of the checkpoint, or made-up ones.

    Args:
        seen: names of the checkpoint, each as it is stored and as the condition sees it.
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
    """A test's name, in a checkpoint that has besides what the test says is `given`."""
    found = program.given((test.from_, *test.given.names), test.given.config).rewrite(test.from_)
    wanted = test.to or (DROPPED if test.dropped else UNMAPPED)
    return TestResult(test.from_, wanted, outcome(found), found.rules)
