"""The kinds of pattern that a rule can have: templates, regexes and wrappers.

A template matches a whole name. Its dots are literal; `{x}` is one segment or a part of one,
`{x:int}` a number, `{x...}` one or more segments:

    >>> Template("model.layers.{n:int}.{rest...}").match("model.layers.3.mlp.up_proj.weight")
    {'n': '3', 'rest': 'mlp.up_proj.weight'}
    >>> Template("layers.{n}.{rest}").fill({'n': '3', 'rest': 'mlp.up_proj.weight'})
    'layers.3.mlp.up_proj.weight'

A regex is the `regex` package's, searched once, under a time limit; what it matched is replaced.

A wrapper is the name of a module that was put around others; it is taken off wherever it stands:

    >>> Wrapper("_orig_mod").take_off("_orig_mod.model.layers.3._orig_mod.mlp.up_proj.weight")
    'model.layers.3.mlp.up_proj.weight'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import regex

#: Seconds that a user's regex may take on one name. Ordinary ones take microseconds.
TIME_LIMIT = 0.5
#: Seconds that the regexes of one rule file may take together, of searches that need a limit.
TOTAL_LIMIT = 30.0

_SEGMENTS = re.compile(r"[^.\s{}]+(?:\.[^.\s{}]+)*")
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\.\.\.|:int)?\}")
#: What a template is made of: fields, dots, and the text between them.
_STEP = re.compile(r"\{[^}]*\}|\.|[^{.]+")
_KINDS = {"": r"[^.]+", ":int": r"[0-9]+", "...": r"[^.]+(?:\.[^.]+)*"}
#: Fields whose end is open: `{x...}`, and each but the first in one segment. A search takes that
#: power of a name's length.
_MOST_OPEN = 3
#: What an anchored regex begins with: letters, digits and escaped signs that no quantifier follows.
_LITERALS = re.compile(r"\^((?:[A-Za-z0-9_-]|\\[.\-])*)(?![*+?{])")
#: What makes the beginning of a regex say nothing: alternatives, flags that hold everywhere.
_NO_PREFIX = re.compile(r"\||\(\?(?!:|P?<[A-Za-z_])")
#: What is no quantifier and no choice, whatever signs are in it: escaped signs, classes, the
#: beginnings of groups.
_PLAIN = re.compile(r"\\.|\[\^?\]?[^\]]*\]|\(\?(?::|P?<[A-Za-z_])", re.DOTALL)
#: What can make a search long by itself: quantifiers of groups, references, and whatever else a
#: group can begin with.
_WILD = re.compile(r"\)[*+?{]|\(\?(?!:|P?<[A-Za-z_])|\\[1-9gpk]")
#: Each of these multiplies the ways in which a name can be tried: by its length, or by the number
#: of alternatives.
_QUANTIFIER, _CHOICE = re.compile(r"[*+{]"), re.compile(r"[?|]")
#: What goes without the time limit: at most a million steps from every start, times eight.
_TAME_QUANTIFIERS, _TAME_CHOICES, _TAME_LENGTH = 2, 3, 100
#: What a regex may have at most: signs, and how often its counted repeats may repeat each other. To
#: compile it takes time, too.
_MOST_SIGNS, _MOST_REPEATS = 2000, 10_000
_COUNT = re.compile(r"\{([0-9]{0,9}),?([0-9]{0,9})\}")
_REFERENCE = re.compile(r"\\(?:g<([^>]*)>|([0-9]+)|(.?))", re.DOTALL)


class PatternError(ValueError):
    """A pattern that can't be compiled, with the reason in one line."""


class RunawayError(Exception):
    """A regex that hit the time limit on a name, or, `together`, the name on which those of a
    rule file hit theirs.
    """

    def __init__(self, name: str, *, together: bool = False) -> None:
        super().__init__(name)
        self.why = (
            f"and others took more than {TOTAL_LIMIT:g} s"
            if together
            else "ran into the time limit on one name"
        )


