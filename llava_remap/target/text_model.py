"""The language model: which kind it is, and what of the source's config its own class in transformers knows.

Nothing here lists what a kind of language model is configured by: the installed transformers is asked. So a key is carried over
because the class knows it, and one that the class doesn't know is told, never dropped in silence.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llava_remap.cache import cached
from llava_remap.errors import RemapError, refuse
from llava_remap.target.same_logits import compare_classes
from llava_remap.target.wanted import from_json, refuse_endless

_MEND = "Mend the source's config.json."
#: What the class's own defaults may not stand in for: no shape shows them, or the model would be another one.
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
#: What classes of language models are called behind the name of the model.
_ENDING = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)$")
#: Where 4.x has what 5.x says in `rope_parameters`. The first that the class itself takes back to the same is written.
_ROPE_KEYS = (
    {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A language model as its own class has it.

    Attributes:
        kind: its `model_type`.
        known_by: the name in the source's config that ends in that of the kind, where nothing says the kind itself.
        config: all that the class knows of it, in the keys of 4.x and of 5.x, without the size of the vocabulary.
        embedding: what its table of token embeddings is called in the classic layout; empty where the class can't be built.
        unknown: the keys of the source's config that the class doesn't know.
        newer: why older versions of transformers don't open it or compute something else, in words; empty where all can.
        norms_about_one: whether its norms multiply by their weights, so that these are about 1.
        differs: in what the target's class computes other logits than the language model's own class, in words; empty where both
            compute the same.
    """

    kind: str
    known_by: str
    config: Mapping[str, Any]
    embedding: str
    unknown: tuple[str, ...]
    newer: str
    differs: str
    norms_about_one: bool


def read_text_model(source: Mapping[str, Any], target_class: str, forks: Mapping[str, str], said: str | None = None) -> TextModel:
    """Ask the installed transformers what a source's config says of the language model.

    Args:
        source: the config that describes the language model.
        target_class: the class that it becomes a part of.
        forks: names of research code, of a class or a `model_type`: the `model_type` of the language model that they derive from.
        said: the `model_type` that the rule file says.

    Raises:
        RemapError: LR112 where the kind can't be known, or the config lacks what it must say, or says what can't be; LR201 for a
            `said` that transformers has no language model of.
    """
    facts = {"source": source, "class": target_class, "forks": forks, "said": said}
    answer = json.loads(cached("text_model", facts, lambda: _ask(source, target_class, forks, said))["text_model.json"])
    return TextModel(**{**answer, "unknown": tuple(answer["unknown"])})


def _ask(source: Mapping[str, Any], target_class: str, forks: Mapping[str, str], said: str | None) -> dict[str, bytes]:
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    refuse_endless(source)
    kind, known_by = _kind(source, forks, said)
    config_class = CONFIG_MAPPING[kind]
    general = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(config_class)} - general
    given = {key: value for key, value in source.items() if key not in (*general, "model_type", "torch_dtype") and key[:1] != "_"}
    known = {key: value for key, value in given.items() if key in own or key in config_class.attribute_map}
    _check_sizes(config_class, own, known)
    # Some it works out itself, and saves.
    own |= {key for key in _values(_build(config_class, known)) if key[:1] != "_"} - {*general, "model_type", "output_attentions"}
    names = own | set(config_class.attribute_map)
    known = {key: value for key, value in given.items() if key in names}
    older = {key: value for key, value in given.items() if key not in names and _is_older(config_class, known, key, value)}
    config = _build(config_class, {**known, **older})
    if not isinstance(getattr(config, "tie_word_embeddings", False), bool):
        cause = f"the language model's config says tie_word_embeddings: {config.tie_word_embeddings!r}; true or false is needed."
        raise refuse("LR112", cause, _MEND)
    rows = config_class.attribute_map.get("vocab_size", "vocab_size")
    values = {key: value for key, value in _values(config).items() if key in own and key != rows}
    values["tie_word_embeddings"] = getattr(config, "tie_word_embeddings", False)
    if values.get("head_dim", 0) is None:  # newer classes divide by it; without the key it is hidden_size / heads in all versions
        del values["head_dim"]
    rope = old_rope(config_class, values)
    compared = compare_classes(config, target_class)
    newer = (
        "versions of transformers before 5 can't be told all of its rope_parameters: use 5.0 or later"
        if rope is None
        else compared.renamed
    )
    answer = {
        "kind": kind,
        "known_by": known_by,
        "config": {"model_type": kind, "architectures": [class_names()[kind]], **values, **older, **(rope or {})},
        "embedding": f"language_model.model.{compared.embedding}" if compared.embedding else "",
        "unknown": sorted(key for key in given if key not in known and key not in older and given[key] is not None),
        "newer": newer,
        "differs": compared.differs,
        "norms_about_one": compared.norms_about_one,
    }
    return {"text_model.json": json.dumps(answer).encode()}


