"""Folded names, and that nothing is lost in folding."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_remap.core.wording import fold_names

RUNS = settings(deadline=None)

CASES: list[tuple[list[str], list[str]]] = [
    ([], []),
    (["a"], ["a"]),
    ([""], [""]),
    (["layers.0.up"], ["layers.0.up"]),
    (["layers.0.up", "layers.1.up", "layers.2.up"], ["layers.{0..2}.up"]),
    (["layers.0.up", "layers.1.up"], ["layers.{0..1}.up"]),
    # gaps
    (["l.0", "l.1", "l.2", "l.3", "l.7"], ["l.{0..3,7}"]),
    (["l.1", "l.3", "l.5"], ["l.{1,3,5}"]),
    (["l.0", "l.1", "l.4", "l.5"], ["l.{0..1,4..5}"]),
    # by value, not by spelling or by place
    (["l.10", "l.9", "l.8"], ["l.{8..10}"]),
    (["l.2", "l.10", "l.1"], ["l.{1..2,10}"]),
    # at the ends
    (["0.a", "1.a"], ["{0..1}.a"]),
    (["0", "1", "2"], ["{0..2}"]),
    # two places with numbers
    (["a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1"], ["a.{0..1}.b.{0..1}"]),
    (["a.0.0", "a.0.1", "a.1.0"], ["a.{0..1}.0", "a.0.1"]),
    (["a.0.0", "a.1.1"], ["a.0.0", "a.1.1"]),
    # numbers inside a word
    (["fc1.w", "fc2.w"], ["fc1.w", "fc2.w"]),
    (["l.0.fc1.w", "l.0.fc2.w", "l.1.fc1.w", "l.1.fc2.w"], ["l.{0..1}.fc1.w", "l.{0..1}.fc2.w"]),
    (["h_0.w", "h_1.w"], ["h_0.w", "h_1.w"]),
    (["a.-1", "a.0", "a.1_0", "a.²"], ["a.-1", "a.0", "a.1_0", "a.²"]),
    # the order in which they first appear
    (["z", "l.1.w", "a", "l.0.w", "l.0.b"], ["z", "l.{0..1}.w", "a", "l.0.b"]),
    (["norm", "l.0.w", "norm", "l.0.w"], ["norm", "l.0.w"]),
    # different lengths
    (["a.0", "a.0.0", "a.1", "a.1.0"], ["a.{0..1}", "a.{0..1}.0"]),
    # a number written in another way is another name
    (["a.01.w"], ["a.01.w"]),
    (["a.1.w", "a.01.w"], ["a.1.w", "a.01.w"]),
    (["a.٣"], ["a.٣"]),
    # an empty segment is not a number
    (["a..w", "a.0.w"], ["a..w", "a.0.w"]),
    (["a.0.w", "a.1.w", "a..w"], ["a.{0..1}.w", "a..w"]),
]


@pytest.mark.parametrize(("names", "folded"), CASES)
def test_fold(names: list[str], folded: list[str]) -> None:
    assert fold_names(names) == folded


def test_any_iterable() -> None:
    assert fold_names(f"l.{n}" for n in range(3)) == ["l.{0..2}"]


def unfold(text: str) -> list[str]:
    """All names that a folded one stands for."""
    segments = []
    for segment in text.split(".") if ".." not in text else re.findall(r"\{[^}]*\}|[^.{}]+", text):
        if not segment.startswith("{"):
            segments.append([segment])
            continue
        numbers: list[str] = []
        for run in segment[1:-1].split(","):
            first, _, last = run.partition("..")
            numbers += map(str, range(int(first), int(last or first) + 1))
        segments.append(numbers)
    return [".".join(choice) for choice in product(*segments)]


SEGMENTS = st.sampled_from(["a", "b", "fc1", "fc2", "h_0"]) | st.integers(0, 12).map(str)
NAMES = st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join), max_size=30)


@RUNS
@given(NAMES)
def test_unfolding_gives_the_same_names(names: list[str]) -> None:
    unfolded = [name for folded in fold_names(names) for name in unfold(folded)]
    assert sorted(unfolded) == sorted(set(names))


@RUNS
@given(st.sets(st.integers(0, 200), min_size=2))
def test_numbers_that_differ_alone_become_one_line(numbers: set[int]) -> None:
    (folded,) = fold_names(f"layers.{n}.w" for n in numbers)
    assert sorted(unfold(folded)) == sorted(f"layers.{n}.w" for n in numbers)


def test_unfold_itself() -> None:
    assert unfold("a.{0..2,5}.w") == ["a.0.w", "a.1.w", "a.2.w", "a.5.w"]
    assert unfold("{0..1}.{3,5}") == ["0.3", "0.5", "1.3", "1.5"]
    assert unfold("a.b") == ["a.b"]


def test_a_folded_name_moves_no_cursor() -> None:
    assert fold_names(["a\n\x1b[31m.0.w", "a\n\x1b[31m.1.w", "b\u202ec"]) == [
        "a\\n\\x1b[31m.{0..1}.w",
        "b\\u202ec",
    ]


def test_a_number_of_thousands_of_digits_is_a_word() -> None:
    name = f"layers.{'9' * 5000}.w"
    assert fold_names([name]) == [name]
