"""Every source name through the program: what each source contributes, under which target name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.plan.model import SourceName
from llava_remap.rewrite import Program, Rewrite
from llava_remap.rulefile import RuleFile, Template


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
class Routes:
    """All source tensors.

    Attributes:
        taken: those that count, in the order of sources and of their catalogs.
        beside: those of a source that isn't used since the first source has its own (`used_if_absent`).
        unselected: sources that count but of which `select` took nothing.
        not_given: sources that are needed and weren't given.
    """

    taken: tuple[Routed, ...]
    beside: tuple[Routed, ...]
    unselected: tuple[str, ...]
    not_given: tuple[str, ...]

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
        return next((routed.origin for routed in self.taken if routed.rewrite.target == target), None)


def route(rules: RuleFile, program: Program, checkpoints: Mapping[str, Checkpoint]) -> Routes:
    """Take the names of every given source, selected and prefixed as the rule file says, through the program."""
    taken: list[Routed] = []
    beside: list[Routed] = []
    unselected, not_given = [], []
    for name, source in rules.text.sources.items():
        if "tensors" not in source.use:
            not_given += [] if source.optional or name in checkpoints else [name]
            continue
        absent = Template(source.used_if_absent) if source.used_if_absent else None
        own = absent is not None and any(
            absent.match(r.rewrite.prepared) is not None for r in taken if r.source == rules.first_source
        )
        if name not in checkpoints:
            not_given += [] if own or source.optional else [name]
            continue
        select = Template(source.select) if source.select else None
        routed = [
            Routed(name, tensor, program.rewrite(source.prefix + tensor.name))
            for tensor in checkpoints[name].catalog.values()
            if select is None or select.match(program.rewrite(tensor.name).prepared) is not None
        ]
        if own:
            beside += routed
        else:
            taken += routed
            unselected += [] if routed else [name]
    return Routes(tuple(taken), tuple(beside), tuple(unselected), tuple(not_given))
