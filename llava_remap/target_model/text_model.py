"""The language model: which kind it is, and what of the source's config its own class in
transformers knows.

Nothing here lists what a kind of language model is configured by: the installed transformers is
asked. So a key is carried over because the class knows it, and one that the class doesn't know is
told, never dropped in silence.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llava_remap.core.cache import cached_value
from llava_remap.core.problem import ConfigError, RemapError, refuse
from llava_remap.target_model.same_logits import compare_classes
from llava_remap.target_model.wanted import from_json, refuse_endless

_MEND = "Mend the source's config.json."
#: What of two configs of one language model may differ: it changes nothing that is computed.
IDLE = re.compile(
    r"_token_id$|^(architectures|vocab_size|use_cache|initializer_range|max_position_embeddings|pretraining_tp)$|dropout"
)
#: What the class's own defaults may not stand in for: no shape shows them, or the model would be
#: another one.
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
#: What classes of language models are called behind the name of the model.
_ENDING = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)$")
#: Where 4.x has what 5.x says in `rope_parameters`. The first that the class itself takes back to
#: the same is written.
_ROPE_KEYS = (
    {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
)
#: All keys in which 4.x says what 5.x says in `rope_parameters`.
OLD_ROPE = {"rope_scaling", "rope_local_base_freq"}.union(*_ROPE_KEYS)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A language model as its own class has it.

    Attributes:
        kind: its `model_type`.
        known_by: the name in the source's config that ends in that of the kind, where nothing says
            the kind itself.
        config: all that the class knows of it, in the keys of 4.x and of 5.x, without the size of
            the vocabulary.
        embedding: what its table of token embeddings is called in the classic layout; empty where
            the class can't be built.
        unknown: the keys of the source's config that the class doesn't know.
        newer: why older versions of transformers don't open it or compute something else, in words;
            empty where all can.
        norms_about_one: whether its norms multiply by their weights, so that these are about 1.
        differs: in what the target's class computes other logits than the language model's own
            class, in words; empty where both compute the same.
    """

    kind: str
    known_by: str
    config: Mapping[str, Any]
    embedding: str
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
    """Ask the installed transformers what a source's config says of the language model.

    Args:
        source: the config that describes the language model.
        target_class: the class that it becomes a part of.
        forks: names of research code, of a class or a `model_type`: the `model_type` of the
            language model that they derive from.
        said: the `model_type` that the rule file says.
        around: what stands around `source`, where that is a `text_config` with a type of its own:
            such a one may leave out what is the class's default. None: nothing does.

    Raises:
        RemapError: LR112 where the kind can't be known, or the config lacks what it must say,
            contradicts itself or says what can't be; LR201 for a `said` that transformers has no
            language model of.
    """
    facts = {
        "source": source,
        "class": target_class,
        "forks": forks,
        "said": said,
        "around": around,
    }
    return cached_value(
        "text_model", facts, lambda: _ask(source, target_class, forks, said, around), TextModel
    )


