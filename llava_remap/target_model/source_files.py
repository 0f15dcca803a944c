"""The small JSON files of a source: a key that this package or transformers reads has a value of
the kind that it must have.

Keys of a language model's own config are not checked here: its class in transformers checks them,
and so does a rule file's target class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from llava_remap.checkpoint import has_file, read_object
from llava_remap.core.problem import Problem, RemapError
from llava_remap.core.wording import quoted
from llava_remap.target_model.config_keys import shortened

_Text = Annotated[str | None, Field(description="a text")]
_Texts = Annotated[str | list[str] | None, Field(description="a text or a list of texts")]
_YesNo = Annotated[bool | None, Field(description="true or false")]
_Size = Annotated[int | None, Field(gt=0, description="a whole number above 0")]
_Number = Annotated[float | None, Field(description="a number")]
_Count = Annotated[int | None, Field(ge=0, description="a whole number, 0 or more")]
_Id = Annotated[int, Field(ge=-1, lt=2**31)]  # -1: none
_Ids = Annotated[
    _Id | Annotated[list[_Id], Field(min_length=1)] | None,
    Field(description="a token's id, or a list of them that isn't empty"),
]
_Object = Annotated[dict[str, Any] | None, Field(description="an object")]
_Side = Annotated[Literal["left", "right"] | None, Field(description="left or right")]


class _Strict(BaseModel):
    """Values of exactly the kinds that are wanted."""

    model_config = ConfigDict(strict=True)


def _object(base: type[BaseModel] = _Strict, /, **kinds: Any) -> Any:
    """A model of a JSON object: a kind of value by key. Each key may be absent, and any other key
    may have any value.
    """
    fields: Any = {key: (kind, None) for key, kind in kinds.items()}
    return create_model("_Object", __base__=base, **fields)


#: A tower's own config: what tensors don't show is taken from it.
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
    layer_norm_eps=Annotated[float | None, Field(gt=0, description="a number above 0")],
)


#: The config of a source, of whatever kind.
_Source = _object(
    model_type=_Text,
    architectures=_Texts,
    name_or_path=Annotated[str | None, Field(alias="_name_or_path", description="a text")],
    vocab_size=_Size,
    bos_token_id=_Ids,
    eos_token_id=_Ids,
    pad_token_id=Annotated[_Id | None, Field(description="a token's id")],
    tie_word_embeddings=_YesNo,
    text_config=Annotated[dict[str, Any] | None, Field(description="an object")],
    vision_config=Annotated[_Tower | None, Field(description="an object")],
    mm_projector_type=_Text,
    mm_resampler_type=_Text,
    mm_hidden_size=_Size,
    mm_vision_tower=_Texts,
    mm_image_tower=_Texts,
    mm_video_tower=_Texts,
    mm_vision_select_layer=Annotated[
        int | list[int] | None, Field(description="a whole number or a list of them")
    ],
    mm_vision_select_feature=_Text,
    mm_patch_merge_type=_Text,
    mm_use_im_start_end=_YesNo,
    mm_tunable_parts=_Text,
    mm_projector_lr=_Number,
    tune_mm_mlp_adapter=_YesNo,
    freeze_mm_mlp_adapter=_YesNo,
    unfreeze_mm_vision_tower=_YesNo,
    image_aspect_ratio=_Text,
    image_grid_pinpoints=Annotated[str | list[Any] | None, Field(description="a text or a list")],
)


class _AddedToken(_Strict):
    """A token with the flags that say where it is found in a text."""

    content: str
    lstrip: bool = False
    normalized: bool = True
    rstrip: bool = False
    single_word: bool = False
    special: bool = False


_Token = Annotated[
    str | _AddedToken | None, Field(description="a text, or an object with the text as `content`")
]
_Tokens = Annotated[
    list[str | _AddedToken] | dict[str, str | _AddedToken] | None,
    Field(description="texts, or objects with `content`"),
]


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
    added_tokens_decoder=Annotated[
        dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], _AddedToken],
        Field(description="an object of ids with a token's `content` and flags each"),
    ],
    extra_special_tokens=_Tokens,
    model_max_length=Annotated[float | None, Field(gt=0, description="a number above 0")],
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
    model_input_names=Annotated[list[str] | None, Field(description="a list of texts")],
    chat_template=Annotated[
        str | list[dict[str, str]] | None,
        Field(description="a text, or a list of objects with name and template"),
    ],
)


#: `generation_config.json`.
_Generation = _object(
    bos_token_id=_Ids,
    eos_token_id=_Ids,
    pad_token_id=Annotated[_Id | None, Field(description="a token's id")],
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


_Sides = Annotated[
    float
    | Annotated[dict[str, float], Field(min_length=1)]
    | Annotated[list[float], Field(min_length=1)]
    | None,
    Field(description="pixels, or an object of sides in pixels"),
]
_Colours = Annotated[
    float | Annotated[list[float], Field(min_length=1)] | None,
    Field(description="a number, or one for each colour"),
]


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
    resample=Annotated[
        int | None,
        Field(ge=0, le=5, description="a number from 0 to 5, as Pillow counts its filters"),
    ],
    rescale_factor=_Number,
    image_mean=_Colours,
    image_std=_Colours,
    image_grid_pinpoints=Annotated[str | list[Any] | None, Field(description="a text or a list")],
)


#: `processor_config.json`; what 5.x puts into it are configs of their own.
_Processor = _object(
    processor_class=_Text,
    image_processor=Annotated[_ImageProcessor | None, Field(description="an object")],
    video_processor=Annotated[_ImageProcessor | None, Field(description="an object")],
    patch_size=_Size,
    num_additional_image_tokens=_Count,
    vision_feature_select_strategy=_Text,
    image_token=_Token,
    video_token=_Token,
    chat_template=_Text,
)


#: `chat_template.json`.
_ChatTemplate = _object(
    chat_template=_Text,
)


#: Files of words with their ids.
_WORDS = ("added_tokens.json", "vocab.json")
_KINDS: Mapping[str, type[BaseModel]] = {
    "special_tokens_map.json": _Roles,
    "tokenizer_config.json": _Tokenizer,
    "generation_config.json": _Generation,
    "preprocessor_config.json": _ImageProcessor,
    "video_preprocessor_config.json": _ImageProcessor,
    "processor_config.json": _Processor,
    "chat_template.json": _ChatTemplate,
}


def read_beside(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file beside a checkpoint's weights; empty without the file.

    Raises:
        RemapError: LR113 for a file that is no JSON object, and for every key in it whose value is
            of a kind that can't be; LR100 for a file that can't be read.
    """
    path, fix = folder / name, "Replace it by the original one."
    content = read_object(path, "LR113", fix, unique=False) if has_file(path) else {}
    odd = (
        [*_odd(_KINDS[name], content)]
        if name in _KINDS
        else _odd_words(content)
        if name in _WORDS
        else []
    )
    if odd:
        raise RemapError(
            [Problem("LR113", f"{quoted(str(path))} says {said}", fix) for said in odd]
        )
    return content


