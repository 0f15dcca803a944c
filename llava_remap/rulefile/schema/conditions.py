"""What a rule file says of the checkpoints that it is for."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llava_remap.rulefile.schema.part import Part, Scalar, TemplateText


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
        if not self.else_.strip():
            raise PydanticCustomError(
                "form", "a requirement has `else`: the sentence that users read where it isn't met"
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
