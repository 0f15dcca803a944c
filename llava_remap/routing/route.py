"""Takes every source name through the program: each source's tensors with their new names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.rewrite import CompiledOperation, Program, Rewrite, Step, compile_rules
from llava_remap.routing.shapes import made_shape
from llava_remap.rulefile import RuleFile, Source
from llava_remap.target_model import nearest_layout


@dataclass(frozen=True, slots=True, order=True)
class SourceName:
    """A tensor of a source, in the source's own spelling."""

    source: str
    name: str


@dataclass(frozen=True, slots=True)
class Routed:
    """A source tensor, and the program's result for its name."""

    source: str
    tensor: Tensor
    rewrite: Rewrite

    @property
    def origin(self) -> SourceName:
        return SourceName(self.source, self.tensor.name)


@dataclass(frozen=True, slots=True)
class RoutedPair:
    """A pair of an adapter's matrices, and the program's result for the name of the tensor that the
    pair changes.
    """

    source: str
    a: Tensor
    b: Tensor
    scale: float | None
    rewrite: Rewrite

    @property
    def origins(self) -> tuple[SourceName, SourceName]:
        return SourceName(self.source, self.a.name), SourceName(self.source, self.b.name)


@dataclass(frozen=True, slots=True)
class Applied:
    """An operation on tensors that belong together, since the fields of their names are equal.

    Attributes:
        sources: (number of the end, number in a list) → tensors.
        fields: the values of the fields.
        renamed: new name by the rule file → its name in the layout that is written.
    """

    rule: CompiledOperation
    sources: Mapping[tuple[int, int], tuple[Routed, ...]]
    fields: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def made(self, end: int, number: int = 0) -> str | None:
        """The name of a new tensor; None for a part that is dropped."""
        name = self.rule.operation.made(end, self.fields, number)
        return None if name is None else self.renamed.get(name, name)

    def made_of(self, wanted: Collection[str]) -> dict[tuple[int, int], str]:
        """(number of the end, number in a list) → name of a new tensor. A list has as many tensors
        as the target has parameters with such names.
        """
        names: dict[tuple[int, int], str] = {}
        for end, made in enumerate(self.rule.operation.targets):
            number = 0
            while (name := self.made(end, number)) is not None:
                if made.each and name not in wanted:
                    break
                names[end, number] = name
                number += 1
                if not made.each:
                    break
        return names

    @property
    def made_alone(self) -> Tensor | None:
        """The one tensor that it makes; None for several, or if its shape isn't known before the
        target's.
        """
        shapes = {place: found[0].tensor.shape for place, found in self.sources.items()}
        shape, name = made_shape(self.rule.operation, shapes), self.made(0)
        if shape is None or name is None:
            return None
        return Tensor.of(name, next(self.tensors).tensor.dtype, shape, None)

    @property
    def tensors(self) -> Iterator[Routed]:
        """All tensors that the operation takes."""
        return (routed for found in self.sources.values() for routed in found)


_AnyRouted = TypeVar("_AnyRouted", Routed, RoutedPair)


@dataclass(frozen=True, slots=True)
class Routes:
    """All source tensors.

    Attributes:
        taken: the tensors to use, in the order of sources and of their catalogs; sources that
            override stand behind the others.
        beside: the tensors of sources that aren't used, since the first source has its own
            (`used_if_absent`).
        unselected: used sources without a tensor that `select` takes.
        not_given: needed sources that weren't given.
        pairs: the pairs of adapters, and of models with an unmerged adapter.
        replaced: tensors that a source with `overrides` replaces, each with that source.
        operations: the operations on tensors of `taken`.
    """

    taken: tuple[Routed, ...]
    beside: tuple[Routed, ...] = ()
    unselected: tuple[str, ...] = ()
    not_given: tuple[str, ...] = ()
    pairs: tuple[RoutedPair, ...] = ()
    replaced: tuple[tuple[Routed, str], ...] = ()
    operations: tuple[Applied, ...] = ()

    def renamed(self, names: Mapping[str, str]) -> Routes:
        """The same tensors, some with other target names. `names`: old → new target name."""

        def rename(routed: _AnyRouted) -> _AnyRouted:
            return replace(routed, rewrite=routed.rewrite.renamed(names))

        return replace(
            self,
            taken=tuple(map(rename, self.taken)),
            beside=tuple(map(rename, self.beside)),
            pairs=tuple(map(rename, self.pairs)),
            replaced=tuple((rename(routed), source) for routed, source in self.replaced),
            operations=tuple(
                replace(applied, renamed=_followed(applied.renamed, names))
                for applied in self.operations
            ),
        )

    @property
    def produced(self) -> dict[str, Tensor]:
        """Target name → tensor; the first one, if several have the same target. Of what operations
        make, it has the tensors whose shape the old ones tell.
        """
        produced: dict[str, Tensor] = {}
        for routed in self.taken:
            if routed.rewrite.target is not None and routed.rewrite.operated is None:
                produced.setdefault(routed.rewrite.target, routed.tensor)
        for applied in self.operations:
            if (tensor := applied.made_alone) is not None:
                produced.setdefault(tensor.name, tensor)
        return produced

    def origin(self, target: str) -> SourceName | None:
        """The source name of the first tensor with a target name; None without such a tensor."""
        return next(
            (routed.origin for routed in self.taken if routed.rewrite.target == target), None
        )


