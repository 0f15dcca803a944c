"""Describes the components of a checkpoint: language model, towers, projector, adapter, and others.

Names only divide the tensors into components. Kinds and sizes are read from shapes; the config is
used only for facts that no tensor shows. Nothing is proven here: a rule file and its plan do that.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, Literal

from llava_remap.checkpoint import Checkpoint, LoraPair, Tensor, is_projector_alone
from llava_remap.core.problem import RemapError
from llava_remap.target_model.config_parts import inner_text, text_config
from llava_remap.target_model.presets import TOWERS
from llava_remap.target_model.text_kind import text_kind as kind_of_text
from llava_remap.target_model.tower import shapes_config, stock_tower

Kind = Literal[
    "language_model", "vision_tower", "projector", "adapter", "newline", "text_encoder", "other"
]
#: Segments of names by which a component is recognised, unless it is a tower of a known structure.
_TOWER = re.compile(
    r"_?(?:vision|image|video|visual)_(?:tower|model|encoder|backbone)|visual|vision_embeddings"
)
_PROJECTOR = re.compile(
    r"(?:mm|multi_modal|visual|vision|vl|modality)_projector|_?(?:projector|connector)|"
    r"vision_resampler|adapter_mlp|mlp1"
)
_NEWLINE = re.compile(r"image_newline|view_sep\w*")
_TEXT = re.compile(
    r"language_model|llm|embed_tokens|lm_head|layers|h|blocks|wte|wpe|ln_f|norm|norm_f|embed_in|"
    r"embed_out|gpt_neox|transformer|word_embeddings|final_layernorm|tok_embeddings"
)
#: First segments of names of a two-part model (CLIP, SigLIP) outside its tower.
_TWO_PARTS = frozenset(
    ("text_model", "text_projection", "visual_projection", "logit_scale", "logit_bias")
)
#: A tower's patch embedding in transformers' CLIP and SigLIP, and the starts of all names after the
#: same prefix.
_PATCHES = "embeddings.patch_embedding.weight"
_OF_TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|resblocks|stages)\.(\d{1,9})\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$"
)
_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out)\.weight$|^(?:(?:language_)?model\.)?output\.weight$"
)
_NORM = re.compile(r"(?:^|\.)\w*(?:norm|ln_\w+)\.weight$")
_NUMBERS = re.compile(r"(\d{1,9})")
#: The most characters of a model's name in a config.
_LONGEST_NAME = 200

#: The fields of every component.
_Common = tuple[tuple[str, ...], Kind, str, int, int, int, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Component:
    """The tensors of one component.

    Attributes:
        names: the names of its tensors.
        kind: its kind.
        prefix: the segments that all its names begin with.
        tensors: the number of its tensors.
        parameters: the number of elements, without buffers; a tensor with several names counts
            once.
        nbytes: the stored bytes; a tensor with several names counts once.
        dtypes: dtype → number of tensors.
    """

    names: tuple[str, ...]
    kind: Kind
    prefix: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """All fields except the names; `nbytes` is called `bytes`."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)[1:]}
        return {"bytes" if key == "nbytes" else key: value for key, value in values.items()}


@dataclass(frozen=True, slots=True)
class LanguageModel(Component):
    """A language model.

    Attributes:
        model_type: its kind in transformers, from the config; None if the config doesn't show it.
        layers: the number of layers.
        hidden_size: the width of its embedding, or else of its norms; None without both.
    """

    model_type: str | None
    layers: int
    hidden_size: int | None


@dataclass(frozen=True, slots=True)
class VisionTower(Component):
    """A vision tower.

    Attributes:
        model_type: `clip_vision_model` or `siglip_vision_model`, from its tensors; None for another
            kind of tower.
        stock: the released tower with the same sizes; None for other sizes. LLaVA's SigLIP code
            deletes the last layer of a released tower.
        layers: the number of layers.
        hidden_size, image_size, patch_size: None for another kind of tower.
    """

    model_type: str | None
    stock: str | None
    layers: int
    hidden_size: int | None
    image_size: int | None
    patch_size: int | None


