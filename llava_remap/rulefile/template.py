"""Templates: names with fields. A template matches a whole name.

Dots are literal. `{x}` is one segment or a part of one, `{x:int}` is a number, and `{x...}` is one
or more segments. `{x:each}` is the number of a tensor in a list, for a tensor operation that takes
or makes the whole list:

    >>> Template("model.layers.{n:int}.{rest...}").match("model.layers.3.mlp.up_proj.weight")
    {'n': '3', 'rest': 'mlp.up_proj.weight'}
    >>> Template("layers.{n}.{rest}").fill({'n': '3', 'rest': 'mlp.up_proj.weight'})
    'layers.3.mlp.up_proj.weight'

A new name may compute with a number (`{n+1}`, `{2*n}`, `{2*n-1}`). The old number must then have no
leading zeros, so that the way back gives the same name:

    >>> Template("blocks.{2*n+1}.weight").fill({'n': '3'})
    'blocks.7.weight'
    >>> Template("blocks.{2*n+1}.weight").match("blocks.7.weight")
    {'n': '3'}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_FIELD = re.compile(
    rf"\{{(?:({_NAME})(\.\.\.|:int|:each)?|((?:[1-9][0-9]{{0,3}}\*)?{_NAME}(?:[+-][0-9]{{1,4}})?))\}}"
)
_FIELD_ALONE = re.compile(r"\{[^{}]*\}")
#: Without leading zeros, and short enough for `int`, which refuses texts of more than 4300 digits.
_PLAIN_NUMBER = r"(?:0|[1-9][0-9]{0,17})"
_KINDS = {
    "": r"[^.]+", ":int": r"[0-9]+", ":each": _PLAIN_NUMBER, "...": r"[^.]+(?:\.[^.]+)*"
}  # fmt: skip
#: The most fields with an open end: `{x...}`, and each but the first of a segment. The time of a
#: search grows with the length of the name to this power.
_MOST_OPEN = 3
#: For each example: the number of segments in `{x...}`, a word and a number. No rule has the words,
#: so no other rule takes an example by accident.
_EXAMPLES = ((1, "qz", 4093), (2, "kvj", 5087), (3, "wyq", 6011), (5, "jx", 7919))

#: A literal text as (text, "", ""), or a field as ("", name, kind); the kind is `:int`, `:each`,
#: `...`, the calculation of a computed number (`2*n+1`), or empty.
Piece = tuple[str, str, str]


class PatternError(ValueError):
    """A pattern that can't be compiled, with the reason in one line."""


class Mismatch(NamedTuple):
    """Why a pattern doesn't match a name.

    Attributes:
        matched: the number of characters of the pattern's literal text, from the left, that match.
        why: what the pattern wants at the first place that doesn't match, and what the name has
            there.
    """

    matched: int
    why: str


