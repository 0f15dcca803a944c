"""The plan of a small checkpoint: which tensors stay, and their shapes. No values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from llava_remap.authoring.shrink.sizes import (
    HIDDEN,
    Sizes,
    has_class_token,
    layer_of,
    small_text,
    small_tower,
    text_before,
    tower_before,
)
from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core.problem import refuse
from llava_remap.target_model.presets import STOCK, TOWERS, stock_name

_TOWER = re.compile(r"(?:^|\.)((?:vision|image|video)_tower|vision_model)\.")
_PROJECTOR = re.compile(r"(?:^|\.)\w*(?:projector|projection|resampler)\.")
TEXT, PROJECTOR = "language model", "projector"
#: The name of a tower that the checkpoint itself doesn't hold.
APART = "vision_tower"
#: The prefix of all names in a tower's own checkpoint.
PREFIX = "vision_model."
CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
#: Layers of a small tower, and of a tower whose projector takes the features of several layers side
#: by side. ViP-LLaVA takes layers −2, −5, −8, −11 and 6, and no config says so.
_LAYERS, _LAYERS_OF_SEVERAL = 3, 12


@dataclass(frozen=True, slots=True)
class Twin:
    """The tensors and sizes of a small twin.

    Attributes:
        tensors: the tensors of the checkpoint by name, in the checkpoint's order.
        tower_apart: the tensors of the tower if the checkpoint holds no tower; otherwise empty.
        aliases: groups of names of one tensor.
        text: the language model.
        towers: sizes by the segment that marks a tower's names: `vision_tower`, `image_tower`,
            `video_tower`, `vision_model`.
        projector: the modules between the towers and the language model.
        tower_kind: the `model_type` of the towers' config.
        last_layer_deleted: whether the tower's own config counts a layer that the checkpoint lacks,
            as with LLaVA's SigLIP code.
    """

    tensors: Mapping[str, Tensor]
    tower_apart: Mapping[str, Tensor]
    aliases: tuple[tuple[str, ...], ...]
    text: Sizes
    towers: Mapping[str, Sizes]
    projector: Sizes
    tower_kind: str
    last_layer_deleted: bool

    @property
    def tower(self) -> Sizes:
        """The first tower. All towers get the same small sizes."""
        return next(iter(self.towers.values()))


def make_twin(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    layers: int,
    tower_layers: int | None,
) -> Twin:
    """Decide which tensors stay, and their shapes.

    Args:
        checkpoint: the large checkpoint.
        config: its config.
        layers: how many layers of the language model stay.
        tower_layers: how many layers of each tower stay; None for as many as the features are taken
            from, but at least 3.

    Raises:
        RemapError: LR112 if tensors and config don't say enough or contradict each other, LR211 for
            too few tower layers.
    """
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, Mapping) else config
    large: dict[str, dict[str, Tensor]] = {TEXT: {}, PROJECTOR: {}}
    for name, tensor in checkpoint.catalog.items():
        large.setdefault(part_of(name), {})[name] = tensor
    text = text_before(large.pop(TEXT), config)
    inputs = [tensor.shape[1] for tensor in large.pop(PROJECTOR).values() if len(tensor.shape) > 1]
    taken = next(iter(inputs), 0)
    if config.get("mm_hidden_size") in inputs:
        taken = config["mm_hidden_size"]
    if large:
        kind = CLIP if any(map(has_class_token, large.values())) else SIGLIP
        before = {segment: tower_before(tensors) for segment, tensors in large.items()}
    else:
        kind, sizes = trained_with(config, taken)
        before = {APART: sizes}
    first_before = next(iter(before.values()))
    width = first_before["hidden_size"]
    times = taken // width if taken % width == 0 else 0
    needed = _layers_needed(config, times)
    if tower_layers is not None and tower_layers < needed:
        raise refuse(
            "LR211",
            f"--tower-layers {tower_layers}: the model takes features from a tower with at least "
            f"{needed} layers.",
            f"Give at least {needed}.",
        )
    towers = {
        segment: small_tower(sizes, tower_layers or max(needed, _LAYERS))
        for segment, sizes in before.items()
    }
    tower = next(iter(towers.values()))
    # A language model that is as wide as the projector's input stays as wide, since the projector's
    # tensors don't show which of the two a dimension belongs to.
    widths = {
        size: size // width * tower.after["hidden_size"] for size in (width, times * width) if size
    }
    hidden = widths.get(text["hidden_size"], min(text["hidden_size"], HIDDEN))
    parts = {
        TEXT: small_text(text, hidden, layers),
        PROJECTOR: Sizes({}, {}, {text["hidden_size"]: hidden, **widths}),
        **towers,
    }
    tensors = {
        name: replace(tensor, shape=parts[part].small_shape(name, tensor.shape), pieces=())
        for name, tensor in checkpoint.catalog.items()
        if layer_of(name) < parts[part := part_of(name)].after.get("num_hidden_layers", inf)
    }
    groups = (tuple(name for name in group if name in tensors) for group in checkpoint.aliases)
    return Twin(
        tensors=tensors,
        tower_apart={} if large else tower_tensors(tower.after, kind),
        aliases=tuple(group for group in groups if len(group) > 1),
        text=parts[TEXT],
        towers=towers,
        projector=parts[PROJECTOR],
        tower_kind=kind,
        last_layer_deleted="vision_config" not in config
        and _last_layer_deleted(first_before, kind),
    )


def part_of(name: str) -> str:
    """The part of a model that a tensor is in: the segment of a tower, the projector, or the
    language model, which has all other tensors.
    """
    if tower := _TOWER.search(name):
        return tower[1]
    return PROJECTOR if _PROJECTOR.search(name) else TEXT


def _layers_needed(config: Mapping[str, Any], times: int) -> int:
    """How many layers a tower must have for its features. Layer −2 is the last but one, layer 6 is
    the sixth.

    Args:
        times: the number of layers whose features the projector takes side by side.
    """
    keys = ("mm_vision_select_layer", "vision_feature_layers", "vision_feature_layer")
    taken = next((config[key] for key in keys if key in config), -2)
    layers = [
        abs(layer)
        for layer in (taken if isinstance(taken, list) else [taken])
        if isinstance(layer, int)
    ]
    return max([*layers, _LAYERS_OF_SEVERAL if times > 1 and len(layers) < 2 else 1])


def _last_layer_deleted(tower: Mapping[str, int], kind: str) -> bool:
    """Whether a tower is a stock SigLIP tower without its last layer."""
    keys = ("hidden_size", "intermediate_size", "patch_size")
    return any(
        preset["model_type"] == kind == SIGLIP
        and all(preset[key] == tower[key] for key in keys)
        and preset["num_hidden_layers"] == tower["num_hidden_layers"] + 1
        for preset in TOWERS.values()
    )


def trained_with(config: Mapping[str, Any], taken: int) -> tuple[str, dict[str, int]]:
    """The `model_type` and the sizes of the stock tower that a config names, or else of a stock
    tower that fits the projector.

    Args:
        taken: the width of the projector's input, which is the width of a tower or a multiple of
            it. If the named tower has another width (the model is small already), the tower gets
            the width of the input.

    Raises:
        RemapError: LR112 if no stock tower is named and none fits.
    """
    fitting = [preset for preset in STOCK.values() if taken and taken % preset["hidden_size"] == 0]
    preset = STOCK.get(stock_name(str(config.get("mm_vision_tower") or "")) or "")
    preset = preset or next(reversed(fitting), None)
    if preset is None:
        raise refuse(
            "LR112",
            f"the checkpoint has no vision tower. Its config names none of {', '.join(TOWERS)}, "
            f"and none of them gives {taken} values.",
            "Give a checkpoint that holds its tower.",
        )
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "image_size")
    sizes = {key: preset[key] for key in keys} | {"num_channels": 3}
    if taken % preset["hidden_size"]:
        sizes["hidden_size"] = taken
    patches = (preset["image_size"] // preset["patch_size"]) ** 2
    return preset["model_type"], {**sizes, "positions": patches + (preset["model_type"] == CLIP)}


def tower_tensors(sizes: Mapping[str, int], kind: str) -> dict[str, Tensor]:
    """The tensors of a tower's own checkpoint, in float32, the dtype in which such towers are
    stored.
    """
    width, widened, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, sizes["num_channels"], patch, patch),
        "embeddings.position_embedding.weight": (sizes["positions"], width),
    }
    in_layer = {
        **{f"self_attn.{name}_proj": (width, width) for name in ("k", "v", "q", "out")},
        **{f"layer_norm{number}": (width,) for number in (1, 2)},
        "mlp.fc1": (widened, width),
        "mlp.fc2": (width, widened),
    }
    modules = {
        f"encoder.layers.{layer}.{name}": shape
        for layer in range(sizes["num_hidden_layers"])
        for name, shape in in_layer.items()
    }
    modules["post_layernorm"] = (width,)
    if kind == CLIP:
        shapes["embeddings.class_embedding"] = modules["pre_layrnorm"] = (width,)
    else:
        shapes["embeddings.patch_embedding.bias"] = (width,)
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {
        PREFIX + name: Tensor.of(PREFIX + name, "F32", shape, None)
        for name, shape in shapes.items()
    }