@dataclass(frozen=True, slots=True)
class Projector(Component):
    """A projector.

    Attributes:
        form: `linear` for one linear layer, `mlp` for several in a row, else `other`.
        widths: the widths of its input and of each layer's output; empty for the form `other`.
        normed: whether it has the weights of a norm.
    """

    form: Literal["linear", "mlp", "other"]
    widths: tuple[int, ...]
    normed: bool


@dataclass(frozen=True, slots=True)
class Adapter(Component):
    """The matrices of LoRA pairs.

    Attributes:
        pairs: the number of modules of the base that it changes.
        ranks: the different ranks of the pairs.
        scales: the different factors of the products; empty if alpha is unknown.
        modules: the different last segments of the modules' names.
    """

    pairs: int
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    modules: tuple[str, ...]


def components(
    checkpoint: Checkpoint, buffers: Iterable[str], forks: Mapping[str, str]
) -> tuple[Component, ...]:
    """The components of a checkpoint, the largest first.

    Args:
        buffers: names of tensors that aren't parameters.
        forks: class names or `model_type`s of research code, each with the `model_type` of the
            language model that it derives from.
    """
    matrices = checkpoint.catalog.keys() - checkpoint.unpaired.keys()
    groups: dict[tuple[Kind, str], dict[str, Tensor]] = defaultdict(dict)
    places = _places(checkpoint.unpaired)
    for name, tensor in checkpoint.catalog.items():
        key: tuple[Kind, str] = ("adapter", "") if name in matrices else places[name]
        groups[key][name] = tensor
    once = {name for group in checkpoint.aliases for name in group[1:]}
    without = {*buffers}
    text_kind = partial(_text_kind, checkpoint.config, forks)
    found = [
        _component(kind, place, tensors, once, without, checkpoint.pairs, text_kind)
        for (kind, place), tensors in groups.items()
    ]
    return tuple(sorted(found, key=lambda part: (-part.nbytes, part.kind, part.prefix)))


def embedding_and_head(
    catalog: Mapping[str, Tensor],
) -> tuple[Tensor | None, Tensor | None]:
    """The table of token embeddings and the output layer of the language model."""

    def first(pattern: re.Pattern[str]) -> Tensor | None:
        return next(
            (
                tensor
                for name, tensor in catalog.items()
                if pattern.search(name) and len(tensor.shape) == 2
            ),
            None,
        )

    return first(_EMBEDDING), first(_HEAD)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _places(catalog: Mapping[str, Tensor]) -> dict[str, tuple[Kind, str]]:
    """Name → the kind of its component, and the prefix of the component's names if there may be
    several of this kind.
    """
    if is_projector_alone(catalog):  # elsewhere, such names belong to other components
        return {
            name: _place(name, ())
            if _EMBEDDING.search(name) or _NEWLINE.fullmatch(name.rpartition(".")[2])
            else ("projector", "")
            for name in catalog
        }
    towers = sorted(
        {name.removesuffix(_PATCHES) for name in catalog if name.endswith(f".{_PATCHES}")}
        | ({""} if _PATCHES in catalog else set()),
        key=len,
        reverse=True,
    )
    return {name: _place(name, towers) for name in catalog}


def _place(name: str, towers: Sequence[str]) -> tuple[Kind, str]:
    for prefix in towers:
        if name.startswith(prefix) and name.startswith(_OF_TOWER, len(prefix)):
            return "vision_tower", prefix
    segments = name.split(".")
    if towers and segments[0] in _TWO_PARTS:
        return "text_encoder", ""
    for at, segment in enumerate(segments):
        if _NEWLINE.fullmatch(segment):
            return "newline", ""
        if _TOWER.fullmatch(segment):
            return "vision_tower", ".".join(segments[: at + 1])
        if _PROJECTOR.fullmatch(segment):
            return "projector", ""
    return ("language_model" if any(map(_TEXT.fullmatch, segments)) else "other"), ""


