"""Where old bytes are found, whatever order a plug-in has them in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_remap.core.problem import RemapError
from llava_remap.post_load import Change, OldBytes, run
from llava_remap.post_load.run import find_old_bytes


def found(pieces: Any, before: int, after: int) -> list[tuple[int, int]] | None:
    """In a tensor of bytes that has `before` of them and gets `after`."""
    rule = SimpleNamespace(
        model_validate_json=lambda text: SimpleNamespace(
            pieces=lambda changes, read: {one.target: pieces(one, read) for one in changes}
        )
    )
    entry = SimpleNamespace(name="plug", load=lambda: rule, dist=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_installed", cache(lambda path: {"plug": entry}))
        return find_old_bytes("plug", {}, Change("a", "U8", (before,), (after,), ("a",)))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[bytes, list[OldBytes | bytes]]:
    """Old bytes in runs, shuffled, some twice, overlapping or among new bytes."""
    old = draw(st.binary(min_size=1, max_size=20))
    cuts = sorted({0, len(old), *draw(st.lists(st.integers(0, len(old)), max_size=5))})
    runs: list[OldBytes | bytes] = [
        OldBytes(start, min(stop + draw(st.integers(0, 3)), len(old)) - start)
        for start, stop in itertools.pairwise(cuts)
    ]
    more = draw(st.lists(st.sampled_from([*runs, b"new", b"n"]), max_size=6))
    return old, draw(st.permutations([*runs, *more]))


@given(layouts())
def test_what_is_found_is_the_tensor(case: tuple[bytes, list[OldBytes | bytes]]) -> None:
    old, pieces = case
    made = b"".join(
        old[p.offset : p.offset + p.nbytes] if isinstance(p, OldBytes) else p for p in pieces
    )
    runs = found(lambda change, read: iter(pieces), len(old), len(made))
    assert runs is not None
    assert b"".join(made[at : at + nbytes] for at, nbytes in runs) == old


def test_it_stops_when_all_is_found() -> None:
    def pieces(change: Any, read: Any) -> Iterator[OldBytes | bytes]:
        yield OldBytes(2, 2)
        yield b"new"
        yield OldBytes(0, 3)
        pytest.fail("was asked for more")

    assert found(pieces, 4, 20) == [(5, 3), (1, 1)]


@pytest.mark.parametrize(
    "pieces",
    [
        lambda change, read: iter([b"abcd"]),
        lambda change, read: iter([OldBytes(0, 2), b"ab"]),
        lambda change, read: iter([OldBytes(1, 3), b"a"]),
        lambda change, read: iter([read("a", 0, 4), OldBytes(0, 4)]),
    ],
    ids=["none", "the first half", "all but the first", "read before they are there"],
)
def test_not_all_is_there(pieces: Any) -> None:
    assert found(pieces, 4, 4) is None


def test_what_else_goes_wrong_is_told() -> None:
    with pytest.raises(RemapError, match="LR212"):
        found(lambda change, read: iter([OldBytes(3, 9)]), 4, 4)