@dataclass(frozen=True)
class Template:
    """A name with fields, to match with or to fill. It is parsed once, when it is made.

    Attributes:
        text: as a rule file has it.

    Raises:
        PatternError: the text is no template.
    """

    text: str

    def __post_init__(self) -> None:
        text, names = self.text, [field for _, field, _ in self.pieces if field]
        twice = next((name for name, count in Counter(names).items() if count > 1), "")
        open_ends = sum(kind == "..." for kind in self.fields.values())
        open_ends += sum(max(0, segment.count("{") - 1) for segment in self._segments)
        for is_wrong, why in (
            (twice, f"`{text}` has the field `{{{twice}}}` twice"),
            (
                any(one[1] and other[1] for one, other in pairwise(self.pieces)),
                f"`{text}` has two fields without text between them, so it is undecided where the "
                "first field ends",
            ),
            (
                "{" in self.literals or "}" in self.literals,
                f"`{text}` has a brace that isn't part of a field; fields are {{x}}, {{x:int}}, "
                "{x:each} and {x...}, and in a new name a calculation such as {2*x+1}",
            ),
            (
                not text or any(character.isspace() for character in text),
                f"`{text}` is empty or has white space, which tensor names don't have",
            ),
            (
                open_ends > _MOST_OPEN,
                f"`{text}` can match a name in too many ways: more than {_MOST_OPEN} of its "
                "fields have no fixed end",
            ),
        ):
            if is_wrong:
                raise PatternError(why)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The template from left to right."""
        found: list[Piece] = []
        at = 0
        for field in _FIELD.finditer(self.text):
            name, kind, computed = field.groups()
            found.append((self.text[at : field.start()], "", ""))
            found.append(("", name or re.findall(_NAME, computed)[0], kind or computed or ""))
            at = field.end()
        found.append((self.text[at:], "", ""))
        return tuple(piece for piece in found if piece[0] or piece[1])

    @cached_property
    def fields(self) -> Mapping[str, str]:
        """The kind of each field."""
        return {field: kind for _, field, kind in self.pieces if field}

    @cached_property
    def computed(self) -> Mapping[str, tuple[int, int]]:
        """The fields that are computed: factor and summand of each."""
        found = {}
        for field, kind in self.fields.items():
            if kind not in _KINDS:
                times, _, plus = kind.partition(field)
                found[field] = (int(times.rstrip("*") or 1), int(plus or 0))
        return found

    @cached_property
    def literals(self) -> str:
        """The text without the fields."""
        return "".join(text for text, _, _ in self.pieces)

    @cached_property
    def prefix(self) -> str:
        """The text before the first field. The template matches no name without this prefix."""
        return self.pieces[0][0]

    @cached_property
    def _masked(self) -> str:
        """The text with the dots of `{x...}` blanked, so that each dot ends a segment. Positions
        are unchanged.
        """
        return self.text.replace("...}", "   }")

    @property
    def _segments(self) -> list[str]:
        return self._masked.split(".")

    @cached_property
    def segments(self) -> frozenset[str]:
        """Segments of every name that the template matches."""
        return frozenset(segment for segment in self._segments if "{" not in segment)

    @property
    def partial_segments(self) -> frozenset[str]:
        """A regex for each segment that has both fields and text."""
        mixed = (s for s in self._segments if "{" in s and _FIELD_ALONE.fullmatch(s) is None)
        return frozenset(re.sub(r"\\{.*?\\}", ".*", re.escape(segment)) for segment in mixed)

    @property
    def candidates(self) -> str:
        """A regex, without groups, of all names that the template matches."""
        return "".join(
            _KINDS.get(kind, _PLAIN_NUMBER) if field else re.escape(text)
            for text, field, kind in self.pieces
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Compiled when a name with the prefix comes. Most templates of a rule file see none."""
        return re.compile(
            "".join(
                f"(?P<{field}>{_KINDS.get(kind, _PLAIN_NUMBER)})" if field else re.escape(text)
                for text, field, kind in self.pieces
            )
        )

    def match(self, name: str) -> dict[str, str] | None:
        """The values of the fields if the template matches all of `name`, else None."""
        if not name.startswith(self.prefix):
            return None
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        values = found.groupdict()
        for field, (times, plus) in self.computed.items():
            number, rest = divmod(int(values[field]) - plus, times)
            if rest or number < 0:
                return None
            values[field] = str(number)
        return values

    @cached_property
    def _filled(self) -> str:
        return "".join(f"{{{field}}}" if field else text for text, field, _ in self.pieces)

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every field replaced by its value, or by the result of its calculation."""
        if self.computed:
            numbers = {
                field: str(times * int(values[field]) + plus)
                for field, (times, plus) in self.computed.items()
            }
            values = {**values, **numbers}
        return self._filled.format_map(values)

    def can_compute(self, values: Mapping[str, str]) -> bool:
        """Whether every calculation takes a number without leading zeros and gives no negative."""
        return all(
            re.fullmatch(_PLAIN_NUMBER, values[field]) and times * int(values[field]) + plus >= 0
            for field, (times, plus) in self.computed.items()
        )

    @property
    def examples(self) -> list[str]:
        """Names that the template matches; every field has a value of its own."""
        names = []
        for length, word, number in _EXAMPLES:
            values = {}
            for at, (field, kind) in enumerate(self.fields.items()):
                segment = f"{word}{chr(ord('a') + at % 26)}"
                segments = [segment + "x" * n for n in range(length if kind == "..." else 1)]
                is_number = kind not in ("", "...")
                values[field] = str(number + at) if is_number else ".".join(segments)
            names.append(self.fill(values))
        return list(dict.fromkeys(names))

    def mismatch(self, name: str) -> Mismatch | None:
        """How far the template matches a name, and why no further; None if it matches the whole.

        All ways to divide the name among the fields are followed from the left. The result
        describes the way that gets furthest.
        """
        reached, matched, at, open_end = {0}, 0, 0, ""
        for literal, field, kind in self.pieces:
            if literal:
                after = {
                    place + len(literal) for place in reached if name.startswith(literal, place)
                }
                if not after and open_end:
                    return Mismatch(matched, f"the name has no `{literal}` after `{open_end}`")
                if not after:
                    place = max(reached, key=lambda place: (_common(literal, name, place), place))
                    same = _common(literal, name, place)
                    return Mismatch(matched + same, self._stopped(at + same, name, place + same))
                matched, open_end = matched + len(literal), ""
            else:
                after = _ends(re.compile(_KINDS.get(kind, _PLAIN_NUMBER)), name, reached)
                if not after:
                    return Mismatch(matched, self._stopped(at, name, max(reached)))
                open_end = f"{{{field}...}}" if kind == "..." else ""
            spelt = kind if field in self.computed else field + kind
            reached, at = after, at + (len(literal) or len(spelt) + 2)
        return (
            None
            if len(name) in reached
            else Mismatch(matched, self._stopped(at, name, max(reached)))
        )

    def _stopped(self, at: int, name: str, place: int) -> str:
        """Why the match stops at `at` in the template's text and at `place` in the name."""
        start, end = self._masked.rfind(".", 0, at) + 1, self._masked.find(".", at)
        wanted = self.text[start:] if end < 0 else self.text[start:end]
        has_start = name.rfind(".", 0, place) + 1
        has_end = name.find(".", place) if "." in name[place:] else len(name)
        has = name[has_start:has_end]
        field = _FIELD.fullmatch(wanted)
        if place == len(name) and at in (start, end):
            return f"the name ends where `{self.text[at:]}` is expected"
        if at == len(self.text) and name.startswith(".", place):
            if field is not None and field[1] and not field[2]:
                return f"`{wanted}` is one segment, but the name has `{name[has_start:]}` there"
            if field is None or field[2] != "...":
                return (
                    f"the template ends with `{wanted}`, but the name continues with "
                    f"`{name[place:]}`"
                )
            return f"`{wanted}` takes whole segments, but the name has an empty segment there"
        if not has:
            return f"`{wanted}` is expected where the name has an empty segment"
        is_number = field is not None and (field[3] or field[2] in (":int", ":each"))
        verb = "expects a number" if is_number else "is expected"
        return f"`{wanted}` {verb} where the name has `{has}`"


