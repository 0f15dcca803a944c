"""A checkpoint made small, without values: which tensors stay, and their shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from llava_remap.authoring.shrink.sizes import (
    HIDDEN,
    Part,
    has_class_token,
    layer_of,
    small_text,
    small_tower,
    text_before,
    tower_before,
)
from llava_remap.authoring.shrink.tower import CLIP, SIGLIP, tower_tensors, trained_with
from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core.problem import refuse
from llava_remap.target_model.presets import TOWERS

_TOWER = re.compile(r"(?:^|\.)((?:vision|image|video)_tower|vision_model)\.")
_PROJECTOR = re.compile(r"(?:^|\.)\w*(?:projector|projection|resampler)\.")
TEXT, PROJECTOR = "language model", "projector"
#: Where a tower is that the checkpoint itself doesn't hold.
APART = "vision_tower"
#: Layers of a small tower, and of one of which the projector takes several layers' features side by
#: side: ViP-LLaVA takes those of −2, −5, −8, −11 and 6, and no config says so.
_LAYERS, _LAYERS_OF_SEVERAL = 3, 12


@dataclass(frozen=True, slots=True)
class Twin:
    """What a small twin consists of.

    Attributes:
        tensors: those of the checkpoint, by name, in its order.
        tower_apart: those of its tower where it holds none; otherwise empty.
        aliases: groups of names that are one tensor.
        text: the language model.
        towers: by the segment that tells them in names: `vision_tower`, `image_tower`,
            `video_tower`, `vision_model`.
        projector: what leads from the towers to the language model.
        tower_kind: the `model_type` of the towers' config.
        last_layer_deleted: whether the tower's own config says one layer more than there are, as
            LLaVA's SigLIP code has it.
    """

    tensors: Mapping[str, Tensor]
    tower_apart: Mapping[str, Tensor]
    aliases: tuple[tuple[str, ...], ...]
    text: Part
    towers: Mapping[str, Part]
    projector: Part
    tower_kind: str
    last_layer_deleted: bool

    @property
    def tower(self) -> Part:
        """The first tower; several are made small alike."""
        return next(iter(self.towers.values()))


def make_twin(
    checkpoint: Checkpoint, config: Mapping[str, Any], layers: int, tower_layers: int | None
) -> Twin:
    """Decide what becomes of every tensor.

    Args:
        checkpoint: the large one.
        config: what its config says of the language model and of LLaVA.
        layers: how many layers of the language model stay.
        tower_layers: how many of each tower; None for as many as the features are taken from, and
            at least 3.

    Raises:
        RemapError: LR112 where tensors and config don't say enough or contradict each other, LR211
            for too few tower layers.
    """
    large: dict[str, dict[str, Tensor]] = {TEXT: {}, PROJECTOR: {}}
    for name, tensor in checkpoint.catalog.items():
        large.setdefault(part_of(name), {})[name] = tensor
    text = text_before(large.pop(TEXT), config)
    inputs = [tensor.shape[1] for tensor in large.pop(PROJECTOR).values() if len(tensor.shape) > 1]
    taken = (
        config["mm_hidden_size"]
        if config.get("mm_hidden_size") in inputs
        else next(iter(inputs), 0)
    )
    if large:
        kind = CLIP if any(map(has_class_token, large.values())) else SIGLIP
        before = {segment: tower_before(tensors) for segment, tensors in large.items()}
    else:
        kind, sizes = trained_with(config, taken)
        before = {APART: sizes}
    width = next(iter(before.values()))["hidden_size"]
    times = taken // width if taken % width == 0 else 0
    needed = _layers_needed(config, times)
    if tower_layers is not None and tower_layers < needed:
        raise refuse(
            "LR211",
            f"--tower-layers {tower_layers}: features are taken from {needed} layers.",
            f"Give at least {needed}.",
        )
    towers = {
        segment: small_tower(sizes, tower_layers or max(needed, _LAYERS))
        for segment, sizes in before.items()
    }
    tower = next(iter(towers.values()))
    # A language model as wide as what the projector takes stays so: in the projector's tensors the
    # two can't be told apart.
    widths = {
        size: size // width * tower.after["hidden_size"] for size in (width, times * width) if size
    }
    hidden = widths.get(text["hidden_size"], min(text["hidden_size"], HIDDEN))
    language_model = small_text(text, hidden, layers)
    parts = {
        TEXT: language_model,
        PROJECTOR: Part({}, {}, {text["hidden_size"]: hidden, **widths}),
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
        text=language_model,
        towers=towers,
        projector=parts[PROJECTOR],
        tower_kind=kind,
        last_layer_deleted="vision_config" not in config
        and _last_layer_deleted(next(iter(before.values())), kind),
    )


def part_of(name: str) -> str:
    """The part of a model that a tensor is in: a tower by its segment, the projector, or the
    language model and all the rest.
    """
    if tower := _TOWER.search(name):
        return tower[1]
    return PROJECTOR if _PROJECTOR.search(name) else TEXT


def _layers_needed(config: Mapping[str, Any], times: int) -> int:
    """How many layers a tower has to have for its features: −2 is the last but one, 6 the sixth.

    Args:
        times: features of how many layers the projector takes side by side.
    """
    taken = next(
        (
            config[key]
            for key in ("mm_vision_select_layer", "vision_feature_layers", "vision_feature_layer")
            if key in config
        ),
        -2,
    )
    layers = [
        abs(layer)
        for layer in (taken if isinstance(taken, list) else [taken])
        if isinstance(layer, int)
    ]
    return max([*layers, _LAYERS_OF_SEVERAL if times > 1 and len(layers) < 2 else 1])


def _last_layer_deleted(tower: Mapping[str, int], kind: str) -> bool:
    """Whether a tower is a stock one of SigLIP's with one layer less."""
    keys = ("hidden_size", "intermediate_size", "patch_size")
    return any(
        preset["model_type"] == kind == SIGLIP
        and all(preset[key] == tower[key] for key in keys)
        and preset["num_hidden_layers"] == tower["num_hidden_layers"] + 1
        for preset in TOWERS.values()
    )
