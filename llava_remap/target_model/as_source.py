"""Derives the target of a source that keeps its class and config (`target.as: source`), with the
keys of transformers 4.x and 5.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import ConfigError, RemapError
from llava_remap.target_model.config import TargetConfig
from llava_remap.target_model.text_model import old_rope, read_text_model
from llava_remap.target_model.tower import Tower
from llava_remap.target_model.wanted import make_config, model_class

_GIVE = "Put the config.json beside the weights that transformers saved with them."
_PARTS = ("text_config", "vision_config")


def config_as_source(
    checkpoint: Checkpoint,
    translated: Mapping[str, Any] | None = None,
    config_file: str | None = None,
) -> TargetConfig:
    """The checkpoint's own config, with the keys of transformers 4.x and 5.x.

    Missing keys get the installed transformers' defaults, since defaults differ between versions.
    Present values are kept.

    Args:
        translated: the config that a rule file makes of the checkpoint's config of another form.
        config_file: the name of the file with that config, if the rule file reads one.

    Raises:
        RemapError: LR112 for a config that contradicts itself, or that the installed transformers
            doesn't have for a model of text and pictures.
    """
    own = checkpoint.config if translated is None else translated
    if own is None:
        lacking = f"neither config.json nor {config_file}" if config_file else "no config.json"
        raise ConfigError.of(
            "LR112",
            f"{checkpoint.location} has {lacking}, so nothing says which model it is.",
            _GIVE,
        )
    named = own.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ConfigError.of(
            "LR112",
            f"the config.json in {checkpoint.location} says architectures: {named!r}; one "
            "class is needed.",
            _GIVE,
        )
    if not all(isinstance(own.get(part), Mapping) for part in _PARTS):
        raise ConfigError.of(
            "LR112",
            f"the config.json in {checkpoint.location} has no {' and '.join(_PARTS)}.",
            _GIVE,
        )
    try:
        kind = model_class(named[0], own).config_class
    except RemapError as error:  # no rule file can be at fault here, only the config
        raise ConfigError.of(
            "LR112",
            f"the config.json in {checkpoint.location}: {error.problems[0].placed_cause}",
            _GIVE,
        ) from error
    try:
        read = make_config(kind, own)
        whole = read.to_diff_dict()
    except Exception as error:  # whatever the class raises: the config is the user's
        raise ConfigError.of(
            "LR112",
            f"transformers can't read the config.json in {checkpoint.location}: "
            f"{' '.join(str(error).split()).rstrip('.')}.",
            _GIVE,
        ) from error
    config = {**whole, **own, **{part: _filled(own[part], whole[part]) for part in _PARTS}}
    # 5.x calls the stored `image_token_index` `image_token_id`, and `vision_feature_layer`
    # `vision_feature_layers`.
    for name, stored in kind.attribute_map.items():
        if name in own and stored in own and own[name] != own[stored]:
            _contradiction(checkpoint, f"{name}: {own[name]!r} and {stored}: {own[stored]!r}")
        value = own.get(name, config.get(stored))
        if value is not None:
            config |= {name: value, stored: own.get(stored, value)}
    dtype = own.get("dtype") or own.get("torch_dtype")
    if dtype is not None:
        config |= {"dtype": dtype, "torch_dtype": dtype}
    theta, new = own["text_config"].get("rope_theta"), own["text_config"].get("rope_parameters")
    if theta is not None and isinstance(new, Mapping) and new.get("rope_theta", theta) != theta:
        _contradiction(
            checkpoint, f"rope_theta: {theta!r} and, in rope_parameters, {new['rope_theta']!r}"
        )
    config["text_config"] |= old_rope(type(read.text_config), config["text_config"]) or {}
    # Versions of 5.x have other names for the kind of a tower's rope, and all read `rope_theta`.
    if "rope_theta" in own["vision_config"] and "rope_parameters" not in own["vision_config"]:
        config["vision_config"].pop("rope_parameters", None)
    config.pop("transformers_version", None)
    return TargetConfig(config, {}, {}, {}, None, Tower(config["vision_config"], {}, ()), ())


def norms_about_one(config: Mapping[str, Any]) -> bool:
    """Whether the norms of the language model multiply by their weights; False if its own class
    can't be built.

    Args:
        config: the result of `config_as_source`.
    """
    try:
        return read_text_model(
            config["text_config"], config["architectures"][0], {}
        ).norms_about_one
    except RemapError:
        return False


def _contradiction(checkpoint: Checkpoint, said: str) -> NoReturn:
    """LR112 for two keys that contradict each other: each version of transformers would read
    another one.
    """
    raise ConfigError.of(
        "LR112",
        f"the config.json in {checkpoint.location} says {said}.",
        "Find out which value is right, and remove the other one.",
    )


def _filled(own: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """A part of the config, completed with missing keys. A null `head_dim` is removed, since newer
    classes divide by it.
    """
    filled = {**whole, **own}
    if filled.get("head_dim", 0) is None:
        del filled["head_dim"]
    return filled
