"""Names that a rule takes, made from the rule itself, so that whatever is said of the rule has been
tried.

The values of fields are words that no rule knows, so that no other rule takes a name by accident.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from llava_remap.authoring.lint.tree import Tree
from llava_remap.rewrite import CompiledRule
from llava_remap.rulefile import Template

#: For each way to fill a template: how many segments `{x...}` gets, what a segment and a number
#: look like.
_FILLINGS = ((1, "qz", 4093), (2, "kvj", 5087), (3, "wyq", 6011), (5, "jx", 7919))


def witnesses(rule: CompiledRule, tree: Tree | None) -> list[str]:
    """Names that the rule takes when it is asked for them. `tree`: its regex; None for a template
    or what has no tree.

    Raises:
        RemapError: LR206 if the rule hit its time limit on one.
    """
    if (wrapper := rule.rule.unwrap) is not None:
        return [f"{wrapper}.{wrapper}.qz", f"{wrapper}.qz.kv", f"qz.{wrapper}.kv.{wrapper}.wy"]
    if rule.rule.match is None:
        return template_names(Template(str(rule.rule.from_)))
    return [name for name in (around(tree.texts()) if tree else ()) if rule(name) is not None]


def template_names(template: Template) -> list[str]:
    """Names that the template matches: each field with a value of its own."""
    names = []
    for length, word, number in _FILLINGS:
        values = {}
        for at, (field, kind) in enumerate(template.fields.items()):
            segments = [
                f"{word}{chr(ord('a') + at % 26)}{'x' * n}"
                for n in range(length if kind == "..." else 1)
            ]
            values[field] = str(number + at) if kind == ":int" else ".".join(segments)
        names.append(template.fill(values))
    return list(dict.fromkeys(names))


def around(texts: Iterable[str]) -> list[str]:
    """Whole names that have these texts as a part: alone, at the beginning, at the end, in the
    middle.
    """
    names = []
    for text in texts:
        core = (
            ("qz" if text.startswith(".") else "")
            + (text or "qz")
            + ("qz" if text.endswith(".") else "")
        )
        names += [core, f"{core}.kv", f"wy.{core}", f"wy.{core}.kv"]
    return [name for name in dict.fromkeys(names) if all(name.split("."))]


def tree_of(pattern: str) -> Tree | None:
    """The parse tree of a regex; None for one that the standard library can't parse."""
    with contextlib.suppress(ValueError):
        return Tree(pattern)
    return None
