"""Tensor operations: tensors are joined, divided, or have their axes reordered. This module knows
names and symbols only; `planning/place.py` computes sizes.

One tensor is the whole, the others are its parts. Each tensor has a `view`, which divides an axis,
and `axes`, an order of the axes. After these, the parts lie side by side in the whole. One form
serves both directions: a divided tensor is the whole of the new tensors, and a joined tensor is the
whole of the old tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from llava_remap.rulefile.kinds import check_fields
from llava_remap.rulefile.template import PatternError, Template, reversed_template

#: A size in a view: a number, a name of `let`, or `*` for the remaining size.
Size = int | str
REST = "*"


@dataclass(frozen=True, slots=True)
class Seen:
    """The view of a tensor in an operation.

    Attributes:
        axis: the axis that `view` divides.
        view: the sizes of the axes that replace it, at most one of them `*`; empty if no axis is
            divided.
        axes: the order of the axes after `view`. It may list only the first axes; the others
            follow.
    """

    axis: int = 0
    view: tuple[Size, ...] = ()
    axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.view.count(REST) > 1:
            raise PatternError("a `view` has at most one `*`")
        if sorted(self.axes) != list(range(len(self.axes))):
            raise PatternError(f"`axes` must have each number from 0 to {len(self.axes) - 1} once")
        if self.axes and len(self.axes) < self.axis + len(self.view):
            raise PatternError("`axes` must have all axes that `view` makes")

    def __str__(self) -> str:
        """In words: `axis 0 as [heads, *, 2], axes in the order [0, 2, 1]`."""
        words = [f"axis {self.axis} as [{', '.join(map(str, self.view))}]"] if self.view else []
        words += [f"axes in the order {list(self.axes)}"] if self.axes else []
        return ", ".join(words)

    @property
    def symbols(self) -> set[str]:
        """The names of `let` that the view uses."""
        return {size for size in self.view if isinstance(size, str) and size != REST}


AS_STORED = Seen()


@dataclass(frozen=True, slots=True)
class End:
    """One tensor of an operation, or a list of tensors numbered by a field `{x:each}`.

    Attributes:
        names: the template of the tensor's name; None for a dropped part of the whole.
        seen: the tensor's view.
        reason: why the part is dropped, in words for the report.
        size: the size of a dropped part along the axis; `*` for the remaining size.
    """

    names: Template | None
    seen: Seen = AS_STORED
    reason: str = ""
    size: Size = REST

    @property
    def each(self) -> str:
        """The field that numbers a list of tensors; empty for a single tensor."""
        fields = {} if self.names is None else self.names.fields
        return next((name for name, kind in fields.items() if kind == ":each"), "")


@dataclass(frozen=True, slots=True)
class Join:
    """How the parts lie in the whole. Axes are counted after the whole's view.

    Attributes:
        along: the axis along which the parts follow one another; None if they don't.
        stacked: the axis of the whole that numbers the tensors of a list, or the parts; None if
            nothing is stacked.
    """

    along: int | None = None
    stacked: int | None = None


class Taken(NamedTuple):
    """A tensor that an operation takes.

    Attributes:
        end: the tensor's index in `sources`.
        fields: the values of the fields in the tensor's name, without `{x:each}`.
        number: the value of `{x:each}`, or 0.
    """

    end: int
    fields: Mapping[str, str]
    number: int


@dataclass(frozen=True)
class Operation:
    """A tensor operation, compiled.

    Attributes:
        sources, targets: the tensors to take, and the tensors to make. One side has a single
            tensor, the whole.
        seen: the view of the whole.
        sizes: names in views → keys of the target's config.

    Raises:
        PatternError: if the templates, the sizes and the join contradict each other.
    """

    sources: tuple[End, ...]
    targets: tuple[End, ...]
    join: Join
    seen: Seen = AS_STORED
    sizes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = [end.names for end in self.sources if end.names is not None]
        made = [end.names for end in self.targets if end.names is not None]
        if len(taken) < len(self.sources):
            raise PatternError("`from` can't have a dropped part: write it in `to`")
        if len(self.sources) > 1 and len(self.targets) > 1:
            raise PatternError(
                "`from` and `to` both have several tensors: an operation divides one tensor, or "
                "joins several into one"
            )
        if not made:
            raise PatternError("every part is dropped: write a rule of `names` with `drop`")
        self._check_names(taken, made)
        self._check_lists()
        self._check_sizes()

    def _check_names(self, taken: list[Template], made: list[Template]) -> None:
        first, *others = taken
        wanted = _own_fields(first)
        for other in others:
            if {*_own_fields(other)} != {*wanted}:
                raise PatternError(
                    f"`{first}` and `{other}` have different fields, so nothing says which tensors "
                    "belong together"
                )
        for side, templates in (("from", taken), ("to", made)):
            texts = [template.text for template in templates]
            if twice := [text for text in texts if texts.count(text) > 1]:
                raise PatternError(f"`{side}` has `{twice[0]}` twice")
        check_fields(taken, made, numbered={end.each for end in self.targets})
        for template in made:
            if lost := [name for name in wanted if name not in template.fields]:
                raise PatternError(
                    f"`{template}` leaves out the field `{{{lost[0]}}}`, so different tensors "
                    "would become one"
                )

    def _check_lists(self) -> None:
        each = [bool(end.each) for end in self.parts if end.names is not None]
        whole = self.whole.names
        if self.whole.each:
            raise PatternError(f"`{whole}` is a single tensor, and `{{x:each}}` numbers several")
        if self.whole.seen != AS_STORED:
            raise PatternError(f"write the view of the single tensor `{whole}` in `how`")
        if any(each) and not all(each):
            raise PatternError("either all parts are lists (`{x:each}`), or none is")
        count, axes = len(self.parts), (self.join.along, self.join.stacked)
        if axes == (None, None) and (count > 1 or any(each)):
            raise PatternError(
                "`how` lacks the axis: give concat or stack for several tensors of `from`, split "
                "or unstack for several tensors of `to`"
            )
        if any(each) and self.join.stacked is None:
            raise PatternError(
                "a list (`{x:each}`) is stacked or unstacked: give the axis with `stack` or "
                "`unstack`"
            )
        if any(each) and count > 1 and self.join.along is None:
            raise PatternError(
                "several lists need the axis along which they follow one another: give concat or "
                "split"
            )
        if not any(each) and None not in axes:
            raise PatternError(
                "only lists can have both `concat` and `stack`, or both `split` and `unstack`"
            )
        if not any(each) and count == 1 and self.join.along is not None:
            raise PatternError(
                "`from` and `to` have a single tensor each, so there is nothing to join or divide"
            )
        if axes == (None, None) and self.seen == self.parts[0].seen == AS_STORED:
            raise PatternError("`how` changes nothing: write a rule of `names`")
        if axes[0] is not None and axes[0] == axes[1]:
            raise PatternError(
                "lists must be stacked along another axis than the one along which they follow "
                "one another"
            )
        dropped = [end for end in self.targets if end.names is None]
        if dropped and self.join.along is None:
            raise PatternError("a part can be dropped only if the tensor is split along an axis")
        if sum(end.size == REST for end in dropped) > 1:
            raise PatternError("if several parts are dropped, all but one need a `size`")

    def _check_sizes(self) -> None:
        used = set().union(self.seen.symbols, *(end.seen.symbols for end in self.parts))
        used |= {end.size for end in self.targets if isinstance(end.size, str)} - {REST}
        if unknown := used - {*self.sizes}:
            raise PatternError(f"`{min(unknown)}` isn't a name of `let`")
        if unused := {*self.sizes} - used:
            raise PatternError(f"no view or size uses the name `{min(unused)}` of `let`")

    def __str__(self) -> str:
        """What the operation does, in words, without names: `split along axis 0`."""
        along = ("concatenated along", "split along")[self.divides]
        stacked = ("stacked along", "unstacked along")[self.divides]
        words = [f"{along} axis {self.join.along}"] if self.join.along is not None else []
        words += [f"{stacked} axis {self.join.stacked}"] if self.join.stacked is not None else []
        words += [f"seen with {self.seen}"] if self.seen != AS_STORED else []
        words += [
            f"`{part.names}` seen with {part.seen}" for part in self.parts if part.seen != AS_STORED
        ]
        return ", ".join(words)

    @property
    def only_views(self) -> bool:
        """Whether it has a view and nothing else: the axes into which the view divides an axis of
        one tensor are axes of the other.
        """
        seen = (self.seen, *(part.seen for part in self.parts))
        return self.join == Join() and not any(each.axes for each in seen)

    @property
    def divides(self) -> bool:
        """Whether the whole is taken and the parts are made. Otherwise parts are joined."""
        return len(self.sources) == 1 and not self.sources[0].each

    @property
    def whole(self) -> End:
        return self.sources[0] if self.divides else self.targets[0]

    @property
    def parts(self) -> tuple[End, ...]:
        return self.targets if self.divides else self.sources

    def take(self, name: str) -> Taken | None:
        """The role of a tensor with this name; None if the operation doesn't take it."""
        for number, end in enumerate(self.sources):
            fields = None if end.names is None else end.names.match(name)
            if fields is not None and self._can_be_made(fields):
                each = fields.pop(end.each, "0")
                return Taken(number, fields, int(each))
        return None

    def _can_be_made(self, fields: Mapping[str, str]) -> bool:
        return all(end.names is None or end.names.can_compute(fields) for end in self.targets)

    @cached_property
    def segments(self) -> list[frozenset[str]]:
        """For each source, segments of every name that it takes."""
        return [end.names.segments if end.names else frozenset() for end in self.sources]

    def made(self, end: int, fields: Mapping[str, str], number: int = 0) -> str | None:
        """The name of a new tensor; None for a dropped part.

        Args:
            end: the tensor's index in `targets`.
            number: the value of `{x:each}` in a list.
        """
        names = self.targets[end].names
        if names is None:
            return None
        each = self.targets[end].each
        return names.fill({**fields, each: str(number)} if each else fields)

    def took(self, end: int, fields: Mapping[str, str], number: int = 0) -> str:
        """The name of an old tensor. Arguments as for `made`, with `end` counted in `sources`."""
        names, each = self.sources[end].names, self.sources[end].each
        assert names is not None
        return names.fill({**fields, each: str(number)} if each else fields)

    def made_from(self, name: str) -> Taken | None:
        """The index in `targets`, the fields and the number that make a name; None if none do."""
        for number, template in enumerate(self._backs):
            fields = None if template is None else template.match(name)
            if fields is not None:
                each = fields.pop(self.targets[number].each, "0")
                if self.made(number, fields, int(each)) == name:
                    return Taken(number, fields, int(each))
        return None

    @cached_property
    def _backs(self) -> list[Template | None]:
        """For each target, the template that matches its names; None without a way back."""
        first = self.sources[0].names
        assert first is not None
        found: list[Template | None] = []
        for end in self.targets:
            try:
                found.append(None if end.names is None else reversed_template(first, end.names))
            except PatternError:  # two fields without text between them
                found.append(None)
        return found

    def described(self, fields: Mapping[str, str]) -> list[str]:
        """The new names, for messages. The name of a list keeps its `{x:each}` field."""
        return [
            end.names.fill({**fields, end.each: f"{{{end.each}}}"} if end.each else fields)
            for end in self.targets
            if end.names is not None
        ]


def _own_fields(template: Template) -> list[str]:
    """The fields, without the field that numbers a list."""
    return [name for name, kind in template.fields.items() if kind != ":each"]
