"""Compiles a rule file into a program that translates names to new names, and back. Pure: no files,
no tensors.

A name goes through every rule of `prepare` in turn, each at most once, which removes wrappers and
drops buffers. Then the first rule of `names` that matches renames it. The first operation of
`tensors` that matches takes the tensor under that name. A name that no rule of `names` or `tensors`
matches is unmapped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from llava_remap.rewrite.compiled import (
    CompiledOperation,
    CompiledRule,
    Index,
    OperationIndex,
    RuleSequence,
)
from llava_remap.rulefile import (
    Condition,
    Drop,
    Rule,
    RuleFile,
    Taken,
    Template,
    TimeSpent,
)

#: The most characters of a config's value in a message.
_LONGEST = 200


class Step(NamedTuple):
    """One rule that matched: `rule` is `prepare/ID` or `names/ID`; `after` is None for a drop."""

    rule: str
    before: str
    after: str | None


class Operated(NamedTuple):
    """The operation that takes a tensor, and the tensor's role in it."""

    rule: CompiledOperation
    taken: Taken

    @property
    def makes(self) -> list[str]:
        """The new names for messages. The name of a list keeps the field that numbers it."""
        return self.rule.operation.described(self.taken.fields)


class Rewrite(NamedTuple):
    """The result of rewriting a name.

    Attributes:
        source: the old name.
        target: the new name; None if the tensor is dropped or no rule of `names` or `tensors`
            matches. If an operation takes the tensor, the name that the operation matched.
        reason: why it was dropped, or None.
        prepared: the name after `prepare`; for a dropped tensor, the name just before the drop.
        trace: the rules that matched, in order.
        operated: the operation of `tensors` that takes the tensor; None without one.
    """

    source: str
    target: str | None
    reason: str | None
    prepared: str
    trace: tuple[Step, ...]
    operated: Operated | None = None

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(step.rule for step in self.trace)

    def renamed(self, names: Mapping[str, str]) -> Rewrite:
        """The same result, with the target replaced as `names` says. If an operation takes the
        tensor, nothing changes, since `target` is then no parameter's name.
        """
        if self.operated is not None:
            return self
        return self._replace(target=names.get(self.target or "", self.target))


