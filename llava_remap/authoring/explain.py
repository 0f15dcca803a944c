"""Why names became what they became, rule by rule. For a name that no rule took: the nearest rules,
and why they don't match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llava_remap.authoring.name_set import NameSet, read_names
from llava_remap.core.problem import RemapError, refuse
from llava_remap.planning.boxes import Box, Shape
from llava_remap.rewrite import Rewrite, compile_all, contradictions
from llava_remap.rulefile import Operation, RuleFile

#: How many rules are named for a name that no rule took.
MOST_NEAREST = 3
_WORD = re.compile(r"[A-Za-z0-9_]+")


class ExplainedStep(NamedTuple):
    """A rule that took a name.

    Attributes:
        rule: `prepare/ID`, `names/ID` or `tensors/ID`.
        pattern, makes: as the rule file has them; `makes` is None for a drop, empty for a wrapper.
            For an operation, the templates of `from` or `to`.
        after: the name after the rule; None for a drop. For an operation, the new names.
    """

    rule: str
    pattern: str
    makes: str | None
    after: str | None


class NearRule(NamedTuple):
    """A rule of `names` that almost took a name, and why it didn't."""

    rule: str
    pattern: str
    why: str


class Move(NamedTuple):
    """A region of a tensor, and where an operation puts it.

    Attributes:
        taken: the region of the tensor, `it`, in words.
        placed: the region of the new tensor in words, or why the region is dropped.
        taken_box: the region of the tensor.
        placed_box: the region of the new tensor; None for a region that is dropped.
    """

    taken: str
    placed: str
    taken_box: Box
    placed_box: Box | None

    def to_json(self) -> dict[str, Any]:
        box = self.placed_box
        return {
            "words": f"{self.taken} → {self.placed}",
            "target": None if box is None else box.name,
            "taken": self.taken_box.to_json(),
            "placed": None if box is None else box.to_json(),
        }