def _component(
    kind: Kind,
    place: str,
    tensors: Mapping[str, Tensor],
    once: set[str],
    buffers: set[str],
    pairs: Sequence[LoraPair],
    text_kind: Callable[[], str | None],
) -> Component:
    counted = [tensor for name, tensor in tensors.items() if name not in once]
    parameters = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    common: _Common = (
        tuple(tensors),
        kind,
        _common_prefix(tensors),
        len(tensors),
        sum(prod(tensor.shape) for tensor in counted if tensor.name not in buffers),
        sum(tensor.nbytes for tensor in counted),
        dict(sorted(Counter(tensor.dtype for tensor in tensors.values()).items())),
    )
    layers = len({match[1] for name in parameters if (match := _LAYER.search(name))})
    if kind == "language_model":
        return LanguageModel(*common, text_kind(), layers, _hidden_size(parameters))
    if kind == "vision_tower":
        return _tower(common, place, parameters, layers)
    if kind == "projector":
        return Projector(*common, *_layers(parameters))
    if kind == "adapter":
        return Adapter(*common, *_pairs(pairs, tensors))
    return Component(*common)


def _common_prefix(names: Iterable[str]) -> str:
    """The segments that all names begin with, never including a name's last segment.

    >>> _common_prefix(["model.mm_projector.0.weight", "model.mm_projector.2.bias"])
    'model.mm_projector.'
    """
    split = [name.split(".")[:-1] for name in names]
    first, last = min(split), max(split)
    length = next(
        (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other),
        min(len(first), len(last)),
    )
    return "".join(f"{segment}." for segment in first[:length])


def _text_kind(config: Mapping[str, Any] | None, forks: Mapping[str, str]) -> str | None:
    text = text_config([config]) if config else None
    if text is None:
        return None
    inner = inner_text(config or {})
    if inner is not None and inner.get("model_type"):
        text = inner
    named = [text.get("model_type"), text.get("architectures")]
    if any(len(str(name)) > _LONGEST_NAME for name in named):
        return None
    try:
        return kind_of_text(text, forks, None)[0]
    except RemapError:  # LR112: the config doesn't tell
        return None


def _hidden_size(tensors: Mapping[str, Tensor]) -> int | None:
    embedding, head = embedding_and_head(tensors)
    if table := embedding or head:
        return table.shape[1]
    norms = (
        tensor.shape[0]
        for name, tensor in tensors.items()
        if _NORM.search(name) and len(tensor.shape) == 1
    )
    return Counter(norms).most_common(1)[0][0] if any(map(_NORM.search, tensors)) else None


def _tower(common: _Common, prefix: str, tensors: Mapping[str, Tensor], layers: int) -> VisionTower:
    try:
        sizes = shapes_config(prefix, tensors)
    except RemapError:  # LR302: no whole tower of a known kind
        return VisionTower(*common, None, None, layers, None, None, None)
    stock = stock_tower(prefix, tensors)
    # A picture may be larger than all its patches: 384, and 27 times 14.
    image_size = TOWERS[stock]["image_size"] if stock else sizes["image_size"]
    return VisionTower(
        *common,
        sizes["model_type"],
        stock,
        sizes["num_hidden_layers"],
        sizes["hidden_size"],
        image_size,
        sizes["patch_size"],
    )


def _layers(
    tensors: Mapping[str, Tensor],
) -> tuple[Literal["linear", "mlp", "other"], tuple[int, ...], bool]:
    """Form, widths and norms of a projector."""
    weights = [tensors[name] for name in sorted(tensors, key=_by_number) if name.endswith("weight")]
    normed = any(len(weight.shape) == 1 for weight in weights)
    layers = [weight.shape for weight in weights if len(weight.shape) != 1]
    chained = all(len(shape) == 2 for shape in layers) and all(
        one[0] == other[1] for one, other in pairwise(layers)
    )
    if not layers or not chained:
        return "other", (), normed
    widths = (layers[0][1], *(shape[0] for shape in layers))
    return ("linear" if len(layers) == 1 else "mlp"), widths, normed


def _by_number(name: str) -> list[tuple[int, str]]:
    parts = _NUMBERS.split(name)
    return [(int(part), "") if number % 2 else (0, part) for number, part in enumerate(parts)]


def _pairs(
    pairs: Sequence[LoraPair], tensors: Mapping[str, Tensor]
) -> tuple[int, tuple[int, ...], tuple[float, ...], tuple[str, ...]]:
    ranks = {tensors[pair.a].shape[0] for pair in pairs}
    scales = {pair.scale for pair in pairs if pair.scale is not None}
    modules = {pair.base.removesuffix(".weight").rpartition(".")[2] for pair in pairs}
    return len(pairs), tuple(sorted(ranks)), tuple(sorted(scales)), tuple(sorted(modules))
