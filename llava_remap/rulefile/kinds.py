"""The kinds of rule, compiled: the new name that each makes, and its way back if it has one.

The kind of a rule is chosen once, when the rule is validated. Code that differs by kind uses
`match` and doesn't look at the fields of the YAML again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from llava_remap.rulefile.pattern import Regex, TimeSpent, Wrapper
from llava_remap.rulefile.template import PatternError, Template, reversed_template

P = TypeVar("P", bound=Template | Regex | Wrapper)
_DECLARED = "it says `one_way: true`"


def check_fields(
    sources: Sequence[Template], targets: Sequence[Template], numbered: Collection[str] = ()
) -> None:
    """Check that new names can be filled with the fields of old ones.

    Args:
        numbered: fields that only new names have, since they number a list.

    Raises:
        PatternError: a new name has a field that no old name has, or computes with a field that
            isn't a number; or an old name computes.
    """
    known = {name: kind for template in sources for name, kind in template.fields.items()}
    for template in targets:
        for name in template.fields:
            if name in numbered:
                continue
            if name not in known:
                raise PatternError(f"field `{{{name}}}` of `to` is not in `from`")
            if name in template.computed and known[name] != ":int":
                raise PatternError(
                    f"`to` computes with `{{{name}}}`: write `{{{name}:int}}` in `from`"
                )
    if computed := [kind for template in sources for kind in template.computed]:
        raise PatternError(
            f"`from` computes with `{{{computed[0]}}}`, but only new names can have a calculation"
        )


@dataclass(frozen=True, slots=True)
class _Rule(Generic[P]):
    """The base of all kinds, without a way back.

    Attributes:
        pattern: what the rule looks for in a name.
    """

    pattern: P

    @property
    def one_way(self) -> str:
        """Why a rename can't be reversed, in words. Empty for a rename that can, and for a rule
        that makes no new names.
        """
        return ""

    @property
    def back_segments(self) -> frozenset[str]:
        """Segments of every name that `back` takes."""
        return frozenset()

    def back(self, target: str, spent: TimeSpent) -> str | None:
        """The old name of a new name; None if the rule doesn't reverse it."""
        return None


@dataclass(frozen=True)
class Rename(_Rule[Template]):
    """`from` + `to`: the whole name becomes another one, with the values of the same fields.

    Attributes:
        target: the template of the new name.
        declared: whether the rule says `one_way: true`.

    Raises:
        PatternError: `target` has a field that the pattern hasn't.
    """

    target: Template
    declared: bool = False

    def __post_init__(self) -> None:
        check_fields([self.pattern], [self.target])
        for template in (self.pattern, self.target):
            if each := [name for name, kind in template.fields.items() if kind == ":each"]:
                raise PatternError(f"`{{{each[0]}:each}}` is for tensor operations (`tensors`)")

    @cached_property
    def _backward(self) -> tuple[Template | None, str]:
        """The template that matches new names on the way back; or the reason why there is none."""
        if self.declared:
            return None, _DECLARED
        if self.lost:
            return None, f"`to` leaves out the field `{{{self.lost[0]}}}`"
        try:
            return reversed_template(self.pattern, self.target), ""
        except PatternError as error:
            return None, str(error)

    @property
    def lost(self) -> list[str]:
        """Fields that the new name leaves out."""
        return [name for name in self.pattern.fields if name not in self.target.fields]

    @property
    def one_way(self) -> str:
        return self._backward[1]

    @property
    def back_segments(self) -> frozenset[str]:
        return self.target.segments

    def apply(self, name: str, spent: TimeSpent) -> str | None:
        fields = self.pattern.match(name)
        if fields is None or not self.target.can_compute(fields):
            return None
        return self.target.fill(fields)

    def back(self, target: str, spent: TimeSpent) -> str | None:
        source = self._backward[0]
        fields = None if source is None else source.match(target)
        return None if fields is None else self.pattern.fill(fields)

    def describe(self) -> tuple[str, str | None]:
        return self.pattern.text, self.target.text


@dataclass(frozen=True, slots=True)
class Substitute(_Rule[Regex]):
    """`match` + `replace`: the first match of a regex is replaced.

    Attributes:
        reverse: finds in the new name what is replaced on the way back.
        declared: whether the rule says `one_way: true`.
    """

    reverse: Regex | None = None
    declared: bool = False

    @property
    def one_way(self) -> str:
        if self.declared:
            return _DECLARED
        return "" if self.reverse is not None else "a regex has no way back without `reverse:`"

    @property
    def back_segments(self) -> frozenset[str]:
        return frozenset() if self.reverse is None else self.reverse.segments

    def apply(self, name: str, spent: TimeSpent) -> str | None:
        return self.pattern.search(name, spent)

    def back(self, target: str, spent: TimeSpent) -> str | None:
        return None if self.reverse is None else self.reverse.search(target, spent)

    def describe(self) -> tuple[str, str | None]:
        return self.pattern.text, self.pattern.replace


@dataclass(frozen=True, slots=True)
class Unwrap(_Rule[Wrapper]):
    """`unwrap`: the name of a module that a framework put around others is taken out."""

    def apply(self, name: str, spent: TimeSpent) -> str | None:
        return self.pattern.take_off(name)

    def describe(self) -> tuple[str, str | None]:
        return self.pattern.text, ""


@dataclass(frozen=True, slots=True)
class Drop(_Rule[Template | Regex]):
    """`drop`: the tensor is left out.

    Attributes:
        reason: why, in words that a user reads.
    """

    reason: str

    def apply(self, name: str, spent: TimeSpent) -> str | None:
        found = (
            self.pattern.match(name)
            if isinstance(self.pattern, Template)
            else self.pattern.search(name, spent)
        )
        return None if found is None else name

    def describe(self) -> tuple[str, str | None]:
        return self.pattern.text, None


#: Every kind of rule. Each has
#:
#: - `apply`: the new name (for a drop: the name), or None if the rule doesn't take the name;
#: - `back`: the old name of a new name, or None;
#: - `describe`: the pattern and its result, as the rule file has them. The result is None for a
#:   drop and empty for an unwrap;
#: - `pattern`, which has `examples` of names that the rule takes.
RuleKind = Rename | Substitute | Unwrap | Drop
