"""The target model, its processor, and the origins of their config values."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llava_remap.rulefile.schema.part import Facts, Part, Scalar, check, either

#: The ways to say where a config value comes from.
ORIGINS = ("from", "const", "tower", "token", "target", "cases")


FACTS = (
    "values of the target's config that stand before (dots for nested keys), facts of the vision "
    "tower, values of the source's config (source.KEY; null for a missing key), and words of the "
    "tokenizer (token: WORD)"
)


class ConfigValue(Part):
    """Where one value of a config comes from: exactly one of `from`, `const`, `tower`, `token`,
    `target`, `cases`.
    """

    model_config = either(*((origin,) for origin in ORIGINS))

    from_: str | None = Field(
        None,
        alias="from",
        description="key of the source's config (dots for nested keys: vision_config.hidden_act); "
        "with `map`, the first item of a list is used",
    )
    const: Any = Field(None, description="the value itself")
    tower: str | None = Field(
        None,
        description="a fact of the vision tower, read from its tensors and its own config: "
        "image_size, patch_size, positions, image_tokens, class_tokens, model_type, "
        "last_layer_deleted, num_hidden_layers, hidden_size, intermediate_size, apart (whether "
        "the tower comes from another source than the language model)",
    )
    times: float | int = Field(
        1,
        gt=0,
        description="factor for the tower's fact; the product is rounded down to a whole number",
    )
    token: Literal["image", "video", "pad"] | None = Field(
        None, description="role of a token; the value is the token's id"
    )
    target: str | None = Field(
        None, description="a value of the target's config (for the processor)"
    )
    map: dict[str, Scalar] | None = Field(
        None, description="value found → value to write; any other value is an error"
    )
    default: Any = Field(
        None,
        description="the value if the source's config has none; without a default, a missing "
        "value is an error",
    )
    as_: Literal["grid_pinpoints"] | None = Field(
        None,
        alias="as",
        description="how the value is read. grid_pinpoints: LLaVA's sizes of tiled images, as "
        "[width, height] pairs or as a text like (1x1),...,(6x6) in tiles, become the [height, "
        "width] pairs of transformers",
    )
    when: Facts = Field({}, description=f"condition for this case, on {FACTS}")
    cases: tuple[ConfigValue, ...] = Field(
        (), description="alternatives; the first whose `when` holds is used"
    )

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
                "`map` and `default` are only allowed with `from`",
            ),
            ("times" in given and origins != ["tower"], "`times` is only allowed with `tower`"),
            (
                self.as_ is not None
                and (origins not in (["from"], ["const"]) or self.map is not None),
                "`as` is only allowed with `from` (without `map`) or `const`",
            ),
        )
        return self


class Target(Part):
    """The model that a job writes."""

    class_: str | None = Field(
        None, alias="class", description="name of the transformers class; a part may leave it out"
    )
    as_: Literal["source"] | None = Field(
        None,
        alias="as",
        description="source: class and config are those of the first source, whose config.json "
        "must be one of transformers. For models that transformers has, under other tensor names",
    )
    config_file: str | None = Field(
        None,
        description="with `as: source`: a JSON file with a config of another form, such as "
        "Mistral's params.json. If the source has this file and no config.json, class, config and "
        "processor are those that the rule file makes of it; `from` names its keys (dots for "
        "nested keys), and a key that no value reads is sorted by `config_keys`",
    )
    config: dict[str, ConfigValue] = Field(
        {},
        description="key of the target's config (dots for nested keys) → where the value comes "
        "from",
    )
    text_models: dict[str, str] = Field(
        {},
        description="name of a class or `model_type` in research code → transformers' "
        "`model_type` for the language model that it derives from. A name that ends in the name "
        "of a language model (LlavaGemmaForCausalLM) needs no entry",
    )
    towers: dict[str, ConfigValue] = Field(
        default_factory=lambda: {
            "vision_tower.vision_model.": ConfigValue.model_validate(
                {"from": "mm_vision_tower", "default": None}
            )
        },
        min_length=1,
        description="prefix of a vision tower's names in the target → hub repository that the "
        "tower was trained from. All towers have one form, and `vision_config` describes the "
        "first. If `config` has vision_config.model_type, `vision_config` consists of the values "
        "in `config`; otherwise the tower is a CLIP or SigLIP, read from its tensors",
    )
    language_model: str = Field(
        "language_model.", description="prefix of the language model's names in the target"
    )
    projector: str = Field(
        "multi_modal_projector.", description="prefix of the projector's names in the target"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Target:
        check(
            "form",
            (
                self.as_ is not None
                and self.config_file is None
                and (self.class_ is not None or self.config or self.text_models),
                "`as` isn't allowed with `class`, `config` or `text_models`",
            ),
            (
                self.config_file is not None and self.as_ is None,
                "`config_file` is only allowed with `as: source`",
            ),
        )
        return self

    @property
    def is_said(self) -> bool:
        """Whether the target names a model. The target of a part need not."""
        return self.class_ is not None or self.as_ is not None


class Token(Part):
    """A token that the tokenizer must have."""

    text: str = Field(min_length=1, description="the token as the tokenizer spells it")
    role: Literal["image", "video", "pad", "image_start", "image_end"] = Field(
        description="what the token stands for"
    )
    attribute: str | None = Field(
        None,
        description="attribute of the tokenizer in which the processor's class looks for the "
        "token, such as start_image_token",
    )
    add: bool = Field(
        True,
        description="whether the token is added to a tokenizer that lacks it; false for a token "
        "of the training, whose tokenizer has it",
    )
    trained: bool = Field(
        False,
        description="whether the training added the token to the tokenizer and its row to the "
        "table, which it padded to a multiple of 64",
    )


class PixelProcessor(Part):
    """The processor that makes pixel values from images, or from videos. Sizes and means are those
    of the vision tower's own image processor.
    """

    class_: str | None = Field(
        alias="class",
        description="name of the transformers class; null: no class is named, and transformers "
        "chooses one by the model's type",
    )
    when: Facts = Field(
        {},
        description="condition for using this entry; otherwise the tower's own processor is "
        f"used unchanged. A condition on {FACTS}",
    )
    config: dict[str, ConfigValue] = Field(
        {},
        description="key of the processor's config → where the value comes from, beside sizes "
        "and means",
    )


class ChatTemplate(Part):
    """A chat template for some of the models that a rule file is for."""

    when: Facts = Field(
        {},
        description=f"condition for using this template; it can't be empty. A condition on {FACTS}",
    )
    files: tuple[str, ...] = Field(
        (),
        description="Jinja files, joined in order: paths relative to this file, or names of "
        "shipped files",
    )
    text: str = Field("", description="Jinja, as apply_chat_template takes it, in place of `files`")
    values: dict[str, Scalar] = Field({}, description="values of the template's variables")
    system: str | None = Field(
        None,
        description="the system prompt of the training; `system_prompt` says when it is used",
    )

    @model_validator(mode="after")
    def _has_text(self) -> ChatTemplate:
        check(
            "form",
            (
                not self.text.strip(),
                "a chat template needs either `files` or a `text`, which can't be empty",
            ),
            (
                not self.when,
                "a chat template needs a `when`; one template for all is `chat_template`",
            ),
        )
        return self


class Processor(Part):
    """The settings of the processor."""

    class_: str | None = Field(
        None, alias="class", description="name of the transformers processor class"
    )
    chat_template: str | None = Field(
        None,
        description="one Jinja template for every tokenizer, as apply_chat_template takes it, "
        "in place of all `chat_templates`",
    )
    chat_templates: dict[str, ChatTemplate] = Field(
        {}, description="chat templates by name; the first whose `when` holds is used"
    )
    chat_values: dict[str, ConfigValue] = Field(
        {},
        description="variable of every template in `chat_templates` → where its value comes from",
    )
    plain_text: tuple[str, ...] = Field(
        (),
        description="text of a chat template that looks like a special token but isn't one, such "
        "as `<Image>`",
    )
    system_prompt: Literal["on request", "always"] = Field(
        "on request",
        description="always: a conversation without a system message begins with the template's "
        "`system`; on request: a conversation has a system prompt only if it has a system "
        "message, or if apply_chat_template is given `system_prompt`",
    )
    image_processor: PixelProcessor | None = Field(
        None,
        description="the image processor; without this field, the vision tower's own, unchanged",
    )
    video_processor: PixelProcessor | None = Field(
        None, description="the video processor, if the model has one"
    )
    config: dict[str, ConfigValue] = Field(
        {},
        description="key of the processor's config → where the value comes from, beside "
        "tokenizer and image processor",
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
