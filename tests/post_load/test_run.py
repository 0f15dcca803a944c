"""Plug-ins that do what they shouldn't: each is named, in its own words where it has any, before
a byte is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from llava_remap.core.problem import RemapError
from llava_remap.post_load import Before, Change, Effect, OldBytes, run
from llava_remap.post_load.run import make_pieces, plan_changes
from tests.conftest import CLIP, RELEASED, Run

NORM = "language_model.model.norm.weight"
HAVE = {NORM: ("F16", (4,)), "a": ("F32", (2, 3))}
CHANGE = Change(NORM, "F16", (4,), (6,), ())


class Plug(BaseModel):
    """A plug-in that a test makes say and make what it likes."""

    says: ClassVar[Callable[[], Any]]
    makes: ClassVar[Callable[[Any], Iterator[Any]]]

    def plan(self, before: Before) -> Effect:
        return Effect((type(self).says(),))

    def pieces(
        self, changes: Sequence[Change], read: Any
    ) -> Mapping[str, Iterator[OldBytes | bytes]]:
        return {change.target: type(self).makes(read) for change in changes}


@pytest.fixture(autouse=True)
def plug(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(name="llava-remap-plug", version="1.0")
    entry = SimpleNamespace(name="plug", load=lambda: Plug, dist=package)
    monkeypatch.setattr(run, "_installed", cache(lambda path: {"plug": entry}))


def failing(*rows: Any, **named: Any) -> Any:
    raise KeyError("oops")


def made(change: Change) -> list[OldBytes | bytes]:
    return list(make_pieces("plug", {}, [change], failing)[change.target])


def refused(act: Callable[[], object], code: str = "LR212") -> str:
    with pytest.raises(RemapError) as caught:
        act()
    assert [problem.code for problem in caught.value.problems] == [code]
    assert "`plug`" in caught.value.problems[0].cause
    return caught.value.problems[0].cause


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change("nrm", "F16", (4,), (6,), ()), "the model has no such tensor"),
        (
            Change(NORM, "F32", (4,), (6,), ()),
            "norm.weight` as F32 [4], and the model has it as F16 [4]",
        ),
        (Change(NORM, "F16", (5,), (6,), ()), "as F16 [5]"),
        (Change(NORM, "F16", (4,), (6,), ("b",)), "wants to read `b`"),
        (Change(NORM, "F16", (4,), (6,), (), {"set": {1, 2}}), "fails: TypeError"),
    ],
)
def test_changes_that_can_not_be(change: Change, words: str) -> None:
    Plug.says = lambda: change
    assert words in refused(lambda: plan_changes("plug", {}, Before(HAVE, 0)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            Change("nrm", "F16", None, (4,), ()),
            "wants to make `nrm` as F16 [4], and the model has no such parameter",
        ),
        (Change("new", "F16", None, (4,), ()), "as F16 [4], and the model has it as [5]"),
        (
            Change("new", "I64", None, (5,), ()),
            "as I64 [5], and the model has it as [5], in floating-point numbers",
        ),
        (Change("new", "F16", None, (5,), ("new",)), "wants to read `new`"),
        (Change("a", "F32", None, (3, 2), ()), "and the model has it as [2, 3]"),
    ],
)
def test_what_can_not_be_made(change: Change, words: str) -> None:
    Plug.says = lambda: change
    assert words in refused(lambda: plan_changes("plug", {}, Before(HAVE, 0, {"new": (5,)})))


def test_what_can_be_made_has_no_old_bytes() -> None:
    change = Change("new", "F16", None, (5,), ())
    Plug.says = lambda: change
    assert plan_changes("plug", {}, Before(HAVE, 0, {"new": (5,)})).changes == (change,)
    Plug.makes = lambda read: iter([bytes(10)])
    assert made(change) == [bytes(10)]
    Plug.makes = lambda read: iter([OldBytes(0, 2), bytes(8)])
    assert "wants bytes 0 to 2 of `new`, which has 0" in refused(lambda: made(change))


def test_a_fault_while_planning() -> None:
    Plug.says = failing
    assert "fails: KeyError: 'oops'" in refused(lambda: plan_changes("plug", {}, Before(HAVE, 0)))


def test_facts_are_as_the_record_gives_them_back() -> None:
    Plug.says = lambda: Change(NORM, "F16", (4,), (6,), (), {"rows": (1, 2)})
    [change] = plan_changes("plug", {}, Before(HAVE, 0)).changes
    assert change.facts == {"rows": [1, 2]}


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([OldBytes(0, 8)], "makes 8 bytes"),
        ([], "makes 0 bytes"),
        ([OldBytes(0, 8), bytes(6)], "makes more bytes"),
        ([OldBytes(2, 8), bytes(4)], "wants bytes 2 to 10"),
        ([OldBytes(-2, 8), bytes(6)], "wants bytes -2 to 6"),
        ([OldBytes(0, 8), bytes(3), bytes(1)], "ends inside a number"),
        ([OldBytes(0, 8), "text"], "makes a str"),
    ],
)
def test_pieces_that_are_not_the_tensor(pieces: list[Any], words: str) -> None:
    Plug.makes = lambda read: iter(pieces)
    assert words in refused(lambda: made(CHANGE))


def test_a_fault_while_making() -> None:
    Plug.makes = lambda read: read("a", 0, 1)
    assert "fails: KeyError" in refused(lambda: made(CHANGE))


def test_what_is_not_finite() -> None:
    Plug.makes = lambda read: iter([OldBytes(0, 8), b"\x00\x7c" * 2])
    assert "2 values that `plug` makes" in refused(lambda: made(CHANGE), "LR406")


def test_what_is_as_planned() -> None:
    Plug.makes = lambda read: iter([OldBytes(0, 8), bytes(4)])
    assert made(CHANGE) == [OldBytes(0, 8), bytes(4)]


def test_a_whole_job_with_a_bad_plug_in(run: Run) -> None:
    """Told with the place in the rule file; nothing is left."""
    text = (
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: x\nextends: [llava-v1.5.yaml]\n"
        "post_load:\n  - use: plug\n"
    )
    Path("mine.yaml").write_text(text)
    sources = ("--source", RELEASED / "bin", "--source", f"vision_tower={CLIP}")
    Plug.says = lambda: Change("language_model.model.nrm.weight", "F16", (64,), (64,), ())
    ran = run("apply", "mine.yaml", *sources, "--output", "out")
    assert ran.code == 2
    assert "mine.yaml:7:5 `plug` wants to change" in ran.out
    Plug.says = lambda: Change(NORM, "F16", (64,), (64,), ())
    Plug.makes = lambda read: iter([bytes(64)])
    text += "  - use: expand_embeddings\n"  # the real one isn't installed here, which is told first
    Path("mine.yaml").write_text(text)
    assert "installed: plug" in run("apply", "mine.yaml", *sources, "--output", "out").out
    assert not Path("out").exists()


def test_a_plug_in_is_asked_once_for_all_its_changes() -> None:
    asked: list[tuple[str, ...]] = []

    class Two(Plug):
        def pieces(self, changes: Sequence[Change], read: Any) -> Mapping[str, Iterator[Any]]:
            asked.append(tuple(change.target for change in changes))
            return {change.target: iter([bytes(4)]) for change in changes}

    entry = SimpleNamespace(name="plug", load=lambda: Two, dist=None)
    changes = [Change(name, "F16", None, (2,), ()) for name in ("a", "b")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_installed", cache(lambda path: {"plug": entry}))
        rules = run.PostLoadRules([("plug", {}, change) for change in changes], failing)
        assert [list(rules.pieces(name)) for name in ("b", "a")] == [[bytes(4)]] * 2
        assert asked == [("a", "b")]
        assert list(rules.pieces("a")) == [bytes(4)]
        assert asked == [("a", "b")] * 2, "a tensor that is wanted again is made again"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"config": {"model_type": "x"}}, "wants to set `model_type`"),
        ({"config": {"a.b": 1}}, "wants to set `a.b`"),
        ({"config": {"a": float("nan")}}, "wants to set `a` of the config to nan"),
        ({"config": {"a": [1]}}, "wants to set `a`"),
        ({"config": {1: "a"}}, "wants to set `1`"),
        ({"moved": {"b": "a"}}, "wants to move `b` to `a`"),
        ({"moved": {"a": "b"}}, "wants to move `a` to `b`"),
    ],
)
def test_what_moves_and_sets_is_checked(
    more: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Change(NORM, "F16", (4,), (4,), ())
    monkeypatch.setattr(Plug, "plan", lambda self, before: Effect((change,), **more))
    assert words in refused(lambda: plan_changes("plug", {}, Before(HAVE, 0)))


def test_an_effect_that_changes_no_tensor_moves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record would not name the plug-in."""
    monkeypatch.setattr(Plug, "plan", lambda self, before: Effect((), moved={"a": NORM, NORM: "a"}))
    assert "changes no tensor" in refused(lambda: plan_changes("plug", {}, Before(HAVE, 0)))


@pytest.mark.parametrize("piece", [OldBytes(1, 6, negated=True), OldBytes(0, 7, negated=True)])
def test_numbers_are_negated_as_a_whole(piece: OldBytes) -> None:
    Plug.makes = lambda read: iter([piece, bytes(8)])
    assert "aren't whole elements" in refused(lambda: made(CHANGE))
