"""What the processor is made with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llava_remap.rulefile.schema.part import Facts, Part, Scalar
from llava_remap.rulefile.schema.target import FACTS, ConfigValue


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
