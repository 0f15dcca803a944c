"""The sources' configs that count, in order of precedence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.rulefile import RuleFile


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
    """
    found = configs_by_source(rules, checkpoints)
    own = believed(rules, checkpoints)
    return [found[name] for name in (*own, *(name for name in found if name not in own))]


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
