"""Every source name through the program: what each source contributes, under which target name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.rewrite import Program, Rewrite, compile_rules
from llava_remap.rulefile import RuleFile, Source


@dataclass(frozen=True, slots=True, order=True)
class SourceName:
    """A tensor of a source, in the source's own spelling."""

    source: str
    name: str


@dataclass(frozen=True, slots=True)
class Routed:
    """A source tensor and what the program made of its name."""

    source: str
    tensor: Tensor
    rewrite: Rewrite

    @property
    def origin(self) -> SourceName:
        return SourceName(self.source, self.tensor.name)


@dataclass(frozen=True, slots=True)
class RoutedPair:
    """A pair of an adapter's matrices, and what the program made of the name of the tensor that
    it changes.
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
class Routes:
    """All source tensors.

    Attributes:
        taken: those that count, in the order of sources and of their catalogs; sources that
            override stand behind the others.
        beside: those of a source that isn't used since the first source has its own
            (`used_if_absent`).
        unselected: sources that count but of which `select` took nothing.
        not_given: sources that are needed and weren't given.
        pairs: those of adapters, and of sources that one wasn't merged into.
        replaced: those in whose place one of a source that overrides is taken, each with that
            source.
    """

    taken: tuple[Routed, ...]
    beside: tuple[Routed, ...] = ()
    unselected: tuple[str, ...] = ()
    not_given: tuple[str, ...] = ()
    pairs: tuple[RoutedPair, ...] = ()
    replaced: tuple[tuple[Routed, str], ...] = ()

    @property
    def produced(self) -> dict[str, Tensor]:
        """Target name → tensor; of two for one name the first."""
        found: dict[str, Tensor] = {}
        for routed in self.taken:
            if routed.rewrite.target is not None:
                found.setdefault(routed.rewrite.target, routed.tensor)
        return found

    def origin(self, target: str) -> SourceName | None:
        """The source name that `produced` has for a target name; None without one."""
        return next(
            (routed.origin for routed in self.taken if routed.rewrite.target == target), None
        )


def route(rules: RuleFile, program: Program, checkpoints: Mapping[str, Checkpoint]) -> Routes:
    """Take the names of every given source, selected and prefixed as the rule file says, through
    the program.
    """
    taken: list[Routed] = []
    beside: list[Routed] = []
    pairs: list[RoutedPair] = []
    replaced: list[tuple[Routed, str]] = []
    unselected, not_given = [], []
    given = {
        name: source
        for name, source in rules.text.sources.items()
        if name in checkpoints and "tensors" in source.use
    }
    programs = {
        name: _program_for(rules, program, source, checkpoints[name])
        for name, source in given.items()
    }
    routed = {
        name: [
            Routed(name, tensor, programs[name].rewrite(source.prefix + tensor.name))
            for tensor in _tensors(source, checkpoints[name], programs[name])
        ]
        for name, source in given.items()
    }
    main = [r for name, every in routed.items() if _is_main(rules, name) for r in every]
    for name, source in sorted(rules.text.sources.items(), key=lambda item: item[1].overrides):
        if "tensors" not in source.use:
            not_given += [] if source.optional or name in checkpoints else [name]
            continue
        absent = source.used_if_absent
        having = {
            r.source
            for r in main
            if absent is not None and absent.match(r.rewrite.prepared) is not None
        }
        if name not in checkpoints:
            not_given += [] if having or source.optional else [name]
        elif rules.first_source in having:
            beside += routed[name]
        elif source.overrides:
            own = {r.rewrite.target for r in routed[name] if r.rewrite.target is not None}
            replaced += [(r, name) for r in taken if r.rewrite.target in own]
            taken = [*(r for r in taken if r.rewrite.target not in own), *routed[name]]
            pairs += _pairs(name, source, checkpoints[name], programs[name])
        else:
            taken += routed[name]
            unselected += [] if routed[name] else [name]
            pairs += _pairs(name, source, checkpoints[name], programs[name])
    return Routes(
        tuple(taken),
        tuple(beside),
        tuple(unselected),
        tuple(not_given),
        tuple(pairs),
        tuple(replaced),
    )


def _program_for(
    rules: RuleFile, program: Program, source: Source, checkpoint: Checkpoint
) -> Program:
    """The program for a source: an adapter may have been trained under the names of another
    layout than its base has.
    """
    if not rules.layouts or not source.overrides:
        return program
    matrices = {name for pair in checkpoint.pairs for name in (pair.a, pair.b)}
    names = [
        *(pair.base for pair in checkpoint.pairs),
        *(name for name in checkpoint.catalog if name not in matrices),
    ]
    return compile_rules(rules, names, checkpoint.config)


def _pairs(
    name: str, source: Source, checkpoint: Checkpoint, program: Program
) -> Iterator[RoutedPair]:
    for pair in checkpoint.pairs:
        a, b = (checkpoint.catalog[matrix] for matrix in (pair.a, pair.b))
        yield RoutedPair(name, a, b, pair.scale, program.rewrite(source.prefix + pair.base))


def main_names(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """The names, as they are stored, that conditions of a rule file speak of: the first
    source's, and those that override it.
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

    What is selected goes by the name that `prepare` leaves; without a program, by the stored one.
    """
    select = source.selected
    matrices = {name for pair in checkpoint.pairs for name in (pair.a, pair.b)}
    for name, tensor in checkpoint.catalog.items():
        prepared = name if program is None or not select else program.rewrite(name).prepared
        if name not in matrices and (
            not select or any(template.match(prepared) is not None for template in select)
        ):
            yield tensor