class TimeSpent:
    """Seconds that searches took; one for all regexes of a rule file."""

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


class Mismatch(NamedTuple):
    """Why a template doesn't match a name.

    Attributes:
        matched: so many characters of the template's literal text are as the name has them, from
            the left.
        why: what is wanted at the first place where it can't go on, and what the name has there.
    """

    matched: int
    why: str


class Template:
    """A name with fields, to match with or to fill."""

    def __init__(self, text: str) -> None:
        self.text = text
        pieces: list[str] = []
        fields: dict[str, str] = {}
        end, touching = 0, False
        for found in _FIELD.finditer(text):
            literal = text[end : found.start()]
            name, kind = found[1], found[2] or ""
            if name in fields:
                raise PatternError(f"field `{{{name}}}` stands twice in `{text}`")
            if touching and not literal:
                raise PatternError(
                    f"two fields touch in `{text}`: where one ends and the next begins is open"
                )
            pieces += [re.escape(literal), f"(?P<{name}>{_KINDS[kind]})"]
            fields[name] = kind
            end, touching = found.end(), True
        literals = _FIELD.sub("", text)
        if "{" in literals or "}" in literals:
            raise PatternError(
                f"`{text}` has a brace that isn't part of a field; fields are {{x}}, {{x:int}} and "
                "{x...}"
            )
        if not text or any(character.isspace() for character in text):
            raise PatternError(f"`{text}` is empty or has white space; tensor names have none")
        #: Each field's name, and what stands behind it: `:int`, `...` or nothing.
        self.fields: Mapping[str, str] = fields
        open_ends = sum(kind == "..." for kind in fields.values())
        open_ends += sum(max(0, len(_FIELD.findall(segment)) - 1) for segment in _segments(text))
        if open_ends > _MOST_OPEN:
            raise PatternError(
                f"`{text}` can match a name in too many ways: more than {_MOST_OPEN} fields whose "
                "end is open"
            )
        #: The text before the first field: whatever doesn't start with it can't match.
        self.prefix = text[: first.start()] if (first := _FIELD.search(text)) else text
        self._groups = "".join([*pieces, re.escape(text[end:])])
        self._filled = _FIELD.sub(r"{\1}", text)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Compiled for the first name with the prefix: most templates of a rule file never see
        one.
        """
        return re.compile(self._groups)

    @property
    def segments(self) -> frozenset[str]:
        """Segments that every name has which the template matches."""
        return frozenset(segment for segment in _segments(self.text) if "{" not in segment)

    @property
    def regex(self) -> str:
        """The same as a regex without groups, for a whole name."""
        return "".join(
            _KINDS[kind] if field else re.escape(text) for text, field, kind in self.pieces()
        )

    def pieces(self) -> Iterator[tuple[str, str, str]]:
        """The template from left to right: literal texts as (text, "", ""), fields as ("", name,
        `:int`, `...` or nothing).
        """
        end = 0
        for found in _FIELD.finditer(self.text):
            if found.start() > end:
                yield self.text[end : found.start()], "", ""
            yield "", found[1], found[2] or ""
            end = found.end()
        if end < len(self.text):
            yield self.text[end:], "", ""

    def match(self, name: str) -> dict[str, str] | None:
        """The fields' values if the template matches the whole of `name`, else None."""
        if not name.startswith(self.prefix):
            return None
        found = self._pattern.fullmatch(name)
        return found.groupdict() if found else None

    def mismatch(self, name: str) -> Mismatch | None:
        """How far the template matches a name, and why no further; None if it matches the whole.

        It is followed from the left through every way in which its fields can take the name, and
        told of the one that leads furthest.
        """
        reached, matched, at, open_end = {0}, 0, 0, ""
        for literal, field, kind in self.pieces():
            if literal:
                after = {
                    place + len(literal) for place in reached if name.startswith(literal, place)
                }
                if not after and open_end:
                    return Mismatch(
                        matched, f"nowhere behind `{open_end}` does the name have `{literal}`"
                    )
                if not after:
                    place = max(reached, key=lambda place: (_common(literal, name, place), place))
                    same = _common(literal, name, place)
                    return Mismatch(matched + same, self._stopped(at + same, name, place + same))
                matched, open_end = matched + len(literal), ""
            else:
                after = _ends(re.compile(_KINDS[kind]), name, reached)
                if not after:
                    return Mismatch(matched, self._stopped(at, name, max(reached)))
                open_end = f"{{{field}...}}" if kind == "..." else ""
            reached, at = after, at + (len(literal) or len(field) + len(kind) + 2)
        return (
            None
            if len(name) in reached
            else Mismatch(matched, self._stopped(at, name, max(reached)))
        )

    def _stopped(self, at: int, name: str, place: int) -> str:
        """Why the template can't go on: its text is followed up to `at`, the name up to `place`."""
        steps = list(_STEP.finditer(self.text))
        dots = [step.start() for step in steps if step[0] == "."]
        start = max((dot + 1 for dot in dots if dot < at), default=0)
        end = min((dot for dot in dots if dot >= at), default=len(self.text))
        wanted = self.text[start:end]
        has_start = name.rfind(".", 0, place) + 1
        has_end = name.find(".", place) if "." in name[place:] else len(name)
        has = name[has_start:has_end]
        if place == len(name) and (at == start or at == end < len(self.text)):
            return f"the name ends where `{self.text[at:]}` is wanted"
        if at == len(self.text) and name.startswith(".", place):
            last = _FIELD.fullmatch(wanted)
            if last is not None and not last[2]:
                return f"`{wanted}` is one segment, and the name has `{name[has_start:]}` there"
            if last is None or last[2] != "...":
                return f"it ends with `{wanted}`, and the name goes on with `{name[place:]}`"
            return f"`{wanted}` takes whole segments, and the name has an empty one there"
        if not has:
            return f"`{wanted}` is wanted where the name has an empty segment"
        if (field := _FIELD.fullmatch(wanted)) is not None and field[2] == ":int":
            return f"`{wanted}` wants a number where the name has `{has}`"
        return f"`{wanted}` is wanted where the name has `{has}`"

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every field replaced by its value."""
        return self._filled.format_map(values)


def _ends(piece: re.Pattern[str], name: str, starts: set[int]) -> set[int]:
    """Where a field can end that begins at one of `starts`: anywhere in what it takes at most,
    but not behind a dot.
    """
    ends: set[int] = set()
    done = 0
    for start in sorted(starts):
        if start >= done and (found := piece.match(name, start)) is not None:
            done = found.end()
            ends.update(end for end in range(start + 1, done + 1) if name[end - 1] != ".")
    return ends


def _common(text: str, name: str, place: int) -> int:
    """How many characters from the beginning of `text` on are those of the name from `place` on."""
    return next(
        (n for n, (a, b) in enumerate(zip(text, name[place:], strict=False)) if a != b),
        min(len(text), len(name) - place),
    )


def _segments(text: str) -> list[str]:
    """A template's segments; the dots of `{x...}` end none."""
    return text.replace("...}", "}").split(".")


