"""More rows: what is planned, where the new rows come from, and how they are distributed."""

from __future__ import annotations

import itertools
import math
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.distributions import MultivariateNormal

from llava_remap.core.problem import RemapError
from llava_remap.post_load import Before, Change, OldBytes
from llava_remap.post_load.plugins.expand_embeddings import ExpandEmbeddings

EMBED = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
OTHER = "language_model.model.norm.weight"
Floats = NDArray[np.float64]
Shapes = dict[str, tuple[str, tuple[int, ...]]]

# --- what is planned, from shapes alone


def before(
    rows_needed: int,
    embed: tuple[int, ...] | None,
    head: tuple[int, ...] | None,
    dtype: str = "F16",
) -> Before:
    tensors: Shapes = {OTHER: ("F16", (8,))}
    if embed is not None:
        tensors[EMBED] = (dtype, embed)
    if head is not None:
        tensors[HEAD] = (dtype, head)
    return Before(tensors, rows_needed, embedding=EMBED, head=HEAD)


@pytest.mark.parametrize(
    ("multiple", "rows", "needed", "after"),
    [
        (64, 32000, 32001, 32064),
        (64, 32000, 32002, 32064),
        (64, 32000, 32064, 32064),
        (64, 32000, 32065, 32128),
        (64, 100, 101, 128),
        (1, 32000, 32002, 32002),
        (7, 10, 11, 14),
        (1000, 3, 4, 1000),
    ],
)
def test_grows_to_the_next_multiple(multiple: int, rows: int, needed: int, after: int) -> None:
    effect = ExpandEmbeddings(pad_to_multiple_of=multiple).plan(
        before(needed, (rows, 8), (rows, 8))
    )
    assert effect.changes == (
        Change(EMBED, "F16", (rows, 8), (after, 8), (EMBED,), together(after - rows)),
        Change(HEAD, "F16", (rows, 8), (after, 8), (EMBED,), together(after - rows)),
    )
    assert effect.notes == ()


def together(new: int) -> dict[str, Any]:
    return {"together": True} if new <= 256 else {}


@pytest.mark.parametrize(
    ("rows", "needed"), [(32064, 32002), (151936, 151648), (32001, 32001), (33, 2)]
)
def test_spare_rows_are_enough(rows: int, needed: int) -> None:
    effect = ExpandEmbeddings().plan(before(needed, (rows, 8), (rows, 8)))
    assert effect.changes == ()
    (note,) = effect.notes
    assert note.code == "LR407"
    assert note.cause == f"{needed} tokens fit into the {rows} rows that embed_tokens has."


def test_without_a_head_only_the_embeddings_grow() -> None:
    effect = ExpandEmbeddings().plan(before(33, (32, 8), None, "BF16"))
    assert effect.changes == (Change(EMBED, "BF16", (32, 8), (64, 8), (EMBED,)),)


def test_each_matrix_keeps_its_dtype() -> None:
    tensors: Shapes = {EMBED: ("BF16", (32, 8)), HEAD: ("F32", (32, 8))}
    effect = ExpandEmbeddings().plan(Before(tensors, 33, embedding=EMBED, head=HEAD))
    assert [(change.target, change.dtype) for change in effect.changes] == [
        (EMBED, "BF16"),
        (HEAD, "F32"),
    ]


def test_a_head_with_other_rows_is_left() -> None:
    effect = ExpandEmbeddings().plan(before(33, (32, 8), (40, 8)))
    assert [change.target for change in effect.changes] == [EMBED]


@pytest.mark.parametrize("head", [None, (32, 8)])
def test_without_embeddings_nothing_happens(head: tuple[int, ...] | None) -> None:
    effect = ExpandEmbeddings().plan(before(100, None, head))
    assert (effect.changes, effect.notes) == ((), ())


@pytest.mark.parametrize("shape", [(), (32,), (32, 8, 1)])
def test_what_is_no_matrix_is_left_to_the_plan(shape: tuple[int, ...]) -> None:
    """A shape that the target doesn't have is told as such (LR401); no traceback before that."""
    assert EMBED not in [
        change.target for change in ExpandEmbeddings().plan(before(33, shape, None)).changes
    ]