def _build(config_class: Any, values: Mapping[str, Any]) -> Any:
    """The class's config."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a key is an older one
            return config_class.from_dict(from_json(values))
    except Exception as error:  # whatever the class raises: the config is the user's
        reason = " ".join(str(error).split()).rstrip(".")
        cause = f"transformers can't make a {config_class.__name__} of what the language model's config says: {reason}."
        raise refuse("LR112", cause, _MEND) from error


def _values(config: Any) -> dict[str, Any]:
    """All values of a config, as they are in its JSON: infinity is spelt out there."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def _is_older(config_class: Any, known: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a key is one of older versions, of which the class makes something else than an attribute that nobody reads.

    A value that is the default anyway shows nothing, so another one is tried as well.
    """
    plain = _without(_values(_build(config_class, known)), key)
    others = [value * 2 + 1] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
    for tried in [value, *others]:
        try:
            made = _values(config_class.from_dict(from_json({**known, key: tried})))
        except Exception:  # the class refuses the value, so it reads it; of the real one the whole config tells
            return True
        if _without(made, key) != plain:
            return True
    return False


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _check_sizes(config_class: Any, own: set[str], known: Mapping[str, Any]) -> None:
    for key in _NEEDED:
        name = config_class.attribute_map.get(key, key)
        if name not in own or (key == "intermediate_size" and getattr(config_class, name, None) is None):
            continue
        value = known.get(key, known.get(name))
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = f"says {key}: {value!r}" if value is not None else f"has no {key}"
            raise refuse("LR112", f"the language model's config {said}; a whole number is needed.", _MEND)


def old_rope(config_class: Any, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What 4.x reads in place of `rope_parameters`: without it, it takes 10000 and no scaling in silence.

    None where the class has more in `rope_parameters` than 4.x can be told.
    """
    new = values.get("rope_parameters")
    if not isinstance(new, Mapping):
        return {}
    rest = _without(values, "rope_parameters")
    full = new.get("full_attention")
    for keys in _ROPE_KEYS:
        flat = full if isinstance(full, Mapping) else new
        said = {old: flat[name] for old, name in keys.items() if flat.get(name) is not None}
        scaling = {key: value for key, value in flat.items() if key not in keys.values()}
        plain = scaling.get("rope_type", "default") == "default"
        said["rope_scaling"] = None if plain else scaling
        if isinstance(local := new.get("sliding_attention"), Mapping) and local is not flat:
            said["rope_local_base_freq"] = local.get("rope_theta")
        with contextlib.suppress(RemapError):  # a kind of rope that the older keys can't say at all
            if _values(_build(config_class, {**rest, **said})).get("rope_parameters") == new:
                return said
    return None


def _kind(source: Mapping[str, Any], forks: Mapping[str, str], said: str | None) -> tuple[str, str]:
    """The `model_type` of the language model, and the name that it was known by, if only by the name's end.

    Raises:
        RemapError: as `read_text_model`.
    """
    kinds = class_names()
    if said is not None and said not in kinds:
        near = difflib.get_close_matches(said, kinds, 3)
        fix = (
            f"Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else "Write the `model_type` of its config.json."
        )
        raise refuse("LR201", f"transformers has no language model of the type `{said}`.", fix)
    named = _named(source)
    sure = {name: of for name in named if (of := forks.get(name) or (name if name in kinds else _of_class(name)))}
    ends = {name: of for name in named if name not in sure and (of := _by_ending(name))}
    found = {**sure, **ends}
    if said is not None:
        found = {name: kind for name, kind in found.items() if kind != said}
        if not found:
            return said, ""
        names = " and ".join(f"`{name}` is {kind}" for name, kind in found.items())
        key = next(iter(found))
        raise refuse(
            "LR112",
            f"the rule file says that the language model is {said}, and by the source's config {names}.",
            f"If the rule file is right, say so there: `target: {{text_models: {{{key}: {said}}}}}`.",
        )
    if len(set(found.values())) == 1:
        name, kind = next(iter(found.items()))
        return kind, "" if sure else name
    if found:
        names = " and ".join(f"`{name}` is {kind}" for name, kind in found.items())
        cause = f"the source's config contradicts itself: {names}."
    else:
        what = ", ".join(f"`{name}`" for name in named) or "neither model_type nor architectures"
        cause = f"the source's config doesn't tell which language model it has: it says {what}."
    raise refuse(
        "LR112",
        cause,
        "Say it in a rule file that extends this one: `target: {config: {text_config.model_type: {const: TYPE}}}`, with the "
        "`model_type` of the language model in transformers.",
    )


def _named(source: Mapping[str, Any]) -> list[str]:
    """What a config calls its model: its type and its classes."""
    classes = source.get("architectures")
    said = [source.get("model_type"), *(classes if isinstance(classes, list) else [classes])]
    return list(dict.fromkeys(name for name in said if isinstance(name, str) and name))


def class_names() -> dict[str, str]:
    """The classes of language models that transformers has, by `model_type`."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = {kind: names if isinstance(names, str) else names[0] for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    return {
        kind: name for kind, name in named.items() if kind in CONFIG_MAPPING and name.endswith(("ForCausalLM", "LMHeadModel"))
    }


def _of_class(name: str) -> str | None:
    """The kind whose class has this name; of several the one that is called like it."""
    stem = _stem(name)
    found = [kind for kind, other in class_names().items() if other == name]
    return next((kind for kind in found if _letters(kind) == stem), found[0] if found else None)


def _by_ending(name: str) -> str | None:
    """The kind in which the name of research code ends: LlavaGemma2ForCausalLM, llava_gemma2."""
    stems = {_stem(other): kind for kind, other in reversed(class_names().items())} | {
        _letters(kind): kind for kind in class_names()
    }
    bare = _ENDING.sub("", name)
    starts = [match.start() for match in re.finditer(r"(?<![A-Z])[A-Z]|(?<=[_-])[a-z]", bare)]
    return next((stems[end] for at in starts if (end := _letters(bare[at:])) in stems), None)


def _stem(class_name: str) -> str:
    return _letters(_ENDING.sub("", class_name))


def _letters(name: str) -> str:
    return re.sub(r"[_-]", "", name).lower()
