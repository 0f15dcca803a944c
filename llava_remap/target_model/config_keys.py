"""Keys of the source's config that nothing reads: told or refused, never dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from llava_remap.core.problem import Problem
from llava_remap.rulefile import ConfigValue, NamedDefault, RuleFile

#: What this package itself reads of a source's config, whatever the rule file.
_READ = frozenset(
    {"mm_projector_type", "image_aspect_ratio", "vocab_size", "image_token_index", "image_token_id"}
)
#: What a key says that says nothing.
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def unread_keys(
    rules: RuleFile, source: Mapping[str, Any], unknown: Sequence[str]
) -> tuple[list[Problem], list[Problem]]:
    """LR112 for the keys of a source's config that nobody knows, and a note, LR318, for those that
    the rule file only knows of.

    Args:
        source: the config that describes the language model.
        unknown: its keys that the language model's class doesn't know.

    Returns:
        The problems, and the notes.
    """
    read = _READ | set(_read_by(rules))
    told, strange = sort_keys(rules, source, [key for key in unknown if key not in read])
    problems, notes = [], []
    if strange:
        said = ", ".join(f"{key}: {shortened(source[key])}" for key in strange)
        lines = ", ".join(f"{key}: unused" for key in strange)
        problems.append(
            Problem(
                "LR112",
                f"neither a rule of {rules.name} nor the language model's class in transformers "
                f"knows what the config says: {said}.",
                "If nothing that the model computes depends on it, write a rule file with "
                "`extends: "
                f"[{rules.name}.yaml]` and "
                f"`config_keys: {{{lines}}}`. Otherwise transformers computes something else.",
            )
        )
    if told:
        said = ", ".join(f"{key}: {shortened(source[key])}" for key in told)
        notes.append(
            Problem(
                "LR318",
                f"the config says {said}; no rule of {rules.name} reads it, and the folder doesn't "
                "say it.",
            )
        )
    return problems, notes


def sort_keys(
    rules: RuleFile, source: Mapping[str, Any], keys: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Of keys that nobody reads, and that say something, those that a rule file only knows of,
    and those that it doesn't know.
    """
    kinds = {key: _kind(rules, key) for key in keys if source[key] not in _NOTHING}
    told = [key for key, kind in kinds.items() if kind == "told" and source[key] is not False]
    return told, [key for key, kind in kinds.items() if kind in (None, "refused")]


def _kind(rules: RuleFile, key: str) -> str | None:
    kinds = rules.text.config_keys
    return kinds.get(key) or next(
        (kind for pattern, kind in kinds.items() if fnmatchcase(key, pattern)), None
    )


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _read_by(rules: RuleFile) -> Iterator[str]:
    """Every key of a source's config that a rule file asks for."""
    text = rules.text
    for condition in (
        text.detect,
        *text.requires.values(),
        *(rule.when for rule in (*text.prepare, *text.names) if rule.when),
    ):
        yield from (*condition.config, *condition.config_not)
    for requirement in text.requires.values():
        yield from requirement.when
    for notice in text.notices.values():
        yield from notice.when
    yield from (
        source.default.from_
        for source in text.sources.values()
        if isinstance(source.default, NamedDefault)
    )
    values = [*rules.target_config.values(), *(text.target.towers.values() if text.target else ())]
    if (made := text.processor) is not None:
        parts = [part for part in (made.image_processor, made.video_processor) if part is not None]
        values += [
            *made.config.values(),
            *made.chat_values.values(),
            *(v for part in parts for v in part.config.values()),
        ]
        for when in (
            *(part.when for part in parts),
            *(template.when for template in made.chat_templates.values()),
        ):
            yield from _named_in(when)
    for value in values:
        yield from _asked(value)


def _asked(value: ConfigValue) -> Iterator[str]:
    if value.from_ is not None:
        yield value.from_
    yield from _named_in(value.when)
    for case in value.cases:
        yield from _asked(case)


def _named_in(when: Mapping[str, Any]) -> Iterator[str]:
    yield from (key.removeprefix("source.") for key in when if key.startswith("source."))
