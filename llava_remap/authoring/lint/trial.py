"""A rule file's rules, tried: on names made from them, on those of its tests, and on real ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from llava_remap.authoring.lint.model import Names
from llava_remap.authoring.lint.tree import Tree
from llava_remap.authoring.lint.witnesses import tree_of, witnesses
from llava_remap.rewrite import CompiledRule, Program, Rewrite
from llava_remap.rulefile import Condition, RuleFile

#: The tree of each rule's regex, by label; None for one that the standard library can't parse.
Trees = Mapping[str, Tree | None]


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
    def rules(self) -> tuple[CompiledRule, ...]:
        return (*self.program.prepare, *self.program.names)

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
        witnesses: of each rule, by label: names made from it, and those of tests, that it takes
            when it is asked alone.
        assumed: of each rule, by label: all witnesses in the program in which its `when` holds, and
            no other.
        real: the real names in the program for their checkpoint; None without any.
        wanted: the target's parameters, where they are known.
        complete: whether the rules have to take every real name.
    """

    file: RuleFile
    rules: tuple[CompiledRule, ...]
    trees: Trees
    witnesses: Mapping[str, tuple[str, ...]]
    assumed: Mapping[str, Ground]
    real: Ground | None
    wanted: Collection[str] | None
    complete: bool = False

    @classmethod
    def of(cls, file: RuleFile, program: Program, trees: Trees, names: Names | None) -> Trial:
        """Try the rules of a program, which are those of the file or some of them.

        Raises:
            RemapError: LR206 if one hit its time limit on a name.
        """
        rules = (*program.prepare, *program.names)
        tests = [test.from_ for test in file.text.tests]
        made = {
            rule.label: tuple(
                dict.fromkeys(
                    [
                        *witnesses(rule, trees.get(rule.label)),
                        *(name for name in tests if rule(name) is not None),
                    ]
                )
            )
            for rule in rules
        }
        every = [*tests, *(name for some in made.values() for name in some)]
        grounds: list[tuple[Condition | None, Ground]] = []
        for rule in rules:
            if all(condition != rule.rule.when for condition, _ in grounds):
                grounds.append((rule.rule.when, Ground.of(program.assuming(rule.rule.when), every)))
        assumed = {
            rule.label: ground
            for rule in rules
            for condition, ground in grounds
            if condition == rule.rule.when
        }
        real = (
            None
            if names is None
            else Ground.of(program.given(names.first, names.config), names.taken)
        )
        if names is None:
            return cls(file, rules, trees, made, assumed, real, None)
        return cls(file, rules, trees, made, assumed, real, names.wanted, names.complete)

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
            back = {rule.label for rule in ground.program.names if rule.back is not None}
            found |= {target for target, label in ground.targets.items() if label in back}
        return found


def trees_of(file: RuleFile) -> Trees:
    return {
        f"{kind}/{rule.id}": tree_of(rule.match)
        for kind, rules in (("prepare", file.text.prepare), ("names", file.text.names))
        for rule in rules
        if rule.match is not None
    }
