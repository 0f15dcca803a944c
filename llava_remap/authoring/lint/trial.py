"""Tries the rules of a rule file on names made from them, on the names of its tests, and on real
names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from llava_remap.authoring.in_file_tests import Known
from llava_remap.core.problem import Mark, Problem, RemapError
from llava_remap.rewrite import CompiledRule, Operated, Program, Rewrite
from llava_remap.rulefile import Condition, RuleFile


@dataclass(frozen=True, slots=True)
class Names(Known):
    """Real names to try a rule file on.

    Attributes:
        misfits: problems of rules for which `apply` would refuse these sources, such as operations
            whose sizes don't add up; each with its place.
        wanted: the parameters of the target; None if the rule file has no target or the parameters
            are unknown.
        unknown: why the parameters are unknown, in words.
        complete: whether the rules must take every name, as the rules of a whole rule file must.
    """

    wanted: frozenset[str] | None = None
    unknown: str = ""
    complete: bool = False
    misfits: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of a rule file.

    Attributes:
        mark: the place of the problem; None if the problem has no place in a file.
        note: whether the problem doesn't change the exit code.
        lost: new names that don't lead back to the names they were made from.
    """

    mark: Mark | None
    problem: Problem
    note: bool = False
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, problem: Problem) -> Finding:
        """The finding of a problem with a place."""
        return cls(problem.place, replace(problem, place=None))

    def place(self, file: str) -> tuple[bool, str, int, int, str]:
        """The key by which findings are sorted: findings in `file` come first."""
        mark = self.mark or Mark("", 0, 0)
        return mark.file != file, mark.file, mark.line, mark.column, self.problem.code


