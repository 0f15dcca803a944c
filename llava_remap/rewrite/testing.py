"""The tests that stand in a rule file, run; the rules that none of them reaches, and tests for
those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llava_remap.rewrite.program import Program, Rewrite, compile_all
from llava_remap.rulefile import Condition, Given, NameTest, RuleFile, RuleKind, Template, Unwrap

#: What a test can come to. There is no other.
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
    """What became of a name, in a word: the new name, `(dropped)` or `(unmapped)`."""
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
    own = rules.tree.mark.file
    return [
        label for label, mark in rules.marks.items() if mark.file == own and label not in reached
    ]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a checkpoint.

    Attributes:
        names: of the first source, as they are stored: what a `when` may ask for.
        taken: of all sources, behind their prefix: what the program is asked about.
        config: of the first source.
    """

    names: Sequence[str] = ()
    taken: Sequence[str] = ()
    config: Mapping[str, Any] | None = None


def new_test(rules: RuleFile, label: str, known: Known) -> NameTest | None:
    """A test that reaches a rule, with the outcome that it has now; None where no name is found
    that the rule takes.

    The name is the checkpoint's first one that the rule takes, else the rule's template filled with
    something.
    """
    everything = compile_all(rules)
    rule = next(rule for rule in everything.rules if rule.label == label)
    program = everything.given(known.names, known.config)
    real = next((name for name in known.taken if label in program.rewrite(name).rules), None)
    stored = label.startswith("prepare/")
    seen = [(name, name if stored else program.rewrite(name).prepared) for name in known.names]
    given = Given() if rule.when is None else _given(rule.when, seen, known.config)
    for name in [real] if real is not None else _made_up_for(rule.kind):
        found = everything.given((name, *given.names), given.config).rewrite(name)
        if label in found.rules:
            return _as_test(name, found, given)
    return None


def _made_up_for(kind: RuleKind) -> list[str]:
    """Names that a rule takes; none for a regex."""
    pattern = kind.pattern.at_start if isinstance(kind, Unwrap) else kind.pattern
    return _made_up(pattern) if isinstance(pattern, Template) else []


def _made_up(template: Template) -> list[str]:
    return [
        template.fill({field: values[kind] for field, kind in template.fields.items()})
        for values in _FILLED
    ]


def _given(
    when: Condition, seen: Sequence[tuple[str, str]], config: Mapping[str, Any] | None
) -> Given:
    """What has to be true for a `when`: names of the checkpoint (as stored, as the condition
    sees them), or made-up ones.
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


def _as_test(name: str, found: Rewrite, given: Given) -> NameTest:
    fields: dict[str, Any] = {"from": name, "given": given}
    if found.target is not None:
        return NameTest.model_validate({**fields, "to": found.target})
    return NameTest.model_validate(
        {**fields, "dropped" if found.reason is not None else "unmapped": True}
    )


def _run(program: Program, test: NameTest) -> TestResult:
    """A test's name, in a checkpoint that has besides what the test says is `given`."""
    found = program.given((test.from_, *test.given.names), test.given.config).rewrite(test.from_)
    wanted = test.to or (DROPPED if test.dropped else UNMAPPED)
    return TestResult(test.from_, wanted, outcome(found), found.rules)
