"""Makes few rules from pairs of old and new names, as a person would write them: one rule for each
module that moves as a whole.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, takewhile

from llava_remap.rewrite.infer.groups import INDEX, Segments, fill
from llava_remap.rulefile.yaml_write import quoted

#: The reason of an inferred drop. Plans show it, so it claims only what is known.
DROPPED = "nothing in the target takes it"

_FIELDS = ("n", "m", "k")
_WILD = re.compile(r"[{}\s]")
#: Segments that are left out of a rule's id.
_PLAIN = {"model", "weight", INDEX}


@dataclass(frozen=True, slots=True)
class InferredRule:
    """One rule of `names`.

    Attributes:
        id: descriptive, and unique among the rules inferred together.
        match: the template of `from`, or a regex.
        to: the template of `to` or the replacement of the regex; None for a drop.
        is_regex: whether it is a regex, for names that no template can express.
        patterns: the source patterns that the rule was made for.
    """

    id: str
    match: str
    to: str | None
    is_regex: bool
    patterns: tuple[Segments, ...]


def make_rules(
    moves: Mapping[Segments, Segments | None], others: Collection[Segments] = ()
) -> list[InferredRule]:
    """Rules that take every source pattern to its target pattern (None: a drop), and no pattern of
    `others`.

    Their order matters: the first rule that matches a name counts.
    """
    wild = {
        pattern: target
        for pattern, target in moves.items()
        if _is_wild(pattern) or (target and _is_wild(target))
    }
    plain = sorted((pattern, target) for pattern, target in moves.items() if pattern not in wild)
    rules = _rules(0, plain, [*others, *wild]) if plain else []
    return _with_ids([*(_exact(pattern, to) for pattern, to in sorted(wild.items())), *rules])


def _is_wild(pattern: Segments) -> bool:
    """Whether no template can express the pattern."""
    return any(not segment or _WILD.search(segment) for segment in pattern)


_Moves = Sequence[tuple[Segments, Segments | None]]


def _rules(depth: int, moves: _Moves, others: Collection[Segments]) -> list[InferredRule]:
    """Rules for names that agree in their first `depth` segments. No rule may take a name of
    `others`.
    """
    start = moves[0][0][:depth]
    others = [other for other in others if other[:depth] == start]
    if len(moves) == 1:
        return [_exact(*moves[0])]
    whole: list[InferredRule] | None = None
    if depth and not others and all(len(source) > depth for source, _ in moves):
        whole = _moved_as_a_whole(depth, moves)
        if whole is not None and len(whole) == 1:
            return whole
    split = _split(depth, moves, others)
    return whole if whole is not None and len(whole) < len(split) else split


def _moved_as_a_whole(depth: int, moves: _Moves) -> list[InferredRule] | None:
    """One rule for the whole module, after rules for names in it that are dropped or change in
    another way; None if parts of the module go to different places.
    """
    if all(target is None for _, target in moves):
        return [_general(moves, None)]
    places = Counter(_place(depth, *move) for move in moves)
    places.pop(None, None)
    place = max(places, key=lambda place: (places[place], place or ()), default=None)
    if not place or any(
        target is not None and target[: len(place)] != place for _, target in moves
    ):
        return None
    ordinary = [move for move in moves if _place(depth, *move) == place]
    special = [move for move in moves if _place(depth, *move) != place]
    before = _rules(depth, special, [source for source, _ in ordinary]) if special else []
    return [*before, _general(ordinary, place)]


def _place(depth: int, source: Segments, target: Segments | None) -> Segments | None:
    """The new place of the module that the first `depth` segments name; None if the other segments
    change.
    """
    rest = source[depth:]
    return target[: -len(rest)] if target is not None and target[-len(rest) :] == rest else None


def _split(depth: int, moves: _Moves, others: Collection[Segments]) -> list[InferredRule]:
    """The rules of each child."""
    children: dict[str, list[tuple[Segments, Segments | None]]] = defaultdict(list)
    rules = []
    for source, target in moves:
        if len(source) == depth:
            rules.append(_exact(source, target))
        else:
            children[source[depth]].append((source, target))
    strangers = {other[depth] for other in others if len(other) > depth}
    dropped = [
        c
        for c in children
        if c not in strangers and all(target is None for _, target in children[c])
    ]
    for stem, alike in _alike([child for child in dropped if child != INDEX]).items():
        if not any(
            child.startswith(stem) for child in (*children, *strangers) if child not in alike
        ):
            gone = [move for child in alike for move in children.pop(child)]
            field = "{x}" if all(len(source) == depth + 1 for source, _ in gone) else "{rest...}"
            rules.append(_rule([*gone[0][0][:depth], stem + field], None, gone))
    for child in sorted(children):
        rules += _rules(depth + 1, children[child], others)
    return rules


def _alike(segments: Sequence[str]) -> dict[str, list[str]]:
    """Word → segments that begin with it. Words that begin only one segment are left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for segment in segments:
        word, hyphen, _ = segment.partition("_")
        if hyphen and word:
            found[word + hyphen].append(segment)
    return {word: alike for word, alike in found.items() if len(alike) > 1}