def reversed_template(source: Template, target: Template) -> Template:
    """The template for the way back: it matches `target` filled with the fields of `source`, and
    has the same fields. A field that numbers a list stands in one of the two alone.

    Raises:
        PatternError: two fields touch in `target`, so that the end of the first is unknown.
    """

    def spelt(text: str, field: str, kind: str) -> str:
        if text:
            return text
        own = kind if field in target.computed else field + source.fields.get(field, kind)
        return f"{{{own}}}"

    return Template("".join(spelt(*piece) for piece in target.pieces))


def _ends(piece: re.Pattern[str], name: str, starts: set[int]) -> set[int]:
    """The places where a field that begins at one of `starts` can end: anywhere in the longest text
    that it matches, but not behind a dot.
    """
    ends: set[int] = set()
    done = 0
    for start in sorted(starts):
        if start >= done and (found := piece.match(name, start)) is not None:
            done = found.end()
            ends.update(end for end in range(start + 1, done + 1) if name[end - 1] != ".")
    return ends


def _common(text: str, name: str, place: int) -> int:
    """The length of the common prefix of `text` and the name from `place` on."""
    return next(
        (n for n, (a, b) in enumerate(zip(text, name[place:], strict=False)) if a != b),
        min(len(text), len(name) - place),
    )
