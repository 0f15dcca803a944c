"""Reads PEFT's LoRA adapters: the pairs of matrices, the base tensor that each pair changes, and
its scale.

An adapter's `adapter_config.json` has facts that tensors don't show: alpha, and variants of LoRA
that compute something else. A variant is refused unless it is known to compute the same. Tensors
outside pairs (`modules_to_save`, biases, LLaVA's `non_lora_trainables.bin`) are ordinary tensors
under their own names.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from llava_remap.checkpoint.catalog import ADAPTER_CONFIG, Catalog, LoraPair
from llava_remap.core import FLOATS, printable, quoted, refuse, several

#: `….q_proj.lora_A.weight`, or, taken from the model itself, `….q_proj.lora_A.default.weight`.
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<letter>[AB])(?:\.\w+)?\.weight")
_LORA = re.compile(r"(?:^|\.)lora_")
#: The prefix that PEFT puts before a module's name in the base.
_WRAPPER = "base_model.model."
#: Keys that are read here, and keys without effect on the result: how the adapter was trained, its
#: base, and its modules, which the tensors show. `fan_in_fan_out` is for GPT-2's Conv1D, which the
#: plan recognises by the target's class.
_KNOWN = frozenset((
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "init_lora_weights",
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config",
    "megatron_config", "megatron_core", "merge_weights", "modules_to_save", "peft_version",
    "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
))  # fmt: skip
#: Initialisations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, …) change
#: the base first.
_KEEPING_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
_MERGE = (
    "Merge the adapter into its base with PEFT (`merge_and_unload`), save the model and give the "
    "saved model."
)
_AGAIN = "Copy the adapter again, with all files from one training."


def lora_pairs(
    file: str, catalog: Catalog, config: Mapping[str, Any] | None
) -> tuple[LoraPair, ...]:
    """The pairs in a catalog.

    Args:
        file: the file of the tensors, for messages.
        config: the content of `adapter_config.json`; None for a manifest, which has no alpha.

    Raises:
        RemapError: LR104 for matrices without elements; LR115 if it isn't plain LoRA, or if pairs
            are incomplete or have another rank than the config says.
    """
    matrices: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"A": [], "B": []})
    for name in catalog:
        if match := _MATRIX.fullmatch(name):
            matrices[match["module"]][match["letter"]].append(name)
    lora = [name for name in catalog if _LORA.search(name)]
    if strange := [name for name in lora if not _MATRIX.fullmatch(name)]:
        raise refuse(
            "LR115",
            f"{quoted(file)} has other tensors than LoRA's pairs of matrices: {_kind(strange[0])} "
            f"({several(strange)}).",
            _MERGE,
            strange,
        )
    if stubs := [name for name in lora if 0 in catalog[name].shape]:
        raise refuse(
            "LR104",
            f"{len(stubs)} of the adapter's matrices in {quoted(file)} have no elements.",
            "DeepSpeed's ZeRO-3 keeps the values in other files: save the adapter with the "
            "parameters gathered.",
            stubs,
        )
    if config is not None:
        _refuse_variant(config)
    if odd := [
        module for module, found in matrices.items() if len(found["A"]) != 1 or len(found["B"]) != 1
    ]:
        raise refuse(
            "LR115",
            f"{len(odd)} of {len(matrices)} modules in {quoted(file)} don't have one lora_A "
            f"and one lora_B: {several(odd)}.",
            _AGAIN,
            odd,
        )
    names = {module: (found["A"][0], found["B"][0]) for module, found in matrices.items()}
    if odd := [module for module, (a, b) in names.items() if not _is_pair(catalog, a, b)]:
        a, b = (catalog[name] for name in names[odd[0]])
        raise refuse(
            "LR115",
            f"{len(odd)} of {len(matrices)} pairs in {quoted(file)} don't belong to linear "
            f"layers: {quoted(odd[0])}, lora_A is {a.dtype} {list(a.shape)}, lora_B {b.dtype} "
            f"{list(b.shape)}.",
            _MERGE,
            odd,
        )
    scales = (
        _scales({module: catalog[a].shape[0] for module, (a, _) in names.items()}, config)
        if config is not None
        else {}
    )
    return tuple(
        LoraPair(f"{module}.weight", a, b, scales.get(module)) for module, (a, b) in names.items()
    )


def _kind(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return "DoRA's magnitudes"
    if "lora_embedding_" in name:
        return "the adapter of an embedding"
    return "biases of lora_B" if name.endswith(".bias") else "tensors of an unknown kind"


def _is_pair(catalog: Catalog, a: str, b: str) -> bool:
    """Whether B times A is a matrix of real numbers."""
    one, other = catalog[a], catalog[b]
    return (
        len(one.shape) == len(other.shape) == 2
        and one.shape[0] == other.shape[1] > 0
        and {one.dtype, other.dtype} <= set(FLOATS)
    )


def _refuse_variant(config: Mapping[str, Any]) -> None:
    """LR115 unless it is plain LoRA on the unchanged base."""
    kind, begin = config.get("peft_type"), config.get("init_lora_weights", True)
    variants = [f"{key}: {value!r}" for key, value in config.items() if value and key not in _KNOWN]
    if kind != "LORA":
        variants.insert(0, f"peft_type: {kind!r}")
    if not any(
        begin is known or (isinstance(begin, str) and begin == known) for known in _KEEPING_THE_BASE
    ):
        variants.append(f"init_lora_weights: {begin!r}, which changed the base before the training")
    if variants:
        raise refuse(
            "LR115",
            f"the adapter isn't plain LoRA: its {ADAPTER_CONFIG} says {several(variants)}.",
            _MERGE,
        )


def _scales(ranks: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, float]:
    """The factor of each module's product, given the ranks of the matrices: alpha / rank, with
    rsLoRA alpha / sqrt(rank).
    """
    planned = {module: _of_module(config, "r", "rank_pattern", module) for module in ranks}
    if wrong := [module for module, rank in ranks.items() if planned[module] != rank]:
        raise refuse(
            "LR115",
            f"{len(wrong)} pairs have another rank than {ADAPTER_CONFIG} says: {quoted(wrong[0])} "
            f"has rank {ranks[wrong[0]]}, the config says {quoted(repr(planned[wrong[0]]))}.",
            _AGAIN,
            wrong,
        )
    scales = {}
    for module, rank in ranks.items():
        alpha = _of_module(config, "lora_alpha", "alpha_pattern", module)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e30:
            raise refuse(
                "LR115",
                f"{ADAPTER_CONFIG} says alpha {quoted(repr(alpha))} for {quoted(module)}; a number "
                "is needed.",
                _AGAIN,
            )
        scales[module] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return scales


def _of_module(config: Mapping[str, Any], key: str, patterns: str, module: str) -> Any:
    """The value for a module: that of the first pattern that matches the end of the module's name
    in the base, or else the common value.

    As in PEFT's `get_pattern_key`, a pattern is a regex of the whole name or of the rest behind one
    of its dots.
    """
    exceptions = config.get(patterns) or {}
    if not isinstance(exceptions, dict):
        raise refuse(
            "LR115",
            f"{ADAPTER_CONFIG} says {patterns}: {quoted(repr(exceptions))}; a mapping is needed.",
            _AGAIN,
        )
    name = module.rpartition(_WRAPPER)[2]
    return next(
        (value for pattern, value in exceptions.items() if _matches(pattern, name, patterns)),
        config.get(key),
    )


def _matches(pattern: str, name: str, patterns: str) -> bool:
    from llava_remap.rulefile import PatternError, Regex, RunawayError

    try:
        return Regex(rf"^(.*\.)?({pattern})$", None).search(name) is not None
    except PatternError as error:
        why = printable(str(error))  # it quotes the pattern
    except RunawayError:
        why = "it takes too long on a name"
    raise refuse(
        "LR115", f"{ADAPTER_CONFIG} has {quoted(pattern)} in its {patterns}: {why}.", _MERGE
    )
