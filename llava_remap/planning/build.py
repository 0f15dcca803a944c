"""Build the plan from routed names, target parameters and post-load changes: what provides each
parameter, and everything that doesn't fit. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import Problem
from llava_remap.planning.boxes import Part
from llava_remap.planning.coverage import placement_problems
from llava_remap.planning.layout import Layout
from llava_remap.planning.mapped import (
    AddLora,
    Alias,
    Mapped,
    PostLoad,
    Step,
    aligned,
    casts,
)
from llava_remap.planning.model import (
    Collision,
    Dropped,
    Mismatched,
    Missing,
    Plan,
    PostLoadChange,
    Shard,
    SourceSummary,
    Unmapped,
)
from llava_remap.planning.notes import beside_notes, replaced_notes, sharing_notes
from llava_remap.planning.operations import Operations, Provided, place_operations
from llava_remap.planning.problems import (
    component,
    coverage_problems,
    drop_problems,
    dtype_problems,
    layers,
    pair_problems,
    tie_problems,
    unmapped_problems,
)
from llava_remap.planning.value_checks import value_checks
from llava_remap.rewrite import Program
from llava_remap.routing import Routed, RoutedPair, Routes, draft_command
from llava_remap.rulefile import RuleFile
from llava_remap.target_model import CLASSIC, ChosenTemplate, Target


def build_plan(
    rules: RuleFile,
    program: Program,
    checkpoints: Mapping[str, Checkpoint],
    routes: Routes,
    target: Target | None,
    post_load: Sequence[PostLoadChange] = (),
    problems: Sequence[Problem] = (),
    notes: Sequence[Problem] = (),
    *,
    layout: Layout | None = None,
    chat_template: ChosenTemplate | None = None,
    dtype: str | None = None,
    max_shard_nbytes: int | None = None,
    recognised: bool = True,
    norms_about_one: bool = False,
    operations: Operations | None = None,
) -> Plan:
    """Match the tensors of the sources with the parameters of the target.

    Args:
        target: None if `problems` kept it from being derived. Then nothing is mapped, and the plan
            has only the reasons.
        problems: problems found before. The plan adds problems of tensors that don't match.
        layout: the names of the target's parameters in the plan. All other arguments have classic
            names. None plans with classic names.
        chat_template: the chat template that is written.
        dtype: the dtype of every parameter that is written; None keeps the dtype of each.
        max_shard_nbytes: the most bytes of tensors in an output file. A larger tensor has a file
            to itself. None makes one output file for each source file.
        recognised: whether the rule file is for this checkpoint. If not, unmapped tensors are not
            a problem of their own.
        operations: the placed tensor operations; None places the operations of `routes`.
        norms_about_one: whether the language model's norms multiply by their weights, so the
            weights are about 1.
    """
    text_names = (
        [name for name in target.shapes if name.startswith(rules.target.language_model)]
        if target is not None and norms_about_one
        else []
    )
    if layout is not None:
        text_names = [layout.spell(name) for name in text_names]
        routes, target = layout.routes(routes), target and layout.target(target)
        post_load = [layout.change(entry) for entry in post_load]
        problems, notes = layout.problems(problems), layout.problems(notes)
    if operations is None:
        operations = (
            place_operations(
                routes, _shapes_before(target, post_load), target.tied, target.sizes, dtype
            )
            if target
            else Operations({}, (), frozenset(), ())
        )
    match = _Match.of(routes, target, post_load, operations)
    mapped = _mapped_of_sources(match, dtype) + _made(match)
    dropped = [*_dropped(routes), *match.operations.dropped]
    aliases = _aliases(match)
    missing = [
        Missing(name, shape, ())
        for name, shape in match.shapes.items()
        if name not in match.given and name not in match.tied and name not in match.makes
    ]
    unmapped = _unmapped(routes, match)
    mismatched = _mismatched(match, mapped, aliases)
    collisions = [
        Collision(
            name,
            tuple(routed.origin for routed in found),
            match.makes[name].use if name in match.makes else None,
        )
        for name, found in match.all_providers.items()
        if (name not in match.single and name not in match.placed) or name in match.makes
    ]
    class_name = target.class_name if target else rules.target.class_
    first = checkpoints[rules.first_source]
    found_problems = list(problems)
    if recognised:
        draft = draft_command(class_name or "CLASS", first.location)
        found_problems += unmapped_problems(unmapped, target is not None, draft)
    if target is not None:
        agreeing = _agreeing_pairs(match)
        found_problems += coverage_problems(
            missing,
            [m for m in mismatched if m.target not in agreeing],
            collisions,
            routes,
            layers(match.shapes, target.layers),
            layers(match.given, target.layers),
            {component(name) for name in match.given},
            first.config or {},
            as_source=rules.target.as_ is not None,
        )
        shared = {*match.tied, *match.tied.values()}
        found_problems += pair_problems(
            [pair for pair in routes.pairs if pair.rewrite.operated is None],
            {
                **{name: match.shape_before(name) for name in match.operations.provided},
                **{name: found[0].tensor.shape for name, found in match.providers.items()},
            },
            shared,
            target.transposed,
            match.operations.claimed,
            {name: match.pairs_on_sources(name) for name in match.placed},
        )
        found_problems += pair_problems(
            [pair for pair in routes.pairs if pair.rewrite.operated is not None],
            match.operated,
            match.operated_of(shared),
            match.operated_of(target.transposed),
        )
        found_problems += match.operations.problems
        found_problems += tie_problems(
            [alias for alias in aliases if alias.of in match.operations.provided]
        )
        found_problems += placement_problems(mapped, aliases, dropped)
        found_problems += dtype_problems(mapped, aliases, dtype, target.integers)
        absent = {entry.target for entry in missing}
        found_problems += drop_problems(program, routes.taken, absent, target.names)
    single = match.single
    all_notes = (
        *notes,
        *sharing_notes(match.tied, single, checkpoints),
        *beside_notes(rules, routes, single, match.placed),
        *replaced_notes(routes),
    )
    return Plan(
        rules_name=rules.name,
        rules_version=rules.text.version or "",
        rules_sha256=rules.sha256,
        chat_template=chat_template,
        sources={
            name: _summary(name, checkpoint, routes) for name, checkpoint in checkpoints.items()
        },
        target_class=class_name or "the source's own class",
        layout=layout.name if layout else CLASSIC,
        target_names=tuple(sorted(match.shapes)),
        tied_absent=tuple(sorted(name for name in match.tied if name not in match.given)),
        mapped=tuple(sorted(mapped, key=lambda m: m.target)),
        aliases=tuple(sorted(aliases, key=lambda a: a.target)),
        dropped=tuple(sorted(dropped, key=lambda d: (d.source, d.name))),
        unmapped=tuple(sorted(unmapped, key=lambda u: (u.source, u.name))),
        missing=tuple(sorted(missing, key=lambda m: m.target)),
        suggested_rules=(),
        mismatched=tuple(sorted(mismatched, key=lambda m: m.target)),
        collisions=tuple(sorted(collisions, key=lambda c: c.target)),
        post_load=tuple(sorted(post_load, key=lambda p: p.change.target)),
        value_checks=tuple(
            value_checks(
                mapped,
                aliases,
                single,
                {name: entry.tensors for name, entry in match.placed.items()},
                checkpoints,
                post_load,
                routes,
                frozenset(text_names),
            )
        ),
        problems=tuple(sorted(found_problems, key=lambda problem: problem.code)),
        notes=tuple(sorted(all_notes, key=lambda note: note.code)),
        shards=_shards(mapped, match, max_shard_nbytes),
        nbytes_read=_nbytes_read(routes, match, mapped),
        nbytes_write=sum(m.nbytes for m in mapped),
    )


@dataclass(frozen=True, slots=True)
class _Match:
    """The target's parameters, and the tensors and changes for each.

    Attributes:
        shapes: the target's parameters; none if there is no target.
        tied: by alias, the parameter whose tensor it shares.
        providers: by parameter, the tensors that are renamed to it: one, if all is well.
        single: by parameter, its only provider.
        operations: the parameters that tensor operations provide.
        placed: by parameter, the only operation that provides it.
        pairs: by parameter, the pair of LoRA matrices that is added to it.
        pairs_of_operated: like `pairs`, by the name under which an operation takes the tensor that
            the pair changes.
        changes: by parameter, its post-load change.
        makes: the changes that make their parameter.
        taken: all source tensors that are taken, in order.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    providers: Mapping[str, list[Routed]]
    single: Mapping[str, Routed]
    operations: Operations
    placed: Mapping[str, Provided]
    pairs: Mapping[str, RoutedPair]
    pairs_of_operated: Mapping[str, RoutedPair]
    changes: Mapping[str, PostLoadChange]
    makes: Mapping[str, PostLoadChange]
    taken: Sequence[Routed]

    @classmethod
    def of(
        cls,
        routes: Routes,
        target: Target | None,
        post_load: Sequence[PostLoadChange],
        operations: Operations,
    ) -> _Match:
        shapes = dict(target.shapes) if target else {}
        providers: dict[str, list[Routed]] = defaultdict(list)
        for routed in routes.taken:
            if routed.rewrite.operated is None and routed.rewrite.target in shapes:
                providers[str(routed.rewrite.target)].append(routed)
        changes = {entry.change.target: entry for entry in post_load}
        tied = target.tied if target else {}
        return cls(
            shapes,
            tied,
            dict(providers),
            {
                name: found[0]
                for name, found in providers.items()
                if len(found) == 1 and name not in operations.provided
            },
            operations,
            {
                name: found[0]
                for name, found in operations.provided.items()
                if len(found) == 1 and name not in providers
            },
            _pairs(routes, operated=False),
            _pairs(routes, operated=True),
            changes,
            {name: entry for name, entry in changes.items() if entry.change.shape_before is None},
            routes.taken,
        )

    @property
    def given(self) -> Collection[str]:
        """The parameters that sources provide, or would provide if the sizes added up."""
        return {*self.providers, *self.operations.provided, *self.operations.claimed}

    @property
    def all_providers(self) -> dict[str, list[Routed]]:
        """By parameter, all tensors that provide it."""
        found = {name: list(routed) for name, routed in self.providers.items()}
        for name, entries in self.operations.provided.items():
            for entry in entries:
                found.setdefault(name, []).extend(entry.tensors)
        return found

    @property
    def operated(self) -> dict[str, tuple[int, ...]]:
        """Name under which an operation takes a tensor → the tensor's shape."""
        return {
            str(routed.rewrite.target): routed.tensor.shape
            for routed in self.taken
            if routed.rewrite.operated is not None
        }

    def operated_of(self, parameters: Collection[str]) -> set[str]:
        """The names under which operations take the tensors of these parameters."""
        return {
            str(routed.rewrite.target)
            for name, entries in self.operations.provided.items()
            if name in parameters
            for entry in entries
            for routed in entry.tensors
        }

    def shape_before(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter before its post-load change."""
        changed = self.changes.get(name)
        before = None if changed is None else changed.change.shape_before
        return self.shapes[name] if before is None else before

    def pairs_on_sources(self, name: str) -> list[RoutedPair]:
        """The LoRA pairs on the tensors from which an operation makes a parameter."""
        taken = (str(routed.rewrite.target) for routed in self.placed[name].tensors)
        return [self.pairs_of_operated[own] for own in taken if own in self.pairs_of_operated]

    def tensors(self, name: str) -> Sequence[Routed]:
        """The source tensors of a parameter that has one provider."""
        return self.placed[name].tensors if name in self.placed else [self.single[name]]


def _pairs(routes: Routes, *, operated: bool) -> dict[str, RoutedPair]:
    """LoRA pairs by changed tensor: the pairs whose tensor an operation takes, or the others."""
    return {
        str(pair.rewrite.target): pair
        for pair in routes.pairs
        if (pair.rewrite.operated is not None) is operated
    }


def _mapped_of_sources(match: _Match, dtype: str | None) -> list[Mapped]:
    """The parameters that have one provider and a tensor of their own."""
    renamed = {
        name: Provided(
            (Part.whole(routed.source, routed.tensor.name, name, routed.tensor.shape),),
            (routed,),
            routed.rewrite.rules,
        )
        for name, routed in match.single.items()
        if name not in match.tied
    }
    return [
        _mapped(name, entry, match, dtype) for name, entry in {**renamed, **match.placed}.items()
    ]


def _made(match: _Match) -> list[Mapped]:
    """The parameters that post-load rules make."""
    return [
        Mapped(
            name,
            entry.change.dtype,
            entry.change.shape_after,
            (),
            (PostLoad(entry.use, None),),
            (),
        )
        for name, entry in match.makes.items()
        if name not in match.providers
    ]


def _aliases(match: _Match) -> list[Alias]:
    """The tied names that the sources store."""
    return [
        Alias(name, match.tied[name], r.origin, r.tensor.dtype, r.tensor.shape, r.rewrite.rules)
        for name, r in match.single.items()
        if name in match.tied
    ]


def _unmapped(routes: Routes, match: _Match) -> list[Unmapped]:
    """The tensors that no drop or operation takes and whose new name isn't a parameter."""
    return [
        Unmapped(
            r.source,
            r.tensor.name,
            r.tensor.dtype,
            r.tensor.shape,
            r.rewrite.target,
            r.rewrite.rules,
            (),
        )
        for r in routes.taken
        if r.rewrite.reason is None
        and r.rewrite.operated is None
        and r.rewrite.target not in match.shapes
    ]


def _dropped(routes: Routes) -> list[Dropped]:
    return [
        Dropped(r.source, r.tensor.name, r.rewrite.rules[-1], r.rewrite.reason)
        for r in routes.taken
        if r.rewrite.reason is not None
    ]


def _mismatched(
    match: _Match, mapped: Sequence[Mapped], aliases: Sequence[Alias]
) -> list[Mismatched]:
    """The parameters that get another shape than the target's."""
    given = {entry.target: entry.shape for entry in mapped}
    for alias in aliases:
        # An alias has no tensor of its own: a change of the tensor changes the alias too.
        changed, tensor = match.changes.get(alias.of), match.single.get(alias.of)
        follows = changed and tensor and tensor.tensor.shape == alias.shape
        given[alias.target] = changed.change.shape_after if changed and follows else alias.shape
    return [
        Mismatched(name, shape, match.shapes[name])
        for name, shape in given.items()
        if shape != match.shapes[name]
    ]


def _agreeing_pairs(match: _Match) -> set[str]:
    """The parameters for which an adapter has the target's shape.

    If the base has another shape there, it is the wrong base, and `pair_problems` reports it.
    """
    return {
        name
        for name, pair in match.pairs.items()
        if (pair.b.shape[0], pair.a.shape[1]) == match.shapes.get(name)
    }


def _nbytes_read(routes: Routes, match: _Match, mapped: Sequence[Mapped]) -> int:
    of_operations = {r.origin: r.tensor for entry in match.placed.values() for r in entry.tensors}
    tensors = [
        match.single[entry.target].tensor
        for entry in mapped
        if not entry.is_made and entry.target in match.single
    ]
    matrices = [matrix for pair in routes.pairs for matrix in (pair.a, pair.b)]
    return sum(tensor.nbytes for tensor in (*tensors, *of_operations.values(), *matrices))


def _mapped(name: str, provided: Provided, match: _Match, dtype: str | None) -> Mapped:
    changed = match.changes.get(name)
    [written] = provided.written_dtypes(dtype)
    stored = {routed.origin: routed.tensor.dtype for routed in provided.tensors}
    is_placed = name in match.placed
    shape = match.shape_before(name) if is_placed else provided.parts[0].shape
    then: list[Step] = []
    for routed in provided.tensors:
        of_kind = match.pairs if routed.rewrite.operated is None else match.pairs_of_operated
        if (pair := of_kind.get(str(routed.rewrite.target))) is not None:
            then.append(AddLora(routed.origin, *pair.origins, pair.a.shape[0], pair.scale))
    if is_placed and (pair := match.pairs.get(name)) is not None:
        then.append(AddLora(None, *pair.origins, pair.a.shape[0], pair.scale))
    then += casts(stored, written)
    if changed is not None:
        then.append(PostLoad(changed.use, shape))
        shape = changed.change.shape_after
    return Mapped(name, written, shape, provided.parts, tuple(then), provided.rules)


def _shapes_before(
    target: Target, post_load: Sequence[PostLoadChange]
) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the target's parameters before the changes of post-load rules."""
    changes = [entry.change for entry in post_load]
    return {
        **target.shapes,
        **{c.target: c.shape_before for c in changes if c.shape_before is not None},
    }


def _shards(written: Sequence[Mapped], match: _Match, max_nbytes: int | None) -> tuple[Shard, ...]:
    """One output file for each source file, or as many as `max_nbytes` asks for.

    The tensors keep the sources' order, so runs of bytes stay whole. A manifest has no files; it
    counts as one. Tensors that post-load rules make lie at the end.
    """
    order = {routed.origin: position for position, routed in enumerate(match.taken)}
    files: dict[object, list[Mapped]] = defaultdict(list)
    for entry in sorted(
        (m for m in written if not m.is_made),
        key=lambda m: order[match.tensors(m.target)[0].origin],
    ):
        first = match.tensors(entry.target)[0]
        where = first.tensor.location
        files[where.file if where else first.source].append(entry)
    files[next(reversed(files), "")] += [entry for entry in written if entry.is_made]
    groups = list(files.values())
    if max_nbytes is not None:
        groups = _filled([entry for group in groups for entry in group], max_nbytes)
    return Shard.numbered([[entry.target for entry in aligned(group)] for group in groups])


def _filled(entries: Sequence[Mapped], max_nbytes: int) -> list[list[Mapped]]:
    """Consecutive groups of at most `max_nbytes`. A larger tensor is a group of its own."""
    groups: list[list[Mapped]] = []
    room = 0
    for entry in entries:
        if not groups or entry.nbytes > room:
            groups.append([])
            room = max_nbytes
        groups[-1].append(entry)
        room -= entry.nbytes
    return groups


def _summary(name: str, checkpoint: Checkpoint, routes: Routes) -> SourceSummary:
    taken = sum(r.source == name for r in routes.taken) + 2 * sum(
        pair.source == name for pair in routes.pairs
    )
    return SourceSummary(
        checkpoint.location,
        checkpoint.form,
        checkpoint.passed_over,
        len(checkpoint.catalog),
        taken,
        checkpoint.nbytes,
    )
