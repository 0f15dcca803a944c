"""Reads the language model from the source's config: its kind, and the keys that its class in
transformers knows.

No list of keys is kept here: the installed transformers is asked. A key is carried over because the
class knows it. A key that the class doesn't know is reported, never dropped silently.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llava_remap.core.cache import cached_value
from llava_remap.core.problem import ConfigError, RemapError
from llava_remap.target_model.text_kind import class_names, text_kind
from llava_remap.target_model.wanted import make_config, refuse_endless

_MEND = "Correct the source's config.json."
#: Keys that don't change the computation.
IDLE = re.compile(
    r"_token_id$|^(architectures|vocab_size|use_cache|initializer_range|max_position_embeddings|pretraining_tp)$|dropout"
)
#: Sizes that a config must have. The class's defaults would make another model.
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
#: Key of 4.x → key in the `rope_parameters` of 5.x. The first set that the class reads as the same
#: rope is written.
_ROPE_KEYS = (
    {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
)
#: All keys of 4.x whose values 5.x has in `rope_parameters`.
OLD_ROPE = {"rope_scaling", "rope_local_base_freq"}.union(*_ROPE_KEYS)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A language model as its own class reads it.

    Attributes:
        kind: its `model_type`.
        known_by: the name in the source's config that ends in the kind's name, if nothing else
            shows the kind.
        config: the keys that the class knows, in the spellings of 4.x and of 5.x, without the size
            of the vocabulary.
        embedding, head: classic names of the table of token embeddings and of the matrix that
            turns hidden states into logits; empty if the target's class can't be built.
        unknown: the keys of the source's config that the class doesn't know.
        newer: why older versions of transformers can't open the model or compute something else, in
            words; empty if all versions compute the same.
        differs: why the target's class computes other logits than the language model's own class,
            in words; empty if both compute the same.
        norms_about_one: whether its norms multiply by their weights, which are then about 1.
    """

    kind: str
    known_by: str
    config: Mapping[str, Any]
    embedding: str
    head: str
    unknown: tuple[str, ...]
    newer: str
    differs: str
    norms_about_one: bool


def read_text_model(
    source: Mapping[str, Any],
    target_class: str,
    forks: Mapping[str, str],
    said: str | None = None,
    around: Mapping[str, Any] | None = None,
) -> TextModel:
    """Ask the installed transformers how it reads a source's config of a language model.

    Args:
        source: the config that describes the language model.
        target_class: the class that the language model becomes a part of.
        forks: class names or `model_type`s of research code, each with the `model_type` of the
            language model that it derives from.
        said: the `model_type` in the rule file.
        around: the config around `source` if `source` is a `text_config` with its own type, which
            may leave out the class's defaults; otherwise None.

    Raises:
        RemapError: LR112 if the kind is unknown, or if the config lacks a size, contradicts itself
            or has an impossible value; LR201 if transformers has no language model of the type
            `said`.
    """
    return cached_value(
        "text_model",
        {
            "source": source,
            "class": target_class,
            "forks": forks,
            "said": said,
            "around": around,
        },
        lambda: _ask(source, target_class, forks, said, around),
        TextModel,
    )