def _ask(
    source: Mapping[str, Any],
    target_class: str,
    forks: Mapping[str, str],
    said: str | None,
    around: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    refuse_endless(source)
    kind, known_by = _kind(source, forks, said)
    config_class = CONFIG_MAPPING[kind]
    aliases = config_class.attribute_map
    not_its = {field.name for field in fields(PreTrainedConfig)} | {"model_type", "torch_dtype"}
    own = {field.name for field in fields(config_class)} - not_its
    given = {key: value for key, value in source.items() if key not in not_its and key[:1] != "_"}
    known = {key: value for key, value in given.items() if key in own or key in aliases}
    _check_sizes(config_class, own, known, needed=around is None)
    own |= _values(_build(config_class, known)).keys() - {
        *not_its,
        "output_attentions",
    }  # some it works out itself, and saves
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
    if isinstance(turned := values.get("rope_parameters"), dict) and "rope_type" in turned:
        turned.pop("type", None)  # its name in the oldest configs
    if (
        values.get("head_dim", 0) is None
    ):  # newer classes divide by it; without the key it is hidden_size / heads in all versions
        del values["head_dim"]
    renamed = {
        alias: values[name] for alias, name in aliases.items() if name in values
    }  # older versions may know that name alone
    rope = old_rope(config_class, values)
    compared = compare_classes(config, target_class)
    newer = (
        "versions of transformers before 5 can't be told all of its rope_parameters: use 5.0 "
        "or later"
    )
    whole = {
        "model_type": kind,
        "architectures": [class_names()[kind]],
        **values,
        **renamed,
        **(rope or {}),
        **older,
    }
    beside = {
        key: value
        for key, value in (around or {}).items()
        if key not in not_its and key[:1] != "_" and value is not None
    }
    _check_around(beside, whole)
    turned = values.get("rope_parameters") or {}
    again = {
        key for key in old if key in turned and turned[key] == old[key]
    }  # also under the names that the class reads
    unknown = [
        key for key in given if key not in {*known, *older, *again} and given[key] is not None
    ]
    return {
        "kind": kind,
        "known_by": known_by,
        "config": whole,
        "embedding": f"language_model.model.{compared.embedding}" if compared.embedding else "",
        "unknown": sorted({*unknown, *(key for key in beside if key not in whole and key != rows)}),
        "newer": newer if rope is None else compared.renamed,
        "differs": compared.differs,
        "norms_about_one": compared.norms_about_one,
    }


def _check_rope(config_class: Any, known: Mapping[str, Any], older: Mapping[str, Any]) -> None:
    """LR112 where `rope_parameters` of 5.x and the keys of 4.x beside it differ: each version
    would believe its own.
    """
    if not isinstance(known.get("rope_parameters"), Mapping) or not older:
        return
    new, old = (
        _build(config_class, known),
        _build(config_class, {**_without(known, "rope_parameters"), **older}),
    )
    if new.rope_parameters != old.rope_parameters:
        said = " and ".join(
            f"{key}: {value!r}"
            for key, value in {"rope_parameters": known["rope_parameters"], **older}.items()
        )
        raise ConfigError.of(
            "LR112",
            f"the language model's config contradicts itself on rope: {said}.",
            "Find out which is right, and take the other out of config.json.",
        )


def _check_rope_keys(config_class: Any, class_name: str, values: Mapping[str, Any]) -> None:
    """LR112 for keys inside the parameters of rope that neither transformers nor the class's own
    code knows: they are ignored.
    """
    import transformers
    from transformers.modeling_rope_utils import RopeParameters

    said = dict(
        leaf
        for key in ("rope_parameters", "rope_scaling")
        for leaf in _leaves(key, values.get(key))
    )
    known = {*RopeParameters.__annotations__, "type"}
    strange = {
        place: value
        for place, value in said.items()
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
        listed = ", ".join(f"{place}: {value!r}" for place, value in strange.items())
        raise ConfigError.of(
            "LR112",
            f"the language model's config says {listed}, which {config_class.__name__} of "
            "transformers doesn't know.",
            "If nothing that the model computes depends on it, take it out of config.json.",
        )


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values inside a mapping and the mappings in it, each with its place; nothing for what
    is no mapping.
    """
    for key, inside in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inside, Mapping):
            yield from _leaves(f"{place}.{key}", inside)
        else:
            yield f"{place}.{key}", inside


def _check_around(around: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """LR112 where what stands around a `text_config` says something else of the language model
    than that does.
    """
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
            f"the config contradicts its own `text_config`: {'; '.join(odd)} (inside, what "
            "isn't said is the class's default).",
            "Find out how the language model was built, mostly from `text_config` alone, and "
            "take the other out of config.json.",
        )


def _build(config_class: Any, values: Mapping[str, Any]) -> Any:
    """The class's config."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a key is an older one
            return config_class.from_dict(from_json(values))
    except Exception as error:  # whatever the class raises: the config is the user's
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError.of(
            "LR112",
            f"transformers can't make a {config_class.__name__} of what the language model's "
            f"config says: {reason}.",
            _MEND,
        ) from error


def _values(config: Any) -> dict[str, Any]:
    """All values of a config but transformers' own, as they are in its JSON: infinity is spelt
    out there.
    """
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in found.items() if key[:1] != "_"}


def _is_older(
    config_class: Any, known: Mapping[str, Any], old: Mapping[str, Any], key: str, value: Any
) -> bool:
    """Whether a key is one of older versions, of which the class makes something else than an
    attribute that nobody reads.

    A value that is the default anyway shows nothing, so another one is tried as well; and so does
    one of rope beside the newer key, which counts more. Without the other keys of rope (`old`) a
    class may take its own default for all of them.
    """
    others = (
        [value * 2 + 1] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
    )
    for beside in (known, _without(known, "rope_parameters"), {**known, **_without(old, key)}):
        plain = _without(_values(_build(config_class, beside)), key)
        for tried in [value, *others]:
            try:
                made = _values(config_class.from_dict(from_json({**beside, key: tried})))
            except Exception:  # the class refuses the value, so it reads it
                return True
            if _without(made, key) != plain:
                return True
    return False


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _check_sizes(
    config_class: Any, own: set[str], known: Mapping[str, Any], *, needed: bool
) -> None:
    for key in _NEEDED:
        name = config_class.attribute_map.get(key, key)
        if name not in own or (
            key == "intermediate_size" and getattr(config_class, name, None) is None
        ):
            continue
        value = known.get(key, known.get(name))
        if value is None and not needed:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = f"says {key}: {value!r}" if value is not None else f"has no {key}"
            raise ConfigError.of(
                "LR112", f"the language model's config {said}; a whole number is needed.", _MEND
            )


def old_rope(config_class: Any, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What 4.x reads in place of `rope_parameters`: without it, it takes 10000 and no scaling in
    silence.

    None where the class has more in `rope_parameters` than 4.x can be told.
    """
    new = values.get("rope_parameters")
    if not isinstance(new, Mapping):
        return {}
    rest = _without(values, "rope_parameters")
    full, local = new.get("full_attention"), new.get("sliding_attention")
    flat = full if isinstance(full, Mapping) else new
    for keys in _ROPE_KEYS:
        said = {old: flat[name] for old, name in keys.items() if flat.get(name) is not None}
        if isinstance(local, Mapping):
            said["rope_local_base_freq"] = local.get("rope_theta")
        for scaling in _old_scalings(
            {key: value for key, value in flat.items() if key not in keys.values()}
        ):
            with contextlib.suppress(
                RemapError
            ):  # a kind of rope that the older keys can't say at all
                made = _values(_build(config_class, {**rest, **said, "rope_scaling": scaling})).get(
                    "rope_parameters"
                )
                if made is not None and _without(made, "type") == _without(new, "type"):
                    return {**said, "rope_scaling": scaling}
    return None


def _old_scalings(scaling: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Forms of a `rope_scaling` for 4.x, the first of which some of its classes want."""
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return [None]
    factors = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
    whole = {"rope_type": kind, **factors}
    if kind == "longrope":  # Phi-3's class wants these three and no more
        return [
            {
                "type": kind,
                **{key: value for key, value in factors.items() if key.endswith("factor")},
            },
            whole,
        ]
    return [whole]


def _kind(source: Mapping[str, Any], forks: Mapping[str, str], said: str | None) -> tuple[str, str]:
    """The `model_type` of the language model, and the name that it was known by, if only by the
    name's end.

    Raises:
        RemapError: as `read_text_model`.
    """
    kinds = class_names()
    if said is not None and said not in kinds:
        near = difflib.get_close_matches(said, kinds, 3)
        raise refuse(
            "LR201",
            f"transformers has no language model of the type `{said}`.",
            (
                f"Did you mean {' or '.join(f'`{name}`' for name in near)}?"
                if near
                else "Write the `model_type` of its config.json."
            ),
        )
    named = _named(source)
    by_fork = {name: forks[name] for name in named if name in forks}
    sure = by_fork | {
        name: of
        for name in named
        if name not in forks and (of := name if name in kinds else _of_class(name, named))
    }
    # Who says of a name that it isn't what it ends in says so of other names that end in the same.
    overruled = {end for name, of in by_fork.items() if (end := _by_ending(name)) not in (None, of)}
    ends = {
        name: of
        for name in named
        if name not in sure and (of := _by_ending(name)) and of not in overruled
    }
    found = {**sure, **ends}
    every = ", ".join(f"{name}: {said or 'TYPE'}" for name in found or named)
    if said is not None:
        if not (other := {name: of for name, of in found.items() if of != said}):
            return said, ""
        names = " and ".join(f"`{name}` is {of}" for name, of in other.items())
        raise ConfigError.of(
            "LR112",
            f"the rule file says that the language model is {said}, and by the source's "
            f"config {names}.",
            f"If the rule file is right, say so there: `target: {{text_models: {{{every}}}}}`.",
        )
    if len(set(found.values())) == 1:
        name, kind = next(iter(found.items()))
        return kind, "" if sure else name
    if found:
        names = " and ".join(f"`{name}` is {of}" for name, of in found.items())
        cause = f"the source's config contradicts itself: {names}."
        line = f"target: {{text_models: {{{every}}}}}"
    else:
        what = ", ".join(f"`{name}`" for name in named) or "neither model_type nor architectures"
        cause = f"the source's config doesn't tell which language model it has: it says {what}."
        line = "target: {config: {text_config.model_type: {const: TYPE}}}"
    raise ConfigError.of(
        "LR112",
        cause,
        f"Say it in a rule file that extends this one: `{line}`, with the `model_type` of the "
        "language model in transformers.",
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

    named = {
        kind: names if isinstance(names, str) else names[0]
        for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    }
    return {
        kind: name
        for kind, name in named.items()
        if kind in CONFIG_MAPPING and name.endswith(("ForCausalLM", "LMHeadModel"))
    }


def _of_class(name: str, beside: Collection[str]) -> str | None:
    """The kind whose class has this name; of several the one that is named beside it, else the
    one that is called like it.
    """
    stem = _stem(name)
    found = [kind for kind, other in class_names().items() if other == name]
    alike = (
        [kind for kind in found if kind in beside]
        or [kind for kind in found if _letters(kind) == stem]
        or found
    )
    return alike[0] if alike else None


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
