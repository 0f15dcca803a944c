"""The sources' configs that count, in order of precedence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.rulefile import RuleFile
from llava_remap.target_model import describes_part, embedding_and_head, flat, text_config


def configs_by_source(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint]
) -> dict[str, Mapping[str, Any]]:
    """The configs of the sources with `config` in their `use`, by the source's name."""
    return {
        name: c.config
        for name, c in checkpoints.items()
        if "config" in rules.text.sources[name].use and c.config is not None
    }


def source_configs(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint]
) -> list[Mapping[str, Any]]:
    """The configs of the sources with `config` in their `use`, in order of precedence.

    Configs of overriding sources come first, the last source's first, if they have LLaVA's own
    keys: the language model below a projector or an adapter has none of these. The other configs
    follow in the rule file's order.

    A config of the first source that describes neither language model nor tower is that of a
    training (Prismatic's). Its values, with dots for nested keys, are laid under those of the
    language model's config, which is another source's. That says the rows of a table before the
    training; the first source's own table says them after it.
    """
    found = configs_by_source(rules, checkpoints)
    own = believed(rules, checkpoints)
    names = [*own, *(name for name in found if name not in own)]
    training = found.get(rules.first_source)
    if training is None or describes_part(training):
        return [found[name] for name in names]
    base = next((name for name in names if text_config([found[name]]) is not None), None)
    table, _ = embedding_and_head(checkpoints[rules.first_source].unpaired)
    rows = {} if table is None else {"vocab_size": table.shape[0]}
    return [
        dict(flat(training)) | dict(found[name]) | rows if name == base else found[name]
        for name in names
        if name != rules.first_source or base is None
    ]


def overriding(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Names of the overriding sources that were given, the last first: the last one wins."""
    return [name for name in reversed(list(checkpoints)) if rules.text.sources[name].overrides]


def believed(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Names of the overriding sources whose config has LLaVA's own keys."""
    over = [
        name for name in overriding(rules, checkpoints) if "config" in rules.text.sources[name].use
    ]
    return [
        name
        for name in over
        if any(key.startswith("mm_") for key in checkpoints[name].config or {})
    ]