def _ask(
    source: Mapping[str, Any],
    target_class: str,
    forks: Mapping[str, str],
    said: str | None,
    around: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    from llava_remap.target_model.same_logits import compare_classes

    refuse_endless(source)
    kind, known_by = text_kind(source, forks, said)
    config_class = CONFIG_MAPPING[kind]
    aliases = config_class.attribute_map
    general = {field.name for field in fields(PreTrainedConfig)} | {"model_type", "torch_dtype"}
    own = {field.name for field in fields(config_class)} - general
    given = {key: value for key, value in source.items() if key not in general and key[:1] != "_"}
    known = {key: value for key, value in given.items() if key in own or key in aliases}
    _check_sizes(config_class, own, known, needed=around is None)
    # The class computes some keys itself, and saves them.
    own |= _values(_build(config_class, known)).keys() - {*general, "output_attentions"}
    known = {key: value for key, value in given.items() if key in own or key in aliases}
    old = {key: value for key, value in given.items() if key in OLD_ROPE}
    older = {
        key: value
        for key, value in given.items()
        if key not in known and _is_older(config_class, known, old, key, value)
    }
    config = _build(config_class, {**known, **older})
    _check_rope(config_class, known, older)
    _check_rope_keys(config_class, class_names()[kind], {**known, **older})
    tied = getattr(config, "tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ConfigError.of(
            "LR112",
            f"the language model's config says tie_word_embeddings: {tied!r}; true or false is "
            "needed.",
            _MEND,
        )
    rows = aliases.get("vocab_size", "vocab_size")
    values = {
        key: value for key, value in _values(config).items() if key in own and key != rows
    } | {"tie_word_embeddings": tied}
    new = values.get("rope_parameters") or {}
    if isinstance(new, dict) and "rope_type" in new:
        new.pop("type", None)  # the name of rope_type in the oldest configs
    if values.get("head_dim", 0) is None:
        # Newer classes divide by head_dim. Without the key, all versions take hidden_size / heads.
        del values["head_dim"]
    rope = old_rope(config_class, values)
    compared = compare_classes(config, target_class)
    whole = {
        "model_type": kind,
        "architectures": [class_names()[kind]],
        **values,
        # Older versions may know only the other name.
        **{alias: values[name] for alias, name in aliases.items() if name in values},
        **(rope or {}),
        **older,
    }
    beside = {
        key: value
        for key, value in (around or {}).items()
        if key not in general and key[:1] != "_" and value is not None
    }
    _check_around(beside, whole)
    unknown = {
        key
        for key, value in given.items()
        if value is not None
        and key not in {*known, *older}
        and not (key in old and key in new and new[key] == value)
    }
    return {
        "kind": kind,
        "known_by": known_by,
        "config": whole,
        "embedding": compared.embedding,
        "head": compared.head,
        "unknown": sorted(unknown | {key for key in beside if key not in whole and key != rows}),
        "newer": compared.renamed
        if rope is not None
        else "versions of transformers before 5 can't read all of its rope_parameters: use 5.0 or "
        "later",
        "differs": compared.differs,
        "norms_about_one": compared.norms_about_one,
    }


def _check_rope(config_class: Any, known: Mapping[str, Any], older: Mapping[str, Any]) -> None:
    """LR112 if `rope_parameters` of 5.x and the keys of 4.x differ: each version of transformers
    would read its own keys.
    """
    if not isinstance(known.get("rope_parameters"), Mapping) or not older:
        return
    old = {**without(known, "rope_parameters"), **older}
    if _build(config_class, known).rope_parameters != _build(config_class, old).rope_parameters:
        said = " and ".join(
            f"{key}: {value!r}"
            for key, value in {"rope_parameters": known["rope_parameters"], **older}.items()
        )
        raise ConfigError.of(
            "LR112",
            f"the language model's config contradicts itself on rope: {said}.",
            "Find out which value is right, and remove the other one from config.json.",
        )


def _check_rope_keys(config_class: Any, class_name: str, values: Mapping[str, Any]) -> None:
    """LR112 for keys inside the parameters of rope that neither transformers nor the class's own
    code knows: transformers ignores them.
    """
    import transformers
    from transformers.modeling_rope_utils import RopeParameters

    known = {*RopeParameters.__annotations__, "type"}
    strange = {
        place: value
        for key in ("rope_parameters", "rope_scaling")
        for place, value in _leaves(key, values.get(key))
        if value is not None and place.rpartition(".")[2] not in known
    }
    if strange:
        modules = {config_class.__module__, getattr(transformers, class_name).__module__}
        code = "".join(inspect.getsource(sys.modules[module]) for module in modules)
        strange = {
            place: value
            for place, value in strange.items()
            if f'"{place.rpartition(".")[2]}"' not in code
        }
    if strange:
        raise ConfigError.of(
            "LR112",
            "the language model's config says "
            f"{', '.join(f'{place}: {value!r}' for place, value in strange.items())}, which "
            f"{config_class.__name__} of transformers doesn't know.",
            "If no computation of the model depends on them, remove them from config.json.",
        )


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values inside a mapping and its nested mappings, each with its place; none for any other
    value.
    """
    for key, inside in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inside, Mapping):
            yield from _leaves(f"{place}.{key}", inside)
        else:
            yield f"{place}.{key}", inside


def _check_around(around: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """LR112 if the config around a `text_config` contradicts its values for the language model."""
    odd = [
        f"{key}: {value!r} around it and {config[key]!r} inside"
        for key, value in around.items()
        if key in config
        and value != config[key]
        and key != "tie_word_embeddings"
        and not IDLE.search(key)
    ]
    if odd:
        raise ConfigError.of(
            "LR112",
            f"the config contradicts its own `text_config`: {'; '.join(odd)} (a "
            "key that isn't inside has the class's default there).",
            "Find out which values the language model was built with (usually `text_config`), and "
            "remove the others from config.json.",
        )


def _build(config_class: Any, values: Mapping[str, Any]) -> Any:
    """The class's config; LR112 for values that the class refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about older keys
            return make_config(config_class, values)
    except Exception as error:  # whatever the class raises: the config is the user's
        raise ConfigError.of(
            "LR112",
            f"transformers can't make a {config_class.__name__} of what the language model's "
            f"config says: {' '.join(str(error).split()).rstrip('.')}.",
            _MEND,
        ) from error


def _values(config: Any) -> dict[str, Any]:
    """All values of a config except transformers' own, in the form of JSON, which spells out
    infinity.
    """
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key[:1] != "_"}


