"""Values that a rule file assumes since the sources' config has none of the keys it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llava_remap.core.problem import Problem
from llava_remap.rulefile import ConfigValue, NamedDefault, Processor, RuleFile
from llava_remap.target_model.config_keys import asked_keys, keys_in_condition
from llava_remap.target_model.values import Values

#: What the keys begin with that LLaVA's training adds to the config of its language model.
LLAVA_KEY = "mm_"
#: Where a condition asks for a key of the source's config.
_SOURCE = "source."
#: Keys of a target's config that describe the language model, which a plain config has.
_TEXT = "text_config."


def assumed_note(
    rules: RuleFile, values: Values, projector: Mapping[str, str]
) -> Iterator[Problem]:
    """LR315 if the config that describes the language model has no key of LLaVA's training, neither
    one that the rule file asks for nor any other: the training's own config was lost. The note
    names each value that is assumed instead.

    A config with some of these keys was written by the training. For keys that it lacks, the
    defaults are those of the training's code.

    Args:
        values: the source's config, and the target's config with its values.
        projector: the kind of the projector by its key, where tensors don't show its activation.
    """
    source, made = values.source, rules.text.processor or Processor()
    parts = {
        kind: part
        for kind, part in (
            ("image_processor", made.image_processor),
            ("video_processor", made.video_processor),
        )
        if part is not None
    }
    own = {k: value for k, value in rules.target.config.items() if not k.startswith(_TEXT)}
    groups: list[tuple[str, Mapping[str, ConfigValue]]] = [
        ("target.config", own),
        ("processor.config", made.config),
        ("processor.chat_values", made.chat_values),
    ]
    groups += [(f"processor.{kind}.config", part.config) for kind, part in parts.items()]
    asked = {
        *(key for _, group in groups for value in group.values() for key in asked_keys(value)),
        *(key for part in parts.values() for key in keys_in_condition(part.when)),
        *(value.from_ for value in rules.target.towers.values() if value.from_),
        *(
            found.default.from_
            for found in rules.text.sources.values()
            if isinstance(found.default, NamedDefault)
        ),
    }
    if any(key in asked or key.startswith(LLAVA_KEY) for key in source):
        return
    said = {
        f"{key}: {leaf.default!r} (`{leaf.from_}` of the source)": None
        for where, group in groups
        for key, value in group.items()
        if (leaf := values.chosen(f"{where}.{key}", value)).from_ is not None
        and leaf.default is not None
    }
    said |= {f"{key}: {kind}": None for key, kind in projector.items()}
    said |= {
        f"{key} isn't {wanted!r}, so there is no {', '.join(part.config)}": None
        for part in parts.values()
        for key, wanted in _wanted(part.when)
    }
    said |= {
        f"{key} isn't {wanted!r}": None
        for _, group in groups
        for value in group.values()
        for case in value.cases
        for key, wanted in _wanted(case.when)
    }
    if said:
        yield Problem(
            "LR315",
            f"these values are assumed, since no config gives them: {'; '.join(said)}. The config "
            "that describes the language model has none of the keys that the training of such a "
            f"model adds ({', '.join(sorted(asked))}).",
            "If the model was trained otherwise, the folder computes something else. Give the "
            "checkpoint with the config.json of its training, or put these keys into it.",
        )


def _wanted(when: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of the source's config in a condition, with the value that each has to have."""
    for key in keys_in_condition(when):
        if (wanted := when[f"{_SOURCE}{key}"]) is not None:
            yield key, wanted
