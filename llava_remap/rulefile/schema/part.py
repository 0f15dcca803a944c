"""What all models of the rule language have in common, the types of their fields, and conditions on
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
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
    """The template of a text; one that is parsed already is taken as it is."""
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
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


def check(kind: str, *checks: tuple[object, str]) -> None:
    """Refuse a model for the first mistake that it has.

    Args:
        kind: pydantic's type of the error.
        checks: whether the model has the mistake, and the message.
    """
    for is_wrong, message in checks:
        if is_wrong:
            raise PydanticCustomError(kind, "{message}", {"message": message})


def either(*forms: tuple[str, ...]) -> ConfigDict:
    """For editors: fields of which exactly one set has to be there. Validators say the same, in
    better words.
    """
    return ConfigDict(json_schema_extra={"oneOf": [{"required": list(form)} for form in forms]})


class Part(BaseModel):
    """Unknown fields are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Condition(Part):
    """What a checkpoint's names and config have to be. All that is said has to hold."""

    present: tuple[TemplateText, ...] = Field(
        (), description="templates of names; each must match at least one"
    )
    absent: tuple[TemplateText, ...] = Field(
        (), description="templates of names; none may match one"
    )
    config: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config: the value, or the list of values, that it may "
        "have; null stands for absent, "
        "and of a list in the config the first item counts",
    )
    config_not: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config: the value, or the list of values, that it may not "
        "have",
    )


class Requirement(Condition):
    """What a checkpoint has to be for the target to compute the same."""

    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config: the value, or the list of values, for which this "
        "is asked",
    )
    else_: str = Field(
        "",
        alias="else",
        description="what differs otherwise, in sentences that a user reads; a file that extends "
        "this may leave it out",
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
    """Something that a user of the folder has to know."""

    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {},
        description="key of the source's config: the value, or the list of values, for which it is "
        "told",
    )
    text: str = Field(min_length=1, description="in sentences that a user reads in the report")