def test_planning_is_the_same_every_time_and_changes_nothing() -> None:
    tensors: Shapes = {HEAD: ("F16", (32, 8)), EMBED: ("F16", (32, 8))}
    kept = dict(tensors)
    rule = ExpandEmbeddings()
    assert rule.plan(Before(tensors, 33, embedding=EMBED, head=HEAD)) == rule.plan(
        Before(tensors, 33, embedding=EMBED, head=HEAD)
    )
    assert tensors == kept
    assert [
        change.target
        for change in rule.plan(Before(tensors, 33, embedding=EMBED, head=HEAD)).changes
    ] == [EMBED, HEAD]


READS = [
    ({"init": "multivariate_normal"}, EMBED, EMBED),
    ({"init": "multivariate_normal", "statistics": "own"}, EMBED, HEAD),
    ({"init": "mean"}, EMBED, EMBED),
    ({"init": "mean", "statistics": "own"}, EMBED, HEAD),
    ({"init": "copy", "token": "b"}, EMBED, HEAD),
]


@pytest.mark.parametrize(("options", "embed", "head"), READS)
def test_what_is_read_and_so_checked(options: dict[str, Any], embed: str, head: str) -> None:
    effect = ExpandEmbeddings(**options).plan(replace(before(33, (32, 8), (32, 8)), token_ids=IDS))
    assert [change.reads for change in effect.changes] == [(embed,), (head,)]


@pytest.mark.parametrize("init", ["zeros", "normal"])
def test_what_reads_nothing_needs_no_check(init: Literal["zeros", "normal"]) -> None:
    effect = ExpandEmbeddings(init=init).plan(before(33, (32, 8), (32, 8)))
    assert [change.reads for change in effect.changes] == [(), ()]


IDS = {"a": 0, "b": 31, "<image>": 32}


def test_the_row_to_copy_is_known_when_planned() -> None:
    rule = ExpandEmbeddings(init="copy", token="b")
    effect = rule.plan(replace(before(33, (32, 8), (32, 8)), token_ids=IDS))
    assert [change.facts for change in effect.changes] == [{"row": 31}] * 2


NO_ROW = [
    ("c", IDS, "the tokenizer has no token `c`."),
    ("b ", IDS, "the tokenizer has no token `b `."),
    (
        "<image>",
        IDS,
        "the id of `<image>` is 32, but embed_tokens has only 32 rows, so there is no row to copy.",
    ),
    ("b", None, "needs the id of `b`, but no source has a tokenizer."),
]


@pytest.mark.parametrize(("token", "ids", "said"), NO_ROW)
def test_no_row_to_copy(token: str, ids: dict[str, int] | None, said: str) -> None:
    with pytest.raises(RemapError) as caught:
        ExpandEmbeddings(init="copy", token=token).plan(
            replace(before(33, (32, 8), None), token_ids=ids)
        )
    (problem,) = caught.value.problems
    assert problem.code == "LR212"
    assert problem.cause.endswith(said)
    assert problem.fix


# --- the pieces


class Rows:
    """A reader of one matrix that keeps what it was asked."""

    def __init__(self, matrix: Floats) -> None:
        self.matrix = matrix
        self.asked: list[tuple[str, int, int]] = []

    def __call__(self, target: str, start: int, stop: int, as_stored: bool = False) -> Floats:
        self.asked.append((target, start, stop))
        return self.matrix[start:stop]


def change_of(matrix: Floats, new: int, dtype: str, target: str = EMBED) -> Change:
    rows, columns = matrix.shape
    return Change(target, dtype, (rows, columns), (rows + new, columns), (EMBED,))


def pieces_of(rule: ExpandEmbeddings, change: Change, read: Any) -> Iterator[OldBytes | bytes]:
    return rule.pieces([change], read)[change.target]


def new_bytes(
    rule: ExpandEmbeddings, matrix: Floats, new: int, dtype: str, target: str = EMBED
) -> bytes:
    first, *rest = pieces_of(rule, change_of(matrix, new, dtype, target), Rows(matrix))
    assert isinstance(first, OldBytes)
    return b"".join(piece for piece in rest if isinstance(piece, bytes))


def drawn(rule: ExpandEmbeddings, matrix: Floats, new: int, target: str = EMBED) -> Floats:
    """The new rows, not rounded."""
    return np.frombuffer(new_bytes(rule, matrix, new, "F64", target), "<f8").reshape(
        new, matrix.shape[1]
    )


