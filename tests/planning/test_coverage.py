"""Tensors of which a part goes nowhere, comes from nowhere, or is placed twice, told by rows."""

from __future__ import annotations

from llava_remap.planning import Alias, Box, Mapped, Part
from llava_remap.planning.coverage import placement_problems
from llava_remap.planning.problems import component
from llava_remap.routing import SourceName

WQKV = (6144, 4096)


def split(*spans: tuple[str, int, int], shape: tuple[int, int] = WQKV) -> list[Mapped]:
    """Rows start..stop of `wqkv` as tensors of their own."""
    return [
        Mapped(
            name,
            "F16",
            (stop - start, shape[1]),
            (
                Part(
                    "model",
                    shape,
                    Box("wqkv", shape, (0, 1), (start, 0), (stop, shape[1])),
                    Box.whole(name, (stop - start, shape[1])),
                ),
            ),
            (),
            ("tensors/qkv",),
        )
        for name, start, stop in spans
    ]


def told(entries: list[Mapped], *aliases: Alias) -> list[tuple[str, dict[str, str]]]:
    return [(problem.code, dict(problem.table)) for problem in placement_problems(entries, aliases)]


def test_a_split_that_tiles_its_source() -> None:
    assert told(split(("q", 0, 4096), ("k", 4096, 5120), ("v", 5120, 6144))) == []


def test_rows_that_go_nowhere() -> None:
    assert told(split(("q", 0, 4096), ("v", 5120, 6144))) == [
        ("LR301", {"wqkv": "rows 4096..5119 go nowhere"})
    ]


def test_rows_that_are_taken_twice() -> None:
    found = told(split(("q", 0, 4096), ("k", 4000, 5120), ("v", 5120, 6144)))
    assert found == [("LR304", {"wqkv": "rows 4000..4095 are placed twice"})]


def test_rows_that_come_from_nowhere() -> None:
    """Of three experts, the second is missing."""
    parts = tuple(
        Part(
            "model",
            (2, 3),
            Box(name, (1, 2, 3), (0, 1, 2), (0, 0, 0), (1, 2, 3)),
            Box("experts", (3, 2, 3), (0, 1, 2), (place, 0, 0), (place + 1, 2, 3)),
        )
        for name, place in (("e0", 0), ("e2", 2))
    )
    entry = Mapped("experts", "F16", (3, 2, 3), parts, (), ())
    assert told([entry]) == [("LR302", {"experts": "rows 1..1 come from nowhere"})]


def test_an_alias_takes_all_of_its_source() -> None:
    """A name that is tied and also renamed would be taken twice."""
    part = Part.whole("model", "head", "a", (4, 2))
    alias = Alias("b", "a", SourceName("model", "head"), "F16", (4, 2), ())
    assert told([Mapped("a", "F16", (4, 2), (part,), (), ())], alias) == [
        ("LR304", {"head": "rows 0..3 are placed twice"})
    ]


def test_renames_are_covered() -> None:
    part = Part.whole("model", "x", "a", (4, 2))
    other = Alias("b", "a", SourceName("model", "y"), "F16", (4, 2), ())
    assert told([Mapped("a", "F16", (4, 2), (part,), (), ())], other) == []


def test_boxes_that_can_not_be_compared() -> None:
    odd = Part("model", (6, 4), Box.whole("w", (6, 4)), Box("t", (5, 5), (0, 1), (0, 0), (5, 5)))
    [(code, rows)] = told([Mapped("t", "F16", (6, 4), (odd,), (), ())])
    assert code == "LR302"
    assert "another number of elements" in rows["t"]


def test_the_head_is_a_part_of_the_language_model_in_every_layout() -> None:
    names = ("language_model.lm_head.weight", "lm_head.weight", "model.language_model.norm.weight")
    assert {component(name) for name in names} == {"language_model"}