def _odd_words(content: Mapping[str, Any]) -> list[str]:
    """The first word whose id is none."""
    odd = ((word, i) for word, i in content.items() if type(i) is not int or i < 0)
    return [f"{word[:60]}: {shortened(i)}; a token's id is needed." for word, i in odd][:1]


def odd_values(location: str, config: Mapping[str, Any]) -> list[Problem]:
    """LR112 for every key of a source's `config.json` whose value is of a kind that can't be.

    Args:
        location: the source, for the message.
    """
    kind = _Tower if str(config.get("model_type", "")).endswith("_vision_model") else _Source
    fix = "Hold its config.json against the original one."
    return [
        Problem("LR112", f"the config of {location} says {said}", fix)
        for said in (*_odd(kind, config), *_too_large(config))
    ]


def _too_large(config: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """The keys whose whole numbers have no room in 64 bits: no size, count or id has such a
    value.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _too_large(value, f"{within}{key}.")
        elif isinstance(value, int) and abs(value) >= 2**63:
            yield f"{within}{key}: {shortened(value)}; a number of at most 64 bits is needed."


def _odd(kind: type[BaseModel], content: Mapping[str, Any]) -> Iterator[str]:
    """The keys whose values are of a kind that can't be, each with its value and with what is
    needed.
    """
    try:
        kind.model_validate(content)
    except ValidationError as error:
        for key in dict.fromkeys(_key(kind, found["loc"]) for found in error.errors()):
            value: Any = content
            for part in key:
                value = value[part]
            yield f"{'.'.join(key)}: {shortened(value)}; {_field(kind, key).description} is needed."


def _key(kind: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The key at fault, in parts: as deep as models have fields. Behind it pydantic names the
    forms of a union and indices.
    """
    first = str(loc[0])
    inner = _inner(_field(kind, (first,)))
    deeper = inner is not None and len(loc) > 1 and loc[1] in _fields(inner)
    return (first, str(loc[1])) if deeper else (first,)


def _field(kind: type[BaseModel], key: tuple[str, ...]) -> FieldInfo:
    found = _fields(kind)[key[0]]
    inner = _inner(found)
    return found if len(key) == 1 or inner is None else _fields(inner)[key[1]]


def _fields(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    """The model of an object's keys; None for a value of another kind, or of several."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    return (
        kinds[0]
        if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel)
        else None
    )