def some_matrix(rows: int, columns: int) -> Floats:
    """Values that F16 holds, as those of a real matrix are: more than 25 bits are not looked at."""
    return (
        np.random.default_rng(7)
        .normal(0.1, 0.02, (rows, columns))
        .astype(np.float16)
        .astype(np.float64)
    )


@pytest.mark.parametrize(("dtype", "itemsize"), [("F16", 2), ("BF16", 2), ("F32", 4), ("F64", 8)])
@pytest.mark.parametrize("target", [EMBED, HEAD])
def test_old_bytes_whole_then_new_rows(dtype: str, itemsize: int, target: str) -> None:
    matrix = some_matrix(1100, 3)
    reader = Rows(matrix)
    first, *rest = pieces_of(ExpandEmbeddings(), change_of(matrix, 52, dtype, target), reader)
    assert first == OldBytes(0, 1100 * 3 * itemsize)
    assert rest
    assert all(isinstance(piece, bytes) for piece in rest)
    assert sum(len(piece) for piece in rest if isinstance(piece, bytes)) == 52 * 3 * itemsize


def test_every_row_of_the_embeddings_is_read_once() -> None:
    """For the head too: its new rows are made from `embed_tokens`, as in the scripts."""
    matrix = some_matrix(1100, 3)
    reader = Rows(matrix)
    list(pieces_of(ExpandEmbeddings(), change_of(matrix, 5, "F16", HEAD), reader))
    assert {target for target, _, _ in reader.asked} == {EMBED}
    assert [row for _, start, stop in reader.asked for row in range(start, stop)] == list(
        range(1100)
    )
    assert max(stop - start for _, start, stop in reader.asked) <= 512


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_repeatable(dtype: str) -> None:
    matrix = some_matrix(600, 4)
    once = new_bytes(ExpandEmbeddings(seed=3), matrix, 30, dtype)
    assert once == new_bytes(ExpandEmbeddings(seed=3), matrix, 30, dtype)
    assert once != new_bytes(ExpandEmbeddings(seed=4), matrix, 30, dtype)


def test_no_global_state() -> None:
    matrix = some_matrix(40, 4)
    once = new_bytes(ExpandEmbeddings(), matrix, 9, "F64")
    np.random.seed(5)
    torch.manual_seed(5)
    state = np.random.get_state(legacy=False)["state"]["key"]
    assert new_bytes(ExpandEmbeddings(), matrix, 9, "F64") == once
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], state)


def test_the_two_matrices_get_rows_of_their_own() -> None:
    matrix = some_matrix(50, 4)
    rule = ExpandEmbeddings(scale=1.0)
    embed, head = drawn(rule, matrix, 5000), drawn(rule, matrix, 5000, HEAD)
    assert not (embed == head).any()
    for column in range(4):  # uncorrelated, within five standard errors
        assert abs(np.corrcoef(embed[:, column], head[:, column])[0, 1]) < 5 / math.sqrt(5000)


def test_seed_and_matrix_dont_get_into_each_others_way() -> None:
    """No seed makes for one matrix what another seed makes for the other."""
    matrix = some_matrix(50, 4)
    seeds = [0, 1, 2, 2**32, 2**63, 2**64 - 1]
    made = [
        new_bytes(ExpandEmbeddings(seed=seed), matrix, 9, "F64", target)
        for seed in seeds
        for target in (EMBED, HEAD)
    ]
    assert len(set(made)) == len(made)