def reversed_template(source: Template, target: Template) -> Template:
    """The template that matches what filling `target` makes of a match of `source`, with the same
    fields.

    Raises:
        PatternError: where two fields touch in `target`, so that it can't be told where one ends.
    """
    return Template(
        "".join(text or f"{{{field}{source.fields[field]}}}" for text, field, _ in target.pieces())
    )


class Wrapper:
    """Whole segments, to be taken out of a name: wherever others follow them, and as often as
    they stand there.
    """

    def __init__(self, text: str) -> None:
        if not _SEGMENTS.fullmatch(text):
            raise PatternError(
                f"`{text}` is no segment of a name, nor several with dots between them; a wrapper "
                "has no fields"
            )
        #: Segments that every name has which the wrapper is on.
        self.segments = frozenset(text.split("."))
        segments = re.escape(text)
        self._pattern = re.compile(rf"(?<![^.])(?:{segments}\.)+(?=[^.])")
        #: A regex of whole names, for `re` with DOTALL: every name that has the wrapper on, and
        #: others.
        self.candidates = rf"(?:.*\.)?{segments}\..+"

    def take_off(self, name: str) -> str | None:
        """The name without the wrapper, or None where it has none."""
        bare, before = self._pattern.sub("", name), name
        while (
            bare != before
        ):  # one of several segments may come together only when another one between them is gone
            bare, before = self._pattern.sub("", bare), bare
        return bare if bare != name else None


