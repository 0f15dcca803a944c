"""Finds the parts of a model in the sources' configs: the language model and the towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava_remap.core.problem import ConfigError
from llava_remap.rulefile import RuleFile
from llava_remap.target_model.presets import TOWER_DEFAULTS
from llava_remap.target_model.text_model import IDLE, OLD_ROPE, TextModel, read_text_model, without
from llava_remap.target_model.values import Values

#: The key of `target.config` with which a rule file may set the kind of language model.
TEXT_KIND = "text_config.model_type"
#: The key of `target.config` with which a rule file has the whole config of the tower.
TOWER_KIND = "vision_config.model_type"

#: Keys under which a larger model's config has its language model's.
_TEXT_PARTS = ("text_config", "llm_config")
#: The parts of a larger model's config.
_PARTS = (*_TEXT_PARTS, "vision_config")

_GIVE = "Give the language model's config and tokenizer: --source language_model=DIR."


def text_config(configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The source's config that describes the language model: the first that has sizes and isn't a
    tower's.

    Values of its `text_config` override the values around it, since rules may read both.
    """
    found = next(filter(_has_text, configs), None)
    if found is None or (inner := inner_text(found)) is None:
        return found
    return {**without(found, *_PARTS), **inner}


def inner_text(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The language model's part of a larger model's config; None without one."""
    parts = (config.get(key) for key in _TEXT_PARTS)
    return next((part for part in parts if isinstance(part, Mapping)), None)


def describes_part(config: Mapping[str, Any]) -> bool:
    """Whether a config describes a language model or a tower."""
    return _has_text(config) or _vision_config(config) is not None


def _has_text(config: Mapping[str, Any]) -> bool:
    """Whether a config describes a language model."""
    if inner_text(config) is not None:
        return not _is_tower(config)
    return "vocab_size" in config or ("hidden_size" in config and _vision_config(config) is None)


def require_text_config(configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Like `text_config`, but LR112 if no config describes the language model."""
    if (found := text_config(configs)) is None:
        raise ConfigError.of(
            "LR112", "no source has a config.json that describes the language model.", _GIVE
        )
    return found


def text_model_of(
    rules: RuleFile, configs: Sequence[Mapping[str, Any]], over: Mapping[str, Any] = {}
) -> TextModel:
    """The language model that the sources' configs describe, read by its class in transformers.

    Args:
        over: the rule file's own values, which take precedence.

    Raises:
        RemapError: as `read_text_model`; LR112 if no config describes the language model.
    """
    merged, target = require_text_config(configs), rules.target
    kind = target.config.get(TEXT_KIND)
    place = ("text_models",) if kind is None else ("config", TEXT_KIND)
    said = (
        None
        if kind is None
        else Values(merged, {}, (), (), {}).of(".".join(("target", *place)), kind)
    )
    whole: Mapping[str, Any] = next(filter(_has_text, configs), {})
    inner, around = inner_text(whole), None
    if inner is not None and (inner.get("model_type") or inner.get("architectures")):
        merged, around = inner, without(whole, *_PARTS, *over)
    with rules.placed("target", *place):
        return read_text_model(
            _laid_over(merged, over), str(target.class_), target.text_models, said, around
        )


def _laid_over(source: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values. Rope has two spellings: setting one removes the other."""
    gone: set[str] = set()
    if "rope_parameters" in over:
        gone = OLD_ROPE - over.keys()
    elif not OLD_ROPE.isdisjoint(over):
        gone = {"rope_parameters"}
    return without(source, *gone) | dict(over)


def text_differences(
    rules: RuleFile, one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[str]:
    """Differences between two configs that change the language model's computation.

    Keys missing from either config are ignored, except for rope: without keys, it has the class's
    default.

    Raises:
        RemapError: as `text_model_of`.
    """
    first, second = text_model_of(rules, [one]).config, text_model_of(rules, [other]).config
    said = (one.keys() & other.keys()) | {"model_type", "rope_parameters"}
    return [
        f"{key} {first.get(key)!r} and {second.get(key)!r}"
        for key in first
        if key in said and first[key] != second.get(key) and not IDLE.search(key)
    ]


def _is_tower(config: Mapping[str, Any]) -> bool:
    """Whether a config belongs to a two-part model (CLIP). Its text half is no language model."""
    return (
        f"{config.get('model_type')}_vision_model" in TOWER_DEFAULTS
        or str((inner_text(config) or {}).get("model_type")).endswith("_text_model")
        or "projection_dim" in config
    )


def _vision_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The tower's config: the `vision_config` of a larger model's config, or a checkpoint's whole
    config.
    """
    if isinstance(inner := config.get("vision_config"), Mapping):
        return inner if "hidden_size" in inner or "model_type" in inner else None
    kind = str(config.get("model_type", ""))
    return config if kind.endswith("_vision_model") or kind in TOWER_DEFAULTS else None


def own_vision_configs(configs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The towers' own configs. Configs of separate tower checkpoints come before a `vision_config`
    in the language model's config.
    """
    towers_first = sorted(
        configs,
        key=lambda config: inner_text(config) is not None and not _is_tower(config),
    )
    return [own for config in towers_first if (own := _vision_config(config)) is not None]
