"""Checks that the installed transformers would load these files completely, with its real loader on
the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.cache import cached_value, is_kept
from llava_remap.core.dtypes import TORCH_DTYPES
from llava_remap.core.problem import Problem
from llava_remap.target_model import build_on_meta

Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape by name, in the order of files and, within a file, of their offsets."""

_QUESTION = "strict_load"


@dataclass(frozen=True, slots=True)
class _Info:
    """The parts of transformers' loading info that are kept."""

    missing_keys: list[str]
    unexpected_keys: list[str]
    mismatched_keys: list[tuple[str]]
    conversion_errors: list[str]


def strict_load(files: list[Path], class_name: str, config: Mapping[str, Any]) -> list[Problem]:
    """LR601 if the loader reports missing parameters, unexpected names or mismatched shapes. Only
    headers are read.

    The loader sees only names, dtypes and shapes, so its answer comes from the cache if it was
    asked about the same ones before. The loader doesn't notice two sources for one name, or
    leftover `inv_freq` or `position_ids`; the plan does.
    """
    tensors = {
        name: (tensor.dtype, tensor.shape)
        for checkpoint in map(open_checkpoint, files)
        for name, tensor in checkpoint.catalog.items()
    }
    info = cached_value(
        _QUESTION,
        _facts(tensors, class_name, config),
        lambda: _ask(tensors, class_name, config),
        _Info,
    )
    return loading_problems(asdict(info))


def is_known(tensors: Headers, class_name: str, config: Mapping[str, Any]) -> bool:
    """Whether the cache has the loader's answer for files with these tensors, so that neither torch
    nor transformers is needed.
    """
    return is_kept(_QUESTION, _facts(tensors, class_name, config))


def _facts(tensors: Headers, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": class_name, "config": config, "tensors": tensors}


def _ask(tensors: Headers, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The loading info of the installed transformers for tensors of these dtypes and shapes."""
    import torch
    from transformers import logging
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    logging.disable_progress_bar()  # it would count tensors that are never read
    model = build_on_meta(class_name, config)
    state = {
        name: torch.empty(shape, dtype=getattr(torch, TORCH_DTYPES[dtype]), device="meta")
        for name, (dtype, shape) in tensors.items()
    }
    load_config = LoadStateDictConfig(
        weight_mapping=get_model_conversion_mapping(model), device_map={"": "meta"}
    )
    info, _ = convert_and_load_state_dict_in_model(model, state, load_config)
    model.mark_tied_weights_as_initialized(info)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    return {
        "missing_keys": sorted(info.missing_keys),
        "unexpected_keys": sorted(info.unexpected_keys),
        "mismatched_keys": sorted((name,) for name, *_ in info.mismatched_keys),
        "conversion_errors": sorted(map(str, info.conversion_errors)),
    }


def loading_problems(info: Mapping[str, Any]) -> list[Problem]:
    """LR601 for the names in transformers' loading info: `missing_keys`, `unexpected_keys`,
    `mismatched_keys`, …
    """
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "mismatched": sorted(str(entry[0]) for entry in info["mismatched_keys"]),
        "not converted": sorted(map(str, info.get("conversion_errors", ()))),
    }
    return [
        Problem(
            "LR601",
            f"transformers' loader reports {len(names)} names as {what}.",
            "Please report this with the rule file's name.",
            tuple(names),
        )
        for what, names in found.items()
        if names
    ]