@dataclass(frozen=True)
class Program:
    """Compiled rules, in order.

    Attributes:
        tensors: operations, which match the names that `names` makes.
        layouts: the rules of each layout. In the program for a checkpoint (`given`), the rules of
            one layout stand behind `names`.
    """

    prepare: tuple[CompiledRule, ...]
    names: tuple[CompiledRule, ...]
    layouts: tuple[tuple[CompiledRule, ...], ...] = ()
    tensors: tuple[CompiledOperation, ...] = ()

    def rewrite(self, name: str, without: str = "") -> Rewrite:
        """Take one name through the rules.

        Args:
            without: the label of a rule to leave out, to see what the rule prevents.

        Raises:
            RemapError: LR206 if a regex of the rule file hit its time limit on this name.
        """
        trace: list[Step] = []
        prepared, start = name, 0
        while (found := self._prepare.first(prepared, start, without)) is not None:
            start, rule, after = found
            if isinstance(rule.kind, Drop):
                trace.append(Step(rule.label, prepared, None))
                return Rewrite(name, None, rule.kind.reason, prepared, tuple(trace))
            trace.append(Step(rule.label, prepared, after))
            prepared = after
        target: str | None = None
        if (found := self._names.first(prepared, 0, without)) is not None:
            _, rule, target = found
            if isinstance(rule.kind, Drop):
                trace.append(Step(rule.label, prepared, None))
                return Rewrite(name, None, rule.kind.reason, prepared, tuple(trace))
            trace.append(Step(rule.label, prepared, target))
        by_name = target or prepared
        if (done := self.operate(by_name, without)) is not None:
            trace.append(Step(done.rule.label, by_name, " and ".join(done.makes)))
            return Rewrite(name, by_name, None, prepared, tuple(trace), done)
        return Rewrite(name, target, None, prepared, tuple(trace))

    def operate(self, name: str, without: str = "") -> Operated | None:
        """The operation that takes a tensor with this name, which `names` made or `prepare` left;
        None without one.
        """
        operated = self._tensors.first(name, without) if self.tensors else None
        return None if operated is None else Operated(*operated)

    def inverse(self, target: str) -> str | None:
        """The only name, after `prepare`, that `names` takes to `target`; None if there is none, or
        more than one.

        The result is checked: `rewrite` takes it to `target`.

        Raises:
            RemapError: LR206 if a regex of the rule file hit its time limit on the way.
        """
        candidates = {
            name
            for rule in self.leading_back(target)
            if (name := rule.lead_back(target)) is not None
        }
        # A name by which an operation takes a tensor may also be that of a parameter.
        found = [name for name in candidates if self._renames(name, target)]
        return found[0] if len(found) == 1 else None

    def _renames(self, name: str, target: str) -> bool:
        done = self.rewrite(name)
        return done.target == target and done.operated is None

    def inverse_of_taken(self, taken: str) -> str | None:
        """As `inverse`, for the name by which an operation takes a tensor. A name that no rule of
        `names` makes stays as it is.
        """
        candidates = {rule.lead_back(taken) for rule in self.leading_back(taken)} - {None}
        found = []
        for name in map(str, candidates or {taken}):
            done = self.rewrite(name)
            if done.target == taken and done.operated is not None:
                found.append(name)
        return found[0] if len(found) == 1 else None

    def made_by(self, name: str) -> list[Operated]:
        """The operations that make a parameter, each with the end, fields and number that do."""
        return [
            Operated(rule, made)
            for rule in self.tensors
            if (made := rule.operation.made_from(name)) is not None
        ]

    def leading_back(self, target: str) -> list[CompiledRule]:
        """The rules of `names` whose way back may match a target, in their order."""
        return [self.names[number] for number in self._backs.asked(target)]

    def asked(self, name: str) -> list[CompiledRule]:
        """Every rule that may take a name if no rule before it does."""
        return [*self._prepare.asked(name), *self._names.asked(name)]

    def without(self, label: str) -> Program:
        """The same program without one rule."""
        return self._only(lambda rule: rule.label != label)

    def given(self, names: Collection[str], config: Mapping[str, Any] | None) -> Program:
        """The program for one checkpoint: with one layout, and without rules whose `when` doesn't
        hold.
        """
        conditions = [rule.when for rule in self.rules] + [rule.when for rule in self.tensors]
        if not self.layouts and not any(conditions):
            return self
        prepare = tuple(rule for rule in self.prepare if _holds(rule.when, names, config))
        first = Program(prepare, ())
        prepared = [first.rewrite(name).prepared for name in names]
        own = tuple(rule for rule in self.names if _holds(rule.when, prepared, config))
        layout = max(self.layouts, key=lambda rules: _taken(rules, prepared), default=())
        tensors = tuple(rule for rule in self.tensors if _holds(rule.when, prepared, config))
        all_names = (*own, *layout) if _taken(layout, prepared) else own
        return Program(prepare, all_names, tensors=tensors)

    def without_operations(self) -> Program:
        """The same rules, and no operations."""
        return replace(self, tensors=())

    def assuming(self, condition: Condition | None) -> Program:
        """The program without rules whose `when` differs from `condition`."""
        return self._only(lambda rule: rule.when is None or rule.when == condition)

    def _only(self, wanted: Callable[[CompiledRule | CompiledOperation], bool]) -> Program:
        return Program(
            tuple(filter(wanted, self.prepare)),
            tuple(filter(wanted, self.names)),
            self.layouts,
            tuple(filter(wanted, self.tensors)),
        )

    @property
    def rules(self) -> tuple[CompiledRule, ...]:
        """The rules of `prepare` and of `names`, in order."""
        return (*self.prepare, *self.names)

    @property
    def everything(self) -> tuple[CompiledRule | CompiledOperation, ...]:
        """Rules and operations, in order."""
        return (*self.prepare, *self.names, *self.tensors)

    @cached_property
    def _prepare(self) -> RuleSequence:
        return RuleSequence(self.prepare)

    @cached_property
    def _names(self) -> RuleSequence:
        return RuleSequence(self.names)

    @cached_property
    def _tensors(self) -> OperationIndex:
        return OperationIndex(self.tensors)

    @cached_property
    def _backs(self) -> Index:
        return Index([rule.kind.back_segments for rule in self.names])


