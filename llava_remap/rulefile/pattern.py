"""The patterns beside templates: regexes and wrappers.

A regex is one of the `regex` package. It is searched once, under a time limit, and its match is
replaced.

A wrapper is the name of a module that was put around others. It is removed wherever it stands:

    >>> Wrapper("_orig_mod").take_off("_orig_mod.model.layers.3._orig_mod.mlp.up_proj.weight")
    'model.layers.3.mlp.up_proj.weight'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING

from llava_remap.rulefile.template import Mismatch, PatternError, Template

if TYPE_CHECKING:
    import regex

#: Seconds that a user's regex may take on one name. Ordinary ones take microseconds.
TIME_LIMIT = 0.5
#: Seconds that all searches with a time limit may take together for one rule file.
TOTAL_LIMIT = 30.0

_SEGMENTS = re.compile(r"[^.\s{}]+(?:\.[^.\s{}]+)*")
#: The beginning of an anchored regex: letters, digits and escaped signs that no quantifier follows.
_LITERALS = re.compile(r"\^((?:[A-Za-z0-9_-]|\\[.\-])*)(?![*+?{])")
#: Parts that let a name begin otherwise than the regex: alternatives, and flags for all of it.
_NO_PREFIX = re.compile(r"\||\(\?(?!:|P?<[A-Za-z_])")
#: Parts that are neither quantifier nor choice, whatever characters they have: escaped characters,
#: classes, beginnings of groups.
_PLAIN = re.compile(r"\\.|\[\^?\]?[^\]]*\]|\(\?(?::|P?<[A-Za-z_])", re.DOTALL)
#: Parts that can make a search long by themselves: quantifiers of groups, references, and groups of
#: all other kinds.
_WILD = re.compile(r"\)[*+?{]|\(\?(?!:|P?<[A-Za-z_])|\\[1-9gpk]")
#: Each of these multiplies the ways in which a name can be tried: by its length, or by the number
#: of alternatives.
_QUANTIFIER, _CHOICE = re.compile(r"[*+{]"), re.compile(r"[?|]")
#: Limits below which a search needs no time limit: at most eight million steps from every start.
_TAME_QUANTIFIERS, _TAME_CHOICES, _TAME_LENGTH = 2, 3, 100
#: The most characters of a regex, and the largest product of its counted repeats. They limit the
#: time for compiling it.
_MOST_SIGNS, _MOST_REPEATS = 2000, 10_000
_COUNT = re.compile(r"\{([0-9]{0,9}),?([0-9]{0,9})\}")
_REFERENCE = re.compile(r"\\(?:g<([^>]*)>|([0-9]+)|(.?))", re.DOTALL)


class RunawayError(Exception):
    """A regex hit its time limit on a name, or (`together`) a rule file's regexes hit theirs."""

    def __init__(self, name: str, *, together: bool = False) -> None:
        super().__init__(name)
        self.why = (
            f"and others took more than {TOTAL_LIMIT:g} s"
            if together
            else "ran into the time limit on one name"
        )


class TimeSpent:
    """Seconds that searches took. All regexes of a compiled rule file share one `TimeSpent`."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def search(self, pattern: regex.Pattern[str], name: str) -> regex.Match[str] | None:
        """Search under the time limits.

        Raises:
            RunawayError: one of them was hit.
        """
        if self._seconds > TOTAL_LIMIT:
            raise RunawayError(name, together=True)
        started = perf_counter()
        try:
            return pattern.search(name, timeout=TIME_LIMIT)
        except TimeoutError:
            raise RunawayError(name) from None
        finally:
            self._seconds += perf_counter() - started


@dataclass(frozen=True)
class Wrapper:
    """Whole segments that are removed from a name at every place where other segments follow.

    Raises:
        PatternError: the text isn't one or several segments.
    """

    text: str

    def __post_init__(self) -> None:
        if not _SEGMENTS.fullmatch(self.text):
            raise PatternError(
                f"`{self.text}` isn't a segment of a name, or several segments with dots between "
                "them; a wrapper has no fields"
            )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![^.])(?:{re.escape(self.text)}\.)+(?=[^.])")

    @property
    def segments(self) -> frozenset[str]:
        """Segments of every name that has the wrapper on."""
        return frozenset(self.text.split("."))

    @property
    def candidates(self) -> str:
        """A regex of whole names, for `re` with DOTALL. It matches every name with the wrapper, and
        others.
        """
        return rf"(?:.*\.)?{re.escape(self.text)}\..+"

    @property
    def literals(self) -> str:
        return self.text

    @property
    def examples(self) -> list[str]:
        """Names that have the wrapper on."""
        on = self.text
        return [f"{on}.{on}.qz", f"{on}.qz.kv", f"qz.{on}.kv.{on}.wy"]

    @property
    def at_start(self) -> Template:
        """The names that begin with the wrapper. The field is the rest of the name."""
        return Template(f"{self.text}.{{rest...}}")

    def take_off(self, name: str) -> str | None:
        """The name without the wrapper, or None where it has none."""
        bare, before = self._pattern.sub("", name), name
        while bare != before:  # the segments of a wrapper may meet when another wrapper is gone
            bare, before = self._pattern.sub("", bare), bare
        return bare if bare != name else None

    def mismatch(self, name: str) -> Mismatch:
        """Why a name doesn't have the wrapper."""
        return Mismatch(0, f"no segments follow `{self.text}` in the name")


