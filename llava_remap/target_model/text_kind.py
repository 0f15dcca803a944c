"""Finds the kind of a language model: its `model_type` in the installed transformers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llava_remap.core.cache import cached_value
from llava_remap.core.problem import ConfigError, refuse

#: The end of a class's name, after the name of the model.
_ENDING = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model)$")


def text_kind(
    source: Mapping[str, Any], forks: Mapping[str, str], said: str | None
) -> tuple[str, str]:
    """The `model_type` of the language model; and the name whose end showed it, if nothing else
    did.

    Raises:
        RemapError: LR112 if the config doesn't show the kind or contradicts itself; LR201 if
            transformers has no language model of the type `said`.
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
    # If the end of a fork's name shows another kind than the fork's, such ends count for no name.
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
        raise ConfigError.of(
            "LR112",
            f"the rule file says that the language model is {said}, but by the source's config "
            f"{_list_kinds(other)}.",
            f"If the rule file is right, add to it: `target: {{text_models: {{{every}}}}}`.",
        )
    if len(set(found.values())) == 1:
        name, kind = next(iter(found.items()))
        return kind, "" if sure else name
    if found:
        cause = f"the source's config contradicts itself: {_list_kinds(found)}."
        line = f"target: {{text_models: {{{every}}}}}"
    else:
        names = ", ".join(f"`{name}`" for name in named) or "neither model_type nor architectures"
        cause = f"the source's config doesn't tell which language model it has: it says {names}."
        line = "target: {config: {text_config.model_type: {const: TYPE}}}"
    raise ConfigError.of(
        "LR112",
        cause,
        f"Say it in a rule file that extends this one: `{line}`, with the `model_type` of the "
        "language model in transformers.",
    )


def _list_kinds(kinds: Mapping[str, str]) -> str:
    return " and ".join(f"`{name}` is {kind}" for name, kind in kinds.items())


def _named(source: Mapping[str, Any]) -> list[str]:
    """The names of the model in a config: its type and its classes."""
    classes = source.get("architectures")
    said = [source.get("model_type"), *(classes if isinstance(classes, list) else [classes])]
    return list(dict.fromkeys(name for name in said if isinstance(name, str) and name))


def class_names() -> dict[str, str]:
    """`model_type` → class, for every language model of transformers."""
    return cached_value("language_models", {}, _ask_class_names, _Classes).classes


@dataclass(frozen=True, slots=True)
class _Classes:
    classes: dict[str, str]


def _ask_class_names() -> dict[str, dict[str, str]]:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = {
        kind: name
        for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        for name in [names if isinstance(names, str) else names[0]]
        if kind in CONFIG_MAPPING and name.endswith(("ForCausalLM", "LMHeadModel"))
    }
    return {"classes": classes}


def _of_class(name: str, beside: Collection[str]) -> str | None:
    """The kind whose class has this name. Of several kinds, the one in `beside` is preferred, then
    the one that is spelt like the class.
    """
    found = [kind for kind, other in class_names().items() if other == name]
    named = [kind for kind in found if kind in beside]
    alike = [kind for kind in found if _letters(kind) == _stem(name)]
    return next(iter((*named, *alike, *found)), None)


def _by_ending(name: str) -> str | None:
    """The kind at the end of a name in research code: LlavaGemma2ForCausalLM, llava_gemma2."""
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
