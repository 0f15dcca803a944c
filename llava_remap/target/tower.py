"""The vision tower: its config, from its tensors first, its own config second, a preset last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from llava_remap.checkpoint import Tensor
from llava_remap.errors import Problem, refuse
from llava_remap.target.presets import TOWER_DEFAULTS, TOWERS

#: Where the tower is in the classic layout.
PREFIX = "vision_tower.vision_model."
#: What of a vision config is kept; everything else in it has no effect on what the tower computes.
_KEYS = (
    "num_attention_heads",
    "num_channels",
    "projection_dim",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "initializer_range",
    "initializer_factor",
)
_GIVE = "Give the tower's own checkpoint, with its config.json: --source vision_tower=DIR."


@dataclass(frozen=True, slots=True)
class Tower:
    """A tower as its tensors show it.

    Attributes:
        config: the `vision_config` of the target.
        facts: what a rule file can ask for with `tower:` and `when:` (patch_size, image_size, class_tokens, image_tokens, …).
        notes: where tensors and configs disagree; the tensors are believed.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, int | bool | str]
    notes: tuple[Problem, ...]


def read_tower(tensors: Mapping[str, Tensor], own: Mapping[str, Any] | None, named: str | None) -> Tower:
    """Describe the tower of a target.

    Args:
        tensors: the target's tensors by classic name.
        own: the tower's own vision config, where a source has one.
        named: the tower that the language model's config names (`mm_vision_tower`).

    Raises:
        RemapError: LR302 without a tower, LR112 where neither tensors nor configs tell the number of attention heads.
    """
    seen = _sizes(tensors)
    kind = seen["model_type"]
    notes = []
    stock = next((p for p in TOWERS.values() if _fits(p, seen)), None)
    if named is not None and named in TOWERS and not _fits(TOWERS[named], seen) and (own is None or not _fits(own, seen)):
        notes.append(
            Problem(
                "LR309",
                f"the tensors are a {kind} with patch {seen['patch_size']} and position table {seen['positions']}; "
                f"the config says {named}.",
                "The tensors are believed.",
            )
        )
    if own is not None and not _fits(own, seen):
        given = {key: own.get(key) for key in ("model_type", "hidden_size", "image_size", "patch_size")}
        notes.append(
            Problem(
                "LR309",
                f"the tower's own config ({_said(given)}) doesn't fit its tensors ({_said(seen)}).",
                "The tensors are believed.",
            )
        )
        own = None
    known = own or stock
    if known is None or known.get("num_attention_heads") is None:
        raise refuse(
            "LR112",
            f"the vision tower ({_said(seen)}) is none of the stock ones ({', '.join(TOWERS)}), "
            "and its number of attention heads can't be seen in its tensors.",
            _GIVE,
        )
    sizes = {key: seen[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "num_channels")}
    kept = {key: known[key] for key in _KEYS if known.get(key) is not None}
    image_size = known.get("image_size") or isqrt(seen["patches"]) * seen["patch_size"]
    config = {"model_type": kind, **TOWER_DEFAULTS[kind], **kept, **sizes, "image_size": image_size}
    if kind == "siglip_vision_model":
        config["vision_use_head"] = seen["has_head"]
    facts = {
        **sizes,
        "model_type": kind,
        "image_size": image_size,
        "class_tokens": seen["class_tokens"],
        "image_tokens": seen["patches"],
        "last_layer_deleted": known.get("num_hidden_layers") == seen["num_hidden_layers"] + 1,
    }
    return Tower(config, facts, tuple(notes))


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors' names and shapes show."""
    tower = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    patch = tower.get("embeddings.patch_embedding.weight")
    positions = tower.get("embeddings.position_embedding.weight")
    if not tower:
        raise refuse("LR302", "the vision tower: the checkpoint holds none, and none was given.", _GIVE)
    first_mlp = next((t for name, t in tower.items() if name.endswith(".mlp.fc1.weight")), None)
    if patch is None or len(patch.shape) != 4 or positions is None or len(positions.shape) != 2 or first_mlp is None:
        raise refuse(
            "LR302",
            "the vision tower lacks its patch embedding, its position table or its layers.",
            _GIVE,
            [PREFIX + "embeddings.patch_embedding.weight", PREFIX + "embeddings.position_embedding.weight"],
        )
    class_tokens = int("embeddings.class_embedding" in tower)
    return {
        "model_type": "clip_vision_model" if class_tokens else "siglip_vision_model",
        "hidden_size": patch.shape[0],
        "num_channels": patch.shape[1],
        "patch_size": patch.shape[2],
        "positions": list(positions.shape),
        "patches": positions.shape[0] - class_tokens,
        "class_tokens": class_tokens,
        "intermediate_size": first_mlp.shape[0],
        "num_hidden_layers": len({name.split(".")[2] for name in tower if name.startswith("encoder.layers.")}),
        "has_head": any(name.startswith("head.") for name in tower),
    }


def _fits(config: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Whether a vision config can be that of a tower with these sizes; it may have more layers than are left."""
    side = (config.get("image_size") or 0) // (config.get("patch_size") or 1)
    return (
        config.get("model_type", seen["model_type"]) == seen["model_type"]
        and all(config.get(key) == seen[key] for key in ("hidden_size", "intermediate_size", "patch_size"))
        and config.get("num_hidden_layers", 0) >= seen["num_hidden_layers"]
        and side * side == seen["patches"]
    )


def _said(sizes: Mapping[str, Any]) -> str:
    shown = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "image_size", "positions")
    return ", ".join(f"{key} {sizes[key]}" for key in shown if sizes.get(key) is not None)
