"""Names, layouts, shapes, dtypes and ties of two checkpoints, compared from their headers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from llava_remap.checkpoint import Catalog, Checkpoint
from llava_remap.target_model import nearest_layout
from llava_remap.verification.difference import Dtypes, Layouts, OnlyIn, Shapes, Stored, Tie, Which

#: Ends of the names of a head, and of the table of token embeddings that it may be tied to.
_HEAD, _TABLE = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Headers:
    """Two catalogs under common names.

    Attributes:
        layout: the layouts, if they differ. Common names are then classic names.
        a, b: the tensors by common name.
        shapes, dtypes, ties: the differences.
        perhaps_tied: for a name that only one side has: the side, and the common tensor to which
            the other side may tie the name. Values decide whether it does.
    """

    layout: Layouts | None
    a: Catalog
    b: Catalog
    shapes: tuple[Shapes, ...]
    dtypes: tuple[Dtypes, ...]
    ties: tuple[Tie, ...]
    perhaps_tied: Mapping[str, tuple[Which, str]]

    @property
    def comparable(self) -> list[str]:
        """The common names of equal shapes, whose values can be compared; in the order of A."""
        apart = {entry.name for entry in self.shapes}
        return [name for name in self.a if name in self.b and name not in apart]

    def catalog(self, which: Which) -> Catalog:
        return self.a if which == "a" else self.b

    def only_in(self, which: Which, tied: set[str]) -> tuple[OnlyIn, ...]:
        """The tensors that only one side has.

        Args:
            tied: names that don't count, because they are tied to common names.
        """
        own, other = (self.a, self.b) if which == "a" else (self.b, self.a)
        return tuple(
            OnlyIn(name, tensor.dtype, tensor.shape)
            for name, tensor in own.items()
            if name not in other and name not in tied
        )


def compare_headers(a: Checkpoint, b: Checkpoint) -> Headers:
    """Compare two checkpoints by their headers."""
    layout, spelled_a, spelled_b = _common_names(a.catalog, b.catalog)
    named_a = {spelled_a[name]: tensor for name, tensor in a.catalog.items()}
    named_b = {spelled_b[name]: tensor for name, tensor in b.catalog.items()}
    both = [(name, named_a[name], named_b[name]) for name in named_a if name in named_b]
    groups_a = [frozenset(spelled_a[name] for name in group) for group in a.aliases]
    groups_b = [frozenset(spelled_b[name] for name in group) for group in b.aliases]
    ties = (
        *_ties("a", groups_a, groups_b, named_b),
        *_ties("b", groups_b, groups_a, named_a),
    )
    tied = {name for tie in ties for name in tie.names}
    return Headers(
        layout,
        named_a,
        named_b,
        tuple(Shapes(name, x.shape, y.shape) for name, x, y in both if x.shape != y.shape),
        tuple(Dtypes(name, x.dtype, y.dtype) for name, x, y in both if x.dtype != y.dtype),
        ties,
        _perhaps_tied("a", named_a, named_b, tied) | _perhaps_tied("b", named_b, named_a, tied),
    )


def _common_names(
    a: Catalog, b: Catalog
) -> tuple[Layouts | None, Mapping[str, str], Mapping[str, str]]:
    """The two layouts, if the names have more in common as classic names than as they are; and for
    either side its names with the common ones.

    A layout counts only if it takes a quarter of the names, because a research checkpoint shares
    `lm_head.weight` with some layouts.
    """
    as_they_are = None, {name: name for name in a}, {name: name for name in b}
    if a.keys() == b.keys() or not a or not b:
        return as_they_are
    (layout_a, classic_a), (layout_b, classic_b) = nearest_layout(a), nearest_layout(b)
    spelled_a = {name: classic_a.get(name, name) for name in a}
    spelled_b = {name: classic_b.get(name, name) for name in b}
    common = set(spelled_a.values()) & set(spelled_b.values())
    unique = all(len(set(names.values())) == len(names) for names in (spelled_a, spelled_b))
    known = all(len(c) > len(n) // 4 for c, n in ((classic_a, a), (classic_b, b)))
    if layout_a == layout_b or not (known and unique) or len(common) <= len(a.keys() & b.keys()):
        return as_they_are
    names_a = {classic: name for name, classic in spelled_a.items()}
    renamed = sum(
        names_a[classic] != name for name, classic in spelled_b.items() if classic in names_a
    )
    return Layouts(layout_a, layout_b, renamed), spelled_a, spelled_b


def _ties(
    which: Which,
    own: list[frozenset[str]],
    others: list[frozenset[str]],
    other: Catalog,
) -> Iterator[Tie]:
    """Names that share a tensor on one side but not on the other."""
    for group in own:
        there = group & other.keys()
        if not there or any(group <= another for another in others):
            continue
        how: Stored = "apart" if group == there else "alone"
        ways: tuple[Stored, Stored] = ("shared", how) if which == "a" else (how, "shared")
        yield Tie(tuple(sorted(group)), *ways)


def _perhaps_tied(
    which: Which, own: Catalog, other: Catalog, tied: Collection[str]
) -> dict[str, tuple[Which, str]]:
    """The head that only one side has, with this side and with the common table of token embeddings
    to which the other side may tie the head.
    """
    tables = [name for name in own if name.endswith(_TABLE) and name in other]
    return {
        name: (which, tables[0])
        for name, tensor in own.items()
        if name.endswith(_HEAD) and name not in other and name not in tied and len(tables) == 1
        if (tensor.dtype, tensor.shape) == (own[tables[0]].dtype, own[tables[0]].shape)
    }