@dataclass(frozen=True)
class Regex:
    """A regex and, for a rename, the replacement of its match (`\\1`, `\\g<name>`).

    Raises:
        PatternError: either can't be compiled, or would take too long to compile.
    """

    text: str
    replace: str | None = None

    def __post_init__(self) -> None:
        counts = [
            max(1, *(int(number or 0) for number in pair)) for pair in _COUNT.findall(self._signs)
        ]
        if len(self.text) > _MOST_SIGNS or prod(counts) > _MOST_REPEATS:
            raise PatternError(
                f"`{self.text[:60]}` is too long, or its counts multiply to more than "
                f"{_MOST_REPEATS:,}"
            )
        pattern = self._pattern
        for found in _REFERENCE.finditer(self.replace or ""):
            name, number, other = found.groups()
            if number is not None or (name is not None and name.isascii() and name.isdecimal()):
                # `\\0` and `\\01` are characters to the regex package, not groups
                known = int(number or name) <= pattern.groups and not (number or "").startswith("0")
            else:
                known = name in pattern.groupindex if name is not None else other == "\\"
            if not known:
                raise PatternError(
                    f"`{found[0]}` in `{self.replace}` refers to no group of `{self.text}`"
                )

    @cached_property
    def _signs(self) -> str:
        """The regex without its plain parts."""
        return _PLAIN.sub("", self.text)

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        # The import takes as long as all the rest of this room, and most rule files have no regex.
        import regex

        try:
            return regex.compile(self.text)
        except (regex.error, RecursionError) as error:
            raise PatternError(f"`{self.text}` is not a regex: {error}") from None

    @cached_property
    def _is_tame(self) -> bool:
        """Whether no short name can make a search long."""
        few = (
            len(_QUANTIFIER.findall(self._signs)) <= _TAME_QUANTIFIERS
            and len(_CHOICE.findall(self._signs)) <= _TAME_CHOICES
        )
        return few and _WILD.search(self.text) is None

    @cached_property
    def prefix(self) -> str:
        """The literal text with which every match begins, as far as the regex shows it. Names are
        compared with it first, which is cheaper than a search with a time limit.
        """
        literals = None if _NO_PREFIX.search(self.text) else _LITERALS.match(self.text)
        return literals[1].replace("\\", "") if literals else ""

    @property
    def segments(self) -> frozenset[str]:
        """Segments of every name that the regex matches, as far as `prefix` shows them."""
        return frozenset(self.prefix.split(".")[:-1])

    @property
    def candidates(self) -> str:
        """A regex of whole names, for `re` with DOTALL. It matches every name that this regex
        matches, and others with the same beginning.
        """
        return re.escape(self.prefix) + ".*"

    @property
    def literals(self) -> str:
        """The characters that may stand for themselves."""
        return re.sub(r"\\(.)", lambda found: found[1] if found[1] in "._-" else " ", self.text)

    @property
    def examples(self) -> list[str]:
        """Empty: names can't be made from the text of a regex. A rule file's tests have some."""
        return []

    def search(self, name: str, spent: TimeSpent | None = None) -> str | None:
        """The name with the first match replaced (for a drop: the name itself), or None if there is
        no match.

        Raises:
            RunawayError: the time limit was hit.
        """
        found = self._found(name, spent)
        if found is None:
            return None
        if self.replace is None:
            return name
        return name[: found.start()] + str(found.expand(self.replace)) + name[found.end() :]

    def span(self, name: str, spent: TimeSpent | None = None) -> tuple[int, int] | None:
        """Where the first match begins and ends, or None if there is no match.

        Raises:
            RunawayError: the time limit was hit.
        """
        found = self._found(name, spent)
        return None if found is None else found.span()

    def mismatch(self, name: str) -> Mismatch:
        """Why the regex doesn't match a name."""
        return Mismatch(0, "it finds nothing in the name")

    def _found(self, name: str, spent: TimeSpent | None) -> regex.Match[str] | None:
        if not name.startswith(self.prefix):
            return None
        if self._is_tame and len(name) <= _TAME_LENGTH:
            return self._pattern.search(name)
        return (spent or TimeSpent()).search(self._pattern, name)
