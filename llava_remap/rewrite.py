"""Rule file to a compiled program; the program takes names to new names. Pure: no files, no tensors.

A name goes through every rule of `prepare` in turn (wrappers off, buffers dropped), each at most once, and then to the first
rule of `names` that matches. Only a name that a rule of `names` matched counts as mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llava_remap.errors import refuse
from llava_remap.rulefile import Mark, Regex, Rule, RuleFile, RunawayError, Template


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that matched: `rule` is `prepare/ID` or `names/ID`; `after` is None for a drop."""

    rule: str
    before: str
    after: str | None


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What became of a name.

    Attributes:
        source: the name that went in.
        target: the name that came out, or None if it was dropped or no rule of `names` matched it.
        reason: why it was dropped, or None.
        prepared: the name after `prepare`; for a dropped one, as it stood before the drop.
        trace: the rules that matched, in order.
    """

    source: str
    target: str | None
    reason: str | None
    prepared: str
    trace: tuple[Step, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(step.rule for step in self.trace)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A rule, ready to run: `run` gives the new name (for a drop: the name) or None where it doesn't match."""

    label: str
    run: Callable[[str], str | None]
    reason: str | None
    mark: Mark


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled rule file."""

    prepare: tuple[_Compiled, ...]
    names: tuple[_Compiled, ...]

    def rewrite(self, name: str) -> Rewrite:
        """Take one name through the rules.

        Raises:
            RemapError: LR206 if a regex of the rule file hit its time limit on this name.
        """
        trace: list[Step] = []
        prepared = name
        for rule in self.prepare:
            after = _run(rule, prepared)
            if after is None:
                continue
            if rule.reason is not None:
                trace.append(Step(rule.label, prepared, None))
                return Rewrite(name, None, rule.reason, prepared, tuple(trace))
            trace.append(Step(rule.label, prepared, after))
            prepared = after
        for rule in self.names:
            after = _run(rule, prepared)
            if after is None:
                continue
            dropped = rule.reason is not None
            trace.append(Step(rule.label, prepared, None if dropped else after))
            return Rewrite(name, None if dropped else after, rule.reason, prepared, tuple(trace))
        return Rewrite(name, None, None, prepared, tuple(trace))

    def without(self, label: str) -> Program:
        """The same program without one rule, to see what the rule keeps from happening."""
        return Program(tuple(r for r in self.prepare if r.label != label), tuple(r for r in self.names if r.label != label))


def compile_rules(rules: RuleFile) -> Program:
    """Compile the rules of a validated rule file; patterns were checked when it was loaded."""
    return Program(_compile("prepare", rules.text.prepare, rules), _compile("names", rules.text.names, rules))


def _compile(kind: str, rules: Sequence[Rule], file: RuleFile) -> tuple[_Compiled, ...]:
    labels = [f"{kind}/{rule.id}" for rule in rules]
    return tuple(_Compiled(label, _runner(rule), rule.drop, file.marks[label]) for label, rule in zip(labels, rules, strict=True))


def _runner(rule: Rule) -> Callable[[str], str | None]:
    if rule.match is not None:
        return Regex(rule.match, rule.replace).search
    assert rule.from_ is not None
    source = Template(rule.from_)
    target = Template(rule.to) if rule.to is not None else None

    def run(name: str) -> str | None:
        fields = source.match(name)
        if fields is None:
            return None
        return target.fill(fields) if target else name

    return run


def _run(rule: _Compiled, name: str) -> str | None:
    try:
        return rule.run(name)
    except RunawayError:
        raise refuse(
            "LR206",
            f"{rule.mark} the regex of `{rule.label}` ran into the time limit on one name.",
            "Write it as a template, or without nested repetition.",
            [name],
        ) from None


@dataclass(frozen=True, slots=True)
class TestResult:
    """Outcome of one in-file test. `wanted` and `got` are a name, `(dropped)` or `(unmapped)`."""

    __test__ = False  # pytest: not a test class

    name: str
    wanted: str
    got: str

    @property
    def status(self) -> Literal["passed", "failed"]:
        return "passed" if self.wanted == self.got else "failed"


def run_tests(rules: RuleFile) -> list[TestResult]:
    """Run the tests that stand in a rule file, in order."""
    program = compile_rules(rules)
    results = []
    for test in rules.text.tests:
        outcome = program.rewrite(test.from_)
        got = outcome.target or ("(dropped)" if outcome.reason is not None else "(unmapped)")
        results.append(TestResult(test.from_, test.to or ("(dropped)" if test.dropped else "(unmapped)"), got))
    return results
