"""The small size for each large size, by the part of the model that a tensor is in, so that all
tensors still fit one another.

The same number can mean two things in two parts: 4096 is the width of a language model and the
width inside a tower's MLPs. Within a part, equal sizes stay equal and multiples stay multiples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import isqrt, prod
from typing import Any

from llava_remap.checkpoint import Tensor
from llava_remap.core.problem import refuse

#: The small sizes. The second line has the sizes of a tower. A size that isn't larger stays.
HIDDEN, INTERMEDIATE, ROWS = 128, 224, 320
WIDTH, TOWER_INTERMEDIATE, SIDE = 64, 160, 14
#: The size of a head in language model and tower, since serving programs have no kernels for
#: smaller heads. Pictures have 14 by 14 patches (`SIDE`), since a pooler of video needs as many.
HEAD = 32
#: The largest other size that stays: channels, patches, frames, kernels, positions of a short text.
_KEPT = 128
#: The largest multiple of a small size that a dimension can be: five layers' features side by side,
#: three projections in one matrix.
_TIMES = 16
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")
_MEND = "Give a checkpoint with the config.json that belongs to it."

#: The meanings of dimensions in a language model's tensors, as products of config sizes. If two
#: products are equal, the later one counts.
_ROLES = (
    ("head_dim",),
    ("head_dim", "num_key_value_heads"),
    ("head_dim", "num_attention_heads"),
    ("vocab_size",),
    ("intermediate_size",),
    ("hidden_size",),
)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a language model, a tower or a projector.

    Attributes:
        before: its large sizes, by config key; for a tower also `positions`, the rows of its
            position table.
        after: the same sizes, made small.
        sizes: large dimension of its tensors → small dimension.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    sizes: Mapping[int, int]

    def small_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The small shape of a tensor of this part."""
        small = tuple(small_size(size, self.sizes) for size in shape)
        if name.endswith("inv_freq") and shape == (self.before.get("head_dim", 0) // 2,):
            return (self.after["head_dim"] // 2,)
        if "positions" in self.after and name.endswith("position_embedding.weight"):
            return (self.after["positions"], *small[1:])
        if "positions" in self.after and name.endswith("position_ids"):
            return (*shape[:-1], self.after["positions"])
        return small


def small_size(size: int, sizes: Mapping[int, int]) -> int:
    """The small size of a dimension: from `sizes`, or in proportion to one of them. A dimension
    that is small already stays.
    """
    if size in sizes or size <= _KEPT:
        return sizes.get(size, size)
    multiples = (
        size // large * small
        for large, small in sizes.items()
        if size % large == 0 and size // large <= _TIMES
    )
    parts = (
        small // (large // size)
        for large, small in sizes.items()
        if large % size == 0 and small % (large // size) == 0
    )
    return next(chain(multiples, parts), _KEPT)


def text_before(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of a language model, from its tensors. The number of heads comes from its config,
    since tensors don't show it.

    Raises:
        RemapError: LR112 if tensors and config contradict each other, or the embedding is missing.
    """
    embedding = _find(tensors, "embed_tokens.weight", "token_embedding.weight")
    if embedding is None or 0 in embedding:
        raise refuse(
            "LR112",
            "the checkpoint has no matrix `embed_tokens.weight`, which shows the sizes of a "
            "language model.",
            "Give a whole model.",
        )
    rows, hidden = embedding
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        raise refuse(
            "LR112",
            f"the config says num_attention_heads: {heads!r}; a whole number is needed.",
            _MEND,
        )
    query = _find(tensors, "self_attn.q_proj.weight") or (hidden,)
    if query[0] % heads or query[0] == 0:
        raise refuse(
            "LR112",
            f"the config says num_attention_heads: {heads}; q_proj has {query[0]} rows.",
            _MEND,
        )
    key = _find(tensors, "self_attn.k_proj.weight") or (hidden,)
    widened = _find(tensors, "mlp.gate_proj.weight", "mlp.fc1.weight") or (
        config.get("intermediate_size") or 4 * hidden,
    )
    before = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": widened[0],
        "num_hidden_layers": layers_of(tensors),
        "num_attention_heads": heads,
        "num_key_value_heads": max(key[0] * heads // query[0], 1),
        "head_dim": query[0] // heads,
    }
    for name, value in before.items():
        if name != "vocab_size" and config.get(name) not in (None, value):
            raise refuse(
                "LR112",
                f"the config says {name}: {config[name]!r}; the tensors show {value}.",
                _MEND,
            )
    return before


def small_text(before: Mapping[str, int], hidden: int, layers: int) -> Sizes:
    """The sizes of a language model made small. Grouped heads stay grouped, and heads that are
    longer or shorter than usual stay so.

    Args:
        before: its large sizes.
        hidden: its small width.
        layers: how many layers stay.
    """
    after = {
        "vocab_size": min(before["vocab_size"], ROWS),
        "hidden_size": hidden,
        "intermediate_size": min(before["intermediate_size"], INTERMEDIATE),
        "num_hidden_layers": min(before["num_hidden_layers"], layers),
    }
    kept = ("num_attention_heads", "num_key_value_heads", "head_dim")
    if hidden == before["hidden_size"]:
        after |= {key: before[key] for key in kept}
    else:
        query, wide = before["head_dim"] * before["num_attention_heads"], before["hidden_size"]
        heads = max(hidden // HEAD // (2 if query < wide else 1), 1)
        groups = {1: 1, before["num_attention_heads"]: heads}.get(
            before["num_key_value_heads"], max(heads // 2, 1)
        )
        head = hidden // heads // (2 if query < wide else 1) * (2 if query > wide else 1)
        after |= dict(zip(kept, (heads, groups, head), strict=True))
    sizes = {prod(before[key] for key in role): prod(after[key] for key in role) for role in _ROLES}
    return Sizes(before, after, sizes)


def tower_before(tensors: Tensors) -> dict[str, int]:
    """The sizes of a tower, from its tensors.

    Raises:
        RemapError: LR112 if the patch embedding, the position table or the layers are missing.
    """
    patch = _find(tensors, "patch_embedding.weight", dimensions=4)
    positions = _find(tensors, "position_embedding.weight")
    widened = _find(tensors, "mlp.fc1.weight")
    if patch is None or positions is None or widened is None or 0 in (*patch, *positions, *widened):
        raise refuse(
            "LR112",
            "a vision tower lacks its patch embedding, its position table or its layers.",
            _MEND,
            sorted(tensors),
        )
    return {
        "hidden_size": patch[0],
        "intermediate_size": widened[0],
        "num_hidden_layers": layers_of(tensors),
        "num_channels": patch[1],
        "patch_size": patch[2],
        "image_size": isqrt(positions[0] - has_class_token(tensors)) * patch[2],
        "positions": positions[0],
    }


def small_tower(before: Mapping[str, int], layers: int) -> Sizes:
    """The sizes of a tower made small, for images of 14 by 14 patches. The number of heads can be
    chosen freely, since tensors don't show it.
    """
    side = before["image_size"] // before["patch_size"]
    small_side = min(side, SIDE)
    width = min(before["hidden_size"], WIDTH)
    widened = min(before["intermediate_size"], TOWER_INTERMEDIATE)
    after = {
        **before,
        "hidden_size": width,
        "intermediate_size": widened,
        "num_hidden_layers": min(before["num_hidden_layers"], layers),
        "num_attention_heads": width // HEAD if width % HEAD == 0 else 1,
        "image_size": small_side * before["patch_size"],
        "positions": before["positions"] - side * side + small_side * small_side,
    }
    return Sizes(
        before, after, {before["intermediate_size"]: widened, before["hidden_size"]: width}
    )


def has_class_token(tensors: Tensors) -> bool:
    return any(name.endswith("class_embedding") for name in tensors)


def layer_of(name: str) -> int:
    """The number of the layer that a tensor is in; -1 for none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else -1


def layers_of(tensors: Tensors) -> int:
    return 1 + max(map(layer_of, tensors), default=-1)


def _find(tensors: Tensors, *ends: str, dimensions: int = 2) -> tuple[int, ...] | None:
    """The shape of the first tensor with one of these name endings and this many dimensions."""
    return next(
        (
            t.shape
            for name, t in tensors.items()
            if name.endswith(ends) and len(t.shape) == dimensions
        ),
        None,
    )