READERS: dict[str, Callable[[Floats], Floats]] = {
    "copies": np.copy,
    "column by column": np.asfortranarray,
    "with gaps": lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
    "backwards in memory": lambda rows: np.ascontiguousarray(rows[::-1])[::-1],
    "read only": lambda rows: np.frombuffer(rows.tobytes()).reshape(rows.shape),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_however_rows_are_read(kind: str, dtype: str) -> None:
    matrix = some_matrix(1100, 16)
    change = change_of(matrix, 24, dtype)

    def read(target: str, start: int, stop: int, as_stored: bool = False) -> Floats:
        assert target == EMBED
        return READERS[kind](matrix[start:stop])

    assert list(pieces_of(ExpandEmbeddings(), change, read)) == list(
        pieces_of(ExpandEmbeddings(), change, Rows(matrix))
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["embeddings first", "head first"])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_two_matrices_alike_are_drawn_from_one_reading(dtype: str, order: tuple[int, int]) -> None:
    """The rows are those that each gets alone."""
    matrix = some_matrix(1100, 16)
    rule = ExpandEmbeddings(seed=5)
    changes = rule.plan(before(1110, (1100, 16), (1100, 16), dtype)).changes
    assert [change.facts for change in changes] == [{"together": True}] * 2
    read = Rows(matrix)
    made = rule.pieces(changes, read)
    for change in (changes[at] for at in order):
        alone = replace(change, facts={})
        assert list(made[change.target]) == list(pieces_of(rule, alone, Rows(matrix)))
    assert read.asked == [(EMBED, 0, 512), (EMBED, 512, 1024), (EMBED, 1024, 1100)]


def test_what_was_drawn_is_of_this_job_alone() -> None:
    """Other old rows, another seed or scale: nothing of what was kept."""
    one, other = some_matrix(600, 16), some_matrix(600, 16) + 1
    (change, _) = ExpandEmbeddings().plan(before(610, (600, 16), (600, 16), "F32")).changes
    rules = [ExpandEmbeddings(), ExpandEmbeddings(seed=1), ExpandEmbeddings(scale=1.0)]
    made = {
        tuple(pieces_of(rule, change, Rows(matrix))) for rule in rules for matrix in (one, other)
    }
    assert len(made) == 6


@pytest.mark.parametrize(
    ("rule", "tensors", "needed"),
    [
        (
            ExpandEmbeddings(statistics="own"),
            {EMBED: ("F16", (600, 8)), HEAD: ("F16", (600, 8))},
            610,
        ),
        (ExpandEmbeddings(init="mean"), {EMBED: ("F16", (600, 8)), HEAD: ("F16", (600, 8))}, 610),
        (ExpandEmbeddings(), {EMBED: ("F16", (600, 8)), HEAD: ("BF16", (600, 8))}, 610),
        (ExpandEmbeddings(), {EMBED: ("F16", (600, 8)), HEAD: ("F16", (600, 9))}, 610),
        (ExpandEmbeddings(), {EMBED: ("F16", (600, 8))}, 610),
        (ExpandEmbeddings(), {EMBED: ("F16", (600, 8)), HEAD: ("F16", (600, 8))}, 1000),
    ],
    ids=["own statistics", "mean", "dtypes", "shapes", "no head", "many rows"],
)
def test_drawn_each_for_itself(rule: ExpandEmbeddings, tensors: Shapes, needed: int) -> None:
    changes = rule.plan(Before(tensors, needed, embedding=EMBED, head=HEAD)).changes
    assert len(changes) == len(tensors)
    assert all(change.facts == {} for change in changes)


def test_two_threads_leave_the_library_its_own() -> None:
    """How many a product takes is set for the whole process: of two at once, each would reset it
    to what the other set.
    """
    from threadpoolctl import threadpool_info

    def limits() -> list[int]:
        return [
            library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
        ]

    matrix, allowed = some_matrix(600, 8), limits()
    rule = ExpandEmbeddings(statistics="own")
    seen: list[tuple[str, set[int]]] = []

    def read(target: str, start: int, stop: int, as_stored: bool = False) -> Floats:
        seen.append((target, set(limits())))
        time.sleep(0.05)  # long enough for the other thread to enter, if it could
        return matrix[start:stop]

    changes = rule.plan(before(610, (600, 8), (600, 8), "F32")).changes
    with ThreadPoolExecutor(2) as pool:
        made = [*pool.map(tuple, rule.pieces(changes, read).values())]
    assert len(made) == 2
    assert all(most <= {1} for _, most in seen), "a product takes one thread"
    turns = [target for target, _ in itertools.groupby(target for target, _ in seen)]
    assert sorted(turns) == sorted([EMBED, HEAD]), "one matrix at a time"
    assert limits() == allowed


def test_what_the_reader_gives_is_left_alone() -> None:
    matrix = some_matrix(40, 4)
    kept = matrix.copy()
    drawn(ExpandEmbeddings(), matrix, 9)
    np.testing.assert_array_equal(matrix, kept)


# --- the same numbers everywhere: the generator once more, from its paper and in plain Python


def philox(key: int, count: int) -> list[int]:
    """Philox4x64-10 (Salmon et al., 2011), counters from 1 as numpy has them."""
    words: list[int] = []
    mask = 2**64 - 1
    block = 0
    while len(words) < count:
        block += 1
        c, k = [block, 0, 0, 0], [key & mask, key >> 64]
        for _ in range(10):
            one, two = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(two >> 64) ^ c[1] ^ k[0], two & mask, (one >> 64) ^ c[3] ^ k[1], one & mask]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        words += c
    return words[:count]


