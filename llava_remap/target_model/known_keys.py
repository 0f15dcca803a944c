"""Checks that transformers knows the keys and values that a rule file writes into the target's
config. A misspelt key would do nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from llava_remap.core.cache import cached_value
from llava_remap.core.problem import Problem
from llava_remap.rulefile import (
    ConfigValue,
    PixelProcessor,
    Processor,
    RuleFile,
    load_rule_file,
    shipped_rule_files,
)
from llava_remap.target_model.config_keys import keys_read, list_values, sort_keys
from llava_remap.target_model.config_parts import TEXT_KIND, TOWER_KIND, own_vision_configs
from llava_remap.target_model.constants import (
    Place,
    constants_of,
    refused_constants,
    set_value,
    suggest,
)
from llava_remap.target_model.presets import TOWER_DEFAULTS

#: Keys that the base class of transformers 4 knew in every config.
_GENERAL = frozenset(
    {
        "model_type",
        "torch_dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    }
)
_ROPE = ("rope_parameters", "rope_scaling")
_ENDING = "ForConditionalGeneration"
#: Matches the type of a field that can have parts.
_HAS_PARTS = re.compile(r"dict|Config|RopeParameters|Any")
#: Key → the keys inside: empty if it has no parts, None if anything may be inside.
Keys = Mapping[str, Any]
_Fields = dict[str, dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class _Known:
    """Facts of a class in the installed transformers.

    Attributes:
        version: the version of transformers.
        classes: classes with a similar name, if there is no such class. Otherwise None, and the
            other attributes are set.
        model_type: the `model_type` of the class's config.
        kinds: every `model_type` of a language model.
        keys: the keys of the class's config.
        refused: key → why the class refuses the value, and what to write.
        processors: kind of processor → names of classes.
    """

    version: str
    classes: tuple[str, ...] | None = None
    model_type: str = ""
    kinds: tuple[str, ...] = ()
    keys: Keys | None = None
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    processors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def unknown_target(rules: RuleFile, kind: str | None = None) -> list[Problem]:
    """LR201, with its place, for everything in a rule file's target that the installed transformers
    doesn't know: the class, kinds of language models, keys, values that are words, and classes of
    processors.

    Args:
        kind: the `model_type` of the language model, if the sources show it. Keys are compared with
            this language model's class. Without a kind, they are compared with the class that the
            rule file names, or with all classes.
    """
    if rules.text.target is None or rules.text.target.class_ is None:
        return []
    return [
        Problem("LR201", cause, fix, place=rules.tree.locate(place).mark)
        for place, cause, fix in _unknown(rules, _known_of(rules, kind))
    ]


def unread_of_towers(
    rules: RuleFile, kind: str, configs: Sequence[Mapping[str, Any]]
) -> list[Problem]:
    """LR318 for keys of the towers' own configs that no vision config of transformers has.

    Args:
        kind: the `model_type` of the language model, as for `unknown_target`.
        configs: the sources' own configs.
    """
    keys = {
        *(_known_of(rules, kind).keys or {})["vision_config"],
        *(key.removeprefix("vision_config.") for key in keys_read(rules)),
    }
    said = {
        key: value
        for own in own_vision_configs(configs)
        for key, value in own.items()
        if key not in keys
    }
    _, unread = sort_keys(rules, said, [key for key in said if key[:1] != "_"])
    note = Problem(
        "LR318",
        f"the tower's config says {list_values(said, unread)}; no vision config of transformers "
        "has this, and it isn't written.",
    )
    return [note] if unread else []


def _known_of(rules: RuleFile, kind: str | None) -> _Known:
    target = rules.target
    class_name, value = str(target.class_), target.config.get(TEXT_KIND)
    if kind is None and value is not None and isinstance(value.const, str):
        kind = value.const
    words = {
        key: entry.const
        for key, entry in target.config.items()
        if isinstance(entry.const, str) and key.count(".") < 2
    }
    return _known(class_name, kind, words)


def keys_without_use(rules: RuleFile, class_name: str) -> list[str]:
    """The keys of a rule file's `target.config` whose first part a class's config doesn't have."""
    known = _known(class_name, None, {}).keys
    return [
        key
        for key, value in rules.target_config.items()
        if known is not None and key.partition(".")[0] not in known and not _is_taken_away(value)
    ]


def _is_taken_away(value: ConfigValue) -> bool:
    """Whether a value removes an inherited key."""
    return value.const is None and "const" in value.model_fields_set


def _known(class_name: str, kind: str | None, words: Mapping[str, str]) -> _Known:
    return cached_value(
        "known_keys",
        {"class": class_name, "text": kind, "words": words},
        lambda: _ask(class_name, kind, words),
        _Known,
    )