class Regex:
    """A regex and, for a rename, what its match is replaced by (`\\1`, `\\g<name>`)."""

    def __init__(self, match: str, replace: str | None, spent: TimeSpent | None = None) -> None:
        # which takes as long to import as all the rest of this room to run, and most rule files
        # have no regex
        import regex

        counts = [
            max(1, *(int(number or 0) for number in pair))
            for pair in _COUNT.findall(_PLAIN.sub("", match))
        ]
        if len(match) > _MOST_SIGNS or prod(counts) > _MOST_REPEATS:
            raise PatternError(
                f"`{match[:60]}` is too long, or its counts multiply to more than {_MOST_REPEATS:,}"
            )
        try:
            self._pattern = regex.compile(match)
        except (regex.error, RecursionError) as error:
            raise PatternError(f"`{match}` is not a regex: {error}") from None
        self._replace = replace
        self._spent = spent or TimeSpent()
        literals = None if _NO_PREFIX.search(match) else _LITERALS.match(match)
        #: What a name must begin with, as far as that is plain to see. To ask that first is cheap,
        #: the time limit isn't.
        self.prefix = literals[1].replace("\\", "") if literals else ""
        signs = _PLAIN.sub("", match)
        few = (
            len(_QUANTIFIER.findall(signs)) <= _TAME_QUANTIFIERS
            and len(_CHOICE.findall(signs)) <= _TAME_CHOICES
        )
        self._is_tame = few and _WILD.search(match) is None
        for found in _REFERENCE.finditer(replace or ""):
            name, number, other = found.groups()
            if number is not None or (name is not None and name.isascii() and name.isdecimal()):
                # `\\0` and `\\01` are characters to the regex package, not groups
                known = int(number or name) <= self._pattern.groups and not (
                    number or ""
                ).startswith("0")
            else:
                known = name in self._pattern.groupindex if name is not None else other == "\\"
            if not known:
                raise PatternError(f"`{found[0]}` in `{replace}` refers to no group of `{match}`")

    @property
    def segments(self) -> frozenset[str]:
        """Segments that every name has which the regex matches, as far as that is plain to see."""
        return frozenset(self.prefix.split(".")[:-1])

    @property
    def candidates(self) -> str:
        """A regex of whole names, for `re` with DOTALL: every name that this one matches, and
        others that begin alike.
        """
        return re.escape(self.prefix) + ".*"

    def search(self, name: str) -> str | None:
        """The name with the first match replaced (for a drop: the name as it is), or None without a
        match.

        Raises:
            RunawayError: the time limit was hit.
        """
        found = self._found(name)
        if found is None:
            return None
        if self._replace is None:
            return name
        return name[: found.start()] + str(found.expand(self._replace)) + name[found.end() :]

    def span(self, name: str) -> tuple[int, int] | None:
        """Where the first match begins and ends, or None without one.

        Raises:
            RunawayError: the time limit was hit.
        """
        found = self._found(name)
        return None if found is None else found.span()

    def _found(self, name: str) -> regex.Match[str] | None:
        if not name.startswith(self.prefix):
            return None
        if self._is_tame and len(name) <= _TAME_LENGTH:
            return self._pattern.search(name)
        return self._spent.search(self._pattern, name)
