"""The rule language, version 1, as pydantic models. What each field means is said at the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetPydanticSchema,
    PrivateAttr,
    Tag,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llava_remap.rulefile.kinds import Drop, Rename, RuleKind, Substitute, Unwrap
from llava_remap.rulefile.pattern import Regex, Wrapper
from llava_remap.rulefile.template import PatternError, Template

SCHEMA_VERSIONS = (1,)
#: What a default that is a mapping is called in the place of an error; no field is called so.
NAMED = "{from}"
#: The ways to say where a config value comes from.
ORIGINS = ("from", "const", "tower", "token", "target", "cases")


def _pattern_error(error: PatternError) -> PydanticCustomError:
    return PydanticCustomError("pattern", "{reason}", {"reason": str(error)})


def _template(given: Any, as_text: Callable[[Any], str]) -> Template:
    """The template of a text; one that is parsed already is taken as it is."""
    if isinstance(given, Template):
        return given
    text = as_text(given)
    try:
        return Template(text)
    except PatternError as error:
        raise _pattern_error(error) from None


TemplateText = Annotated[
    Template, GetPydanticSchema(lambda _, handler: handler(str)), WrapValidator(_template)
]
Scalar = str | int | float | bool | None
Facts = dict[str, Scalar]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


def _either(*forms: tuple[str, ...]) -> ConfigDict:
    """For editors: fields of which exactly one set has to be there. Validators say the same, in
    better words.
    """
    return ConfigDict(json_schema_extra={"oneOf": [{"required": list(form)} for form in forms]})


class Part(BaseModel):
    """Unknown fields are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Change(Part):
    """An entry of the file's history."""

    version: str = Field(description="the version of this rule file that brought it")
    what: str = Field(description="what changed, in a line")


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


class NamedDefault(Part):
    """A source's default that the sources' config names."""

    from_: str = Field(
        alias="from",
        description="key of the config that describes the language model; its value is a hub "
        "repository or a path",
    )
    map: dict[str, str] = Field(
        {}, description="what the config may call a repository → the repository"
    )
    default: str | None = Field(
        None, description="hub repository taken where the config names none"
    )


def _kind_of_default(value: Any) -> str | None:
    return (
        NAMED
        if isinstance(value, (dict, NamedDefault))
        else "str"
        if isinstance(value, str)
        else None
    )


Default = Annotated[
    Annotated[str, Tag("str")] | Annotated[NamedDefault, Tag(NAMED)],
    Discriminator(
        _kind_of_default,
        custom_error_type="form",
        custom_error_message="a `default` is a hub repository, or {from: KEY} for the one that the "
        "source's config names",
    ),
]


class Source(Part):
    """A checkpoint that the file reads."""

    default: Default | None = Field(
        None,
        description="hub repository taken where none is given; or, not for the first source, "
        "{from: KEY, default: REPOSITORY}: "
        "what the source's config names, and the repository where it names none",
    )
    optional: bool = Field(False, description="whether a job goes on where it isn't given")
    use: tuple[Literal["tensors", "config", "tokenizer", "processor"], ...] = Field(
        ("tensors", "config", "tokenizer", "processor"),
        description="what is taken of it; all by default",
    )
    used_if_absent: TemplateText | None = Field(
        None, description="its tensors are taken only where no name of the first source matches"
    )
    select: TemplateText | tuple[TemplateText, ...] = Field(
        (),
        description="template of names, or a list; of its tensors only those are taken whose "
        "names, as `prepare` leaves them, "
        "match one",
    )
    prefix: str = Field("", description="put before each of its names, before any rule")
    overrides: bool = Field(
        False,
        description="its tensors take the place of those that other sources have for the same "
        "parameters, and if it is a LoRA "
        "adapter, it is merged; of two such sources the later wins. Less than a model will do: an "
        "adapter, a projector",
    )

    @property
    def selected(self) -> tuple[Template, ...]:
        """The templates of `select`; empty where every tensor is taken."""
        return (self.select,) if isinstance(self.select, Template) else self.select


_FACTS = (
    "values of the target's config that stand before (dots for nested ones), facts of the vision "
    "tower, values of the "
    "source's config (source.KEY; null where it has none), and, with token, a word that the "
    "tokenizer has"
)


