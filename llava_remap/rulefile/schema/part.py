"""What all models of the rule language have in common, and the types of their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, WrapValidator
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


def either(*forms: tuple[str, ...]) -> ConfigDict:
    """For editors: fields of which exactly one set has to be there. Validators say the same, in
    better words.
    """
    return ConfigDict(json_schema_extra={"oneOf": [{"required": list(form)} for form in forms]})


class Part(BaseModel):
    """Unknown fields are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)
