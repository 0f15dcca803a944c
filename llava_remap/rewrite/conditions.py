"""Does a condition of a rule file (`detect`, or the `when` of a rule) hold for a checkpoint's
names and config?
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from llava_remap.rulefile import Condition, Template

#: Characters of a config's value in a message.
_LONGEST = 200


def contradictions(
    condition: Condition,
    names: Collection[str],
    config: Mapping[str, Any] | None,
    *,
    stored: bool = False,
    whose: str = "its config",
) -> list[str]:
    """What in a checkpoint's names or config contradicts a condition, in words; empty where it
    holds.

    Args:
        names: of the first source: after `prepare`, or, for the `when` of a rule of `prepare`, as
            they are stored.
        config: the source's config; None where it has none.
        stored: whether the names are as they are stored, which the words then say.
        whose: how the words name the config.
    """
    found = []
    where = "as it is stored" if stored else "after `prepare`"
    for template in condition.present:
        if not _matches(template, names):
            found.append(f"{where} it has no `{template}`")
    for template in condition.absent:
        if _matches(template, names):
            found.append(f"{where} it has `{template}`")
    for key, wanted in condition.config.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        value = _first((config or {}).get(key))
        if not any(value == other and type(value) is type(other) for other in allowed):
            shown = repr(value) if len(repr(value)) <= _LONGEST else f"{repr(value)[:_LONGEST]}…"
            said = (
                f"{whose} says {key}: {shown}"
                if config is not None
                else f"it has no config.json to say {key}"
            )
            found.append(f"{said}, not {' or '.join(map(repr, allowed))}")
    for key, refused in condition.config_not.items():
        value = _first((config or {}).get(key))
        if any(
            value == other and type(value) is type(other)
            for other in (refused if isinstance(refused, tuple) else (refused,))
        ):
            found.append(f"{whose} says {key}: {value!r}")
    return found


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _matches(template: Template, names: Collection[str]) -> bool:
    return any(template.match(name) is not None for name in names)
