"""A regex as a tree: names that it takes, names that could make it run away, and dots that nobody
escaped.

The tree is that of the standard library's parser. What only the `regex` package understands has
none; and since the two may read a pattern differently, whatever is made here is a guess until the
rule itself has been run on it.
"""

from __future__ import annotations

import importlib
import re
import string
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

#: Characters. The longest names of real checkpoints have about 120.
LONGEST, _PUMPED = 200, 150
#: Arms of an alternative, and characters of a set, that are tried.
_MOST_ARMS = 8
_MANY = 20
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
_ASSERTIONS = ("ASSERT", "ASSERT_NOT")
#: What stands for a character that may be many: a letter, rather than what names use otherwise.
_CHARACTERS = "qz4_A-" + "".join(c for c in string.printable if c.isprintable() and c != " ")
#: What no repeat of the pattern goes on with, so that it goes back to try every other way.
_BREAKERS = ("!", ".", "")
_GROUP = re.compile(r"(?<!\\)\(\?<([A-Za-z_]\w*)>")

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

Items = Sequence[tuple[Any, Any]]


class _TooLongError(Exception):
    """What is written is longer than any name."""


class _EnoughError(Exception):
    """The repeat that was to be pumped has been written, and what stands behind it isn't wanted."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """How a text is written where a pattern leaves a choice.

    Attributes:
        arm: which arm of an alternative, which character of a set.
        repeats: how often a repeat, as far as it allows that.
        dot: what stands for a dot that isn't repeated.
        pumped: the repeat that is written as often as a name is long.
        breaker: what is written behind that, before the rest; where it is None, nothing is.
    """

    arm: int
    repeats: int
    dot: str = "."
    pumped: tuple[Any, Any] | None = None
    breaker: str | None = None


class Tree:
    """The parse tree of a regex.

    Raises:
        ValueError: where the standard library's parser doesn't take it.
    """

    def __init__(self, pattern: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._root: Items = list(_parser.parse(_GROUP.sub(r"(?P<\1>", pattern)))
            self._arms = max([3, *(len(arms) for op, (_, arms) in _walk(self._root, "BRANCH"))])
            self._dots = list(_loose_dots(self._root))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(str(error)) from None

    def texts(self, dot: str = ".") -> list[str]:
        """Texts that the pattern may match whole. `dot`: what stands for a dot that isn't
        repeated.
        """
        choices = (
            _Choice(arm, repeats, dot)
            for arm in range(min(self._arms, _MOST_ARMS))
            for repeats in (1, 0, 3)
        )
        return list(
            dict.fromkeys(text for choice in choices if (text := self._written(choice)) is not None)
        )

    def attacks(self) -> Iterator[str]:
        """Texts on which the pattern may try very many ways: each repeat without an end pumped,
        then what breaks the match.
        """
        for repeat in _walk(self._root, *_REPEATS):
            if int(repeat[1][1]) < _MANY:
                continue
            for arm in range(min(self._arms, _MOST_ARMS)):
                for breaker in _BREAKERS:
                    with_rest = self._written(_Choice(arm, 1, pumped=repeat, breaker=breaker))
                    without = self._written(_Choice(arm, 1, pumped=repeat))
                    yield from (text for text in (without and without + breaker, with_rest) if text)

    @property
    def has_loose_dot(self) -> bool:
        """Whether a `.` stands alone in it, which takes any character; one that is repeated, as
        in `.*`, is meant so.
        """
        return bool(self._dots)

    def _written(self, choice: _Choice) -> str | None:
        out: list[str] = []
        try:
            _write(self._root, choice, out, {})
        except _EnoughError:
            pass
        except (_TooLongError, RecursionError):
            return None
        return "".join(out)


def _write(
    items: Items, choice: _Choice, out: list[str], groups: dict[int, str], repeated: bool = False
) -> None:
    """Append a text for each item. `repeated`: whether the items are all that a repeat repeats."""
    alone = repeated and len(items) == 1
    for item in items:
        op, argument = str(item[0]), item[1]
        if op == "LITERAL":
            out.append(chr(argument))
        elif op in ("IN", "NOT_LITERAL"):
            out.append(
                _character(
                    argument if op == "IN" else [("NEGATE", None), ("LITERAL", argument)],
                    choice.arm,
                )
            )
        elif op == "ANY":
            out.append("q" if alone else choice.dot)
        elif op == "BRANCH":
            arms = argument[1]
            inside = [
                arm
                for arm in arms
                if choice.pumped is not None
                and any(n is choice.pumped for n in _walk(arm, *_REPEATS))
            ]
            _write((inside or arms)[choice.arm % len(inside or arms)], choice, out, groups, alone)
        elif op == "SUBPATTERN":
            start = len(out)
            _write(argument[-1], choice, out, groups, alone)
            if argument[0] is not None:
                groups[argument[0]] = "".join(out[start:])
        elif op == "ATOMIC_GROUP":
            _write(argument, choice, out, groups, alone)
        elif op in _REPEATS:
            _repeat(item, choice, out, groups)
        elif op == "GROUPREF":
            out.append(groups.get(argument, ""))
        elif op == "GROUPREF_EXISTS":
            _write(argument[1 if argument[0] in groups else 2] or [], choice, out, groups)
        elif op in _ASSERTIONS and choice.pumped is not None:
            _write(argument[1], choice, out, groups)
        if sum(map(len, out)) > LONGEST:
            raise _TooLongError


def _repeat(item: tuple[Any, Any], choice: _Choice, out: list[str], groups: dict[int, str]) -> None:
    least, most, body = int(item[1][0]), int(item[1][1]), item[1][2]
    pumped = item is choice.pumped
    count = min(max(least, choice.repeats), most)
    if count == 0 and not pumped:
        return
    start = len(out)
    _write(body, choice, out, groups, True)
    once = "".join(out[start:])
    if once:
        count = max(_PUMPED - sum(map(len, out)), 0) // len(once) if pumped else count - 1
        if len(once) * count > LONGEST:
            raise _TooLongError
        out.append(once * count)
    if pumped and choice.breaker is None:
        raise _EnoughError
    if pumped:
        out.append(str(choice.breaker))


def _character(accepted: Items, at: int) -> str:
    """One of the characters that a set has; which one, is counted through."""
    found = [character for character in dict.fromkeys(_CHARACTERS) if _accepts(accepted, character)]
    if found:
        return found[at % len(found)]
    return next(
        (
            chr(a if str(op) == "LITERAL" else a[0])
            for op, a in accepted
            if str(op) in ("LITERAL", "RANGE")
        ),
        "q",
    )


def _accepts(accepted: Items, character: str) -> bool:
    inside, negated = False, False
    for op, argument in accepted:
        kind = str(op)
        if kind == "NEGATE":
            negated = True
        elif kind == "LITERAL":
            inside |= ord(character) == argument
        elif kind == "RANGE":
            inside |= argument[0] <= ord(character) <= argument[1]
        elif kind == "CATEGORY":
            inside |= _in_category(str(argument), character)
    return inside is not negated


def _in_category(category: str, character: str) -> bool:
    kind = category.removeprefix("CATEGORY_")
    found = {
        "DIGIT": character.isdigit(), "SPACE": character.isspace(),
        "WORD": character.isalnum() or character == "_"
    }[kind.removeprefix("NOT_")]  # fmt: skip
    return found is not kind.startswith("NOT_")


def _walk(items: Items, *kinds: str) -> Iterator[tuple[Any, Any]]:
    """Every node of these kinds, from left to right."""
    for item in items:
        if str(item[0]) in kinds:
            yield item
        for inside in _inside(item):
            yield from _walk(inside, *kinds)


def _loose_dots(items: Items, repeated: bool = False) -> Iterator[tuple[Any, Any]]:
    alone = repeated and len(items) == 1
    for item in items:
        op = str(item[0])
        if op == "ANY" and not alone:
            yield item
        for inside in _inside(item):
            yield from _loose_dots(
                inside, op in _REPEATS or (alone and op in ("SUBPATTERN", "BRANCH", "ATOMIC_GROUP"))
            )


def _inside(item: tuple[Any, Any]) -> list[Items]:
    """The sequences of nodes inside a node."""
    op, argument = str(item[0]), item[1]
    if op == "BRANCH":
        return list(argument[1])
    if op == "SUBPATTERN":
        return [argument[-1]]
    if op in _REPEATS:
        return [argument[2]]
    if op == "ATOMIC_GROUP":
        return [argument]
    if op in _ASSERTIONS:
        return [argument[1]]
    if op == "GROUPREF_EXISTS":
        return [branch for branch in argument[1:] if branch is not None]
    return []