def polar(words: Iterator[int], count: int) -> list[float]:
    """Normals by Marsaglia's polar method, in steps of 2^-16."""
    z: list[float] = []
    while len(z) < count:
        u, v = ((next(words) >> 11) / 2**52 - 1 for _ in range(2))
        s = u * u + v * v
        if 0 < s < 1:
            z += [round(x * math.sqrt(-2 * math.log(s) / s) * 2**16) / 2**16 for x in (u, v)]
    return z[:count]


def expected_rows(matrix: list[list[float]], new: int, scale: float, key: int) -> list[list[float]]:
    """The new rows for up to 512 old ones: mean + sqrt(scale/n) · Σ (row − mean) z, with exact
    sums.
    """
    rows = len(matrix)
    z = polar(iter(philox(key, 4 * rows * new + 50)), rows * new)
    mean = [sum(map(Fraction, column)) / rows for column in zip(*matrix, strict=True)]
    made = []
    for at in range(new):
        weights = [Fraction(z[row * new + at]) for row in range(rows)]
        centred = [
            sum(
                (Fraction(matrix[row][column]) - mean[column]) * weights[row] for row in range(rows)
            )
            for column in range(len(mean))
        ]
        made.append(
            [
                float(m) + math.sqrt(scale / rows) * float(c)
                for m, c in zip(mean, centred, strict=True)
            ]
        )
    return made


@pytest.mark.parametrize(("target", "stream"), [(EMBED, 0), (HEAD, 1)])
@pytest.mark.parametrize("seed", [0, 5, 2**64 - 1])
@pytest.mark.parametrize(("rows", "new"), [(5, 4), (3, 3)])
def test_the_numbers_are_those_of_the_formula(
    target: str, stream: int, seed: int, rows: int, new: int
) -> None:
    matrix = [
        [0.5, -1.25, 3.0],
        [0.75, 2.0, 3.0],
        [-0.5, 0.0, 1.0],
        [2.5, 1.0, -1.0],
        [0.0, 0.25, 8.0],
    ][:rows]
    wanted = expected_rows(matrix, new, 0.5, seed + (stream << 64))
    rule = ExpandEmbeddings(scale=0.5, seed=seed)
    np.testing.assert_allclose(
        drawn(rule, np.array(matrix), new, target), wanted, rtol=0, atol=1e-13
    )
    half = new_bytes(rule, np.array(matrix), new, "F16", target)
    assert half == b"".join(struct.pack("<e", number) for row in wanted for number in row)


# --- how the new rows are distributed

SMALL = [[0, 1, 5], [2, 1, -1], [4, 3, 0], [1, 0, 2], [0, 2, 2], [3, 5, 1], [-2, 1, 0], [0, 3, 7]]
#: Sums over the rows: Σ = 8, 16, 16; Σx² = 34, 50, 84; Σxy = 27, Σxz = 3, Σyz = 34.
SMALL_MEAN = np.array([1.0, 2.0, 2.0])
SMALL_COV = np.array(
    [
        [34 / 8 - 1, 27 / 8 - 2, 3 / 8 - 2],
        [27 / 8 - 2, 50 / 8 - 4, 34 / 8 - 4],
        [3 / 8 - 2, 34 / 8 - 4, 84 / 8 - 4],
    ]
)
DRAWS = 20_000


def standard_errors(found: Floats, cov: Floats, draws: int) -> Floats:
    """How far the sample covariance is from `cov`, in standard errors: var(S_ij) = (c_ii c_jj +
    c_ij²) / N for normal draws.
    """
    variances = np.diag(cov)
    deviations: Floats = (np.cov(found.T, bias=True) - cov) / np.sqrt(
        (np.outer(variances, variances) + cov**2) / draws
    )
    return deviations


