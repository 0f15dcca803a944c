"""Does transformers know what a rule file writes into the target's config? A key with a slip of
the pen would do nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_remap.core.cache import cached_value
from llava_remap.core.problem import Problem
from llava_remap.rulefile import ConfigValue, PixelProcessor, Processor, RuleFile
from llava_remap.target_model.config import TEXT_KIND, own_vision_configs
from llava_remap.target_model.config_keys import shortened, sort_keys
from llava_remap.target_model.constants import Place, constants_of, meant, refused_constants
from llava_remap.target_model.presets import TOWER_DEFAULTS

#: What the base class of transformers 4 knew in every config.
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
#: In the type of a field that can have parts.
_HAS_PARTS = re.compile(r"dict|Config|RopeParameters|Any")
#: Parts of a key → what is inside: none where they have no parts, None where anything may be
#: inside.
Keys = Mapping[str, Any]
_Fields = dict[str, dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class _Known:
    """What a class knows.

    Attributes:
        version: that of transformers.
        classes: where there is no such class, those that are nearly called so; else None, and all
            of the rest is there.
        model_type: that of its config.
        kinds: every `model_type` of a language model.
        keys: what its config may hold.
        refused: values that it refuses: the key → why, and what to write.
        processors: the names of classes, by the kind of processor.
    """

    version: str
    classes: tuple[str, ...] | None = None
    model_type: str = ""
    kinds: tuple[str, ...] = ()
    keys: Keys | None = None
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    processors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def unknown_target(rules: RuleFile, kind: str | None = None) -> list[Problem]:
    """LR201, with its place, for all of a rule file's target that the installed transformers
    doesn't know.

    Asked are the class, kinds of language models, keys, values that are words, and classes of
    processors.

    Args:
        kind: the `model_type` of the language model, where the sources have told it: keys are then
            held against that one's class alone, else against the class that the rule file names, or
            all.
    """
    if rules.text.target is None or rules.text.target.class_ is None:
        return []
    known = _known_of(rules, kind)
    return [
        Problem("LR201", f"{cause}", fix, place=rules.tree.locate(place).mark)
        for place, cause, fix in _unknown(rules, known)
    ]


def unread_of_towers(
    rules: RuleFile, kind: str, configs: Sequence[Mapping[str, Any]]
) -> list[Problem]:
    """LR318 for what the towers' own configs say under keys that no vision config of transformers
    has.

    Args:
        kind: the `model_type` of the language model, as for `unknown_target`.
        configs: the sources' own.
    """
    keys = (_known_of(rules, kind).keys or {})["vision_config"]
    said = {
        key: value
        for own in own_vision_configs(configs)
        for key, value in own.items()
        if key not in keys
    }
    _, unread = sort_keys(rules, said, [key for key in said if key[:1] != "_"])
    listed = ", ".join(f"{key}: {shortened(said[key])}" for key in unread)
    return (
        [
            Problem(
                "LR318",
                f"the tower's config says {listed}; no vision config of transformers has it, "
                f"and the "
                "folder doesn't say it.",
            )
        ]
        if unread
        else []
    )


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
    """The keys of the target's config in a rule file, without dots, that a class's config
    doesn't have.
    """
    known = _known(class_name, None, {}).keys
    taken = {
        key
        for key, value in rules.target_config.items()
        if "const" in value.model_fields_set and value.const is None
    }
    return [
        key
        for key in rules.target_config
        if known is not None and key not in taken and key.partition(".")[0] not in known
    ]


def _known(class_name: str, kind: str | None, words: Mapping[str, str]) -> _Known:
    facts = {"class": class_name, "text": kind, "words": words}
    return cached_value("known_keys", facts, lambda: _ask(class_name, kind, words), _Known)


def _unknown(rules: RuleFile, known: _Known) -> Iterator[tuple[Place, str, str]]:
    """What isn't known: its place, what is wrong, and what was meant."""
    target, version = rules.target, known.version
    if known.classes is not None:
        cause = (
            f"transformers {version} has no class `{target.class_}` for text and pictures "
            "with a head."
        )
        fix = "Write the name of one that has both; it ends with ForConditionalGeneration."
        if near := known.classes:
            fix = f"Did you mean {' or '.join(f'`{name}`' for name in near)}?"
        yield ("target", "class"), cause, fix
        return
    yield from _unknown_kinds(rules, known)
    for key, value in target.config.items():
        if value.const is None and "const" in value.model_fields_set:
            continue  # it takes an inherited key away
        yield from _unknown_key(f"{target.class_}'s config", key, value, known)
    for key, (cause, fix) in known.refused.items():
        yield (
            ("target", "config", key, "const"),
            f"`{key}` can't be {target.config[key].const!r}: {cause}",
            fix,
        )
    made = rules.text.processor or Processor()
    asked: dict[tuple[str, ...], Processor | PixelProcessor | None] = {
        ("processor",): made,
        ("processor", "image_processor"): made.image_processor,
        ("processor", "video_processor"): made.video_processor,
    }
    for place, part in asked.items():
        names = known.processors[place[-1]]
        if part is not None and part.class_ is not None and part.class_ not in names:
            cause = f"transformers {version} has no {place[-1].replace('_', ' ')} `{part.class_}`."
            yield (*place, "class"), cause, meant(part.class_, names)