def _unknown(rules: RuleFile, known: _Known) -> Iterator[tuple[Place, str, str]]:
    """Place, cause and fix for everything that transformers doesn't know."""
    target, version = rules.target, known.version
    if known.classes is not None:
        yield (
            ("target", "class"),
            f"transformers {version} has no class `{target.class_}` for text and pictures with a "
            "language-model head.",
            f"Did you mean {' or '.join(f'`{name}`' for name in known.classes)}?"
            if known.classes
            else "Write the name of such a class; it ends with ForConditionalGeneration.",
        )
        return
    yield from _unknown_kinds(rules, known)
    for key, value in target.config.items():
        if not _is_taken_away(value):
            yield from _unknown_key(f"{target.class_}'s config", key, value, known)
    for key, (cause, fix) in known.refused.items():
        yield (
            ("target", "config", key, "const"),
            f"`{key}` can't be {target.config[key].const!r}: {cause}",
            fix,
        )
    yield from _unknown_sizes(rules, known)
    made = rules.text.processor or Processor()
    asked: dict[tuple[str, ...], Processor | PixelProcessor | None] = {
        ("processor",): made,
        ("processor", "image_processor"): made.image_processor,
        ("processor", "video_processor"): made.video_processor,
    }
    for place, part in asked.items():
        names = known.processors[place[-1]]
        if part is not None and part.class_ is not None and part.class_ not in names:
            yield (
                (*place, "class"),
                f"transformers {version} has no {place[-1].replace('_', ' ')} `{part.class_}`.",
                suggest(part.class_, names),
            )


def _unknown_sizes(rules: RuleFile, known: _Known) -> Iterator[tuple[Place, str, str]]:
    """Keys of `let` that the target's config doesn't have."""
    for place, said in _said_sizes(rules):
        if wrong := _wrong_size(f"{rules.target.class_}'s config", said, known):
            yield place, *wrong


def unknown_sizes(rules: RuleFile) -> list[Problem]:
    """LR201, with its place, for keys of `let` that no class of a shipped rule file has in its
    config: for a rule file without a class.
    """
    said = list(_said_sizes(rules))
    files = map(load_rule_file, shipped_rule_files().values()) if said else ()
    classes = {file.target.class_ for file in files} - {None}
    every = [_known(str(name), None, {}) for name in sorted(map(str, classes))]
    whose = "the config of any class in the shipped rule files"
    found = []
    for place, key in said:
        wrong = [_wrong_size(whose, key, known) for known in every]
        if wrong and None not in wrong:
            cause, fix = wrong[0] or ("", "")
            found.append(Problem("LR201", cause, fix, place=rules.tree.locate(place).mark))
    return found


def _said_sizes(rules: RuleFile) -> Iterator[tuple[Place, str]]:
    """The keys of `let`, each with its place."""
    for number, rule in enumerate(rules.text.tensors):
        for name, said in rule.let.items():
            yield ("tensors", number, "let", name), said


def _wrong_size(whose: str, said: str, known: _Known) -> tuple[str, str] | None:
    """Why a key of `let` isn't the key of a number, and the fix; None if it may be."""
    keys: Keys | None = known.keys
    parts = said.removeprefix("target.").split(".")
    for at, part in enumerate(parts):
        if keys is not None and part not in keys:
            return _no_key(whose, parts[:at], part, keys, known.version)
        keys = keys.get(part) if keys is not None else None
    if keys:
        cause = f"`{'.'.join(parts)}` of {whose} is a group of values, not a number."
        return cause, f"Write one of its values: {said}.{min(keys)}."
    return None


def _unknown_kinds(rules: RuleFile, known: _Known) -> Iterator[tuple[Place, str, str]]:
    config, place = rules.target.config, ("target", "config")
    kinds = (
        constants_of(config["model_type"], (*place, "model_type"))
        if "model_type" in config
        else [(place, None)]
    )
    for where, kind in kinds:
        if kind != known.model_type:
            yield (
                where,
                f"`target.config.model_type` is {kind!r}; {rules.target.class_} has "
                f"{known.model_type!r}.",
                f"Write `model_type: {{const: {known.model_type}}}`, or another `target.class`.",
            )
    texts = constants_of(config[TEXT_KIND], (*place, TEXT_KIND)) if TEXT_KIND in config else ()
    forks = rules.target.text_models.items()
    for where, kind in (*texts, *((("target", "text_models", name), of) for name, of in forks)):
        if kind not in known.kinds:
            yield (
                where,
                f"transformers {known.version} has no language model of the type `{kind}`.",
                suggest(
                    str(kind), known.kinds, "Write the `model_type` that it has in transformers."
                ),
            )


def _unknown_key(
    whose: str, key: str, value: ConfigValue, known: _Known
) -> Iterator[tuple[Place, str, str]]:
    place: Place = ("target", "config", key)
    keys: Keys | None = known.keys
    parts = key.split(".")
    for at, part in enumerate(parts):
        if keys is None:
            return
        if part not in keys:
            yield place, *_no_key(whose, parts[:at], part, keys, known.version)
            return
        keys = keys[part]
    if not keys:
        return
    for where, constant in constants_of(value, place):
        if not isinstance(constant, Mapping) or len(parts) == 1:
            yield (
                where,
                f"`{key}` of {whose} is a group of values, so it can't be {constant!r}.",
                f"Write its values one by one, with dots: `{key}.{min(keys)}: {{const: …}}`.",
            )
        else:
            yield from _unknown_parts(whose, parts, constant, keys, known.version, where)