@pytest.mark.parametrize("target", [EMBED, HEAD])
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_mean_and_covariance(target: str, scale: float) -> None:
    found = drawn(ExpandEmbeddings(scale=scale), np.array(SMALL, dtype=np.float64), DRAWS, target)
    cov = scale * SMALL_COV
    assert (np.abs(found.mean(axis=0) - SMALL_MEAN) < 5 * np.sqrt(np.diag(cov) / DRAWS)).all()
    assert (np.abs(standard_errors(found, cov, DRAWS)) < 5).all()


def test_the_covariance_is_that_by_n() -> None:
    """By n − 1 it would be larger by 8/7; the draws tell the two apart."""
    found = drawn(ExpandEmbeddings(scale=1.0), np.array(SMALL, dtype=np.float64), DRAWS)
    assert (np.abs(np.diag(standard_errors(found, SMALL_COV * 8 / 7, DRAWS))) > 8).all()


def test_mean_and_covariance_over_several_chunks() -> None:
    # 1100 rows: each row of SMALL 137 times, and 4 rows equal to its mean
    matrix = np.array([*SMALL * 137, *[[1, 2, 2]] * 4], dtype=np.float64)
    matrix = matrix[np.random.default_rng(0).permutation(1100)]
    cov = SMALL_COV * 1096 / 1100
    found = drawn(ExpandEmbeddings(scale=1.0), matrix, 4000)
    assert (np.abs(found.mean(axis=0) - SMALL_MEAN) < 5 * np.sqrt(np.diag(cov) / 4000)).all()
    assert (np.abs(standard_errors(found, cov, 4000)) < 5).all()


def test_the_draws_are_normal_and_independent() -> None:
    found = drawn(ExpandEmbeddings(scale=1.0), np.array(SMALL, dtype=np.float64), DRAWS)
    standard = (found - SMALL_MEAN) / np.sqrt(np.diag(SMALL_COV))
    for limit, share in (
        (1, 0.6827),
        (2, 0.9545),
        (3, 0.9973),
    ):  # shares of a normal distribution within this many standard deviations
        error = math.sqrt(share * (1 - share) / DRAWS)
        assert (np.abs((np.abs(standard) < limit).mean(axis=0) - share) < 5 * error + 0.0001).all()
    for column in standard.T:
        for lag in (1, 2, 3, DRAWS // 2):
            pairs = len(column) - lag
            assert abs((column[lag:] * column[:-lag]).mean()) < 5 / math.sqrt(pairs)


# --- where the old way fails


def old_recipe(matrix: Floats) -> torch.Tensor:
    """As in transformers' convert_llava_weights_to_hf.py."""
    rows = torch.from_numpy(matrix).float()
    mean = torch.mean(rows, dim=0).float()
    sigma = ((rows - mean).T @ (rows - mean)) / rows.size()[0]
    drawn: torch.Tensor = MultivariateNormal(mean, covariance_matrix=1e-5 * sigma).sample((10,))
    return drawn


def test_the_old_recipe_can_do_ordinary_matrices() -> None:
    assert old_recipe(some_matrix(200, 8)).shape == (10, 8)


def hard(kind: str) -> Floats:
    matrix = some_matrix(200, 8)
    if kind == "fewer rows than columns":
        return matrix[:5]
    if kind == "one row":
        return matrix[:1]
    if kind == "rows all alike":
        return np.repeat(matrix[:1], 200, axis=0)
    if kind == "few rows, each many times":
        return np.repeat(matrix[:6], 30, axis=0)
    if kind == "a constant column":
        matrix[:, 3] = 0.25
    if kind == "a column twice":
        matrix[:, 3] = matrix[:, 5]
    return matrix


HARD = [
    "fewer rows than columns",
    "one row",
    "rows all alike",
    "few rows, each many times",
    "a constant column",
    "a column twice",
]


@pytest.mark.parametrize("kind", [kind for kind in HARD if kind != "a column twice"])
def test_the_old_recipe_raises(kind: str) -> None:
    with pytest.raises(ValueError, match="PositiveDefinite"):
        old_recipe(hard(kind))


@pytest.mark.parametrize("kind", HARD)
def test_ours_has_the_right_distribution_there_too(kind: str) -> None:
    matrix = hard(kind)
    draws = 5000
    found = drawn(ExpandEmbeddings(scale=1.0), matrix, draws)
    cov = np.cov(matrix.T, bias=True)
    assert np.isfinite(found).all()
    assert (
        np.abs(found.mean(axis=0) - matrix.mean(axis=0))
        <= 5 * np.sqrt(np.diag(cov) / draws) + 1e-12
    ).all()
    variances = np.diag(cov)
    allowed = 5 * np.sqrt((np.outer(variances, variances) + cov**2) / draws) + 1e-12
    assert (np.abs(np.cov(found.T, bias=True) - cov) <= allowed).all()
    # no variance in directions in which the rows don't differ
    centred = matrix - matrix.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=True)
    rank = int((sizes > 1e-9).sum())
    assert rank == {
        "fewer rows than columns": 4,
        "one row": 0,
        "rows all alike": 0,
        "few rows, each many times": 5,
    }.get(kind, 7)
    assert np.abs((found - matrix.mean(axis=0)) @ directions[rank:].T).max() < 1e-12


