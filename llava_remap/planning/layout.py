"""A layout: the names under which a plan has the parameters of the target. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from llava_remap.core.problem import Problem
from llava_remap.planning.model import PostLoadChange
from llava_remap.routing import Routes
from llava_remap.target_model import CLASSIC, Target


@dataclass(frozen=True, slots=True)
class Layout:
    """A naming convention. It spells every parameter of the target; other names stay as they are.

    Attributes:
        name: of the layout.
        names: classic name → name in this layout; empty for the classic one.
    """

    name: str = CLASSIC
    names: Mapping[str, str] = field(default_factory=dict)

    def spell(self, name: str) -> str:
        """A parameter's name in this layout."""
        return self.names.get(name, name)

    def target(self, target: Target) -> Target:
        """The target under the names of this layout."""
        spell, layers = self.spell, target.layers
        if (layer := next((name for name in self.names if name.startswith(layers)), "")) != "":
            layers = spell(layer).removesuffix(layer.removeprefix(layers))
        return replace(
            target,
            layers=layers,
            shapes={spell(name): shape for name, shape in target.shapes.items()},
            tied={spell(name): spell(other) for name, other in target.tied.items()},
            transposed=tuple(map(spell, target.transposed)),
            integers=tuple(map(spell, target.integers)),
        )

    def routes(self, routes: Routes) -> Routes:
        """The same routes, to the names of this layout."""
        return routes.renamed(self.names)

    def change(self, entry: PostLoadChange) -> PostLoadChange:
        """The same change of a parameter under its name in this layout."""
        change = entry.change
        reads = tuple(map(self.spell, change.reads))
        return replace(entry, change=replace(change, target=self.spell(change.target), reads=reads))

    def problems(self, problems: Iterable[Problem]) -> list[Problem]:
        """The same problems, with parameters under their names in this layout."""
        return [self._problem(problem) for problem in problems]

    def _problem(self, problem: Problem) -> Problem:
        if problem.side == "source":
            return problem
        table = tuple((self.spell(name), text) for name, text in problem.table)
        return replace(problem, names=tuple(map(self.spell, problem.names)), table=table)