@dataclass(frozen=True, slots=True)
class Linted:
    """The findings of a rule file, and the extent of the trial.

    Attributes:
        file: the rule file's name in messages.
        findings: in order of place; findings in the file itself come first.
        loaded: whether the file is a valid rule file. If not, the findings say why, and the other
            fields are empty.
        rules, tests, witnesses: their numbers. Operations count as rules. A witness is a name made
            from a template, or the name of a test.
        names: how many real names the rules were tried on; None without a source.
        targets: how many new names led back and forth again to the same name.
        one_way: the rules of `names` that have no way back and the operations that drop a part,
            each with the reason.
        untried: rules whose regex takes none of the names, so that nothing is known about them.
        unknown: why the target's parameters are unknown, if real names were given and the file has
            a target.
    """

    file: str
    findings: tuple[Finding, ...]
    loaded: bool = True
    rules: int = 0
    tests: int = 0
    witnesses: int = 0
    names: int | None = None
    targets: int = 0
    one_way: tuple[tuple[str, str], ...] = ()
    untried: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def reversible(self) -> bool:
        """Whether every rename of `names` has a way back that led every tried name back."""
        return not self.one_way and not any(finding.lost for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether any finding is more than a note."""
        return not all(finding.note for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Ground:
    """A program and its outcome for names.

    Attributes:
        program: rules that apply together, without operations: rules without a `when`, and rules
            with the same `when` or with a `when` that holds.
        whole: the program with its operations.
        rewrites: the outcome of each name, by the rules alone.
        operated: the operation that takes the tensor, for names that an operation takes.
    """

    program: Program
    whole: Program
    rewrites: dict[str, Rewrite]
    operated: dict[str, Operated]

    @classmethod
    def of(cls, program: Program, names: Iterable[str]) -> Ground:
        rules = program.without_operations()
        rewrites = {name: rules.rewrite(name) for name in dict.fromkeys(names)}
        operated = {
            name: operated
            for name, rewrite in rewrites.items()
            if rewrite.reason is None
            and (operated := program.operate(rewrite.target or rewrite.prepared)) is not None
        }
        return cls(rules, program, rewrites, operated)

    @property
    def reached(self) -> set[str]:
        """The labels of the rules and operations that took a name."""
        labels = {label for rewrite in self.rewrites.values() for label in rewrite.rules}
        return labels | {operated.rule.label for operated in self.operated.values()}

    @property
    def targets(self) -> dict[str, str]:
        """Every new name that a rule of `names` made, with the rule's label."""
        return {
            r.target: r.rules[-1]
            for r in self.rewrites.values()
            if r.target is not None and r.operated is None
        }


@dataclass(frozen=True, slots=True)
class Trial:
    """Rules and their outcome for names.

    Attributes:
        rules: the rules that are tried.
        program: these rules, and the operations.
        runaways: LR206 for each rule that hit the time limit on the name of a test; such a rule
            isn't tried any further.
        witnesses: for each rule, by label: names made from its template and names of tests that the
            rule takes when no other rule is asked.
        taken: for each rule, by label: its witnesses, and all names that reached it.
        assumed: for each rule, by label: all witnesses in the program in which only this rule's
            `when` holds.
        real: the real names in the program for their checkpoint; None without real names.
        grounds: the distinct grounds of `assumed`, and `real`.
        names: the real names.
    """

    file: RuleFile
    rules: tuple[CompiledRule, ...]
    program: Program
    runaways: tuple[Finding, ...]
    witnesses: Mapping[str, tuple[str, ...]]
    taken: Mapping[str, Collection[str]]
    assumed: Mapping[str, Ground]
    real: Ground | None
    grounds: tuple[Ground, ...]
    names: Names

    @classmethod
    def of(cls, file: RuleFile, program: Program, names: Names | None) -> Trial:
        """Try the rules of a program: all rules of the file or some of them.

        Raises:
            RemapError: LR206 if a rule hit its time limit on a name that other rules had changed.
        """
        made, runaways = _witnesses(file, program)
        for label in runaways:
            program = program.without(label)
        witnesses = {rule.label: tuple(made[rule.label]) for rule in program.rules}
        every = [name for test in file.text.tests for name in test.old_names]
        every += (name for names in witnesses.values() for name in names)
        grounds: list[tuple[Condition | None, Ground]] = []
        for rule in program.rules:
            if all(condition != rule.when for condition, _ in grounds):
                grounds.append((rule.when, Ground.of(program.assuming(rule.when), every)))
        assumed = {
            rule.label: ground
            for rule in program.rules
            for condition, ground in grounds
            if condition == rule.when
        }
        tried, real = [ground for _, ground in grounds], None
        if names is not None:
            real = Ground.of(program.given(names.names, names.config), names.taken)
            tried.append(real)
        taken = {label: dict.fromkeys(names) for label, names in witnesses.items()}
        for rewrite in (rewrite for ground in tried for rewrite in ground.rewrites.values()):
            for step in rewrite.trace:
                taken.setdefault(step.rule, {})[step.before] = None
        return cls(
            file,
            program.rules,
            program,
            tuple(runaways.values()),
            witnesses,
            taken,
            assumed,
            real,
            tuple(tried),
            names or Names(),
        )

    @property
    def own(self) -> str:
        """The linted file, as marks name it. Rules whose mark names another file are inherited."""
        return self.file.tree.mark.file

    @property
    def led_back(self) -> set[str]:
        """New names made by rules with a way back, from the real names or, without real names, from
        all witnesses.
        """
        targets = set()
        for ground in [self.real] if self.real else self.grounds:
            back = {rule.label for rule in ground.program.names if not rule.kind.one_way}
            targets |= {target for target, label in ground.targets.items() if label in back}
        return targets


def _witnesses(
    file: RuleFile, program: Program
) -> tuple[Mapping[str, Collection[str]], Mapping[str, Finding]]:
    """The witnesses of each rule, by label, and LR206 for each rule that hit its time limit on the
    name of a test.
    """
    made = {rule.label: dict.fromkeys(rule.kind.pattern.examples) for rule in program.rules}
    runaways: dict[str, Finding] = {}
    for name in (name for test in file.text.tests for name in test.old_names):
        for rule in program.asked(name):
            try:
                made[rule.label] |= {} if rule(name) is None else {name: None}
            except RemapError as error:
                runaways[rule.label] = Finding.of(error.problems[0])
    return made, runaways
