"""A rule file's rules, tried: on names made from them, on those of its tests, and on real ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from llava_remap.authoring.lint.model import Finding, Names
from llava_remap.core.problem import RemapError
from llava_remap.rewrite import CompiledRule, Program, Rewrite
from llava_remap.rulefile import Condition, RuleFile


@dataclass(frozen=True, slots=True)
class Ground:
    """A program and what it makes of names, each taken through it once.

    Attributes:
        program: only rules that count together: of those with a `when`, those with one, or those
            whose `when` holds.
        rewrites: what became of each name.
    """

    program: Program
    rewrites: dict[str, Rewrite]

    @classmethod
    def of(cls, program: Program, names: Iterable[str]) -> Ground:
        return cls(program, {name: program.rewrite(name) for name in dict.fromkeys(names)})

    @property
    def reached(self) -> set[str]:
        """The labels of the rules that took a name."""
        return {label for rewrite in self.rewrites.values() for label in rewrite.rules}

    @property
    def targets(self) -> dict[str, str]:
        """Every new name, with the label of the rule that made it."""
        return {r.target: r.rules[-1] for r in self.rewrites.values() if r.target is not None}


@dataclass(frozen=True, slots=True)
class Trial:
    """Rules and what they do.

    Attributes:
        rules: those that are tried.
        runaways: LR206 for each rule that hit the time limit on the name of a test; it isn't tried
            any further.
        witnesses: of each rule, by label: names made from its template, and those of tests, that it
            takes when it is asked alone.
        taken: of each rule, by label: its witnesses, and all names that came to it.
        assumed: of each rule, by label: all witnesses in the program in which its `when` holds, and
            no other.
        real: the real names in the program for their checkpoint; None without any.
        wanted: the target's parameters, where they are known.
        complete: whether the rules have to take every real name.
    """

    file: RuleFile
    rules: tuple[CompiledRule, ...]
    runaways: tuple[Finding, ...]
    witnesses: Mapping[str, tuple[str, ...]]
    taken: Mapping[str, Collection[str]]
    assumed: Mapping[str, Ground]
    real: Ground | None
    wanted: Collection[str] | None
    complete: bool = False

    @classmethod
    def of(cls, file: RuleFile, program: Program, names: Names | None) -> Trial:
        """Try the rules of a program, which are those of the file or some of them.

        Raises:
            RemapError: LR206 if one hit its time limit on a name that others had changed.
        """
        made, runaways = _witnesses(file, program)
        for label in runaways:
            program = program.without(label)
        witnesses = {rule.label: tuple(made[rule.label]) for rule in program.rules}
        every = [test.from_ for test in file.text.tests]
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
            real = Ground.of(program.given(names.first, names.config), names.taken)
            tried.append(real)
        return cls(
            file,
            program.rules,
            tuple(runaways.values()),
            witnesses,
            _taken(witnesses, tried),
            assumed,
            real,
            names.wanted if names is not None else None,
            names is not None and names.complete,
        )

    @property
    def own(self) -> str:
        """The file that is looked at, as marks have it; rules with another one are inherited."""
        return self.file.tree.mark.file

    @property
    def grounds(self) -> list[Ground]:
        """Each once."""
        return [
            *{id(ground): ground for ground in self.assumed.values()}.values(),
            *([self.real] if self.real else []),
        ]

    @property
    def led_back(self) -> set[str]:
        """New names made by rules with a way back: of the real names, or without them of all
        witnesses.
        """
        found = set()
        for ground in [self.real] if self.real else self.grounds:
            back = {rule.label for rule in ground.program.names if not rule.kind.one_way}
            found |= {target for target, label in ground.targets.items() if label in back}
        return found


def _witnesses(
    file: RuleFile, program: Program
) -> tuple[Mapping[str, Collection[str]], Mapping[str, Finding]]:
    """The witnesses of each rule, by label, and LR206 for each rule that a test made run away."""
    made = {rule.label: dict.fromkeys(rule.kind.pattern.examples) for rule in program.rules}
    runaways: dict[str, Finding] = {}
    for name in (test.from_ for test in file.text.tests):
        for rule in program.asked(name):
            try:
                made[rule.label] |= {} if rule(name) is None else {name: None}
            except RemapError as error:
                runaways[rule.label] = Finding.of(error.problems[0])
    return made, runaways


def _taken(
    witnesses: Mapping[str, Collection[str]], tried: Iterable[Ground]
) -> Mapping[str, Collection[str]]:
    """Of each rule, by label, its witnesses and all names that came to it."""
    taken = {label: dict.fromkeys(names) for label, names in witnesses.items()}
    for ground in tried:
        for rewrite in ground.rewrites.values():
            for step in rewrite.trace:
                taken.setdefault(step.rule, {})[step.before] = None
    return taken