class LeftOut(NamedTuple):
    """A rule whose `when` doesn't hold for the checkpoint, with the reasons."""

    rule: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The outcome of a name, and how it came about.

    Attributes:
        nearest: for an unmapped name, the rules that nearly match it, the nearest first.
        moves: for a tensor that an operation takes, where its numbers go; empty where sizes aren't
            known.
    """

    rewrite: Rewrite
    steps: tuple[ExplainedStep, ...]
    nearest: tuple[NearRule, ...]
    moves: tuple[Move, ...] = ()

    @property
    def outcome(self) -> Literal["mapped", "dropped", "unmapped"]:
        if self.rewrite.target is not None:
            return "mapped"
        return "dropped" if self.rewrite.reason is not None else "unmapped"

    def to_json(self) -> dict[str, Any]:
        """An entry of the JSON. `operation` is there for a tensor that an operation takes; it has
        the new names then, and `target` is null.
        """
        found = {
            "outcome": self.outcome,
            "target": self.rewrite.target,
            "reason": self.rewrite.reason,
            "steps": [step._asdict() for step in self.steps],
            "nearest": [near._asdict() for near in self.nearest],
        }
        if (operated := self.rewrite.operated) is None:
            return found
        return {
            **found,
            "target": None,
            "operation": {
                "rule": operated.rule.label,
                "does": str(operated.rule.operation),
                "targets": operated.makes,
                "moves": [move.to_json() for move in self.moves],
            },
        }


class Explainer:
    """The rules of a file for one checkpoint, to be asked about its names.

    Args:
        names, config: of the first source, as in `compile_rules`.
    """

    def __init__(
        self, rules: RuleFile, names: Collection[str], config: Mapping[str, Any] | None
    ) -> None:
        everything = compile_all(rules)
        self.program = everything.given(names, config)
        prepared = [self.program.rewrite(name).prepared for name in names]
        counting = {rule.label for rule in self.program.everything}
        self.left_out = tuple(
            LeftOut(
                rule.label,
                tuple(contradictions(rule.when, seen, config, where=where)),
            )
            for listed, seen, where in (
                (everything.prepare, names, "as it is stored"),
                (everything.names, prepared, "after `prepare`"),
                (everything.tensors, prepared, "after `prepare`"),
            )
            for rule in listed
            if rule.when is not None and rule.label not in counting
        )
        # The program also has the rules of a layout.
        self._names = {rule.label: rule for rule in (*everything.names, *self.program.names)}
        self._described = {
            rule.label: rule.kind.describe()
            for rule in (*everything.prepare, *self._names.values())
        }
        self._described |= {
            compiled.label: _described(compiled.operation) for compiled in everything.tensors
        }

    def explain(self, rewrite: Rewrite, moves: Sequence[Move] = ()) -> Explanation:
        """Explain the rewrite of a name.

        Args:
            moves: where an operation puts the tensor's numbers.

        Raises:
            RemapError: LR206 if a regex hit its time limit.
        """
        steps = tuple(
            ExplainedStep(step.rule, *self._described[step.rule], step.after)
            for step in rewrite.trace
        )
        is_unmapped = rewrite.target is None and rewrite.reason is None
        nearest = self._nearest(rewrite.prepared) if is_unmapped else ()
        return Explanation(rewrite, steps, nearest, tuple(moves))

    def _nearest(self, name: str) -> tuple[NearRule, ...]:
        """The rules that have anything in common with the name, the nearest first: by how far they
        match the name, then by how many of their words are in the name.
        """
        held_back = {left.rule: left.why for left in self.left_out}
        scored = []
        for rule in self._names.values():
            pattern = rule.kind.pattern
            words = set(_WORD.findall(pattern.literals))
            shared = len(words & set(_WORD.findall(name))) / max(len(words), 1)
            mismatch = None if rule(name) is not None else pattern.mismatch(name)
            matched, why = mismatch or (
                len(name),
                f"it matches, but its `when` doesn't hold: {'; '.join(held_back[rule.label])}",
            )
            if shared or "." in pattern.literals[:matched]:
                scored.append((matched, shared, NearRule(rule.label, pattern.text, why)))
        scored.sort(key=lambda entry: entry[:2], reverse=True)
        return tuple(near for _, _, near in scored[:MOST_NEAREST])


@dataclass(frozen=True, slots=True)
class ExplainedName:
    """A name, as its source spells it; `source` is empty for a name in no given source."""

    source: str
    name: str
    explanation: Explanation

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source or None, "name": self.name, **self.explanation.to_json()}


@dataclass(frozen=True, slots=True)
class ExplainedNames:
    """The explanations of names.

    Attributes:
        left_out: rules whose `when` doesn't hold for these names and their config.
        aside: for a source from which not all names are taken: how many are, and why, in words.
        unknown: why it isn't known where an operation puts the numbers of some tensors.
    """

    rules: RuleFile
    names: tuple[ExplainedName, ...]
    left_out: tuple[LeftOut, ...]
    aside: Mapping[str, str]
    unknown: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": {
                "name": self.rules.name,
                "version": self.rules.text.version,
                "sha256": self.rules.sha256,
            },
            "left_out": [{"rule": left.rule, "why": list(left.why)} for left in self.left_out],
            "aside": dict(self.aside),
            "sizes_unknown": self.unknown or None,
            "names": [name.to_json() for name in self.names],
        }


def _described(operation: Operation) -> tuple[str, str]:
    """The templates of `from` and of `to`; a part that is dropped has none."""
    sources, targets = (
        " + ".join("(dropped)" if end.names is None else end.names.text for end in ends)
        for ends in (operation.sources, operation.targets)
    )
    return sources, targets


def explainer_for(rules: RuleFile, given: Sequence[str], *, offline: bool = False) -> Explainer:
    """The rules for the checkpoints that `--source` arguments give; without arguments, for an
    unknown checkpoint.
    """
    known = _read(rules, given, (), offline)
    return Explainer(rules, known.stored, known.config)


def explain_names(
    rules: RuleFile, names: Sequence[str], given: Sequence[str], *, offline: bool = False
) -> ExplainedNames:
    """Explain names, or all names that are taken from checkpoints.

    Args:
        names: as their source spells them. A name that no given source has already includes its
            source's prefix.
        given: `--source` arguments.

    Raises:
        RemapError: LR211 where neither is given or a name is empty, LR206, and as `read_names`.
    """
    if not names and not given:
        raise refuse(
            "LR211",
            "no name to explain was given.",
            "Give names of tensors, or --source SRC for all of a checkpoint.",
        )
    if "" in names:
        raise refuse(
            "LR211",
            "a name to explain is empty.",
            "Give a tensor's name as it is stored in the checkpoint.",
        )
    wanted = list(dict.fromkeys(names))
    known = _read(rules, given, wanted, offline)
    explainer = Explainer(rules, known.stored, known.config)
    rewrites = list(known.rewrites(rules, explainer.program))
    if wanted:
        there = {name for _, name, _ in rewrites}
        rewrites = [entry for entry in rewrites if entry[1] in wanted]
        rewrites += [
            ("", name, explainer.program.rewrite(name)) for name in wanted if name not in there
        ]
    moves, unknown = _NO_MOVES, ""
    if any(rewrite.operated is not None for _, _, rewrite in rewrites):
        moves, unknown = _moves(rules, given, known, offline)
    entries = tuple(
        ExplainedName(
            source,
            name,
            explainer.explain(
                rewrite, () if rewrite.operated is None else moves.get((source, name), ())
            ),
        )
        for source, name, rewrite in rewrites
    )
    return ExplainedNames(rules, entries, explainer.left_out, known.aside, unknown)


_Moves = Mapping[tuple[str, str], Sequence[Move]]
_NO_MOVES: _Moves = {}


def _moves(
    rules: RuleFile, given: Sequence[str], known: NameSet, offline: bool
) -> tuple[_Moves, str]:
    """Where operations put the numbers of each tensor, by source and name; and why that isn't known
    for some tensors.
    """
    from llava_remap.jobs.apply import Options, plan_mapping
    from llava_remap.planning.regions import in_words

    if not given:
        return {}, "no checkpoint is given, so sizes are unknown"
    if known.names_alone:
        return {}, "only the checkpoint's names are known, not its sizes"
    if rules.text.target is None or not rules.text.target.is_said:
        return {}, "the rule file has no target, so sizes are unknown"
    try:
        plan = plan_mapping(rules.path, given, Options(dry_run=True, offline=offline)).plan
    except RemapError as error:
        return {}, f"sizes are unknown: {error.problems[0].cause}"
    moves: dict[tuple[str, str], list[Move]] = {}
    shapes: dict[tuple[str, str], Shape] = {}
    for mapped in plan.mapped:
        for part in mapped.parts:
            at = part.source, part.taken.name
            shapes[at] = part.shape
            taken = in_words(part.taken, part.shape, "it")
            placed = in_words(part.placed, mapped.shape_before)
            moves.setdefault(at, []).append(Move(taken, placed, part.taken, part.placed))
    for dropped in plan.dropped:
        if dropped.box is not None:
            at = dropped.source, dropped.name
            taken = in_words(dropped.box, shapes[at], "it")
            moves[at].append(Move(taken, f"dropped: {dropped.reason}", dropped.box, None))
    for found in moves.values():
        found.sort(key=lambda move: move.taken_box.start)
    refused = next((problem for problem in plan.problems if problem.place is not None), None)
    return moves, "" if refused is None else refused.cause


def _read(rules: RuleFile, given: Sequence[str], names: Sequence[str], offline: bool) -> NameSet:
    """The names of checkpoints; without any checkpoint, the given names and no config."""
    if given:
        return read_names(rules, given, offline=offline)
    return NameSet({}, {}, names, None, {})
