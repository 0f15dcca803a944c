"""Finds constants of a rule file that the target's class refuses. They are mistakes of the rule
file, whatever the sources' configs say.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llava_remap.core.problem import Problem, RemapError
from llava_remap.rulefile import ConfigValue, RuleFile
from llava_remap.target_model.config_parts import TEXT_KIND
from llava_remap.target_model.wanted import build_on_meta

Place = tuple[str | int, ...]
#: Constants without which no class can be built.
_KINDS = ("model_type", TEXT_KIND)


def constants_of(value: ConfigValue, place: Place) -> Iterator[tuple[Place, Any]]:
    """Every constant that a config value can become, except null, with its place in the file."""
    for number, case in enumerate(value.cases):
        yield from constants_of(case, (*place, "cases", number))
    said: dict[Place, Any] = {
        (*place, "const"): value.const,
        (*place, "default"): value.default,
        **{(*place, "map", key): wanted for key, wanted in (value.map or {}).items()},
    }
    yield from ((where, constant) for where, constant in said.items() if constant is not None)


def refused_constants(
    class_name: str, config: Mapping[str, Any], constants: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """The constants in a config that keep the class from being built, each with the reason and a
    suggestion.

    All constants are removed from the config, then set one after the other. The result is empty if
    the class refuses the config even without them.
    """
    tried = json.loads(json.dumps(config))
    tried["pad_token_id"] = None
    tried.setdefault("text_config", {})["pad_token_id"] = None
    settable = {key: value for key, value in constants.items() if key not in _KINDS}
    refused: dict[str, tuple[str, str]] = {}
    if _refusal(class_name, tried) is None:
        return refused
    for key in settable:
        set_value(tried, key, None)
    if _refusal(class_name, tried) is not None:
        return refused
    for key, value in settable.items():
        set_value(tried, key, value)
        if (error := _refusal(class_name, tried)) is not None:
            refused[key] = (
                error.problems[0].placed_cause,
                _nearest(str(value), str(error.__cause__)),
            )
            set_value(tried, key, None)
    return refused


def bad_constants(rules: RuleFile, config: Mapping[str, Any]) -> list[Problem]:
    """LR201, with its place, for each constant of a rule file that keeps its class from being
    built with a derived config.
    """
    said: dict[str, tuple[Place, Any]] = {}
    for key, value in rules.target.config.items():
        for place, constant in constants_of(value, ("target", "config", key)):
            if _get(config, key) == constant:
                said.setdefault(key, (place, constant))
    refused = refused_constants(
        str(rules.target.class_), config, {key: constant for key, (_, constant) in said.items()}
    )
    return [
        Problem(
            "LR201",
            f"`{key}` can't be {said[key][1]!r}: {cause}",
            fix,
            place=rules.tree.locate(said[key][0]).mark,
        )
        for key, (cause, fix) in refused.items()
    ]


def suggest(
    word: str,
    known: Collection[str],
    otherwise: str = "Remove it, or write the name that it has in that config.",
) -> str:
    """A suggestion: the known words that are spelt most like a word, or else other advice."""
    spelt = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), spelt, 2)
    return (
        f"Did you mean {' or '.join(f'`{spelt[name]}`' for name in near)}?" if near else otherwise
    )


def _refusal(class_name: str, config: Mapping[str, Any]) -> RemapError | None:
    try:
        build_on_meta(class_name, config)
    except RemapError as error:
        return error
    return None


def _nearest(value: str, reason: str) -> str:
    """Suggest a value: a word from transformers' reason, which lists known values, or an
    activation.
    """
    from transformers.activations import ACT2FN

    words = {*re.findall(r"[\w-]+(?:\.[\w-]+)*", reason), *ACT2FN} - {value}
    return suggest(value, words, "Remove it, or write a value that the class knows.")


def set_value(config: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a key with dots; None removes the key."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config.pop(last, None)
    if value is not None:
        config[last] = value


def _get(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
