"""Checks the small JSON files of a source: keys that this package or transformers reads must have
values of the right kind.

Keys of a language model's own config aren't checked here: its class in transformers and the rule
file's target class check them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)
from pydantic_core import PydanticCustomError

from llava_remap.checkpoint import has_file, read_object
from llava_remap.core import Problem, RemapError, quoted
from llava_remap.target_model.config_keys import shortened


def _needed(kind: Any, words: str, **limits: Any) -> Any:
    """A kind of value. Any other value is refused, with `words` for what is needed."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise PydanticCustomError("needed", words) from None

    return Annotated[kind, Field(**limits), WrapValidator(check)]


_Text = _needed(str | None, "a text")
_Texts = _needed(str | list[str] | None, "a text or a list of texts")
_YesNo = _needed(bool | None, "true or false")
_Size = _needed(int | None, "a whole number above 0", gt=0)
_Number = _needed(float | None, "a number")
_Positive = _needed(float | None, "a number above 0", gt=0)
_Count = _needed(int | None, "a whole number, 0 or more", ge=0)
_Id = Annotated[int, Field(ge=-1, lt=2**31)]  # -1: none
_OneId = _needed(_Id | None, "a token's id")
_Ids = _needed(
    _Id | Annotated[list[_Id], Field(min_length=1)] | None,
    "a token's id, or a list of them that isn't empty",
)
_Object = _needed(dict[str, Any] | None, "an object")
_TextOrList = _needed(str | list[Any] | None, "a text or a list")
_Side = _needed(Literal["left", "right"] | None, "left or right")


class _Strict(BaseModel):
    """Values aren't coerced."""

    model_config = ConfigDict(strict=True)


def _object(base: type[BaseModel] = _Strict, /, **kinds: Any) -> Any:
    """A model of a JSON object: key → kind of value. Each key may be absent, and any other key may
    have any value.
    """
    fields: dict[str, Any] = {key: (kind, None) for key, kind in kinds.items()}
    return create_model("_Object", __base__=base, **fields)


#: A tower's own config.
_Tower = _object(
    model_type=_Text,
    hidden_size=_Size,
    intermediate_size=_Size,
    num_hidden_layers=_Size,
    num_attention_heads=_Size,
    num_channels=_Size,
    image_size=_Size,
    patch_size=_Size,
    hidden_act=_Text,
    layer_norm_eps=_Positive,
)


#: The config of any source.
_Source = _object(
    model_type=_Text,
    architectures=_Texts,
    name_or_path=Annotated[_Text, Field(alias="_name_or_path")],
    vocab_size=_Size,
    bos_token_id=_Ids,
    eos_token_id=_Ids,
    pad_token_id=_OneId,
    tie_word_embeddings=_YesNo,
    text_config=_Object,
    vision_config=_Tower | None,
    mm_projector_type=_Text,
    mm_resampler_type=_Text,
    mm_hidden_size=_Size,
    mm_vision_tower=_Texts,
    mm_image_tower=_Texts,
    mm_video_tower=_Texts,
    mm_vision_select_layer=_needed(int | list[int] | None, "a whole number or a list of them"),
    mm_vision_select_feature=_Text,
    mm_patch_merge_type=_Text,
    mm_use_im_start_end=_YesNo,
    mm_tunable_parts=_Text,
    mm_projector_lr=_Number,
    tune_mm_mlp_adapter=_YesNo,
    freeze_mm_mlp_adapter=_YesNo,
    unfreeze_mm_vision_tower=_YesNo,
    image_aspect_ratio=_Text,
    image_grid_pinpoints=_TextOrList,
)


#: A token with its flags for finding it in a text.
_AddedToken: Any = create_model(
    "_AddedToken",
    __base__=_Strict,
    content=(str, ...),
    lstrip=(bool, False),
    normalized=(bool, True),
    rstrip=(bool, False),
    single_word=(bool, False),
    special=(bool, False),
)
_Token = _needed(str | _AddedToken | None, "a text, or an object with the text as `content`")
_Tokens = _needed(
    list[str | _AddedToken] | dict[str, str | _AddedToken] | None,
    "texts, or objects with `content`",
)


#: `special_tokens_map.json`.
_Roles = _object(
    bos_token=_Token,
    eos_token=_Token,
    unk_token=_Token,
    sep_token=_Token,
    pad_token=_Token,
    cls_token=_Token,
    mask_token=_Token,
    additional_special_tokens=_Tokens,
)


#: `tokenizer_config.json`.
_Tokenizer = _object(
    _Roles,
    tokenizer_class=_Text,
    processor_class=_Text,
    added_tokens_decoder=_needed(
        dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], _AddedToken],
        "an object of ids with a token's `content` and flags each",
    ),
    extra_special_tokens=_Tokens,
    model_max_length=_Positive,
    padding_side=_Side,
    truncation_side=_Side,
    clean_up_tokenization_spaces=_YesNo,
    split_special_tokens=_YesNo,
    add_bos_token=_YesNo,
    add_eos_token=_YesNo,
    add_prefix_space=_YesNo,
    legacy=_YesNo,
    use_default_system_prompt=_YesNo,
    sp_model_kwargs=_Object,
    model_input_names=_needed(list[str] | None, "a list of texts"),
    chat_template=_needed(
        str | list[dict[str, str]] | None, "a text, or a list of objects with name and template"
    ),
)


