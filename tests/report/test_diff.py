"""The differences that a person reads: folded, bounded, and in the terminal's width."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from llava_remap.report.diff import print_difference
from llava_remap.verification.difference import (
    Difference,
    Element,
    Entry,
    File,
    OnlyIn,
    Place,
    Row,
    Side,
    Values,
)

A, B = (Side(name, "safetensors", 40, 1000) for name in ("one", "other"))
FIRST = Place((0, 3), Element(0.5, "0x3800"), Element(0.25, "0x3400"))


def told(found: Difference, width: int | None = None) -> str:
    """The report in a pipe, or on a terminal of a width."""
    text = StringIO()
    on_terminal = {"width": width, "force_terminal": True, "color_system": None} if width else {}
    print_difference(Console(file=text, soft_wrap=True, **on_terminal), found)  # type: ignore[arg-type]
    return text.getvalue()


def values(
    name: str, differing: int = 1, max_abs: float | None = 0.25, nan_bits: int = 0
) -> Values:
    return Values(name, 10, differing, max_abs, 0, nan_bits, 0, FIRST)


def checkpoints(**parts: object) -> Difference:
    return Difference("checkpoints", A, B, 40, values_compared=40, **parts)  # type: ignore[arg-type]


def test_layers_are_folded_and_their_counts_added() -> None:
    layers = (values("m.0.w", 1, 0.25), values("m.1.w", 2, 4.0), values("n", 3, None, nan_bits=3))
    lines = told(checkpoints(values=layers)).splitlines()
    assert "Values: 3 of 40 tensors differ" in lines
    [folded] = [line for line in lines if "m.{0..1}.w" in line]
    assert " ".join(folded.split()) == "m.{0..1}.w 3 of 20 4 [0, 3]: 0.5, 0.25"
    assert "  n: 3 NaN in both, with other bits" in lines
    assert lines[-1] == "Different: values"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_that_is_too_wide_for_the_terminal_is_stacked(width: int) -> None:
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    lines = told(checkpoints(values=(values(name),)), width).splitlines()
    table = [line for line in lines if "differing" in line or "[0, 3]" in line]
    assert (f"  {name}" in lines) is (width < 100)
    assert len(table) == (1 if width < 100 else 2)
    assert all(len(line) <= max(width, 80) or name in line for line in lines)
    piped = told(checkpoints(values=(values(name),))).splitlines()
    assert [line for line in piped if line.rstrip() != line] == []
    assert any(name in line and "[0, 3]" in line for line in piped)


def test_long_lists_say_how_many_more_there_are() -> None:
    names = [f"{letter}{other}" for letter in "abcde" for other in "vwxyz"]
    found = checkpoints(
        only_in_a=tuple(OnlyIn(name, "F16", (2,)) for name in names),
        values=tuple(map(values, names)),
        files=(File("config.json", rows=tuple(Row(name, 1, 2) for name in names)),),
    )
    text = told(found)
    assert text.count("… and 13 more lines; --format json has every one") == 3
    assert "only in A: 25 tensors" in text
    assert len(found.to_json()["values"]) == 25


def test_a_side_without_a_key_has_no_value() -> None:
    rows = (Row("a", None, 1), Row("b", None, 1, "b"), Row("c", [1, 2], None, "a"))
    text = told(checkpoints(files=(File("config.json", rows=rows),)))
    cells = [line.split() for line in text.splitlines() if line.startswith(("  a", "  b", "  c"))]
    assert cells == [["a", "null", "1"], ["b", "–", "1"], ["c", "[1,", "2]", "–"]]


def test_spelling_alone_is_equal() -> None:
    file = File("config.json", spelling=(Row("dtype", "float16", None, "a"),), read_by="a class")
    lines = told(checkpoints(files=(file,))).splitlines()
    assert "  config.json, by a class: dtype" in lines
    assert lines[-1].startswith("Equal: 40 tensors, bit by bit")


@pytest.mark.parametrize(("notes", "more"), [((), "; configs, "), (("no tokenizer",), "")])
def test_the_verdict_claims_only_what_was_compared(notes: tuple[str, ...], more: str) -> None:
    last = told(checkpoints(notes=notes)).splitlines()[-1]
    assert last.startswith(f"Equal: 40 tensors, bit by bit{more}")
    assert ("tokenizer" in last) is bool(more)


def test_entries_of_plans_that_differ_alike_stand_together() -> None:
    changed = tuple(
        Entry("mapped", f"m.{n}", None, (Row("rules[0]", "x", "y"), Row("from[0].name", n, 0)))
        for n in range(1, 4)
    )
    entries = (*changed, Entry("dropped", "model q", "b", (Row("rule", None, "r", "b"),)))
    lines = told(Difference("plans", A, B, 40, entries=entries)).splitlines()
    at = lines.index("  m.{1..3}")
    assert lines[at + 1] == '    rules[0]: "x" in A, "y" in B'
    assert lines[at + 2] == "    from[0].name: 1 in A, 0 in B (of the first)"
    assert lines[lines.index("  model q") + 1] == "    only in B"
