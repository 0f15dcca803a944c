"""Does transformers know what a rule file writes into the target's config? A key with a slip of the pen would do nothing."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llava_remap.cache import cached
from llava_remap.errors import Problem
from llava_remap.rulefile import RuleFile
from llava_remap.target.presets import TOWER_DEFAULTS

#: What the base class of transformers 4 knew in every config.
_GENERAL = frozenset({"model_type", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"})
_ROPE = ("rope_parameters", "rope_scaling")


def unknown_target(rules: RuleFile) -> list[Problem]:
    """LR201, with its place, for each class, kind of language model and key that the installed transformers doesn't know."""
    target = rules.text.target
    if target is None or target.class_ is None:
        return []
    value = target.config.get("text_config.model_type")
    kind = value.const if value is not None and isinstance(value.const, str) else None
    class_name = target.class_
    answer = json.loads(
        cached("known_keys", {"class": class_name, "text": kind}, lambda: _ask(class_name, kind))["known_keys.json"]
    )
    return [
        Problem("LR201", f"{rules.tree.locate(path).mark} {cause}", fix) for path, cause, fix in _unknown(rules, kind, answer)
    ]


def _unknown(rules: RuleFile, kind: str | None, known: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """What isn't known: its place, what is wrong, and what was meant."""
    target = rules.target
    if "classes" in known:
        cause = f"transformers {known['version']} has no class `{target.class_}` for text and pictures."
        yield ("target", "class"), cause, _meant(str(target.class_), known["classes"])
        return
    kinds = [(("target", "config", "text_config.model_type"), kind)] if kind is not None else []
    kinds += [(("target", "text_models", name), other) for name, other in target.text_models.items()]
    for place, said in kinds:
        if said not in known["kinds"]:
            yield (
                place,
                f"transformers {known['version']} has no language model of the type `{said}`.",
                _meant(said, known["kinds"]),
            )
    for key, value in target.config.items():
        if value.const is None and "const" in value.model_fields_set:
            continue  # it takes an inherited key away
        keys: Any = known["keys"]
        for part in key.split("."):
            if keys is not None and part not in keys:
                where = f"{target.class_}'s config" + (f", in `{key.rpartition('.')[0]}`," if "." in key else "")
                yield (
                    ("target", "config", key),
                    f"`{part}` is no key of {where} in transformers {known['version']}.",
                    _meant(part, keys),
                )
                break
            keys = keys[part] if keys is not None else None


def _meant(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, 2)
    return (
        f"Did you mean {' or '.join(f'`{name}`' for name in near)}?"
        if near
        else "Take it out, or write the name that it has there."
    )


def _ask(class_name: str, kind: str | None) -> dict[str, bytes]:
    """The keys of a class's config: each with those inside it, or null where anything may be inside."""
    import transformers
    from transformers import CONFIG_MAPPING
    from transformers.modeling_rope_utils import RopeParameters

    from llava_remap.target.text_model import class_names

    version = transformers.__version__
    found: Any = getattr(transformers, class_name, None)
    config_class = getattr(found, "config_class", None)
    if config_class is None:
        classes = [name for name in dir(transformers) if name.endswith("ForConditionalGeneration")]
        return {"known_keys.json": json.dumps({"version": version, "classes": classes}).encode()}
    kinds = class_names()
    rope = dict.fromkeys((*RopeParameters.__annotations__, "type", "full_attention", "sliding_attention"))
    text = {key for name in ([kind] if kind in kinds else kinds) for key in _fields(CONFIG_MAPPING[name])}
    towers = {key for name in TOWER_DEFAULTS for key in _fields(CONFIG_MAPPING[name])}
    keys: dict[str, Any] = dict.fromkeys(_fields(config_class))
    keys["text_config"] = {**dict.fromkeys((*text, "rope_theta")), **dict.fromkeys(_ROPE, rope)}
    keys["vision_config"] = dict.fromkeys(towers)
    return {"known_keys.json": json.dumps({"version": version, "kinds": sorted(kinds), "keys": keys}).encode()}


def _fields(config_class: Any) -> set[str]:
    from dataclasses import fields

    renamed = config_class.attribute_map
    return {field.name for field in fields(config_class)} | {*renamed, *renamed.values()} | _GENERAL