#: `generation_config.json`.
_Generation = _object(
    bos_token_id=_Ids,
    eos_token_id=_Ids,
    pad_token_id=_OneId,
    max_length=_Count,
    max_new_tokens=_Count,
    min_length=_Count,
    min_new_tokens=_Count,
    do_sample=_YesNo,
    use_cache=_YesNo,
    num_beams=_Size,
    num_return_sequences=_Size,
    temperature=_Number,
    top_p=_Number,
    top_k=_Count,
    min_p=_Number,
    typical_p=_Number,
    repetition_penalty=_Number,
    length_penalty=_Number,
    no_repeat_ngram_size=_Count,
    transformers_version=_Text,
)


_Numbers = Annotated[list[float], Field(min_length=1)]
_Sides = _needed(
    float | Annotated[dict[str, float], Field(min_length=1)] | _Numbers | None,
    "pixels, or an object of sides in pixels",
)
_Colours = _needed(float | _Numbers | None, "a number, or one for each colour")


#: `preprocessor_config.json`, `video_preprocessor_config.json`.
_ImageProcessor = _object(
    image_processor_type=_Text,
    video_processor_type=_Text,
    feature_extractor_type=_Text,
    processor_class=_Text,
    do_resize=_YesNo,
    do_center_crop=_YesNo,
    do_rescale=_YesNo,
    do_normalize=_YesNo,
    do_convert_rgb=_YesNo,
    do_pad=_YesNo,
    size=_Sides,
    crop_size=_Sides,
    resample=_needed(int | None, "a number from 0 to 5, as Pillow counts its filters", ge=0, le=5),
    rescale_factor=_Number,
    image_mean=_Colours,
    image_std=_Colours,
    image_grid_pinpoints=_TextOrList,
)


#: `processor_config.json`. 5.x puts the image processor's and video processor's configs into it.
_Processor = _object(
    processor_class=_Text,
    image_processor=_ImageProcessor | None,
    video_processor=_ImageProcessor | None,
    patch_size=_Size,
    num_additional_image_tokens=_Count,
    vision_feature_select_strategy=_Text,
    image_token=_Token,
    video_token=_Token,
    chat_template=_Text,
)


_KINDS: Mapping[str, type[BaseModel]] = {
    "special_tokens_map.json": _Roles,
    "tokenizer_config.json": _Tokenizer,
    "generation_config.json": _Generation,
    "preprocessor_config.json": _ImageProcessor,
    "video_preprocessor_config.json": _ImageProcessor,
    "processor_config.json": _Processor,
    "chat_template.json": _object(chat_template=_Text),
}


def read_beside(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file beside a checkpoint's weights; empty without the file.

    Raises:
        RemapError: LR113 if the file is no JSON object, and for every key with a value of a wrong
            kind; LR100 if the file can't be read.
    """
    path, fix = folder / name, "Replace it with the original file."
    content = read_object(path, "LR113", fix, unique=False) if has_file(path) else {}
    odd = _odd(_KINDS[name], content) if name in _KINDS else _odd_words(name, content)
    if problems := [Problem("LR113", f"{quoted(str(path))} says {said}", fix) for said in odd]:
        raise RemapError(problems)
    return content


def _odd_words(name: str, content: Mapping[str, Any]) -> Iterator[str]:
    """The first word with an invalid id, in a file of words and ids."""
    for word, i in content.items() if name in ("added_tokens.json", "vocab.json") else ():
        if type(i) is not int or i < 0:
            yield f"{word[:60]}: {shortened(i)}; a token's id is needed."
            return


def odd_values(location: str, config: Mapping[str, Any]) -> list[Problem]:
    """LR112 for every key of a source's `config.json` with a value of a wrong kind.

    Args:
        location: the source, for the message.
    """
    kind = _Tower if str(config.get("model_type", "")).endswith("_vision_model") else _Source
    return [
        Problem(
            "LR112",
            f"the config of {location} says {said}",
            "Compare its config.json with the original one.",
        )
        for said in (*_odd(kind, config), *_too_large(config))
    ]


def _too_large(config: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Keys with whole numbers of more than 64 bits. No size, count or id has such a value."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _too_large(value, f"{within}{key}.")
        elif isinstance(value, int) and abs(value) >= 2**63:
            yield f"{within}{key}: {shortened(value)}; a number of at most 64 bits is needed."


def _odd(kind: type[BaseModel], content: Mapping[str, Any]) -> Iterator[str]:
    """Keys with a value of a wrong kind, each with its value and the kind that is needed."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        for odd in error.errors():
            key, needed = (
                map(str, odd["loc"]),
                odd["msg"] if odd["type"] == "needed" else "an object",
            )
            yield f"{'.'.join(key)}: {shortened(odd['input'])}; {needed} is needed."
