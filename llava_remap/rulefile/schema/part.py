"""The common base of the rule language's models, types of fields, and conditions on checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llava_remap.rulefile.template import PatternError, Template


def pattern_error(error: PatternError) -> PydanticCustomError:
    return PydanticCustomError("pattern", "{reason}", {"reason": str(error)})


def _template(given: Any, as_text: Callable[[Any], str]) -> Template:
    """The template of a text; a parsed template is returned unchanged."""
    if isinstance(given, Template):
        return given
    text = as_text(given)
    try:
        return Template(text)
    except PatternError as error:
        raise pattern_error(error) from None


TemplateText = Annotated[
    Template, GetPydanticSchema(lambda _, handler: handler(str)), WrapValidator(_template)
]
Scalar = str | int | float | bool | None
Facts = dict[str, Scalar]
#: Fields of every rule, whatever it does: `Id`, `Optional` and `When`.
Id = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="the rule's name in reports, unique in its list; a rule with the id of an "
        "inherited rule replaces that rule",
    ),
]
Optional = Annotated[
    bool,
    Field(description="whether a checkpoint may have no name for this rule (no LR205 from lint)"),
]


def check(kind: str, *checks: tuple[object, str]) -> None:
    """Raise an error for the first mistake of a model.

    Args:
        kind: pydantic's type of the error.
        checks: pairs: whether the model has the mistake, and the message.
    """
    for is_wrong, message in checks:
        if is_wrong:
            raise PydanticCustomError(kind, "{message}", {"message": message})


def either(*forms: tuple[str, ...]) -> ConfigDict:
    """JSON Schema for editors: exactly one of these sets of fields is required. Validators check
    the same with better messages.
    """
    return ConfigDict(json_schema_extra={"oneOf": [{"required": list(form)} for form in forms]})


class Part(BaseModel):
    """Unknown fields are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Condition(Part):
    """A condition on a checkpoint's names and config. All its fields must hold."""

    present: tuple[TemplateText, ...] = Field(
        (), description="templates; each must match at least one name"
    )
    absent: tuple[TemplateText, ...] = Field((), description="templates; none may match a name")
    config: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config → the value, or the list of values, that it may "
        "have. null stands for a missing key. If the config has a list, its first item counts",
    )
    config_not: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config → the value, or the list of values, that it may "
        "not have",
    )


def _said(condition: Condition | None) -> Condition | None:
    check("form", (condition == Condition(), "`when` is empty, so it always holds: leave it out"))
    return condition


When = Annotated[
    Condition | None,
    AfterValidator(_said),
    Field(
        description="the rule counts only for checkpoints that meet this condition. The names "
        "are those of the first source and of the sources that override it: in `prepare` as "
        "stored, in `names` and `tensors` after `prepare`"
    ),
]


class Requirement(Condition):
    """A condition that a checkpoint must meet for the target to compute the same."""

    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config → the value, or the list of values, for which "
        "the requirement applies",
    )
    else_: str = Field(
        "",
        alias="else",
        description="what differs if the requirement isn't met, in sentences for users; a file "
        "that extends this file may leave it out",
    )

    @model_validator(mode="after")
    def _has_reason(self) -> Requirement:
        check(
            "form",
            (
                not self.else_.strip(),
                "a requirement has `else`: the sentence that users read where it isn't met",
            ),
        )
        return self


class Notice(Part):
    """Something that a user of the output folder has to know."""

    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config → the value, or the list of values, for which "
        "the notice applies",
    )
    text: str = Field(min_length=1, description="sentences for users, in the report")