class ConfigValue(Part):
    """Where one value of a config comes from: exactly one of `from`, `const`, `tower`, `token`,
    `target`, `cases`.
    """

    model_config = _either(*((origin,) for origin in ORIGINS))

    from_: str | None = Field(
        None,
        alias="from",
        description="key of the source's config; with `map`, of a list the first item is taken",
    )
    const: Any = Field(None, description="the value itself")
    tower: str | None = Field(
        None,
        description="a fact of the vision tower, read from its tensors and its own config: "
        "image_size, patch_size, positions, "
        "image_tokens, class_tokens, model_type, last_layer_deleted, num_hidden_layers, "
        "hidden_size, intermediate_size, apart "
        "(whether it comes from another source than the language model)",
    )
    times: float | int = Field(
        1, gt=0, description="a number that the tower's fact is multiplied by; the result is whole"
    )
    token: Literal["image", "video", "pad"] | None = Field(
        None, description="the id of the token with this role"
    )
    target: str | None = Field(
        None, description="a value of the target's config (for the processor)"
    )
    map: dict[str, Scalar] | None = Field(
        None, description="the value found → the value wanted; others are an error"
    )
    default: Any = Field(
        None,
        description="the value where the source's config has none; without it, a missing one is an "
        "error",
    )
    as_: Literal["grid_pinpoints"] | None = Field(
        None,
        alias="as",
        description="how the value is read; grid_pinpoints: LLaVA's sizes of tiled images, [width, "
        "height] each or a text like "
        "(1x1),...,(6x6) in tiles, as transformers wants them, [height, width] each",
    )
    when: Facts = Field({}, description=f"what must hold for this case: {_FACTS}")
    cases: tuple[ConfigValue, ...] = Field((), description="the first case whose `when` holds")

    @model_validator(mode="after")
    def _one_origin(self) -> ConfigValue:
        origins = [
            name for name in ORIGINS if name.replace("from", "from_") in self.model_fields_set
        ]
        if len(origins) != 1:
            raise PydanticCustomError(
                "origin", "give exactly one of {origins}", {"origins": ", ".join(ORIGINS)}
            )
        if ("map" in self.model_fields_set or "default" in self.model_fields_set) and origins != [
            "from"
        ]:
            raise PydanticCustomError("origin", "`map` and `default` go with `from`")
        if "times" in self.model_fields_set and origins != ["tower"]:
            raise PydanticCustomError("origin", "`times` goes with `tower`")
        if self.as_ is not None and (origins not in (["from"], ["const"]) or self.map is not None):
            raise PydanticCustomError("origin", "`as` goes with `from` (without `map`) or `const`")
        return self


def _named_by(key: str) -> ConfigValue:
    return ConfigValue.model_validate({"from": key, "default": None})


