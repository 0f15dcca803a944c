"""The rule language, version 1, as pydantic models. What each field means is said at the field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from llava_remap.rulefile.pattern import PatternError, Regex, Template

SCHEMA_VERSIONS = (1,)
#: The ways to say where a config value comes from.
ORIGINS = ("from", "const", "tower", "token", "target", "cases")


def _pattern_error(error: PatternError) -> PydanticCustomError:
    return PydanticCustomError("pattern", "{reason}", {"reason": str(error)})


def _check_template(text: str) -> str:
    try:
        Template(text)
    except PatternError as error:
        raise _pattern_error(error) from None
    return text


TemplateText = Annotated[str, AfterValidator(_check_template)]
Scalar = str | int | float | bool | None
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Part(BaseModel):
    """Unknown fields are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Change(Part):
    version: str
    what: str


class Detect(Part):
    """Which checkpoints the file is for. Patterns are templates on names of the first source after `prepare`."""

    present: tuple[TemplateText, ...] = Field((), description="each must match at least one name")
    absent: tuple[TemplateText, ...] = Field((), description="none may match a name")
    config: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {}, description="key of the source's config: the value, or the list of values, that it may have; null stands for absent"
    )


class Source(Part):
    """A checkpoint that the file reads."""

    default: str | None = Field(None, description="hub repository taken where none is given")
    optional: bool = False
    use: tuple[Literal["tensors", "config", "tokenizer", "processor"], ...] = ("tensors", "config", "tokenizer", "processor")
    used_if_absent: TemplateText | None = Field(
        None, description="its tensors are taken only where no name of the first source matches"
    )
    select: TemplateText | None = Field(None, description="of its tensors only those that match are taken")
    prefix: str = Field("", description="put before each of its names, before any rule")


class ConfigValue(Part):
    """Where one value of a config comes from: exactly one of `from`, `const`, `tower`, `token`, `target`, `cases`."""

    from_: str | None = Field(
        None, alias="from", description="key of the source's config; with `map`, of a list the first item is taken"
    )
    const: Any = None
    tower: str | None = Field(None, description="a fact of the vision tower, read from its tensors and its own config")
    token: Literal["image", "video", "pad"] | None = Field(None, description="the id of the token with this role")
    target: str | None = Field(None, description="a value of the target's config (for the processor)")
    map: dict[str, Scalar] | None = Field(None, description="the value found → the value wanted; others are an error")
    default: Any = Field(None, description="the value where the source's config has none; without it, a missing one is an error")
    when: dict[str, Scalar] = Field(
        {}, description="what must hold for this case: facts of the tower, and values of the target's config that stand before"
    )
    cases: tuple[ConfigValue, ...] = Field((), description="the first case whose `when` holds")

    @model_validator(mode="after")
    def _one_origin(self) -> ConfigValue:
        origins = [name for name in ORIGINS if name.replace("from", "from_") in self.model_fields_set]
        if len(origins) != 1:
            raise PydanticCustomError("origin", "give exactly one of {origins}", {"origins": ", ".join(ORIGINS)})
        if ("map" in self.model_fields_set or "default" in self.model_fields_set) and origins != ["from"]:
            raise PydanticCustomError("origin", "`map` and `default` go with `from`")
        return self


class Target(Part):
    class_: str | None = Field(None, alias="class", description="name of the transformers class; a part may leave it out")
    config: dict[str, ConfigValue] = Field({}, description="key of the target's config (dots for nested ones): its value")


class Token(Part):
    """A token that the tokenizer must have; added where it is absent."""

    text: str = Field(min_length=1)
    role: Literal["image", "video", "pad"]


class Rule(Part):
    """One rename or one drop: `from`/`to` or `match`/`replace`, or `from`/`drop` or `match`/`drop`."""

    id: Id
    from_: TemplateText | None = Field(None, alias="from")
    to: TemplateText | None = None
    match: str | None = None
    replace: str | None = None
    drop: str | None = Field(None, min_length=1, description="the reason, in words that a user reads")

    @model_validator(mode="after")
    def _one_form(self) -> Rule:
        form = {n for n in ("from_", "to", "match", "replace", "drop") if getattr(self, n) is not None}
        if form not in ({"from_", "to"}, {"match", "replace"}, {"from_", "drop"}, {"match", "drop"}):
            raise PydanticCustomError("form", "a rule is from + to, match + replace, from + drop or match + drop")
        try:
            if self.match is not None:
                Regex(self.match, self.replace)
            elif self.to is not None and self.from_ is not None:
                have, wanted = Template(self.from_).fields, Template(self.to).fields
                if unknown := [field for field in wanted if field not in have]:
                    raise PatternError(f"field `{{{unknown[0]}}}` of `to` is not in `from`")
        except PatternError as error:
            raise _pattern_error(error) from None
        return self


class PostLoad(Part):
    """A post-load rule: an installed plug-in by its name, and its options."""

    use: str
    with_: dict[str, Any] = Field({}, alias="with")


class Processor(Part):
    class_: str | None = Field(None, alias="class", description="name of the transformers processor class")
    chat_template: str | None = Field(None, description="Jinja")
    config: dict[str, ConfigValue] = Field(
        {}, description="what the processor is made with, beside tokenizer and image processor"
    )


class NameTest(Part):
    """What must become of a name: exactly one of `to`, `dropped: true`, `unmapped: true`."""

    from_: str = Field(alias="from")
    to: str | None = None
    dropped: Literal[True] | None = None
    unmapped: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_outcome(self) -> NameTest:
        if sum(x is not None for x in (self.to, self.dropped, self.unmapped)) != 1:
            raise PydanticCustomError("outcome", "give exactly one of to, dropped: true, unmapped: true")
        return self


class RuleText(Part):
    """All fields that a rule file or a part of one can have, merged with what it extends."""

    schema_: int = Field(alias="schema", description="version of the rule language")
    name: str | None = None
    version: str | None = Field(None, pattern=r"^\d+\.\d+\.\d+$")
    summary: str | None = None
    changes: tuple[Change, ...] = ()
    extends: tuple[str, ...] = ()
    detect: Detect = Detect()
    sources: dict[str, Source] = {}
    target: Target | None = None
    tokens: tuple[Token, ...] = ()
    prepare: tuple[Rule, ...] = ()
    names: tuple[Rule, ...] = ()
    post_load: tuple[PostLoad, ...] = ()
    processor: Processor | None = None
    tests: tuple[NameTest, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> RuleText:
        """A part may leave out what the files that extend it say; a file with a target may not."""
        for what, given in (("text", [t.text for t in self.tokens]), ("role", [t.role for t in self.tokens])):
            if len(set(given)) < len(given):
                raise PydanticCustomError(
                    "form", "two of `tokens` have one {what}: {given}", {"what": what, "given": ", ".join(given)}
                )
        if self.target is not None and self.target.class_ is not None:
            missing = [field for field in ("name", "version", "summary") if getattr(self, field) is None]
            if not self.sources:
                missing.append("sources")
            if self.processor is not None and self.processor.class_ is None:
                missing.append("processor.class")
            if missing:
                raise PydanticCustomError(
                    "form", "a rule file with a target class needs {fields}", {"fields": ", ".join(missing)}
                )
        return self