def in_place_of(beside: Routed, single: Mapping[str, Routed], routes: Routes) -> Routed | None:
    """The tensor that counts in place of one that isn't used: both are renamed to a parameter, or
    an operation takes both under one name. None if there is no such tensor.

    Args:
        single: by parameter, the tensor that is renamed to it.
    """
    name, operated = str(beside.rewrite.target), beside.rewrite.operated
    if operated is None:
        return single.get(name)
    return next(
        (
            routed
            for applied in routes.operations
            for routed in applied.tensors
            if routed.rewrite.target == name and routed.rewrite.operated == operated
        ),
        None,
    )


def is_one_tensor(
    checkpoints: Mapping[str, Checkpoint], one: SourceName, other: SourceName
) -> bool:
    """Whether a source stores both names as one tensor."""
    return one.source == other.source and checkpoints[one.source].same_tensor(one.name, other.name)


def route(rules: RuleFile, program: Program, checkpoints: Mapping[str, Checkpoint]) -> Routes:
    """Take the names of every given source, selected and prefixed as the rule file says, through
    the program.
    """
    sources = dict(sorted(rules.text.sources.items(), key=lambda item: item[1].overrides))
    given = [
        name
        for name, source in rules.text.sources.items()
        if name in checkpoints and "tensors" in source.use
    ]
    programs = {
        name: _program_for(rules, program, sources[name], checkpoints[name]) for name in given
    }
    routed = {
        name: [
            Routed(name, tensor, programs[name].rewrite(sources[name].prefix + tensor.name))
            for tensor in _tensors(sources[name], checkpoints[name], programs[name])
        ]
        for name in given
    }
    main = [r for name in given if _is_main(rules, name) for r in routed[name]]
    # For each source that is used only if names are absent, the main sources that have such names.
    having = {
        name: {r.source for r in main if absent.match(r.rewrite.prepared) is not None}
        for name, source in sources.items()
        if (absent := source.used_if_absent) is not None and "tensors" in source.use
    }
    used = [
        name for name in sources if name in given and rules.first_source not in having.get(name, ())
    ]
    taken: list[Routed] = []
    replaced: list[tuple[Routed, str]] = []
    for name in used:
        if sources[name].overrides:
            own = {r.rewrite.target for r in routed[name]} - {None}
            replaced += [(r, name) for r in taken if r.rewrite.target in own]
            taken = [r for r in taken if r.rewrite.target not in own]
        taken += routed[name]
    led: dict[str, set[str]] = defaultdict(set)
    for r in taken:
        if r.rewrite.target is not None:
            led[r.rewrite.target].add(r.rewrite.prepared)
    return Routes(
        taken=tuple(taken),
        beside=tuple(
            r for name in sources if name in given and name not in used for r in routed[name]
        ),
        unselected=tuple(name for name in used if not routed[name] and not sources[name].overrides),
        not_given=tuple(
            name
            for name, source in sources.items()
            if name not in checkpoints and not source.optional and not having.get(name)
        ),
        pairs=tuple(
            pair
            for name in used
            if checkpoints[name].pairs
            for pair in _pairs(
                name,
                sources[name].prefix,
                checkpoints[name],
                programs[name],
                led,
            )
        ),
        replaced=tuple(replaced),
        operations=operations_on(taken),
    )