def test_a_constant_column_stays_constant() -> None:
    for dtype, quarter in (("F16", 0x3400), ("BF16", 0x3E80)):
        words = np.frombuffer(
            new_bytes(ExpandEmbeddings(), hard("a constant column"), 50, dtype), "<u2"
        ).reshape(50, 8)
        assert set(words[:, 3].tolist()) == {quarter}
        assert len(set(words[:, 2].tolist())) > 1


@pytest.mark.parametrize("target", [EMBED, HEAD])
def test_without_scale_the_mean_exactly_rounded(target: str) -> None:
    # means: 1.5; 1/3 (0x3EAAAAAA.AAA in single, so 0x3EAB, 0x3555); -1/3; 1 + 2^-11, a tie of half
    # precision (down to even)
    matrix = np.array([[1, 0, 0, 1], [1.5, 0, 0, 1], [2, 1, -1, 1 + 3 * 2**-11]])
    rule = ExpandEmbeddings(scale=0.0)
    half = np.frombuffer(new_bytes(rule, matrix, 6, "F16", target), "<u2").reshape(6, 4)
    assert half.tolist() == [[0x3E00, 0x3555, 0xB555, 0x3C00]] * 6
    brain = np.frombuffer(new_bytes(rule, matrix, 6, "BF16", target), "<u2").reshape(6, 4)
    assert brain.tolist() == [[0x3FC0, 0x3EAB, 0xBEAB, 0x3F80]] * 6
    single = np.frombuffer(new_bytes(rule, matrix, 6, "F32", target), "<u4").reshape(6, 4)
    assert single.tolist() == [[0x3FC00000, 0x3EAAAAAB, 0xBEAAAAAB, 0x3F801000]] * 6


def test_the_mean_is_not_rounded_on_the_way() -> None:
    """Summed in half precision, 3000 rows of 1 would come to 2048."""
    matrix = np.ones((3000, 2))
    assert np.frombuffer(new_bytes(ExpandEmbeddings(), matrix, 1, "F16"), "<f2").tolist() == [1, 1]


# --- the other ways to make rows


