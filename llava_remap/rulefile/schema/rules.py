"""The rules of a rule file, and their tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llava_remap.rulefile.kinds import Drop, Rename, RuleKind, Substitute, Unwrap
from llava_remap.rulefile.pattern import Regex, Wrapper
from llava_remap.rulefile.schema.operations import LISTED
from llava_remap.rulefile.schema.part import (
    Id,
    Optional,
    Part,
    TemplateText,
    When,
    check,
    either,
    pattern_error,
)
from llava_remap.rulefile.template import PatternError, Template


class Reverse(Part):
    """The way back of a regex: a search in the new name, and the replacement of its match."""

    match: str = Field(description="regex, searched once in the new name")
    replace: str = Field(description="replacement of the match; \\1 and \\g<name> stand for groups")


class Rule(Part):
    """One rename or one drop: `from` + `to`, `match` + `replace` or `unwrap`, or `from` + `drop`
    or `match` + `drop`.
    """

    model_config = either(
        ("from", "to"), ("match", "replace"), ("from", "drop"), ("match", "drop"), ("unwrap",)
    )

    id: Id
    from_: TemplateText | None = Field(
        None,
        alias="from",
        description="template of the whole name. Dots are literal; {x} is one segment or part "
        "of a segment, {x:int} a number, {x...} one or more segments",
    )
    to: TemplateText | None = Field(
        None, description="template of the new name, with fields of `from`"
    )
    match: str | None = Field(
        None,
        description="regex (of the `regex` package), searched once in the name; anchor it with "
        "^ and $, and write a dot as \\.",
    )
    replace: str | None = Field(
        None,
        description="replacement of the regex's match; \\1 and \\g<name> stand for groups",
    )
    unwrap: str | None = Field(
        None,
        description="in `prepare`: a segment of names, or several (base_model.model), that a "
        "framework put around modules. Every occurrence that other segments follow is removed, "
        "at the start of a name and inside",
    )
    drop: str | None = Field(
        None,
        min_length=1,
        description="drops the tensor; the text is the reason, which users read in the report",
    )
    when: When = None
    optional: Optional = False
    one_way: Literal[True] | None = Field(
        None, description="true: this rule doesn't turn new names back into old ones"
    )
    reverse: Reverse | None = Field(
        None,
        description="turns new names of a regex back into old ones; a template does so by itself",
    )

    _kind: RuleKind = PrivateAttr()

    @property
    def kind(self) -> RuleKind:
        """The rule, compiled."""
        return self._kind

    @model_validator(mode="after")
    def _compile(self) -> Rule:
        try:
            self._kind = self._compiled()
        except PatternError as error:
            raise pattern_error(error) from None
        return self

    def _compiled(self) -> RuleKind:
        one_way = self.one_way is not None
        check(
            "form",
            (
                self.reverse is not None and (self.replace is None or one_way),
                "`reverse` is only allowed with match + replace, and not with `one_way`",
            ),
            (
                one_way and self.drop is not None,
                "`one_way` is only for a rename; a drop has no way back anyway",
            ),
            (
                one_way and self.unwrap is not None,
                "`unwrap` has no way back anyway: leave out `one_way`",
            ),
        )
        match self.from_, self.to, self.match, self.replace, self.unwrap, self.drop:
            case Template() as source, Template() as target, None, None, None, None:
                return Rename(source, target, one_way)
            case None, None, str() as regex, str() as replace, None, None:
                back = Regex(self.reverse.match, self.reverse.replace) if self.reverse else None
                return Substitute(Regex(regex, replace), back, one_way)
            case None, None, None, None, str() as segments, None:
                return Unwrap(Wrapper(segments))
            case Template() as source, None, None, None, None, str() as reason:
                return Drop(source, reason)
            case None, None, str() as regex, None, None, str() as reason:
                return Drop(Regex(regex), reason)
        raise PydanticCustomError(
            "form", "a rule is from + to, match + replace, unwrap, from + drop or match + drop"
        )


class Given(Part):
    """Further facts about a test's checkpoint, for rules with a `when`, and about its target, for
    sizes.
    """

    names: tuple[str, ...] = Field((), description="further names of the checkpoint")
    config: dict[str, Any] = Field({}, description="values of the checkpoint's config")
    target: dict[str, int] = Field(
        {},
        description="values of the target's config for the sizes of `let`: key "
        "(text_config.num_attention_heads) → number",
    )


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[
    Annotated[Name, Tag("str")] | Annotated[tuple[Name, ...], Field(min_length=2), Tag(LISTED)],
    Discriminator(
        lambda value: (
            LISTED
            if isinstance(value, (list, tuple))
            else ("str" if isinstance(value, str) else None)
        ),
        custom_error_type="form",
        custom_error_message="`from` and `to` of a test need a name, or a list of names",
    ),
]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A small tensor of a test: its elements in row-major order."""

    shape: Shape
    elements: tuple[float, ...]

    @classmethod
    def of(cls, nested: Any) -> Numbers:
        """A tensor from lists in lists.

        Raises:
            ValueError: for anything else.
        """
        if type(nested) in (int, float):
            return cls((), (nested,))
        if not isinstance(nested, (list, tuple)) or not nested:
            raise ValueError("numbers must be in nested lists")
        rows = [cls.of(entry) for entry in nested]
        if any(row.shape != rows[0].shape for row in rows):
            raise ValueError("lists at the same level must have the same length")
        return cls((len(rows), *rows[0].shape), tuple(e for row in rows for e in row.elements))

    def nested(self) -> Any:
        """The inverse of `of`."""
        elements: list[Any] = list(self.elements)
        for size in reversed(self.shape):
            elements = [elements[at : at + size] for at in range(0, len(elements), size)]
        return elements[0]