def operations_on(taken: Sequence[Routed]) -> tuple[Applied, ...]:
    """The operations on these tensors: one for each combination of operation and field values."""
    groups: dict[object, list[Routed]] = defaultdict(list)
    for routed in taken:
        if (operated := routed.rewrite.operated) is not None:
            groups[operated.rule.label, tuple(sorted(operated.taken.fields.items()))].append(routed)
    found = []
    for group in groups.values():
        sources: dict[tuple[int, int], tuple[Routed, ...]] = {}
        for routed in group:
            operated = routed.rewrite.operated
            assert operated is not None
            place = (operated.taken.end, operated.taken.number)
            sources[place] = (*sources.get(place, ()), routed)
        first = group[0].rewrite.operated
        assert first is not None
        found.append(Applied(first.rule, dict(sorted(sources.items())), first.taken.fields))
    return tuple(found)


def _pairs(
    source: str,
    prefix: str,
    checkpoint: Checkpoint,
    program: Program,
    taken: Mapping[str, Collection[str]],
) -> Iterator[RoutedPair]:
    """The pairs of an adapter. If their names are all in a layout of transformers, and the rules
    lead none of them elsewhere in the base, the adapter was trained on the converted model.

    Args:
        taken: as for `_is_known`.
    """
    rewrites = [program.rewrite(prefix + pair.base) for pair in checkpoint.pairs]
    known = [_is_known(rewrite, program, taken) for rewrite in rewrites]
    layout, classic = nearest_layout([rewrite.prepared for rewrite in rewrites])
    is_converted = all(
        rewrite.prepared in classic
        and (not is_known or rewrite.target == classic[rewrite.prepared])
        for rewrite, is_known in zip(rewrites, known, strict=True)
    )
    for pair, rewrite, is_known in zip(checkpoint.pairs, rewrites, known, strict=True):
        if not is_known and is_converted:
            target = classic[rewrite.prepared]
            step = Step(f"layouts/{layout}", rewrite.prepared, target)
            rewrite = rewrite._replace(target=target, trace=(step,), operated=None)
        elif not is_known and rewrite.operated is not None:
            rewrite = rewrite._replace(target=None, operated=None)
        a, b = checkpoint.catalog[pair.a], checkpoint.catalog[pair.b]
        yield RoutedPair(source, a, b, pair.scale, rewrite)


def _is_known(rewrite: Rewrite, program: Program, taken: Mapping[str, Collection[str]]) -> bool:
    """Whether the base has the tensor that a pair changes, or an operation makes it.

    An operation takes names that `names` makes, and would take such a name of the converted model
    too, where the rows have another order.

    Args:
        taken: new name → the names after `prepare` that lead there.
    """
    if (name := rewrite.target) is None:
        return False
    if rewrite.operated is None:
        return name in taken or bool(program.made_by(name))
    return name in taken and (name != rewrite.prepared or name in taken[name])


def _followed(renamed: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """The composition of two renamings: first `renamed`, then `names`."""
    return {**names, **{old: names.get(new, new) for old, new in renamed.items()}}


def _program_for(
    rules: RuleFile, program: Program, source: Source, checkpoint: Checkpoint
) -> Program:
    """The program for a source. An adapter may have been trained in another layout than its base
    has.
    """
    if not rules.layouts or not source.overrides:
        return program
    names = [*(pair.base for pair in checkpoint.pairs), *checkpoint.unpaired]
    return compile_rules(rules, names, checkpoint.config)


def main_names(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """The stored names that conditions of a rule file apply to: those of the first source and of
    sources that override it.
    """
    return tuple(
        source.prefix + tensor.name
        for name, source in rules.text.sources.items()
        if name in checkpoints and _is_main(rules, name)
        for tensor in _tensors(source, checkpoints[name])
    )


def _is_main(rules: RuleFile, source: str) -> bool:
    return source == rules.first_source or rules.text.sources[source].overrides


def _tensors(
    source: Source, checkpoint: Checkpoint, program: Program | None = None
) -> Iterator[Tensor]:
    """The tensors of a source that `select` takes, without the matrices of an adapter's pairs.

    `select` is matched with the name after `prepare`; without a program, with the stored name.
    """
    select = source.selected
    for name, tensor in checkpoint.unpaired.items():
        prepared = name if program is None or not select else program.rewrite(name).prepared
        if not select or any(template.match(prepared) is not None for template in select):
            yield tensor