def _unknown_kinds(rules: RuleFile, known: _Known) -> Iterator[tuple[Place, str, str]]:
    config, class_name = rules.target.config, rules.target.class_
    said = (
        list(constants_of(config["model_type"], ("target", "config", "model_type")))
        if "model_type" in config
        else []
    )
    wrong = [(place, kind) for place, kind in said if kind != known.model_type]
    if "model_type" not in config:
        wrong = [(("target", "config"), None)]
    for place, kind in wrong:
        cause = f"`target.config.model_type` is {kind!r}; {class_name} has {known.model_type!r}."
        yield (
            place,
            cause,
            f"Write `model_type: {{const: {known.model_type}}}`, or another `target.class`.",
        )
    kinds = (
        list(constants_of(config[TEXT_KIND], ("target", "config", TEXT_KIND)))
        if TEXT_KIND in config
        else []
    )
    kinds += [
        (("target", "text_models", name), kind) for name, kind in rules.target.text_models.items()
    ]
    for place, kind in kinds:
        if kind not in known.kinds:
            cause = f"transformers {known.version} has no language model of the type `{kind}`."
            yield (
                place,
                cause,
                meant(
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
            example = f"{key}.{min(keys)}"
            cause = f"`{key}` of {whose} is a group of values, and can't be {constant!r}."
            yield (
                where,
                cause,
                f"Write its values one by one, with dots: `{example}: {{const: …}}`.",
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
            (f"Write `{'.'.join(walked)}` alone."),
        )
    return f"`{part}` is no key of {whose}{inside} in transformers {version}.", meant(part, keys)


def _ask(class_name: str, kind: str | None, words: Mapping[str, str]) -> dict[str, Any]:
    """What a class's config may hold, or the classes that are nearly called so where it is none."""
    import transformers
    from transformers import CONFIG_MAPPING, PreTrainedModel
    from transformers.modeling_rope_utils import RopeParameters
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    from llava_remap.target_model.text_model import class_names

    version = transformers.__version__
    found: Any = getattr(transformers, class_name, None)
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    config_class: Any = found.config_class if is_model else None
    own = _fields(config_class) if config_class is not None else {}
    if not own or not found.can_generate() or not {"text_config", "vision_config"} <= own.keys():
        named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
        stems = {
            str(name).removesuffix(_ENDING): name for name in named if str(name).endswith(_ENDING)
        }
        near = difflib.get_close_matches(re.sub(r"(Model|For[A-Z].*)$", "", class_name), stems, 2)
        return {"version": version, "classes": [stems[name] for name in near]}
    kinds = class_names()
    flat: dict[str, Any] = {key: {} for key in (*RopeParameters.__annotations__, "type")}
    rope = {**flat, "full_attention": flat, "sliding_attention": flat}
    text = _fields(*(CONFIG_MAPPING[name] for name in ([kind] if kind in kinds else kinds)))
    layers = {"num_hidden_layers": 1}
    config: dict[str, Any] = {
        "model_type": config_class.model_type,
        "text_config": {**layers},
        "vision_config": {**layers},
    }
    if kind in kinds:
        config["text_config"]["model_type"] = kind
    for key, word in words.items():
        *parents, last = key.split(".")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = word
    keys = {
        **own,
        "text_config": {**text, "rope_theta": {}, **dict.fromkeys(_ROPE, rope)},
        "vision_config": _fields(*(CONFIG_MAPPING[name] for name in TOWER_DEFAULTS)),
    }
    images, videos = (
        [name for name in dir(transformers) if name.endswith(end)]
        for end in ("ImageProcessor", "VideoProcessor")
    )
    others = {name for name in dir(transformers) if name.endswith("Processor")}.difference(
        images, videos
    )
    return {
        "version": version,
        "model_type": config_class.model_type,
        "kinds": sorted(kinds),
        "keys": keys,
        "refused": refused_constants(class_name, config, words),
        "processors": {
            "processor": sorted({*others, *PROCESSOR_MAPPING_NAMES.values()}),
            "image_processor": images,
            "video_processor": videos,
        },
    }


def _fields(*config_classes: Any) -> _Fields:
    """The keys that one of the classes knows: None where anything may be inside, none inside
    otherwise.
    """
    from dataclasses import fields

    found: _Fields = {}
    for config_class in config_classes:
        own: _Fields = {
            field.name: None if _HAS_PARTS.search(str(field.type)) else {}
            for field in fields(config_class)
        }
        renamed: _Fields = {
            name: own.get(other, {}) for name, other in config_class.attribute_map.items()
        }
        written: _Fields = {other: {} for other in config_class.attribute_map.values()}
        for key, inside in {**{key: {} for key in _GENERAL}, **written, **renamed, **own}.items():
            found[key] = None if inside is None or found.get(key, {}) is None else {}
    return found
