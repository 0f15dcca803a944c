"""The values of a target's config that a draft's rules wouldn't derive, so the draft must have them
as constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from llava_remap.authoring.draft_sources import Given
from llava_remap.authoring.draft_target import Wanted, bare_rules, first_constants, inner
from llava_remap.checkpoint import Tensor
from llava_remap.core.problem import ConfigError, Problem, RemapError
from llava_remap.rewrite.infer import Inference
from llava_remap.rulefile import RuleFile
from llava_remap.target_model import (
    TEXT_KIND,
    TextModel,
    derive_config,
    embedding_rows,
    place_tokens,
    require_text_config,
    shapes_config,
    text_model_of,
)

Constants = dict[str, tuple[Any, str]]
#: Keys that each checkpoint's tensors and tokenizer determine, and keys that only matter in
#: training.
_MADE = {
    "vocab_size", "image_token_index", "image_token_id", "video_token_index", "video_token_id",
    "image_seq_length",
    "pad_token_id", "bos_token_id", "eos_token_id", "model_type", "architectures",
    "tie_word_embeddings", "torch_dtype", "dtype",
    "projection_dim", "initializer_range", "initializer_factor", "attention_dropout", "use_cache",
}  # fmt: skip


def carried(
    given: Given, wanted: Wanted, found: Inference, location: str
) -> tuple[str, Constants, list[Problem]]:
    """Compare the target's config with the config that the draft's rules derive.

    Args:
        location: where the target's config was read from, for comments.

    Returns:
        The `model_type` of the language model, the constants that the draft needs, each with its
        reason, and LR112 for differences that no constant can express.

    Raises:
        RemapError: as `text_model_of` and `derive_config`.
    """
    assert wanted.class_name is not None
    why = f"from {location}"
    text_wanted = inner(wanted.config, "text_config")
    constants: Constants = first_constants(wanted.class_name)
    rules = bare_rules(wanted.class_name)
    try:
        text = text_model_of(rules, given.configs)
    except ConfigError:
        if not isinstance(text_wanted.get("model_type"), str):
            raise
        constants[TEXT_KIND] = (
            text_wanted["model_type"],
            f"{why}; the source's config doesn't give it",
        )
        rules = bare_rules(wanted.class_name, constants)
        text = text_model_of(rules, given.configs)
    said = text_model_of(
        bare_rules(wanted.class_name, {TEXT_KIND: (text_wanted.get("model_type", text.kind), "")}),
        [{key: value for key, value in wanted.config.items() if key == "text_config"}],
    )
    if said.kind != text.kind:
        raise RemapError(
            [
                Problem(
                    "LR112",
                    f"{location} is for a language model of type {said.kind}, the source's config "
                    f"says {text.kind}.",
                    "Give the target's config for this checkpoint.",
                )
            ]
        )
    vision_wanted = inner(wanted.config, "vision_config")
    made = _derived(rules, given, found, text, vision_wanted)
    pairs = [
        ("text_config.", said.config, made["text_config"]),
        ("vision_config.", _known(vision_wanted, made["vision_config"]), made["vision_config"]),
        ("", _known(wanted.config, _own_keys(wanted.class_name)), made),
    ]
    problems = []
    for prefix, ours, theirs in pairs:
        for key, value, old in _differences(ours, theirs):
            if value is None or isinstance(value, dict):
                problems.append(
                    Problem(
                        "LR112",
                        f"{location} says {prefix}{key}: {value!r}, the source's config gives "
                        f"{old!r}. A constant can't undo that.",
                        "Correct the source's config.json if the target's config is right.",
                    )
                )
            else:
                constants[prefix + key] = (value, why)
    return text.kind, constants, problems


def _derived(
    rules: RuleFile, given: Given, found: Inference, text: TextModel, vision: Mapping[str, Any]
) -> dict[str, Any]:
    """The config that the rules of a draft would derive from the sources without constants.

    If the sources don't determine the tower's config, that config has only the values that the
    tower's tensors show.

    Args:
        vision: the tower's config from the target's config. It fills the gaps of the derived
            config.
    """
    tensors = {
        target: Tensor.of(target, given.tensors[name].dtype, given.tensors[name].shape, None)
        for pair in found.matches
        for name, target in zip(pair.source.names, pair.target.names, strict=True)
    }
    tokens = place_tokens(
        rules.text.tokens,
        None,
        embedding_rows(tensors, text.embedding),
        require_text_config(given.configs),
    )
    try:
        return dict(derive_config(rules, given.configs, tensors, tokens, text).config)
    except ConfigError:
        made = dict(
            derive_config(
                rules, [*given.configs, {"vision_config": vision}], tensors, tokens, text
            ).config
        )
        shown = shapes_config(next(iter(rules.target.towers)), tensors).keys() - {
            "num_attention_heads"
        }
        made["vision_config"] = {
            key: value if key in shown else None for key, value in made["vision_config"].items()
        }
        return made


def _own_keys(class_name: str) -> set[str]:
    """The keys of a class's config that aren't common to all configs of transformers."""
    import transformers

    own, general = (
        {field.name for field in fields(config_class)}
        for config_class in (
            getattr(transformers, class_name).config_class,
            transformers.PreTrainedConfig,
        )
    )
    return own - general - {"text_config", "vision_config"}


def _known(config: Mapping[str, Any], keys: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in keys}


def _differences(
    wanted: Mapping[str, Any], made: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Each key with different values, and these values (None: absent). Nested keys have dots."""
    for key in [*wanted, *(key for key in made if prefix and key not in wanted)]:
        value, old = wanted.get(key), made.get(key)
        if key in _MADE or value == old:
            continue
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            yield from _differences(value, old, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield from _differences(value, {}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value, old
