"""The kinds of rule, compiled: what each makes of a name, and whether there is a way back.

The kind of a rule is chosen once, when the rule is validated. Code that differs by kind uses
`match` and doesn't look at the fields of the YAML again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from llava_remap.rulefile.pattern import Regex, TimeSpent, Wrapper
from llava_remap.rulefile.template import PatternError, Template, reversed_template

P = TypeVar("P", bound=Template | Regex | Wrapper)
_DECLARED = "it says `one_way: true`"


@dataclass(frozen=True, slots=True)
class _Rule(Generic[P]):
    """The base of all kinds, without a way back.

    Attributes:
        pattern: what the rule looks for in a name.
    """

    pattern: P

    @property
    def one_way(self) -> str:
        """Why a rename can't be reversed, in words. Empty for one that can, and for a rule that
        has no new names to take back.
        """
        return ""

    @property
    def back_segments(self) -> frozenset[str]:
        """Segments of every name that `back` takes."""
        return frozenset()

    def back(self, target: str, spent: TimeSpent) -> str | None:
        """The old name of a new one; None where it isn't taken back."""
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
        if unknown := [name for name in self.target.fields if name not in self.pattern.fields]:
            raise PatternError(f"field `{{{unknown[0]}}}` of `to` is not in `from`")

    @cached_property
    def _backward(self) -> tuple[Template | None, str]:
        """The template of new names, to take them back; or why there is none."""
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
        return None if fields is None else self.target.fill(fields)

    def back(self, target: str, spent: TimeSpent) -> str | None:
        source = self._backward[0]
        fields = None if source is None else source.match(target)
        return None if fields is None else self.pattern.fill(fields)

    def describe(self) -> tuple[str, str | None]:
        return self.pattern.text, self.target.text


@dataclass(frozen=True, slots=True)
class Substitute(_Rule[Regex]):
    """`match` + `replace`: the first match of a regex becomes something else.

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
#: - `apply`: the new name (for a drop: the name) or None where the rule doesn't take the name;
#: - `back`: the way back of that;
#: - `describe`: the pattern and what it makes, as the rule file has them; None for a drop, empty
#:   for what is taken out;
#: - `pattern`, which has `examples` of names that the rule takes.
#:
#: Tensor operations will be one more.
RuleKind = Rename | Substitute | Unwrap | Drop
