"""Decides by names whether tensors are a model's weights, an adapter, a projector, or quantised."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.catalog import ADAPTER_CONFIG, ADAPTER_FILES, BESIDE_ADAPTER, Catalog
from llava_remap.checkpoint.source_file import json_beside
from llava_remap.core import Problem, RemapError, quote, quoted, refuse, several

#: Kind of quantisation → segments in the names of tensors that it stores beside or instead of a
#: weight.
_QUANTISED = {
    "bitsandbytes": "absmax|nested_absmax|quant_map|nested_quant_map|quant_state|SCB",
    "GPTQ": "g_idx",
    "GPTQ or AWQ": "qweight|qzeros",
    "compressed-tensors": "weight_packed|weight_shape|weight_zero_point",
    "FP8 or another format with scales": "weight_scale(?:_inv)?|weight_scale_2|input_scale",
    "EXL2": "(?:q_weight|q_scale|q_groups|q_invperm)(?=$)",
    "HQQ": "W_q(?=$)",
    "AQLM": "(?:codebooks|codes)(?=$)",
}
_QUANTISED_NAME = re.compile(
    rf"(?:^|\.)(?:{'|'.join(f'({segments})' for segments in _QUANTISED.values())})(?:\.|$)"
)
_LORA = re.compile(r"\.lora_(?:embedding_)?A(?:\.\w+)?(?:\.weight)?$")
#: Names of a projector: inside a model of the research code, or of its layers alone, as other
#: training code saves them.
_PROJECTOR = re.compile(r"mm_projector|^(?:layers|model|_connector)\.\d+\.(?:weight|bias)$")
#: Further tensors in a projector's file: embeddings of tokens that pretraining adds, and the row
#: separator.
_BESIDE_PROJECTOR = re.compile(r"(?:^|\.)(?:embed_tokens\.weight|image_newline)$")


class PartOnlyError(RemapError):
    """The checkpoint is a part of a model, and a whole model is needed.

    Attributes:
        source: the source to give it as: `adapter` or `projector`.
    """

    def __init__(self, problem: Problem, source: str) -> None:
        super().__init__(problem)
        self.source = source


def has_pairs(path: Path, catalog: Catalog, folder: Path | None, *, part: bool) -> bool:
    """Whether `catalog` has LoRA pairs: it is an adapter, or a model with an unmerged adapter.

    Args:
        path: the path that the user named, or the file chosen in that folder.
        folder: where an adapter's config may lie.
        part: whether a part of a model is enough.

    Raises:
        RemapError: LR106 (empty, quantised); without `part` LR107 (adapter only), LR108 (projector
            only).
    """
    if not catalog:
        raise refuse(
            "LR106",
            f"{quoted(path.name)} holds no tensor.",
            "Give the checkpoint with the weights.",
        )
    if quantised := {name: found for name in catalog if (found := _QUANTISED_NAME.search(name))}:
        first = min((found.lastindex or 1) - 1 for found in quantised.values())
        raise refuse(
            "LR106",
            f"{quoted(path.name)} is quantised by {list(_QUANTISED)[first]}: {several(quantised)}.",
            "Give the unquantised checkpoint from which it was made, in F16, BF16 or F32.",
            quantised,
        )
    if part:
        return any(".lora_" in name for name in catalog)
    projector_only = is_projector_alone(catalog)
    based = [
        any(f"{name[: match.start()]}{layer}.weight" in catalog for layer in ("", ".base_layer"))
        for name in catalog
        if (match := _LORA.search(name))
    ]
    beside_lora = projector_only and all(name.startswith("base_model.") for name in catalog)
    if (based and not any(based)) or beside_lora or path.name in (*ADAPTER_FILES, BESIDE_ADAPTER):
        raise adapter_only(path, catalog, folder)
    if projector_only:
        base = named_base(json_beside(folder, "config.json")) or "LANGUAGE_MODEL"
        raise PartOnlyError(
            Problem(
                "LR108",
                f"{quoted(path.name)} holds only a projector ({len(catalog)} tensors), without "
                "language model and vision tower.",
                f"Give its language model too: {_options(base, 'projector', folder or path)}",
                tuple(catalog),
            ),
            "projector",
        )
    return any(".lora_" in name for name in catalog)


def is_projector_alone(names: Collection[str]) -> bool:
    """Whether these are the names of a projector and of further tensors in its file."""
    return any(map(_PROJECTOR.search, names)) and all(
        _PROJECTOR.search(name) or _BESIDE_PROJECTOR.search(name) for name in names
    )


def is_unmerged(catalog: Catalog) -> bool:
    """Whether a catalog has the base tensors that its pairs change."""
    return any(
        f"{name[: match.start()]}.base_layer.weight" in catalog
        for name in catalog
        if (match := _LORA.search(name))
    )


def adapter_only(path: Path, catalog: Catalog, folder: Path | None) -> PartOnlyError:
    """LR107, with facts from the adapter's tensors and its `adapter_config.json` in `folder`."""
    config = json_beside(folder, ADAPTER_CONFIG) or {}
    lora = [tensor for name, tensor in catalog.items() if _LORA.search(name)]
    rank = config.get("r", lora[0].shape[0] if lora and lora[0].shape else None)
    facts = f"rank {rank}, " if isinstance(rank, int) and rank < 2**31 else ""
    return PartOnlyError(
        Problem(
            "LR107",
            f"{quoted(path.name)} is an adapter ({facts}{len(lora)} LoRA pairs, {len(catalog)} "
            "tensors) without the model that it changes.",
            f"Give its base too: "
            f"{_options(named_base(config) or 'BASE', 'adapter', folder or path)}",
            tuple(catalog),
        ),
        "adapter",
    )


def _options(model: str, source: str, place: Path) -> str:
    return f"--source {quote(f'model={model}')} --source {quote(f'{source}={place}')}"


def named_base(*configs: Mapping[str, Any] | None) -> str:
    """The model that a part was trained from, as the first config with such a key names it; empty
    if no config does.
    """
    named = (
        config.get(key)
        for config in configs
        if config
        for key in ("base_model_name_or_path", "_name_or_path")
    )
    return next((name for name in named if isinstance(name, str) and name), "")
