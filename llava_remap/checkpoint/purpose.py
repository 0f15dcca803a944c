"""Whether tensors are a model's weights: by their names they may also be an adapter, a projector or quantised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.adapter import ADAPTER_CONFIG
from llava_remap.checkpoint.catalog import Catalog
from llava_remap.checkpoint.small_file import has_file
from llava_remap.checkpoint.strict_json import read_object
from llava_remap.checkpoint.wording import quoted, several
from llava_remap.errors import RemapError, refuse

#: What PEFT writes, one or the other, and what LLaVA's LoRA training puts beside it.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
BESIDE_ADAPTER = "non_lora_trainables.bin"
#: What LLaVA's pretraining writes.
PROJECTOR_FILE = "mm_projector.bin"

#: A segment of a name that bitsandbytes, GPTQ, AWQ or compressed-tensors give to what they store beside or instead of a weight.
_QUANTISED = re.compile(
    r"(?:^|\.)(?:absmax|nested_absmax|quant_map|nested_quant_map|quant_state|SCB|qweight|qzeros|weight_packed|"
    r"weight_scale(?:_inv)?)(?:\.|$)"
)
_LORA = re.compile(r"\.lora_(?:embedding_)?A(?:\.\w+)?(?:\.weight)?$")
#: What a projector's file may hold besides: embeddings of tokens that pretraining adds, the row separator.
_BESIDE_PROJECTOR = re.compile(r"(?:^|\.)(?:embed_tokens\.weight|image_newline)$")


def is_adapter(path: Path, catalog: Catalog, folder: Path | None, *, part: bool) -> bool:
    """Whether `catalog` is that of an adapter; it isn't where the base that the adapter changes is in it, too.

    Args:
        path: what was named by the user, or the file chosen in that folder.
        folder: where an adapter's config may lie.
        part: whether less than a model will do.

    Raises:
        RemapError: LR106 (empty, quantised); without `part` LR107 (adapter only), LR108 (projector only).
    """
    if not catalog:
        raise refuse("LR106", f"{quoted(path.name)} holds no tensor.", "Give the checkpoint with the weights.")
    if quantised := [name for name in catalog if _QUANTISED.search(name)]:
        cause = f"{quoted(path.name)} is quantised: {several(quantised)}."
        raise refuse("LR106", cause, "Give the unquantised checkpoint, in F16, BF16 or F32.", quantised)
    projector_only = any("mm_projector" in name for name in catalog) and all(
        "mm_projector" in name or _BESIDE_PROJECTOR.search(name) for name in catalog
    )
    pairs = [(name, match.start()) for name in catalog if (match := _LORA.search(name))]
    based = [any(f"{name[:end]}{middle}.weight" in catalog for middle in ("", ".base_layer")) for name, end in pairs]
    beside_lora = projector_only and all(name.startswith("base_model.") for name in catalog)
    if part:
        return any(".lora_" in name for name in catalog) and not (based and all(based))
    if (pairs and not any(based)) or beside_lora or path.name in (*ADAPTER_FILES, BESIDE_ADAPTER):
        raise adapter_only(path, catalog, folder)
    if projector_only:
        cause = f"{quoted(path.name)} holds the projector alone ({len(catalog)} tensors), no language model and no vision tower."
        fix = "Give its language model too: --source model=LANGUAGE_MODEL --source projector=SRC."
        raise refuse("LR108", cause, fix, catalog)
    return False


def adapter_only(path: Path, catalog: Catalog, folder: Path | None) -> RemapError:
    """LR107, with what the adapter's tensors and the `adapter_config.json` in `folder` say about it."""
    config = adapter_config(folder) or {}
    lora = [tensor for name, tensor in catalog.items() if _LORA.search(name)]
    rank = config.get("r", lora[0].shape[0] if lora and lora[0].shape else None)
    facts = f"rank {rank}, " if isinstance(rank, int) and rank < 2**31 else ""
    cause = (
        f"{quoted(path.name)} is an adapter ({facts}{len(lora)} LoRA pairs, {len(catalog)} tensors) without the model it changes."
    )
    base = config.get("base_model_name_or_path")
    named = f" ({quoted(base)})" if isinstance(base, str) and base else ""
    return refuse("LR107", cause, f"Give its base{named} too: --source model=BASE --source adapter=SRC.", catalog)


def named_base(*configs: Mapping[str, Any] | None) -> str:
    """The model that a part was trained from, as the first of these configs that names one has it; empty where none does."""
    named = (config.get(key) for config in configs if config for key in ("base_model_name_or_path", "_name_or_path"))
    return next((name for name in named if isinstance(name, str) and name), "")


def adapter_config(folder: Path | None) -> dict[str, Any] | None:
    """The `adapter_config.json` in a folder; None without one.

    Raises:
        RemapError: LR113.
    """
    if folder is None or not has_file(folder / ADAPTER_CONFIG):
        return None
    return read_object(folder / ADAPTER_CONFIG, "LR113", "Download it again.", unique=False)
