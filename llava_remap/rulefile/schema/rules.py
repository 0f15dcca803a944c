"""The rules of a rule file, and their tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from llava_remap.rulefile.kinds import Drop, Rename, RuleKind, Substitute, Unwrap
from llava_remap.rulefile.pattern import Regex, Wrapper
from llava_remap.rulefile.schema.part import (
    Condition,
    Id,
    Part,
    TemplateText,
    check,
    either,
    pattern_error,
)
from llava_remap.rulefile.template import PatternError, Template


class Reverse(Part):
    """The way back of a regex: what is searched in the new name, and what it is replaced by."""

    match: str = Field(description="regex, searched once in the new name")
    replace: str = Field(
        description="what its match is replaced by; \\1 and \\g<name> stand for groups"
    )


class Rule(Part):
    """One rename or one drop: `from` + `to`, `match` + `replace` or `unwrap`, or `from` + `drop`
    or `match` + `drop`.
    """

    model_config = either(
        ("from", "to"), ("match", "replace"), ("from", "drop"), ("match", "drop"), ("unwrap",)
    )

    id: Id = Field(
        description="its name in reports, unlike any other in the list; a rule with the id of one "
        "of an extended file replaces it"
    )
    from_: TemplateText | None = Field(
        None,
        alias="from",
        description="template of the whole name: dots are literal, {x} is one segment or a part of "
        "one, {x:int} a number, {x...} "
        "one or more segments",
    )
    to: TemplateText | None = Field(
        None, description="template of the new name, with fields of `from`"
    )
    match: str | None = Field(
        None,
        description="regex (of the `regex` package), searched once in the name; anchor it with ^ "
        "and $, write a dot as \\.",
    )
    replace: str | None = Field(
        None,
        description="what the regex's match is replaced by; \\1 and \\g<name> stand for groups",
    )
    unwrap: str | None = Field(
        None,
        description="in `prepare`: a segment of names, or several (base_model.model), that a "
        "framework put around modules; it is "
        "taken out wherever others follow it, at the start or inside, as often as it stands there",
    )
    drop: str | None = Field(
        None,
        min_length=1,
        description="the tensor is left out; the reason, in words that a user reads in the report",
    )
    when: Condition | None = Field(
        None,
        description="the rule counts only for checkpoints for which this holds; names are those of "
        "the first source and of the "
        "ones that override it, in `prepare` as they are stored, in `names` as `prepare` left them",
    )
    optional: bool = Field(
        False,
        description="whether it is expected that a checkpoint has no name for it (lint's LR205)",
    )
    one_way: Literal[True] | None = Field(
        None, description="true: new names are not taken back by this rule"
    )
    reverse: Reverse | None = Field(
        None, description="the way back of a regex; a template has its own"
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
                "`reverse` goes with match + replace, and not with `one_way`",
            ),
            (
                one_way and self.drop is not None,
                "`one_way` goes with a rename; a drop has no way back",
            ),
            (
                one_way and self.unwrap is not None,
                "`unwrap` has no way back as it is: leave `one_way` out",
            ),
            (self.when == Condition(), "`when` is empty, so it always holds: leave it out"),
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
    """What else is true of the checkpoint that a test is about, for rules with a `when`."""

    names: tuple[str, ...] = Field((), description="further names that it has")
    config: dict[str, Any] = Field({}, description="what its config says")


class NameTest(Part):
    """What must become of a name: exactly one of `to`, `dropped: true`, `unmapped: true`."""

    model_config = either(("to",), ("dropped",), ("unmapped",))

    from_: str = Field(alias="from", description="a name as a checkpoint has it")
    to: str | None = Field(None, description="the name that it must become")
    dropped: Literal[True] | None = Field(None, description="true: a drop must take it")
    unmapped: Literal[True] | None = Field(None, description="true: no rule of `names` may take it")
    given: Given = Field(
        Given(), description="what else is true of the checkpoint, for rules with a `when`"
    )

    @model_validator(mode="after")
    def _one_outcome(self) -> NameTest:
        given = [x for x in (self.to, self.dropped, self.unmapped) if x is not None]
        check("outcome", (len(given) != 1, "give exactly one of to, dropped: true, unmapped: true"))
        return self
