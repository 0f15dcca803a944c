"""The model and the processor that are wanted, and where the values of their configs come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llava_remap.rulefile.schema.part import Facts, Part, Scalar, check, either

#: The ways to say where a config value comes from.
ORIGINS = ("from", "const", "tower", "token", "target", "cases")


FACTS = (
    "values of the target's config that stand before (dots for nested ones), facts of the vision "
    "tower, values of the "
    "source's config (source.KEY; null where it has none), and, with token, a word that the "
    "tokenizer has"
)


class ConfigValue(Part):
    """Where one value of a config comes from: exactly one of `from`, `const`, `tower`, `token`,
    `target`, `cases`.
    """

    model_config = either(*((origin,) for origin in ORIGINS))

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
    when: Facts = Field({}, description=f"what must hold for this case: {FACTS}")
    cases: tuple[ConfigValue, ...] = Field((), description="the first case whose `when` holds")

    @model_validator(mode="after")
    def _one_origin(self) -> ConfigValue:
        origins = [
            name for name in ORIGINS if name.replace("from", "from_") in self.model_fields_set
        ]
        given = self.model_fields_set
        check(
            "origin",
            (len(origins) != 1, f"give exactly one of {', '.join(ORIGINS)}"),
            (
                given & {"map", "default"} and origins != ["from"],
                "`map` and `default` go with `from`",
            ),
            ("times" in given and origins != ["tower"], "`times` goes with `tower`"),
            (
                self.as_ is not None
                and (origins not in (["from"], ["const"]) or self.map is not None),
                "`as` goes with `from` (without `map`) or `const`",
            ),
        )
        return self


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
        default_factory=lambda: {
            "vision_tower.vision_model.": ConfigValue.model_validate(
                {"from": "mm_vision_tower", "default": None}
            )
        },
        min_length=1,
        description="prefix of each vision tower's names in the target: the hub repository that it "
        "was trained from; all have "
        "one form, and `vision_config` describes the first",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Target:
        check(
            "form",
            (
                self.as_ is not None
                and (self.class_ is not None or self.config or self.text_models),
                "`as` goes with none of `class`, `config` and `text_models`",
            ),
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
        f"{FACTS}",
    )
    config: dict[str, ConfigValue] = Field({}, description="what it has beside them")


class ChatTemplate(Part):
    """A chat template for some of the models that a rule file is for."""

    when: Facts = Field(
        {}, description=f"what must hold for it to be taken; never nothing: {FACTS}"
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
        check(
            "form",
            (
                not self.text.strip(),
                "a chat template has `files` or a `text`, and they aren't empty",
            ),
            (
                not self.when,
                "a chat template says with `when` what it is for; one for all is `chat_template`",
            ),
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
        check(
            "form",
            (
                self.system_prompt == "always" and self.chat_template is not None,
                "`system_prompt: always` is for `chat_templates`: write the system prompt into the "
                "`chat_template` itself",
            ),
        )
        return self
