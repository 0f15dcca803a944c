"""Derives the vision tower's config: from its tensors, then its own config, then a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from llava_remap.checkpoint import Tensor
from llava_remap.core.problem import ConfigError, Problem, RemapError, refuse
from llava_remap.target_model.presets import STOCK, TOWER_DEFAULTS, TOWERS, stock_name

#: Keys of a vision config that are kept. No other key changes the computation.
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
#: Sizes that the tensors show.
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "patch_size",
    "num_channels",
)
#: What tensors don't show, and no tower is known without.
_UNSEEN = ("num_attention_heads", "hidden_act")
#: What can be seen in names alone, the first that fits: the names of patch embedding, table of
#: positions and class token, and what the names of layers begin with.
_FORMS = (
    (
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        "embeddings.class_embedding",
        "encoder.layers.",
    ),
    (
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.position_embeddings",
        "embeddings.cls_token",
        "encoder.layer.",
    ),
)
#: The first matrix of a layer's MLP.
_MLP = (".mlp.fc1.weight", ".intermediate.dense.weight")
_GIVE = "Give the tower's own checkpoint, with its config.json: --source vision_tower=DIR."


class UnknownTowerError(ConfigError):
    """Neither tensors nor configs show what a tower computes. Its own checkpoint would."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A tower as its tensors show it.

    Attributes:
        config: the `vision_config` of the target.
        facts: values for `tower:` and `when:` of a rule file (patch_size, image_size, class_tokens,
            image_tokens, …).
        notes: contradictions between tensors and configs, in which the tensors count.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, int | bool | str]
    notes: tuple[Problem, ...]

    def unlike(self, own: Mapping[str, Any]) -> list[str]:
        """Differences from the config `own` that change the tower's computation, in words."""
        other = {**TOWER_DEFAULTS[str(self.config["model_type"])], **own}
        return [
            f"{key} {self.config[key]!r} and {other[key]!r}"
            for key in (
                "num_attention_heads",
                "hidden_act",
                "layer_norm_eps",
                "image_size",
                "patch_size",
            )
            if self.config[key] != other[key]
        ]


def read_tower(
    prefix: str,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Any] | None,
    named: str | None,
    *,
    apart: bool = False,
    said: Mapping[str, Any] = {},
) -> Tower:
    """Describe the tower of a target.

    Args:
        prefix: the start of the tower's names.
        tensors: the target's tensors by classic name.
        own: the tower's own vision config, if a source has one.
        named: the tower that the language model's config names (`mm_vision_tower`).
        apart: whether the tensors come from another source than the language model's, so that they
            may be those of a wrong tower.
        said: key of the tower's config → value in the rule file.

    Raises:
        RemapError: LR302 without a tower; LR309 if a config contradicts the rule file, or the
            tensors while nothing else is known; LR112 if neither tensors nor configs nor the rule
            file show the number of attention heads.
    """
    seen = _sizes(prefix, tensors)
    known, notes = _known(seen, own, named, apart, said)
    kind, sizes = {"model_type": seen["model_type"]}, {key: seen[key] for key in _SIZES}
    image_size = {"image_size": known["image_size"]}
    config = {
        **kind,
        **{key: known[key] for key in _KEYS if known.get(key) is not None},
        **sizes,
        **image_size,
    }
    if seen["model_type"] == "siglip_vision_model":
        config["vision_use_head"] = seen["has_head"]
    if seen["model_type"] == "dinov2":
        config |= _dinov2(seen)
    facts = {
        **sizes,
        **kind,
        **image_size,
        "class_tokens": seen["class_tokens"],
        "image_tokens": seen["patches"],
        "positions": seen["positions"][0],
        "apart": apart,
        # A config written after the deletion doesn't show it. The stock tower of these sizes does.
        "last_layer_deleted": any(
            whole["num_hidden_layers"] == seen["num_hidden_layers"] + 1
            for whole in (known, *(preset for preset in TOWERS.values() if _fits(preset, seen)))
        ),
    }
    return Tower(config, facts, tuple(notes))


