"""What lint finds of tensor operations: each finding with a file that has it, and a near one that
hasn't.
"""

from __future__ import annotations

import pytest

from .conftest import Lint, codes, found

QKV = (
    "{id: qkv, from: '{m...}.qkv.{p}', to: ['{m}.q_proj.{p}', '{m}.k_proj.{p}'], how: {split: 0}%s}"
)
ROPE = (
    "{id: rope, from: '{m...}.q_proj.{p}', to: '{m}.q_proj.{p}', "
    "how: {view: [2, '*'], axes: [1, 0]}%s}"
)
STACK = (
    "{id: s, from: ['{m...}.{e:each}.a', '{m...}.{e:each}.b'], to: '{m}.ab', "
    "how: {stack: 0, concat: 1}}"
)


def operations(*rules: str) -> str:
    return "tensors:\n" + "".join(f"  - {rule}\n" for rule in rules)


def test_operations_beside_renames_are_clean(linted: Lint) -> None:
    result = linted(
        "names: [{id: layers, from: 'h.{n:int}.{r...}', to: 'layers.{n}.{r}'}]\n"
        + operations(QKV % "")
        + "tests:\n"
        "  - {from: h.0.qkv.weight, to: [layers.0.q_proj.weight, layers.0.k_proj.weight]}\n"
        "  - {from: h.0.norm.weight, to: layers.0.norm.weight}\n"
    )
    assert result.findings == ()
    assert (result.rules, result.reversible) == (2, True)


@pytest.mark.parametrize(
    ("rules", "cause"),
    [
        ([QKV % "", ROPE % ""], "`tensors/rope` would take the new tensors of `tensors/qkv`"),
        ([ROPE % "", QKV % ""], "`tensors/rope` would take the new tensors of `tensors/qkv`"),
        (
            ["{id: turn, from: '{m...}', to: 'x.{m}', how: {axes: [1, 0]}}"],
            "`tensors/turn` takes its own new names.",
        ),
    ],
)
def test_one_takes_what_another_makes(linted: Lint, rules: list[str], cause: str) -> None:
    finding = found(linted(operations(*rules)), "LR203")
    assert cause in finding.problem.cause
    assert finding.mark is not None


def test_operations_for_other_checkpoints_take_nothing_from_each_other(linted: Lint) -> None:
    fused, apart = ", when: {config: {fused: true}}", ", when: {config: {fused: false}}"
    assert codes(linted(operations(QKV % fused, ROPE % apart))) == []
    assert codes(linted(operations(ROPE % ""))) == []


@pytest.mark.parametrize(
    ("rules", "cause"),
    [
        (
            [QKV % "", "{id: o, from: 'x.{m...}.qkv.w', to: 'x.{m}.y.w', how: {axes: [1, 0]}}"],
            "`tensors/o` gets no `x.{m...}.qkv.w`: `tensors/qkv` takes these names first.",
        ),
        (
            [
                "{id: j, from: ['{m...}.{x}.w', '{m...}.{x:int}.w'], to: '{m}.{x}.v', "
                "how: {concat: 0}}"
            ],
            "`tensors/j` takes the names of `{m...}.{x:int}.w` for another entry of `from`.",
        ),
    ],
)
def test_one_has_all_names_of_another(linted: Lint, rules: list[str], cause: str) -> None:
    result = linted(operations(*rules))
    assert found(result, "LR204").problem.cause == cause
    assert codes(linted(operations(*reversed(rules)))) == (["LR204"] if len(rules) == 1 else [])


def test_one_that_no_name_reaches_is_a_note(linted: Lint) -> None:
    result = linted(operations(QKV % ""), "a.w")
    assert codes(result) == ["LR205"]
    assert found(result, "LR205").note
    assert codes(linted(operations(QKV % ", optional: true"), "a.w")) == []
    assert codes(linted(operations(QKV % ""), "a.qkv.w")) == []


def test_one_without_a_test(linted: Lint) -> None:
    assert "`tensors/qkv`" in found(linted(operations(QKV % "")), "LR213").problem.cause


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["x.0.a", "x.2.a", "x.0.b", "x.1.b", "x.2.b"], "number 1 of `{m...}.{e:each}.a`"),
        (["x.1.a", "x.0.b", "x.1.b"], "number 0 of `{m...}.{e:each}.a`"),
        (["x.0.a", "x.1.a"], "number 0 of `{m...}.{e:each}.b`"),
    ],
)
def test_lists_with_gaps(linted: Lint, names: list[str], why: str) -> None:
    finding = found(linted(operations(STACK), *names), "LR321")
    assert why in finding.problem.cause
    assert finding.problem.names == (names[0],)


def test_lists_without_gaps(linted: Lint) -> None:
    names = ("x.0.a", "x.0.b", "x.1.a", "x.1.b", "y.0.a", "y.0.b")
    assert codes(linted(operations(STACK), *names)) == []


def test_a_dropped_part_has_no_way_back(linted: Lint) -> None:
    cut = "{id: cut, from: '{m...}.w', to: ['{m}.v', {drop: padding}], how: {split: 0}}"
    result = linted(operations(cut))
    assert codes(result) == []
    assert result.one_way == (("tensors/cut", "it drops a part"),)
    assert not result.reversible


def test_a_drop_doesnt_take_what_an_operation_provides(linted: Lint) -> None:
    """The drop would take a parameter, if the fused tensor didn't provide it."""
    text = "names: [{id: q, from: 'a.q_proj.w', drop: it is in the fused one}]\n"
    text += operations(QKV % "")
    wanted = frozenset({"a.q_proj.w", "a.k_proj.w"})
    assert codes(linted(text, "a.q_proj.w", "a.qkv.w", wanted=wanted)) == []
