"""What this package itself reads of a source's config.json, held against its kind before anything is made of it.

What a language model's class reads, it looks at itself, and so does a rule file's target class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_remap.errors import Problem
from llava_remap.target.config_keys import shortened

_Text = Annotated[str | None, Field(description="a text")]
_Texts = Annotated[str | list[str] | None, Field(description="a text or a list of texts")]
_YesNo = Annotated[bool | None, Field(description="true or false")]
_Size = Annotated[int | None, Field(gt=0, description="a whole number above 0")]
_Number = Annotated[float | None, Field(description="a number")]


class _Tower(BaseModel):
    """A tower's own config: what tensors don't show is taken from it."""

    model_config = ConfigDict(strict=True)

    model_type: _Text = None
    hidden_size: _Size = None
    intermediate_size: _Size = None
    num_hidden_layers: _Size = None
    num_attention_heads: _Size = None
    num_channels: _Size = None
    image_size: _Size = None
    patch_size: _Size = None
    hidden_act: _Text = None
    layer_norm_eps: Annotated[float | None, Field(gt=0, description="a number above 0")] = None


class _Source(BaseModel):
    """The config of a source, of whatever kind."""

    model_config = ConfigDict(strict=True)

    model_type: _Text = None
    architectures: _Texts = None
    name_or_path: Annotated[str | None, Field(alias="_name_or_path", description="a text")] = None
    vocab_size: _Size = None
    tie_word_embeddings: _YesNo = None
    text_config: Annotated[dict[str, Any] | None, Field(description="an object")] = None
    vision_config: Annotated[_Tower | None, Field(description="an object")] = None
    mm_projector_type: _Text = None
    mm_resampler_type: _Text = None
    mm_hidden_size: _Size = None
    mm_vision_tower: _Texts = None
    mm_image_tower: _Texts = None
    mm_video_tower: _Texts = None
    mm_vision_select_layer: Annotated[int | list[int] | None, Field(description="a whole number or a list of them")] = None
    mm_vision_select_feature: _Text = None
    mm_patch_merge_type: _Text = None
    mm_use_im_start_end: _YesNo = None
    mm_tunable_parts: _Text = None
    mm_projector_lr: _Number = None
    tune_mm_mlp_adapter: _YesNo = None
    freeze_mm_mlp_adapter: _YesNo = None
    unfreeze_mm_vision_tower: _YesNo = None
    image_aspect_ratio: _Text = None
    image_grid_pinpoints: Annotated[str | list[Any] | None, Field(description="a text or a list")] = None


def odd_values(location: str, config: Mapping[str, Any]) -> list[Problem]:
    """LR112 for what a source's config says that is of a kind that can't be.

    Args:
        location: the source, for the message.
    """
    kind = _Tower if str(config.get("model_type", "")).endswith("_vision_model") else _Source
    try:
        kind.model_validate(config)
    except ValidationError as error:
        places = dict.fromkeys(_key(kind, [part for part in found["loc"] if isinstance(part, str)]) for found in error.errors())
        return [_odd(location, config, place) for place in places]
    return []


def _key(kind: type[BaseModel], loc: list[str]) -> tuple[tuple[str, ...], str]:
    """The key that is meant, in parts, and what is needed there; of a union pydantic names the forms, too."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    field = fields[loc[0]]
    inner = _Tower.model_fields.get(loc[1]) if loc[0] == "vision_config" and len(loc) > 1 else None
    return ((loc[0], loc[1]), str(inner.description)) if inner is not None else ((loc[0],), str(field.description))


def _odd(location: str, config: Mapping[str, Any], place: tuple[tuple[str, ...], str]) -> Problem:
    value: Any = config
    for part in place[0]:
        value = value[part]
    said = shortened(value)
    cause = f"the config of {location} says {'.'.join(place[0])}: {said}; {place[1]} is needed."
    return Problem("LR112", cause, "Hold its config.json against the original one.")