def _dinov2(seen: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with which Dinov2Config says the width of the MLP, which it has as a ratio, and that
    there is no token for masked patches.

    Raises:
        RemapError: LR112 for a width that is no multiple.
    """
    ratio, rest = divmod(seen["intermediate_size"], seen["hidden_size"])
    if rest:
        raise ConfigError.of(
            "LR112",
            f"the tower's MLP is {seen['intermediate_size']} wide, and its layers are "
            f"{seen['hidden_size']} wide, but Dinov2Config needs a whole number as their ratio. "
            "The MLP of DINOv2's giant model has a gate (SwiGLU), which no rule maps.",
        )
    return {"mlp_ratio": ratio, "use_mask_token": False}


def told_tower(config: Mapping[str, Any], *, apart: bool = False) -> Tower:
    """The tower of a rule file that has its whole config. Shapes prove the sizes in it.

    Args:
        config: the `vision_config` of the target.
        apart: as for `read_tower`.
    """
    facts = {
        key: config[key]
        for key in ("model_type", "hidden_size", "num_hidden_layers", "image_size", "patch_size")
        if key in config
    }
    if {"image_size", "patch_size"} <= facts.keys():
        facts["image_tokens"] = (facts["image_size"] // facts["patch_size"]) ** 2
    return Tower(config, {**facts, "apart": apart, "last_layer_deleted": False}, ())


def shapes_config(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A vision config for a tower with the shapes of these tensors, for uses that need only shapes.

    The number of attention heads is made up, since it changes no shape.
    """
    seen = _sizes(prefix, tensors)
    return {
        **{key: seen[key] for key in ("model_type", *_SIZES)},
        "image_size": isqrt(max(seen["patches"], 0)) * seen["patch_size"],
        "num_attention_heads": 1,
        **(_dinov2(seen) if seen["model_type"] == "dinov2" else {}),
    }


def has_stock_sizes(named: str, prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tower can be the one that `named` names. Only stock towers have known sizes."""
    called = stock_name(named)
    try:
        return called not in STOCK or _fits(STOCK[str(called)], _sizes(prefix, tensors))
    except RemapError:  # LR302: there is no whole tower
        return False


def stock_tower(prefix: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The hub id of the stock tower with the sizes of these tensors; None if there is none.

    Raises:
        RemapError: LR302 without a whole tower.
    """
    seen = _sizes(prefix, tensors)
    return next((name for name, preset in TOWERS.items() if _fits(preset, seen)), None)


def _sizes(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes, kind and parts of a tower, from the names and shapes of its tensors.

    Raises:
        RemapError: LR302 without a whole tower.
    """
    tower = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    form = next((form for form in _FORMS if form[0] in tower), _FORMS[0])
    patch_name, positions_name, class_name, layer = form
    patch, positions = tower.get(patch_name), tower.get(positions_name)
    if not tower:
        raise refuse("LR302", "no source has a tensor of the vision tower.", _GIVE)
    first_mlp = next((t for name, t in tower.items() if name.endswith(_MLP)), None)
    if (
        patch is None
        or len(patch.shape) != 4
        or positions is None
        or len(positions.shape) != 2 + (form is not _FORMS[0])  # with an axis for the batch
        or first_mlp is None
    ):
        raise refuse(
            "LR302",
            "the vision tower lacks its patch embedding, its position table or its layers.",
            _GIVE,
            [prefix + patch_name, prefix + positions_name],
        )
    class_tokens, table = int(class_name in tower), positions.shape[-2:]
    layered = [name for name in tower if name.startswith(layer)]
    kind = "clip_vision_model" if class_tokens else "siglip_vision_model"
    if form is not _FORMS[0]:
        kind = "dinov2" if any(".layer_scale" in name for name in layered) else "vit_msn"
    out, channels, side, last = patch.shape
    if channels == side != last:  # MLX's order, [out, height, width, in]: the plan refuses it
        channels = last
    return {
        "model_type": kind,
        "hidden_size": out,
        "num_channels": channels,
        "patch_size": side,
        "positions": list(table),
        "patches": table[0] - class_tokens,
        "class_tokens": class_tokens,
        "intermediate_size": first_mlp.shape[0],
        "num_hidden_layers": 1
        + max(
            (int(number) for name in layered if _is_number(number := name.split(".")[2])),
            default=-1,
        ),
        "has_head": any(name.startswith("head.") for name in tower),
    }


def _is_number(segment: str) -> bool:
    """Whether a segment of a name is a number, and no longer than a layer's can be."""
    return segment.isdecimal() and len(segment) < 10


def _known(
    seen: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    named: str | None,
    apart: bool,
    said: Mapping[str, Any],
) -> tuple[Mapping[str, Any], list[Problem]]:
    """The vision config to use for a tower, and notes on configs that the tensors contradict.

    The tower's own config comes first. The stock tower of these sizes comes second, if the language
    model's config names a stock tower or none: any other tower may have another activation.
    """
    defaults = TOWER_DEFAULTS[seen["model_type"]]
    given = {"model_type": seen["model_type"], **defaults, **own} if own is not None else None
    if given is not None and isinstance(ratio := given.get("mlp_ratio"), int):
        given["intermediate_size"] = given["hidden_size"] * ratio
    sized = next((name for name, preset in STOCK.items() if _fits(preset, seen)), None)
    called = stock_name(named)
    if apart and called in STOCK and sized not in (None, called):
        raise ConfigError.of(
            "LR309",
            f"the separate tower has the sizes of {sized}; the language model's config names "
            f"{named}.",
            "Give the tower of the checkpoint's training.",
        )
    fitting = STOCK[sized] if sized is not None and called in (None, *STOCK) else None
    known = given if given is not None and _fits(given, seen) else fitting
    if known is None and given is not None:
        raise ConfigError.of(
            "LR309",
            f"the tower's own config ({_describe(given)}) isn't that of its tensors "
            f"({_describe(seen)}).",
            "Give a whole tower with its own config.json.",
        )
    notes = []
    if known is None and said.keys() >= {*_UNSEEN}:
        known = {**seen, "image_size": isqrt(max(seen["patches"], 0)) * seen["patch_size"]}
        notes.append(
            Problem(
                "LR309",
                "the tower has no config, and its tensors show only the patches of a picture. A "
                f"picture is assumed to be as wide as its patches together, {known['image_size']} "
                "pixels.",
                "If that is wrong, give the tower's own config.json: --source vision_tower=DIR.",
            )
        )
    if known is None:
        raise UnknownTowerError.of(
            "LR112",
            "nothing shows the number of attention heads and the activation of the vision tower "
            f"({_describe(seen)}): tensors don't show them, and {_not_stock(named, seen)} "
            f"({', '.join(TOWERS)}).",
            _GIVE,
        )
    if known is given is not None and (
        other := [key for key, value in said.items() if given.get(key, value) != value]
    ):
        raise ConfigError.of(
            "LR309",
            "the rule file and the tower's own config describe different towers: "
            f"{', '.join(f'{key} {said[key]!r} and {given[key]!r}' for key in other)}.",
            "Find out which values the tower was trained with. Then write a rule file with these "
            "values that extends this one, or correct the tower's config.json.",
        )
    believed = f"The tensors count: {_describe(seen)}."
    if given is not None and known is not given:
        notes.append(
            Problem(
                "LR309",
                f"the config given for the tower belongs to another tower ({_describe(given)}).",
                believed,
            )
        )
    if called in STOCK and not _fits(STOCK[str(called)], seen):
        notes.append(
            Problem(
                "LR309",
                f"the language model's config names {named}, {_other(STOCK[str(called)], seen)}.",
                believed,
            )
        )
    return {**defaults, **known}, notes


def _fits(config: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Whether a complete vision config fits a tower of these sizes. LLaVA's SigLIP code deletes the
    last layer.
    """
    if not all(
        isinstance(config[key], int) and config[key] > 0
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        )
    ):
        return False
    side = config["image_size"] // config["patch_size"]
    return (
        config["model_type"] == seen["model_type"]
        and all(
            config[key] == seen[key] for key in ("hidden_size", "intermediate_size", "patch_size")
        )
        and config["num_hidden_layers"] - seen["num_hidden_layers"]
        in ((0,) if seen["class_tokens"] else (0, 1))
        and side * side == seen["patches"]
    )


def _other(stock: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """How a stock tower differs from one of these sizes, which it doesn't fit."""
    if stock["model_type"] != seen["model_type"]:
        return f"a tower of another kind ({stock['model_type']}, not {seen['model_type']})"
    return "a tower of other sizes"


def _not_stock(named: str | None, seen: Mapping[str, Any]) -> str:
    """Why no preset tells what a tower of these sizes computes."""
    called = stock_name(named)
    if called in STOCK:
        other = _other(STOCK[str(called)], seen)
        return f"the config names `{named}`, {other}; none of the stock towers has these sizes"
    if called is None:
        return "none of the stock towers has these sizes"
    return f"`{named}` is none of the stock towers"


def _describe(sizes: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {sizes[key]}"
        for key in ("model_type", *_SIZES[:4], "image_size", "positions")
        if sizes.get(key) is not None
    )
