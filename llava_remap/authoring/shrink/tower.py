"""The tower of a checkpoint that has none: which one it was trained with, and the names of its
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_remap.checkpoint import Tensor
from llava_remap.core.problem import refuse
from llava_remap.target_model.presets import STOCK, TOWERS, stock_name

#: Beginning of every name of a tower in a checkpoint of its own.
PREFIX = "vision_model."
CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"


def trained_with(config: Mapping[str, Any], taken: int) -> tuple[str, dict[str, int]]:
    """The `model_type` and the sizes of the stock tower that a config names, or else of one that
    the projector fits.

    Args:
        taken: the width of what the projector takes: a tower's own, or a multiple of it. If the
            tower that is named has another, as it is with a model that is small already, that one
            is made as wide.

    Raises:
        RemapError: LR112 where no stock tower is named and none fits.
    """
    preset = STOCK.get(stock_name(str(config.get("mm_vision_tower") or "")) or "")
    for other in STOCK.values() if preset is None else ():
        preset = other if taken and taken % other["hidden_size"] == 0 else preset
    if preset is None:
        raise refuse(
            "LR112",
            f"there is no vision tower; of {', '.join(TOWERS)} its config names none, and "
            f"none gives {taken} values.",
            "Give a checkpoint that holds its tower.",
        )
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "image_size")
    positions = (preset["image_size"] // preset["patch_size"]) ** 2 + (preset["model_type"] == CLIP)
    width = taken if taken % preset["hidden_size"] else preset["hidden_size"]
    sizes = {
        **{key: preset[key] for key in keys},
        "hidden_size": width,
        "num_channels": 3,
        "positions": positions,
    }
    return preset["model_type"], sizes


def tower_tensors(sizes: Mapping[str, int], kind: str) -> dict[str, Tensor]:
    """The tensors of a tower in a checkpoint of its own, in float32 as such towers are stored."""
    width, widened, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, sizes["num_channels"], patch, patch),
        "embeddings.position_embedding.weight": (sizes["positions"], width),
    }
    if kind == CLIP:
        shapes |= {
            "embeddings.class_embedding": (width,),
            "pre_layrnorm.weight": (width,),
            "pre_layrnorm.bias": (width,),
        }
    else:
        shapes |= {"embeddings.patch_embedding.bias": (width,)}
    modules = {
        **{f"self_attn.{name}_proj": (width, width) for name in ("k", "v", "q", "out")},
        **{f"layer_norm{number}": (width,) for number in (1, 2)},
        "mlp.fc1": (widened, width),
        "mlp.fc2": (width, widened),
    }
    for layer in range(sizes["num_hidden_layers"]):
        for name, shape in modules.items():
            shapes |= {
                f"encoder.layers.{layer}.{name}.weight": shape,
                f"encoder.layers.{layer}.{name}.bias": shape[:1],
            }
    shapes |= {"post_layernorm.weight": (width,), "post_layernorm.bias": (width,)}
    return {
        PREFIX + name: Tensor.of(PREFIX + name, "F32", shape, None)
        for name, shape in shapes.items()
    }