def _is_older(
    config_class: Any, known: Mapping[str, Any], old: Mapping[str, Any], key: str, value: Any
) -> bool:
    """Whether a key is a key of older versions that the class still reads: it changes the rest of
    the config.

    The value may be the default, which changes nothing, so another value is also tried. A key of
    rope is tried without the newer key, which takes precedence, and with the other old keys
    (`old`): without these, a class may use its own default for all of them.
    """
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    configs = [known, without(known, "rope_parameters"), {**known, **without(old, key)}]
    for beside in (one for at, one in enumerate(configs) if one not in configs[:at]):
        plain = without(_values(_build(config_class, beside)), key)
        for tried in [value, value * 2 + 1] if numeric else [value]:
            try:
                made = _values(make_config(config_class, {**beside, key: tried}))
            except Exception:  # the class refuses the value, so it reads it
                return True
            if without(made, key) != plain:
                return True
    return False


def without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A config without some keys."""
    return {key: value for key, value in values.items() if key not in keys}


def _check_sizes(
    config_class: Any, own: set[str], known: Mapping[str, Any], *, needed: bool
) -> None:
    """LR112 for a size of the class that isn't a whole number in the config."""
    for key in _NEEDED:
        name = config_class.attribute_map.get(key, key)
        value = known.get(key, known.get(name))
        if (
            name not in own
            or (key == "intermediate_size" and getattr(config_class, name, None) is None)
            or (value is None and not needed)
        ):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = f"says {key}: {value!r}" if value is not None else f"has no {key}"
            raise ConfigError.of(
                "LR112", f"the language model's config {said}; a whole number is needed.", _MEND
            )


def old_rope(config_class: Any, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keys that 4.x reads in place of `rope_parameters`. Without them, 4.x silently uses 10000
    and no scaling.

    None if the older keys can't express all of the class's `rope_parameters`.
    """
    new = values.get("rope_parameters")
    if not isinstance(new, Mapping):
        return {}
    full, local = new.get("full_attention"), new.get("sliding_attention")
    flat = full if isinstance(full, Mapping) else new
    for keys in _ROPE_KEYS:
        said = {old: flat[name] for old, name in keys.items() if flat.get(name) is not None}
        if isinstance(local, Mapping):
            said["rope_local_base_freq"] = local.get("rope_theta")
        for scaling in _old_scalings(without(flat, *keys.values())):
            older = {**said, "rope_scaling": scaling}
            # The older keys can't express some kinds of rope.
            with contextlib.suppress(RemapError):
                made = _values(_build(config_class, without(values, "rope_parameters") | older))
                turned = made.get("rope_parameters")
                if turned is not None and without(turned, "type") == without(new, "type"):
                    return older
    return None


def _old_scalings(scaling: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """The forms of `rope_scaling` in 4.x."""
    kind, factors = scaling.get("rope_type", "default"), without(scaling, "type", "rope_type")
    if kind == "longrope":  # Phi-3's class accepts only its three factors
        yield {"type": kind} | {k: v for k, v in factors.items() if k.endswith("factor")}
    yield None if kind == "default" else {"rope_type": kind, **factors}