def _unknown_parts(
    whose: str,
    walked: list[str],
    constant: Mapping[str, Any],
    keys: Keys,
    version: str,
    place: Place,
) -> Iterator[tuple[Place, str, str]]:
    for part, inside in constant.items():
        if part not in keys:
            yield (*place, part), *_no_key(whose, walked, part, keys, version)
        elif keys[part] and isinstance(inside, Mapping):
            yield from _unknown_parts(
                whose, [*walked, part], inside, keys[part], version, (*place, part)
            )


def _no_key(whose: str, walked: list[str], part: str, keys: Keys, version: str) -> tuple[str, str]:
    inside = f", in `{'.'.join(walked)}`," if walked else ""
    if not keys:
        return (
            f"`{'.'.join(walked)}` of {whose} has no parts in transformers {version}, so none is "
            f"called `{part}`.",
            f"Write `{'.'.join(walked)}` alone.",
        )
    return f"`{part}` isn't a key of {whose}{inside} in transformers {version}.", suggest(
        part, keys
    )


def _ask(class_name: str, kind: str | None, words: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `_Known`, from the installed transformers."""
    import transformers
    from transformers.modeling_rope_utils import RopeParameters
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    from llava_remap.target_model.text_kind import class_names

    version, classes = transformers.__version__, transformers.CONFIG_MAPPING
    found: Any = getattr(transformers, class_name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    config_class: Any = found.config_class if is_model else None
    own = _fields(config_class) if config_class is not None else {}
    if not own or not found.can_generate() or not {"text_config", "vision_config"} <= own.keys():
        stems = {
            str(name).removesuffix(_ENDING): name
            for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
            if str(name).endswith(_ENDING)
        }
        near = difflib.get_close_matches(re.sub(r"(Model|For[A-Z].*)$", "", class_name), stems, 2)
        return {"version": version, "classes": [stems[name] for name in near]}
    kinds = class_names()
    flat: dict[str, Any] = {key: {} for key in (*RopeParameters.__annotations__, "type")}
    rope = {**flat, "full_attention": flat, "sliding_attention": flat}
    config: dict[str, Any] = {
        "model_type": config_class.model_type,
        "text_config": {"num_hidden_layers": 1} | ({"model_type": kind} if kind in kinds else {}),
        "vision_config": {"num_hidden_layers": 1},
    }
    for key, word in words.items():
        set_value(config, key, word)
    tower = words.get(TOWER_KIND)
    towers = [tower] if tower in classes else TOWER_DEFAULTS
    pixels = _fields(*(classes[name] for name in towers))
    part = getattr(config_class, "sub_configs_defaults", {}).get("vision_config")
    pixels |= {
        key: None if isinstance(value, Mapping) else {}
        for key, value in (getattr(part, "init_kwargs", None) or {}).items()
        if pixels.get(key, {}) is not None
    }
    if "rope_parameters" in pixels:
        pixels |= {"rope_theta": {}, **dict.fromkeys(_ROPE, rope)}
    keys = {
        **own,
        "text_config": {
            **_fields(*(classes[name] for name in ([kind] if kind in kinds else kinds))),
            "rope_theta": {},
            **dict.fromkeys(_ROPE, rope),
        },
        "vision_config": pixels,
    }
    processors = {name for name in transformers.__all__ if name.endswith("Processor")}
    images, videos = (
        sorted(name for name in processors if name.endswith(end))
        for end in ("ImageProcessor", "VideoProcessor")
    )
    return {
        "version": version,
        "model_type": config_class.model_type,
        "kinds": sorted(kinds),
        "keys": keys,
        "refused": refused_constants(class_name, config, words),
        "processors": {
            "processor": sorted(
                processors.difference(images, videos).union(PROCESSOR_MAPPING_NAMES.values())
            ),
            "image_processor": images,
            "video_processor": videos,
        },
    }


def _fields(*config_classes: Any) -> _Fields:
    """The keys that one of the classes knows → None if anything may be inside, else empty."""
    found: _Fields = {}
    for config_class in config_classes:
        own: _Fields = {
            field.name: None if _HAS_PARTS.search(str(field.type)) else {}
            for field in fields(config_class)
        }
        aliases = config_class.attribute_map
        known: _Fields = {
            **{key: {} for key in (*_GENERAL, *aliases.values())},
            **{name: own.get(other, {}) for name, other in aliases.items()},
            **own,
        }
        for key, inside in known.items():
            found[key] = None if inside is None or found.get(key, {}) is None else {}
    return found
