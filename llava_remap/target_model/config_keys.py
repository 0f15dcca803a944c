"""Reports or refuses keys of the source's config that nothing reads. None is dropped silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from llava_remap.core.problem import Problem
from llava_remap.rulefile import ConfigValue, NamedDefault, Processor, RuleFile

#: Keys of a source's config that this package itself reads, for every rule file.
_READ = frozenset(
    {"mm_projector_type", "image_aspect_ratio", "vocab_size", "image_token_index", "image_token_id"}
)
#: Values that count as unset.
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def unread_keys(
    rules: RuleFile, source: Mapping[str, Any], unknown: Sequence[str]
) -> tuple[list[Problem], list[Problem]]:
    """LR112 for unknown keys of a source's config, and a note (LR318) for keys that the rule file
    lists without reading them.

    Args:
        source: the config that describes the language model.
        unknown: its keys that the language model's class doesn't know.

    Returns:
        The problems, and the notes.
    """
    read = _READ | keys_read(rules)
    listed, strange = sort_keys(rules, source, [key for key in unknown if key not in read])
    lines = ", ".join(f"{key}: unused" for key in strange)
    problem = Problem(
        "LR112",
        f"the config has keys that neither a rule of {rules.name} nor the language model's class "
        f"in transformers knows: {list_values(source, strange)}.",
        "If no computation of the model depends on them, write a rule file with `extends: "
        f"[{rules.name}.yaml]` and `config_keys: {{{lines}}}`. Otherwise transformers computes "
        "something else.",
    )
    note = Problem(
        "LR318",
        f"the config says {list_values(source, listed)}; no rule of {rules.name} reads this, and "
        "it isn't written.",
    )
    return [problem] if strange else [], [note] if listed else []


def list_values(source: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Keys with their values, for a message."""
    return ", ".join(f"{key}: {shortened(source[key])}" for key in keys)


def sort_keys(
    rules: RuleFile, source: Mapping[str, Any], keys: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Sort unread keys that have a value into two lists: keys that the rule file lists as `told`,
    and keys that it refuses or doesn't know.
    """
    kinds = {key: _kind(rules, key) for key in keys if source[key] not in _NOTHING}
    return (
        [key for key, kind in kinds.items() if kind == "told" and source[key] is not False],
        [key for key, kind in kinds.items() if kind in (None, "refused")],
    )


def _kind(rules: RuleFile, key: str) -> str | None:
    kinds = rules.text.config_keys
    return kinds.get(key) or next(
        (kind for pattern, kind in kinds.items() if fnmatchcase(key, pattern)), None
    )


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def keys_read(rules: RuleFile) -> set[str]:
    """Every key of a source's config that a rule file reads."""
    text, made = rules.text, rules.text.processor or Processor()
    parts = [part for part in (made.image_processor, made.video_processor) if part is not None]
    conditions = (
        text.detect,
        *text.requires.values(),
        *(rule.when for rule in (*text.prepare, *text.names) if rule.when),
    )
    values = (
        *rules.target_config.values(),
        *(text.target.towers.values() if text.target else ()),
        *made.config.values(),
        *made.chat_values.values(),
        *(value for part in parts for value in part.config.values()),
    )
    return {
        *(key for condition in conditions for key in (*condition.config, *condition.config_not)),
        *(key for requirement in text.requires.values() for key in requirement.when),
        *(key for notice in text.notices.values() for key in notice.when),
        *(
            source.default.from_
            for source in text.sources.values()
            if isinstance(source.default, NamedDefault)
        ),
        *(key for value in values for key in asked_keys(value)),
        *(key for part in parts for key in keys_in_condition(part.when)),
        *(
            key
            for template in made.chat_templates.values()
            for key in keys_in_condition(template.when)
        ),
    }


def asked_keys(value: ConfigValue) -> Iterator[str]:
    """The keys of the source's config that a value asks for."""
    if value.from_ is not None:
        yield value.from_
    yield from keys_in_condition(value.when)
    for case in value.cases:
        yield from asked_keys(case)


def keys_in_condition(when: Mapping[str, Any]) -> Iterator[str]:
    """The keys of the source's config that a condition asks for."""
    yield from (key.removeprefix("source.") for key in when if key.startswith("source."))