def compile_rules(
    rules: RuleFile, names: Collection[str] = (), config: Mapping[str, Any] | None = None
) -> Program:
    """Compile the rules of a validated rule file for a checkpoint. Loading checked all patterns.

    Args:
        names, config: the first source's names and config, for the rules' `when`.
    """
    return compile_all(rules).given(names, config)


def compile_all(rules: RuleFile) -> Program:
    """Compile every rule of a rule file, whatever its `when`, to check the rules themselves."""
    text, spent = rules.text, TimeSpent()
    return Program(
        tuple(_compile(f"prepare/{rule.id}", rule, rules, spent) for rule in text.prepare),
        tuple(_compile(f"names/{rule.id}", rule, rules, spent) for rule in text.names),
        tuple(
            tuple(
                replace(rule, label=f"{layout.name}/{rule.id}")
                for rule in compile_all(layout).names
            )
            for layout in rules.layouts
        ),
        tuple(
            CompiledOperation(
                label := f"tensors/{rule.id}",
                rule.operation,
                rules.marks[label],
                rule.when,
                rule.optional,
            )
            for rule in text.tensors
        ),
    )


def _compile(label: str, rule: Rule, file: RuleFile, spent: TimeSpent) -> CompiledRule:
    return CompiledRule(label, rule.kind, file.marks[label], rule.when, rule.optional, spent)


def _holds(
    condition: Condition | None, names: Collection[str], config: Mapping[str, Any] | None
) -> bool:
    return condition is None or not contradictions(condition, names, config)


def _taken(rules: tuple[CompiledRule, ...], names: Collection[str]) -> int:
    """The number of names that one of the rules takes."""
    sequence = RuleSequence(rules)
    return sum(sequence.first(name, 0) is not None for name in names)


def contradictions(
    condition: Condition,
    names: Collection[str],
    config: Mapping[str, Any] | None,
    *,
    where: str = "",
    whose: str = "its config",
) -> list[str]:
    """Why a condition of a rule file (`detect`, or a rule's `when`) doesn't hold for a checkpoint;
    empty if it holds.

    Args:
        names: the first source's names: as stored for the `when` of a rule of `prepare`, otherwise
            after `prepare`.
        config: the source's config; None if it has none.
        where: the step at which the checkpoint has these names, in words.
        whose: the words for the config.
    """
    it = f"{where} it" if where else "it"
    reasons = [f"{it} has no `{t}`" for t in condition.present if not _matches(t, names)]
    reasons += [f"{it} has `{t}`" for t in condition.absent if _matches(t, names)]
    for key, wanted in condition.config.items():
        value, allowed = _value(config, key), wanted if isinstance(wanted, tuple) else (wanted,)
        if not _is_one_of(value, allowed):
            shown = repr(value) if len(repr(value)) <= _LONGEST else f"{repr(value)[:_LONGEST]}…"
            given = f"{whose} says {key}: {shown}"
            if config is None:
                given = f"it has no config.json to say {key}"
            reasons.append(f"{given}, not {' or '.join(map(repr, allowed))}")
    for key, refused in condition.config_not.items():
        value, excluded = _value(config, key), refused if isinstance(refused, tuple) else (refused,)
        if _is_one_of(value, excluded):
            reasons.append(f"{whose} says {key}: {value!r}")
    return reasons


def _value(config: Mapping[str, Any] | None, key: str) -> Any:
    """The value of a config under a key, with dots for nested ones; the first item if it is a
    list.
    """
    value: Any = config or {}
    if key in value:
        value = value[key]
    else:
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return (value[0] if value else None) if isinstance(value, list) else value


def _is_one_of(value: Any, others: Sequence[Any]) -> bool:
    """Whether a value is among others of the same type: 1 is neither True nor 1.0."""
    return any(value == other and type(value) is type(other) for other in others)


def _matches(template: Template, names: Collection[str]) -> bool:
    return any(template.match(name) is not None for name in names)