def never(target: str, start: int, stop: int, as_stored: bool = False) -> Floats:
    raise AssertionError(f"rows {start}..{stop} of {target} were read")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_zeros(dtype: str) -> None:
    change = replace(change_of(some_matrix(40, 4), 9, dtype), reads=())
    old, *made = pieces_of(ExpandEmbeddings(init="zeros"), change, never)
    assert isinstance(old, OldBytes)
    assert made == [bytes(old.nbytes // 40 * 9)]


@pytest.mark.parametrize("target", [EMBED, HEAD])
@pytest.mark.parametrize(("dtype", "itemsize"), [("F16", 2), ("BF16", 2), ("F64", 8)])
def test_copies_are_old_bytes(dtype: str, itemsize: int, target: str) -> None:
    """No number is read: a row is copied bit by bit, from its own matrix."""
    change = replace(
        change_of(some_matrix(40, 4), 3, dtype, target), reads=(target,), facts={"row": 7}
    )
    pieces = list(pieces_of(ExpandEmbeddings(init="copy", token="b"), change, never))
    width = 4 * itemsize
    assert pieces == [OldBytes(0, 40 * width), *[OldBytes(7 * width, width)] * 3]


@pytest.mark.parametrize("target", [EMBED, HEAD])
def test_mean(target: str) -> None:
    matrix = some_matrix(1100, 4)
    made = drawn(ExpandEmbeddings(init="mean"), matrix, 5, target)
    wanted = [float(sum(map(Fraction, column), Fraction(0)) / 1100) for column in matrix.T.tolist()]
    assert made.tolist() == [wanted] * 5


@pytest.mark.parametrize("init", ["multivariate_normal", "mean"])
def test_statistics_of_its_own(init: Literal["multivariate_normal", "mean"]) -> None:
    matrices = {EMBED: some_matrix(600, 4), HEAD: some_matrix(600, 4) + 3}
    asked = []

    def read(target: str, start: int, stop: int, as_stored: bool = False) -> Floats:
        asked.append(target)
        return matrices[target][start:stop]

    cases: list[tuple[Literal["own", "embed_tokens"], str]] = [
        ("own", HEAD),
        ("embed_tokens", EMBED),
    ]
    for statistics, source in cases:
        asked.clear()
        rule = ExpandEmbeddings(init=init, statistics=statistics)
        (_, change) = rule.plan(before(640, (600, 4), (600, 4), "F64")).changes
        _, made = pieces_of(rule, change, read)
        assert isinstance(made, bytes)
        assert set(asked) == {source}
        np.testing.assert_allclose(
            np.frombuffer(made).reshape(-1, 4),
            np.tile(matrices[source].mean(0), (40, 1)),
            atol=5e-4,
        )


def test_normal_reads_nothing_and_has_its_own_deviation() -> None:
    rule = ExpandEmbeddings(init="normal", std=0.5, seed=4)
    made = {}
    for target in (EMBED, HEAD):
        change = replace(change_of(some_matrix(40, 50), 2000, "F64", target), reads=())
        _, *pieces = pieces_of(rule, change, never)
        made[target] = np.frombuffer(
            b"".join(piece for piece in pieces if isinstance(piece, bytes))
        ).reshape(2000, 50)
        assert abs(made[target].mean()) < 5 * 0.5 / math.sqrt(100_000)
        assert abs(made[target].var() - 0.25) < 5 * 0.25 * math.sqrt(2 / 100_000)
    assert abs(np.corrcoef(made[EMBED].ravel(), made[HEAD].ravel())[0, 1]) < 5 / math.sqrt(100_000)
    words = iter(np.random.Philox(key=4).random_raw(400).tolist())
    assert made[EMBED].ravel()[:100].tolist() == [0.5 * z for z in polar(words, 100)]


@pytest.mark.parametrize("std", [0.0, 1000.0])
def test_any_deviation_fits_into_half_precision(std: float) -> None:
    change = replace(change_of(some_matrix(4, 64), 500, "F16"), reads=())
    _, piece = pieces_of(ExpandEmbeddings(init="normal", std=std), change, never)
    assert isinstance(piece, bytes)
    assert np.isfinite(np.frombuffer(piece, "<f2")).all()


# --- compared with the old recipe, where that works


def test_as_the_old_recipe_has_it() -> None:
    """Mean and covariance of many draws of each: what one has, the other has, up to what chance
    does.
    """
    matrix, draws = (
        some_matrix(2000, 6)
        @ np.array(np.random.default_rng(3).integers(-2, 3, (6, 6)) + 4 * np.eye(6)),
        40_000,
    )
    rows = torch.from_numpy(matrix)
    mean = rows.mean(dim=0)
    cov = (rows - mean).T @ (rows - mean) / len(rows)
    torch.manual_seed(0)
    old = MultivariateNormal(mean, covariance_matrix=1e-5 * cov).sample((draws,)).numpy()
    ours = drawn(ExpandEmbeddings(), matrix, draws)
    expected = 1e-5 * cov.numpy()
    for found in (old, ours):
        assert (
            np.abs(found.mean(axis=0) - mean.numpy()) < 5 * np.sqrt(np.diag(expected) / draws)
        ).all()
        assert (np.abs(standard_errors(found, expected, draws)) < 5).all()
