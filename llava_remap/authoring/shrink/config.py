"""The small twin's config, and that of its tower."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import gcd
from typing import Any

from llava_remap.authoring.shrink.twin import Twin
from llava_remap.core.problem import refuse
from llava_remap.target_model.presets import TOWER_DEFAULTS

#: Keys of token ids. An id may also be a list of them, or no token's: LLaVA's own −200 for an
#: image.
_ID = re.compile(r"_token_(?:id|index)$")
_OF_PROJECTOR = ("mm_hidden_size", "mm_spatial_pool_out_channels", "projection_dim")
_ALWAYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TOWER = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "num_channels",
)
#: Rows that the config doesn't know of are a fault that a twin shows too; more than this, and it is
#: another checkpoint's.
_SPARE = 64


def of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of the language model: `text_config` where it has one, else itself;
    LLaVA's own words in either case.
    """
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def small_config(config: Mapping[str, Any], twin: Twin, ids: Mapping[int, int]) -> dict[str, Any]:
    """The twin's config: the large one's, with the same sizes made small.

    Args:
        ids: what the ids of tokens become.

    Raises:
        RemapError: LR112 where the config is one of another checkpoint.
    """
    small: dict[str, Any] = json.loads(json.dumps(config))
    sections = [
        part for key in ("text_config", "vision_config") if isinstance(part := small.get(key), dict)
    ]
    text = small["text_config"] if isinstance(small.get("text_config"), dict) else small
    before, after = twin.text.before, twin.text.after
    text |= {key: after[key] for key in _ALWAYS}
    text |= {
        key: after[key] for key in ("num_key_value_heads", "head_dim") if text.get(key) is not None
    }
    if after["num_key_value_heads"] != after["num_attention_heads"]:
        text["num_key_value_heads"] = after["num_key_value_heads"]
    if isinstance(vision := small.get("vision_config"), dict):
        vision |= tower_config(config, twin)
    for section in (small, *sections):
        for key, value in section.items():
            if key == "vocab_size" and isinstance(value, int):
                section[key] = _rows(value, before["vocab_size"], after["vocab_size"])
            elif _ID.search(key):
                section[key] = (
                    [_id(i, ids) for i in value] if isinstance(value, list) else _id(value, ids)
                )
            elif key in _OF_PROJECTOR and isinstance(value, int):
                section[key] = twin.projector.sizes.get(value, value)
    if small.get("image_grid_pinpoints"):
        small["image_grid_pinpoints"] = _pinpoints(
            small["image_grid_pinpoints"], twin.tower.after["image_size"]
        )
    if "image_seq_length" in small:
        side = twin.tower.after["image_size"] // twin.tower.after["patch_size"]
        small["image_seq_length"] = side * side
    return small


def tower_config(config: Mapping[str, Any], twin: Twin) -> dict[str, Any]:
    """The `vision_config` of the twin's tower: sizes of its own; what computes as in the large
    one.
    """
    own = config.get("vision_config")
    sizes = {key: twin.tower.after[key] for key in _TOWER}
    sizes["num_hidden_layers"] += twin.last_layer_deleted
    return {
        **TOWER_DEFAULTS[twin.tower_kind],
        **(own if isinstance(own, Mapping) else {}),
        "model_type": twin.tower_kind,
        **sizes,
    }


def token_ids(config: Mapping[str, Any]) -> dict[int, str]:
    """The ids of tokens that a config names, with the role of each: 32000 → `image`."""
    text = config.get("text_config")
    said = [*config.items(), *(text.items() if isinstance(text, Mapping) else ())]
    each = (
        (key, i)
        for key, value in said
        if _ID.search(key)
        for i in (value if isinstance(value, list) else [value])
    )
    found: dict[int, str] = {}
    for key, i in each:
        if isinstance(i, int) and not isinstance(i, bool) and i >= 0:
            found.setdefault(i, _ID.sub("", key))
    return found


def _rows(said: int, before: int, after: int) -> int:
    if abs(said - before) > _SPARE:
        raise refuse(
            "LR112",
            f"the config says vocab_size: {said}, embed_tokens has {before} rows.",
            "Give a checkpoint with the config.json that belongs to it.",
        )
    return after + said - before


def _id(value: Any, ids: Mapping[int, int]) -> Any:
    return ids.get(value, value) if isinstance(value, int) else value


def _pinpoints(pinpoints: Any, image_size: int) -> Any:
    """Sizes of images in pixels, as a list or as text, for another tile: the size that all are
    multiples of.
    """
    text = json.dumps(pinpoints)
    tile = gcd(*map(int, re.findall(r"\d+", text)))
    if tile <= 1:  # counted in tiles
        return pinpoints
    return json.loads(re.sub(r"\d+", lambda number: str(int(number[0]) // tile * image_size), text))