def _general(moves: _Moves, place: Segments | None) -> InferredRule:
    """One rule for names that keep their ends and go to one place (None: they are dropped). Its
    pattern begins with all leading segments that the names share.
    """
    if len(moves) == 1:
        return _exact(*moves[0])
    sources = [source for source, _ in moves]
    alike = takewhile(
        lambda column: len(set(column)) == 1,
        zip(*(source[:-1] for source in sources), strict=False),
    )
    shared = tuple(column[0] for column in alike)
    one_left = all(len(source) == len(shared) + 1 for source in sources)
    opened, field = ("{p}", "{p}") if one_left else ("{rest...}", "{rest}")
    if place is None:
        return _rule([*shared, opened], None, moves)
    source, target = moves[0]
    assert target is not None
    return _rule(
        [*shared, opened],
        [*target[: len(target) - len(source) + len(shared)], field],
        moves,
    )


def _exact(source: Segments, target: Segments | None) -> InferredRule:
    return _rule(source, target, [(source, target)])


def _rule(source: Sequence[str], target: Sequence[str] | None, moves: _Moves) -> InferredRule:
    """A rule without an id; `_with_ids` gives it one."""
    patterns = tuple(pattern for pattern, _ in moves)
    if any(_is_wild(pattern) for pattern in patterns) or (
        target and len(moves) == 1 and _is_wild(tuple(target))
    ):
        escaped = ("([0-9]+)" if part == INDEX else re.escape(part) for part in source)
        groups = (f"\\g<{number}>" for number in count(1))
        replaced = None
        if target is not None:
            replaced = fill((part.replace("\\", r"\\") for part in target), groups)
        return InferredRule("", "^" + r"\.".join(escaped) + "$", replaced, True, patterns)
    names = (*_FIELDS, *(f"n{i}" for i in range(4, len(source) + 4)))
    to = None if target is None else fill(target, (f"{{{name}}}" for name in names))
    return InferredRule(
        "", fill(source, (f"{{{name}:int}}" for name in names)), to, False, patterns
    )


def _with_ids(rules: Sequence[InferredRule]) -> list[InferredRule]:
    """The rules with ids made from the words of their new names; for drops, of the old names."""
    named: list[InferredRule] = []
    for rule in rules:
        is_drop = rule.to is None
        text = re.sub(r"\{[^}]*\}", "", rule.match if rule.to is None else rule.to)
        segments = [part for part in re.split(r"\\?\.", text) if part not in _PLAIN]
        spelt = "-".join(segments[-2:] if is_drop else segments).lower()
        words = dict.fromkeys(re.findall(r"[a-z]+|[0-9]+", spelt))
        words.pop("model", None)
        plain = "-".join([*["drop"] * is_drop, *(words or ["rule"])])
        taken = {other.id for other in named}
        numbered = chain([plain], (f"{plain}-{number}" for number in count(2)))
        named.append(replace(rule, id=next(name for name in numbered if name not in taken)))
    return named


def rule_line(rule: InferredRule, widths: tuple[int, int] = (0, 0)) -> str:
    """The rule as a line of `names`, with minimum widths for its first two fields."""
    source, target = ("match", "replace") if rule.is_regex else ("from", "to")
    last = f"{target}: {quoted(rule.to)}" if rule.to is not None else f"drop: {DROPPED}"
    head, middle = f"id: {rule.id},", f"{source}: {quoted(rule.match)},"
    return f"- {{{head:<{widths[0]}} {middle:<{widths[1]}} {last}}}"