#: Nested lists of numbers. `NameTest` validates them, since it knows the number of names.
Nested = Annotated[Any, WithJsonSchema({"type": "array", "items": {}, "minItems": 1})]


class Sides(Part):
    """Shapes or elements of a test's tensors: a list for one name; for several names a list of
    lists in the same order.
    """

    from_: Nested = Field(alias="from", description="for the names of `from`")
    to: Nested = Field(description="for the names of `to`")


class NameTest(Part):
    """What must become of a name: exactly one of `to`, `dropped: true`, `unmapped: true`. For a
    tensor operation, `from` and `to` list the names of all its tensors in the order of the rule;
    small `shapes` or `values` show where the elements go.
    """

    model_config = either(("to",), ("dropped",), ("unmapped",))

    from_: Names = Field(
        alias="from", description="a name as a checkpoint has it, or several names"
    )
    to: Names | None = Field(None, description="the name, or the names, that must result")
    dropped: Literal[True] | None = Field(
        None, description="true: a rule with `drop` must take the name"
    )
    unmapped: Literal[True] | None = Field(
        None, description="true: no rule of `names` or `tensors` may take the name"
    )
    shapes: Sides | None = Field(
        None, description="shapes before and after: lists of sizes, which must add up"
    )
    values: Sides | None = Field(
        None, description="small tensors before and after: lists of rows of numbers"
    )
    given: Given = Field(
        Given(),
        description="further facts about the checkpoint and the target, for rules with a `when` "
        "and for sizes",
    )

    _old: tuple[Numbers, ...] = PrivateAttr(())
    _new: tuple[Numbers, ...] = PrivateAttr(())

    @property
    def old_names(self) -> tuple[str, ...]:
        """The names of `from`."""
        return _listed(self.from_)

    @property
    def new_names(self) -> tuple[str, ...]:
        """The names of `to`; none where there is no `to`."""
        return _listed(self.to or ())

    @property
    def old(self) -> tuple[Numbers, ...]:
        """The tensors of `from`, without elements if the test has shapes alone; none without
        shapes and values.
        """
        return self._old

    @property
    def new(self) -> tuple[Numbers, ...]:
        """The tensors of `to`."""
        return self._new

    @model_validator(mode="after")
    def _one_outcome(self) -> NameTest:
        given = [x for x in (self.to, self.dropped, self.unmapped) if x is not None]
        sized = self.shapes or self.values
        check(
            "outcome",
            (len(given) != 1, "give exactly one of to, dropped: true, unmapped: true"),
            (
                self.to is None and len(self.old_names) > 1,
                "several names of `from` are only allowed with `to`",
            ),
            (self.to is None and sized, "`shapes` and `values` are only allowed with `to`"),
            (self.shapes and self.values, "`values` give the shapes: leave out `shapes`"),
        )
        if sized is not None:
            try:
                self._old = self._tensors("from", self.old_names, self.from_, sized.from_)
                self._new = self._tensors("to", self.new_names, self.to, sized.to)
            except ValueError as error:
                check("outcome", (True, str(error)))
        return self

    def _tensors(
        self, where: str, names: tuple[str, ...], said: object, found: Any
    ) -> tuple[Numbers, ...]:
        """
        Raises:
            ValueError: there aren't as many tensors as names, or a tensor isn't one.
        """
        entries = (found,) if isinstance(said, str) else found
        if not isinstance(entries, (list, tuple)) or len(entries) != len(names):
            raise ValueError(f"`{where}` has {len(names)} names, so it needs as many tensors")
        tensors = tuple(map(Numbers.of, entries))
        if self.shapes is None:
            return tensors
        if not all(
            len(sizes.shape) == 1 and all(type(n) is int and n > 0 for n in sizes.elements)
            for sizes in tensors
        ):
            raise ValueError(f"`{where}` of `shapes` must have lists of whole numbers")
        return tuple(Numbers(tuple(map(int, sizes.elements)), ()) for sizes in tensors)


def _listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
