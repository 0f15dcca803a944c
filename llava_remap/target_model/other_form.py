"""Translates a config of another form than transformers', such as Mistral's params.json, by the
rule file that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llava_remap.checkpoint import Checkpoint, has_file, read_object
from llava_remap.core.problem import Problem, RemapError
from llava_remap.rulefile import ConfigValue, Processor, RuleFile
from llava_remap.target_model.config import TargetConfig
from llava_remap.target_model.config_keys import unread_keys
from llava_remap.target_model.values import Values
from llava_remap.target_model.vocabulary import Vocabulary

_REPLACE = "Replace it with the original file."
#: Field of the rule file → the config to fill, and the keys to fill it with.
_Groups = dict[str, tuple[dict[str, Any], Mapping[str, ConfigValue]]]


@dataclass(frozen=True, slots=True)
class Translated:
    """A translated config.

    Attributes:
        said: the values of the file, by key; the keys of nested values have dots.
        config: `config.json` as transformers reads it.
        processor, image_processor: the processors' own configs; empty if the rule file has none.
        notes: keys that the rule file lists without reading them.
    """

    said: Mapping[str, Any]
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    image_processor: Mapping[str, Any]
    notes: tuple[Problem, ...]


def translate_config(rules: RuleFile, checkpoint: Checkpoint) -> Translated | None:
    """The config that a rule file makes of a checkpoint's `config_file`; None if the rule file
    names none, or if the checkpoint has a config.json, or doesn't have that file.

    Raises:
        RemapError: LR112 for each value that the file lacks, and for keys that neither the rule
            file reads nor its `config_keys` list; LR113 for a file that is no JSON object.
    """
    name, folder = rules.target.config_file, checkpoint.folder
    if name is None or folder is None or checkpoint.config is not None:
        return None
    if not has_file(folder / name):
        return None
    said = dict(flat(read_object(folder / name, "LR113", _REPLACE)))
    config: dict[str, Any] = {"architectures": [rules.target.class_]}
    values = Values(said, {}, (), (), config, name)
    made = rules.text.processor or Processor()
    images = made.image_processor
    processor = {"processor_class": made.class_} if made.class_ else {}
    pixels = {"image_processor_type": images.class_, **processor} if images else {}
    groups: _Groups = {
        "target.config": (config, rules.target.config),
        "processor.config": (processor, made.config),
        "processor.image_processor.config": (pixels, images.config if images else {}),
    }
    problems = [p for where, group in groups.items() for p in _fill(values, where, *group)]
    unread, notes = unread_keys(rules, said, [*said])
    if problems or unread:
        raise RemapError([*problems, *unread])
    notes += _assumed(values, name, groups)
    return Translated(said, config, processor, pixels, tuple(notes))


def _fill(
    values: Values, where: str, config: dict[str, Any], wanted: Mapping[str, ConfigValue]
) -> Iterator[Problem]:
    """Fill a config, and return the reasons for values that can't be found. A null is written,
    since a class may have another default.
    """
    for key, value in wanted.items():
        try:
            found = values.of(f"{where}.{key}", value)
        except RemapError as error:
            yield from error.problems
            continue
        place = config
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = found


def _assumed(values: Values, name: str, groups: _Groups) -> Iterator[Problem]:
    """LR315 with the values that are defaults of the rule file."""
    said = dict.fromkeys(
        f"{key}: {leaf.default!r} (`{leaf.from_}`)"
        for where, (_, wanted) in groups.items()
        for key, value in wanted.items()
        if (leaf := values.chosen(f"{where}.{key}", value)).from_ is not None
        and values.source.get(leaf.from_) is None
    )
    if said:
        yield Problem(
            "LR315",
            f"{name} doesn't have these values, so the rule file's values are used: "
            f"{'; '.join(said)}.",
            "If the model was trained with other values, put them into that file.",
        )


def flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value, with dots for the keys of nested values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value


def word_problems(vocabulary: Vocabulary | None, target: TargetConfig) -> Iterator[Problem]:
    """LR403 for words of the processor's config that the tokenizer lacks, or for a picture's token
    with another id than in the model's config.
    """
    if vocabulary is None:
        return
    words = {key: word for key, word in target.processor.items() if key.endswith("_token")}
    for key, word in words.items():
        known, said = vocabulary.ids.get(word), target.config.get(f"{key}_id")
        if known is None or said not in (None, known):
            has = "has no such token" if known is None else f"gives it the id {known}"
            yield Problem(
                "LR403",
                f"{key} is `{word}`{'' if said is None else f' with the id {said}'}, but the "
                f"tokenizer in {vocabulary.folder} {has}.",
                "Put the tokenizer files of the training there.",
            )
