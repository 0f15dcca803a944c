"""Groups names that differ only in a layer's number, and finds the groups that are most alike.

Numbers are layers' numbers if those below one module run from 0 without a gap: `mm_projector.{0,2}`
are two different modules.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from llava_remap.core.wording import fold_names

Shape = tuple[int, ...]
Segments = tuple[str, ...]
#: The placeholder for a layer's number in a pattern. Its dot distinguishes it from any segment.
INDEX = "#."

#: The most similar names to show for a name without a counterpart.
LIMIT = 3
#: The most groups to compare on each side. With more of them, the rule file is the wrong one, and
#: nobody reads similar names.
_MOST_GROUPS = 300
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_NUMBERED = re.compile(r"(.*?)_?([0-9]+)")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: Words that mean the same in research code and in transformers. Words that mean different things
#: are left out, for example `w1` and `w3` of a gated MLP.
_SAME = {
    word: words.split()[0]
    for words in (
        "q wq query", "k wk key", "v wv value", "o wo out output",
        "norm ln layernorm layrnorm rmsnorm", "attn attention",
        "embed emb embedding embeddings wte", "layer layers block blocks h",
        "position pos positional wpe", "mlp ffn",
        "proj projection projector", "vision visual", "linear fc dense",
    )
    for word in words.split()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Names that differ in layer numbers alone.

    Attributes:
        pattern: the segments of the names, with INDEX for each layer's number.
        members: layer numbers (empty without INDEX) → shape.
    """

    pattern: Segments
    members: Mapping[tuple[int, ...], Shape]

    @property
    def names(self) -> list[str]:
        """The names, by ascending layer numbers."""
        return [fill(self.pattern, numbers) for numbers in sorted(self.members)]

    @property
    def shape(self) -> Shape:
        """The shape of the first member. Usually all layers have the same."""
        return self.members[min(self.members)]

    @property
    def folded(self) -> str:
        """The names in one line, as a person would write them."""
        return ", ".join(fold_names(self.names))


def fill(pattern: Iterable[str], numbers: Iterable[object]) -> str:
    """The pattern's text with each INDEX replaced: a member's name if by layer numbers."""
    left = iter(numbers)
    return ".".join(str(next(left)) if segment == INDEX else segment for segment in pattern)


def fold(shapes: Mapping[str, Shape]) -> list[Group]:
    """The groups of all names. Their order doesn't depend on the order of the names."""
    beside: dict[Segments, set[int]] = defaultdict(set)
    split = {name: tuple(name.split(".")) for name in shapes}
    different = {segment for segments in split.values() for segment in segments}
    number = {segment: int(segment) for segment in different if _NUMBER.fullmatch(segment)}
    for segments in split.values():
        for at, segment in enumerate(segments):
            if segment in number:
                beside[segments[:at]].add(number[segment])
    lists = {parent for parent, numbers in beside.items() if len(numbers) == max(numbers) + 1}
    groups: dict[Segments, dict[tuple[int, ...], Shape]] = defaultdict(dict)
    for name, segments in split.items():
        # The last segment is a parameter's name, not a layer's number.
        folded = {
            at
            for at, segment in enumerate(segments[:-1])
            if segment in number and segments[:at] in lists
        }
        pattern = tuple(INDEX if at in folded else segment for at, segment in enumerate(segments))
        groups[pattern][tuple(number[segments[at]] for at in sorted(folded))] = shapes[name]
    return [Group(pattern, groups[pattern]) for pattern in sorted(groups)]


def unfold(group: Group) -> list[Group]:
    """Every member as a group of its own."""
    return [
        Group(tuple(fill(group.pattern, numbers).split(".")), {(): shape})
        for numbers, shape in group.members.items()
    ]


def tokens(groups: Iterable[Group]) -> dict[Segments, frozenset[str]]:
    """The words of every group's pattern. Words that mean the same become one word.

    A number is compared together with its siblings: `norm1` of norm1, norm2 agrees with
    `layer_norm1` of layer_norm1, layer_norm2, but the 1 of 0, 1 doesn't agree with the 1 of 1, 2.
    """
    patterns = [group.pattern for group in groups]
    beside: dict[tuple[Segments, str], set[str]] = defaultdict(set)
    for pattern in patterns:
        for at, segment in enumerate(pattern):
            if found := _NUMBERED.fullmatch(segment):
                beside[(pattern[:at], found[1])].add(found[2])
    numbered = {
        key: ",".join(sorted(fold_names(sorted(numbers))))
        for key, numbers in beside.items()
        if len(numbers) > 1
    }
    result = {}
    for pattern in patterns:
        words: set[str] = set()
        for at, segment in enumerate(pattern):
            found = _NUMBERED.fullmatch(segment)
            plain = [word.lower() for word in _WORD.findall(segment)] or (
                [] if found else [segment]
            )
            words |= {_SAME.get(word, word) for word in plain} - {""}
            if found and (numbers := numbered.get((pattern[:at], found[1]))):
                words.add(f"{found[2]} of {numbers}")
        result[pattern] = frozenset(words)
    return result


def ending(one: Segments, other: Segments) -> int:
    """Number of last segments in common."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def nearest(names: Mapping[str, Shape], others: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """For each name, up to three others of the same shape, the most similar first.

    Names that differ only in a layer's number are compared once, and each gets the names of its own
    layer. Tensor names differ at the front and agree at the end, so the number of common last
    segments counts first, then the share of common segments.

    Args:
        names, others: name → shape.
    """
    found: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    if not names or not others:
        return found
    of_shape: dict[Shape, list[Group]] = defaultdict(list)
    for other in fold(others):
        for shape in dict.fromkeys(other.members.values()):
            of_shape[shape].append(other)
    for group in fold(names)[:_MOST_GROUPS]:
        for shape in dict.fromkeys(group.members.values()):
            scored = sorted(
                (_distance(group.pattern, other.pattern), other.pattern, other)
                for other in of_shape[shape][:_MOST_GROUPS]
            )
            ranked = [other for distance, _, other in scored if distance != (0, 0)]
            elsewhere = tuple(
                fill(other.pattern, min(n for n, own in other.members.items() if own == shape))
                for other in ranked[:LIMIT]
            )
            for numbers in (numbers for numbers, own in group.members.items() if own == shape):
                own_layer = (
                    fill(o.pattern, numbers) for o in ranked if o.members.get(numbers) == shape
                )
                found[fill(group.pattern, numbers)] = tuple(islice(own_layer, LIMIT)) or elsewhere
    return found


def _distance(one: Segments, other: Segments) -> tuple[int, float]:
    """Smaller for names that are more alike; (0, 0) for names with nothing in common."""
    return -ending(one, other), -len(set(one) & set(other)) / len(set(one) | set(other))