class Target(Part):
    """The model that is wanted."""

    class_: str | None = Field(
        None, alias="class", description="name of the transformers class; a part may leave it out"
    )
    as_: Literal["source"] | None = Field(
        None,
        alias="as",
        description="source: class and config are the first source's own, whose config.json is one "
        "of transformers; for what "
        "is a model of transformers already, under other names",
    )
    config: dict[str, ConfigValue] = Field(
        {}, description="key of the target's config (dots for nested ones): its value"
    )
    text_models: dict[str, str] = Field(
        {},
        description="name that research code gives a class or a `model_type`: the `model_type`, in "
        "transformers, of the language "
        "model that it derives from. Names that end in that of a language model "
        "(LlavaGemmaForCausalLM) needn't stand here",
    )
    towers: dict[str, ConfigValue] = Field(
        default_factory=lambda: {"vision_tower.vision_model.": _named_by("mm_vision_tower")},
        min_length=1,
        description="prefix of each vision tower's names in the target: the hub repository that it "
        "was trained from; all have "
        "one form, and `vision_config` describes the first",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Target:
        if self.as_ is not None and (self.class_ is not None or self.config or self.text_models):
            raise PydanticCustomError(
                "form", "`as` goes with none of `class`, `config` and `text_models`"
            )
        return self

    @property
    def is_said(self) -> bool:
        """Whether it says which model is wanted, as that of a part needn't."""
        return self.class_ is not None or self.as_ is not None


class Token(Part):
    """A token that the tokenizer must have; added where it is absent."""

    text: str = Field(min_length=1, description="as the tokenizer spells it")
    role: Literal["image", "video", "pad"] = Field(description="what it stands for")


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

    model_config = _either(
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
            raise _pattern_error(error) from None
        return self

    def _compiled(self) -> RuleKind:
        one_way = self.one_way is not None
        wrong = ""
        if self.reverse is not None and (self.replace is None or one_way):
            wrong = "`reverse` goes with match + replace, and not with `one_way`"
        elif one_way and self.drop is not None:
            wrong = "`one_way` goes with a rename; a drop has no way back"
        elif one_way and self.unwrap is not None:
            wrong = "`unwrap` has no way back as it is: leave `one_way` out"
        elif self.when == Condition():
            wrong = "`when` is empty, so it always holds: leave it out"
        if wrong:
            raise PydanticCustomError("form", wrong)
        match self.from_, self.to, self.match, self.replace, self.unwrap, self.drop:
            case Template() as source, Template() as target, None, None, None, None:
                return Rename(source, target, one_way)
            case None, None, str() as regex, str() as replace, None, None:
                back = None
                if self.reverse is not None:
                    back = Regex(self.reverse.match, self.reverse.replace)
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


class PostLoad(Part):
    """A post-load rule: it changes tensors after the rename, with shapes that the plan knows
    beforehand.
    """

    use: str = Field(description="name of an installed plug-in, e.g. expand_embeddings")
    with_: dict[str, Any] = Field({}, alias="with", description="its options")


class PixelProcessor(Part):
    """What makes pixel values of images, or of videos; sizes and means are those of the vision
    tower's own image processor.
    """

    class_: str | None = Field(
        alias="class",
        description="name of the transformers class; null: none is named, and transformers goes by "
        "the model's type",
    )
    when: Facts = Field(
        {},
        description="what must hold for it to count, else the tower's own is taken as it is: "
        f"{_FACTS}",
    )
    config: dict[str, ConfigValue] = Field({}, description="what it has beside them")


class ChatTemplate(Part):
    """A chat template for some of the models that a rule file is for."""

    when: Facts = Field(
        {}, description=f"what must hold for it to be taken; never nothing: {_FACTS}"
    )
    files: tuple[str, ...] = Field(
        (),
        description="files of Jinja, put one behind the other; relative to this file or named as "
        "the shipped ones are",
    )
    text: str = Field(
        "", description="Jinja, as apply_chat_template takes it, where it is in no file of its own"
    )
    values: dict[str, Scalar] = Field({}, description="what the template's variables are")
    system: str | None = Field(
        None,
        description="the system prompt of the training; it is for conversations with a system "
        "message of their own to give it",
    )

    @model_validator(mode="after")
    def _has_text(self) -> ChatTemplate:
        if not self.text.strip():
            raise PydanticCustomError(
                "form", "a chat template has `files` or a `text`, and they aren't empty"
            )
        if not self.when:
            raise PydanticCustomError(
                "form",
                "a chat template says with `when` what it is for; one for all is `chat_template`",
            )
        return self


class Processor(Part):
    """What the processor is made with."""

    class_: str | None = Field(
        None, alias="class", description="name of the transformers processor class"
    )
    chat_template: str | None = Field(
        None,
        description="Jinja, as apply_chat_template takes it, for every tokenizer, in place of all "
        "`chat_templates`",
    )
    chat_templates: dict[str, ChatTemplate] = Field(
        {}, description="chat templates by name: the first whose `when` holds is taken"
    )
    chat_values: dict[str, ConfigValue] = Field(
        {}, description="what variables are in every one of `chat_templates`"
    )
    plain_text: tuple[str, ...] = Field(
        (),
        description="what a chat template writes that looks like a special token, `<Image>`, and "
        "is none",
    )
    system_prompt: Literal["on request", "always"] = Field(
        "on request",
        description="always: the template's `system` begins every conversation that has no system "
        "message; on request: only "
        "where a conversation has one, or apply_chat_template is given `system_prompt`",
    )
    image_processor: PixelProcessor | None = Field(
        None, description="the image processor; without it, that of the vision tower as it is"
    )
    video_processor: PixelProcessor | None = Field(
        None, description="the video processor, where there is one"
    )
    config: dict[str, ConfigValue] = Field(
        {}, description="what the processor is made with, beside tokenizer and image processor"
    )

    @model_validator(mode="after")
    def _uses_system_prompt(self) -> Processor:
        if self.system_prompt == "always" and self.chat_template is not None:
            raise PydanticCustomError(
                "form",
                "`system_prompt: always` is for `chat_templates`: write the system prompt into the "
                "`chat_template` itself",
            )
        return self


class Given(Part):
    """What else is true of the checkpoint that a test is about, for rules with a `when`."""

    names: tuple[str, ...] = Field((), description="further names that it has")
    config: dict[str, Any] = Field({}, description="what its config says")


class NameTest(Part):
    """What must become of a name: exactly one of `to`, `dropped: true`, `unmapped: true`."""

    model_config = _either(("to",), ("dropped",), ("unmapped",))

    from_: str = Field(alias="from", description="a name as a checkpoint has it")
    to: str | None = Field(None, description="the name that it must become")
    dropped: Literal[True] | None = Field(None, description="true: a drop must take it")
    unmapped: Literal[True] | None = Field(None, description="true: no rule of `names` may take it")
    given: Given = Field(
        Given(), description="what else is true of the checkpoint, for rules with a `when`"
    )

    @model_validator(mode="after")
    def _one_outcome(self) -> NameTest:
        if sum(x is not None for x in (self.to, self.dropped, self.unmapped)) != 1:
            raise PydanticCustomError(
                "outcome", "give exactly one of to, dropped: true, unmapped: true"
            )
        return self


class RuleText(Part):
    """A rule file of llava-remap, or a part that rule files extend: how the names of a family of
    checkpoints become others.
    """

    schema_: int = Field(
        alias="schema",
        description="version of the rule language",
        json_schema_extra={"enum": list(SCHEMA_VERSIONS)},
    )
    name: str | None = Field(
        None, description="what it is called by, and what the record of a conversion names"
    )
    version: str | None = Field(
        None, pattern=r"^\d+\.\d+\.\d+$", description="version of this rule file: three numbers"
    )
    summary: str | None = Field(
        None, description="what it is for, in a line: `rules list` shows it"
    )
    changes: tuple[Change, ...] = Field((), description="its history, the newest last")
    extends: tuple[str, ...] = Field(
        (),
        description="files to build on, relative to this file or named as the shipped ones are "
        "(parts/wrappers.yaml); this "
        "file's own rules stand before theirs, and a rule with the id of one of theirs replaces it",
    )
    detect: Condition = Field(
        Condition(),
        description="which checkpoints the file is for; names are those of the first source and of "
        "the ones that override it, as "
        "`prepare` left them",
    )
    requires: dict[str, Requirement] = Field(
        {},
        description="by a name of their own, conditions as in `detect`, for checkpoints that look "
        "alike and compute something "
        "else: where one doesn't hold, the job is refused with what differs",
    )
    notices: dict[str, Notice] = Field(
        {}, description="by a name of their own, what users of the folder have to know"
    )
    config_keys: dict[str, Literal["unused", "told", "refused"]] = Field(
        {},
        description="key of the source's config that neither a rule nor the language model's class "
        "reads, with * for any signs: "
        "unused (nothing that is computed depends on it), told (the report names it), or refused, "
        "as any other key is. What "
        "stands for the key itself counts, else the first pattern that matches",
    )
    sources: dict[str, Source] = Field(
        {}, description="the checkpoints that are read, by name; the first is the main one"
    )
    target: Target | None = Field(None, description="the model that is wanted")
    tokens: tuple[Token, ...] = Field(
        (), description="tokens that the tokenizer must have; they are added where they are absent"
    )
    prepare: tuple[Rule, ...] = Field(
        (),
        description="clean-up of names (wrappers off, buffers dropped): every rule in turn, each "
        "at most once a name",
    )
    names: tuple[Rule, ...] = Field(
        (),
        description="translation: the first rule that matches takes the name; one that none "
        "matches is an error",
    )
    layouts: tuple[str, ...] = Field(
        (),
        description="layouts of transformers (the shipped files in `layouts/`, by name): the "
        "`names` of that one count, behind "
        "this file's own, which takes most of the checkpoint's names; of two the first",
    )
    post_load: tuple[PostLoad, ...] = Field(
        (), description="what changes tensors after the rename, in order"
    )
    processor: Processor | None = Field(
        None, description="image processor, chat template, number of image tokens"
    )
    tests: tuple[NameTest, ...] = Field(
        (), description="what must become of which name; `rules test` runs them"
    )

    @model_validator(mode="after")
    def _complete(self) -> RuleText:
        """A part may leave out what the files that extend it say; a file with a target may not."""
        if lost := [rule.id for rule in self.names if isinstance(rule.kind, Unwrap)]:
            raise PydanticCustomError(
                "form", "`unwrap` is for `prepare`; `{id}` is a rule of `names`", {"id": lost[0]}
            )
        for what, given in (
            ("text", [t.text for t in self.tokens]),
            ("role", [t.role for t in self.tokens]),
        ):
            if len(set(given)) < len(given):
                raise PydanticCustomError(
                    "form",
                    "two of `tokens` have one {what}: {given}",
                    {"what": what, "given": ", ".join(given)},
                )
        first = next(iter(self.sources.values()), Source())
        if first.overrides:
            raise PydanticCustomError(
                "form", "the first of `sources` has none before it to override"
            )
        if isinstance(first.default, NamedDefault):
            raise PydanticCustomError(
                "form",
                "the first of `sources` has none before it whose config could name its default",
            )
        if (
            self.target is not None
            and self.target.as_ is not None
            and (self.tokens or self.post_load or self.processor)
        ):
            raise PydanticCustomError(
                "form", "`target.as` goes with none of `tokens`, `post_load` and `processor`"
            )
        if self.target is not None and self.target.is_said:
            missing = [
                field for field in ("name", "version", "summary") if getattr(self, field) is None
            ]
            if not self.sources:
                missing.append("sources")
            if self.processor is not None and self.processor.class_ is None:
                missing.append("processor.class")
            if missing:
                raise PydanticCustomError(
                    "form",
                    "a rule file with a target needs {fields}",
                    {"fields": ", ".join(missing)},
                )
        return self
