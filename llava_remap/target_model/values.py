"""Looks up the config values that a rule file names: in the source's config, the tower, the tokens,
or the new config.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_remap.core.problem import ConfigError, refuse
from llava_remap.rulefile import ConfigValue
from llava_remap.target_model.pinpoints import grid_pinpoints
from llava_remap.target_model.vocabulary import PlacedToken

_RULE = "Correct the rule file there."


@dataclass(frozen=True, slots=True)
class Values:
    """Looks up values for a rule file. `target` is the new config, with the values of all earlier
    keys; `file` is the file with the source's config.
    """

    source: Mapping[str, Any]
    facts: Mapping[str, Any]
    tokens: Sequence[PlacedToken]
    words: Collection[str]
    target: Mapping[str, Any]
    file: str = "config.json"

    def of(self, where: str, value: ConfigValue) -> Any:
        value = self.chosen(where, value)
        if value.tower is not None:
            fact = self._fact(where, value.tower)
            if value.times == 1:
                return fact
            if (product := int(fact * value.times)) < 1:
                raise ConfigError.of(
                    "LR112",
                    f"`{where}` is the tower's {value.tower}, {fact}, times {value.times}: less "
                    "than 1.",
                    "Write the value that the tower was trained with into a rule file that extends "
                    "this one.",
                )
            return product
        if value.token is not None:
            found = next((token.id for token in self.tokens if token.role == value.token), None)
            if found is None and value.token != "pad":
                raise refuse(
                    "LR201",
                    f"`{where}` is the id of the {value.token} token, and `tokens` has none with "
                    "this role.",
                    _RULE,
                )
            return self.source.get("pad_token_id") if found is None else found
        if value.target is not None:
            return self.target.get(value.target)
        const = list(value.const) if isinstance(value.const, tuple) else value.const
        given = const if value.from_ is None else self._from(where, value.from_, value)
        return (
            given
            if value.as_ is None
            else grid_pinpoints(where, given, int(self._fact(where, "image_size")))
        )

    def chosen(self, where: str, value: ConfigValue) -> ConfigValue:
        """The value itself, or the first of its cases that holds."""
        for case in value.cases:
            if self.hold(where, case.when):
                return self.chosen(where, case)
        if value.cases:
            asked = dict.fromkeys(key for case in value.cases for key in case.when)
            said = {
                key: self.source.get(key.removeprefix("source."))
                for key in asked
                if key.startswith("source.")
            }
            raise ConfigError.of(
                "LR112", f"no case of `{where}` holds for this model ({said | dict(self.facts)})."
            )
        return value

    def of_all(self, where: str, values: Mapping[str, ConfigValue]) -> dict[str, Any]:
        """Key → value, for a group of values."""
        return {key: self.of(f"{where}.{key}", value) for key, value in values.items()}

    def hold(self, where: str, when: Mapping[str, Any]) -> bool:
        """Whether all of a `when` holds."""
        return all(self._holds(where, key, wanted) for key, wanted in when.items())

    def _holds(self, where: str, key: str, wanted: Any) -> bool:
        if key == "token":
            return wanted in self.words
        if key.startswith("source."):
            return bool(self._said(key.removeprefix("source.")) == wanted)
        found: Any = self.target
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return bool(self._fact(where, key) == wanted)
            found = found[part]
        return bool(found == wanted)

    def _from(self, where: str, key: str, value: ConfigValue) -> Any:
        found = self._said(key)
        if isinstance(found, list) and value.map is not None:
            found = found[0] if found else None
        if isinstance(found, (list, dict)) and value.as_ is None:
            raise ConfigError.of(
                "LR112",
                f"the source's config has a {'list' if isinstance(found, list) else 'mapping'} "
                f"for `{key}`; `{where}` needs a single value.",
                "Give a single value.",
            )
        if found is None:
            if "default" in value.model_fields_set:
                return value.default
            raise ConfigError.of(
                "LR112",
                f"`{where}` is read from `{key}`, which the source's config doesn't have.",
                f"Add it to the source's {self.file}.",
            )
        if value.map is None:
            return found
        if found not in value.map:
            raise ConfigError.of(
                "LR112",
                f"the source's config says {key}: {found!r}; `{where}` knows "
                f"{', '.join(value.map)}.",
                f"Add it to the `map` of `{where}` in a rule file that extends this one.",
            )
        return value.map[found]

    def _said(self, key: str) -> Any:
        """A value of the source's config, by its key with dots; None without one."""
        found: Any = self.source
        if key in found:  # a file whose nested keys were made flat
            return found[key]
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def _fact(self, where: str, fact: str) -> Any:
        if fact not in self.facts:
            raise refuse(
                "LR201",
                f"`{where}` asks for `{fact}`, which isn't a fact of the tower "
                f"({', '.join(self.facts)}).",
                _RULE,
            )
        return self.facts[fact]


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Put a value, unless it is None, under a key with dots for nested ones."""
    place: Any = config
    *parents, last = key.split(".")
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict) or isinstance(place.get(last), dict):
        raise refuse(
            "LR201",
            f"`target.config.{key}`: a value and a group of values can't have the same name.",
            _RULE,
        )
    if value is not None:
        place[last] = value
