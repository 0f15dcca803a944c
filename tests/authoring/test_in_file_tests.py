"""Tests of tensor operations that stand in rule files: names of several tensors, their shapes, and
a few numbers before and after. numpy says what the numbers must be.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llava_remap.authoring.in_file_tests import Known, new_test, run_tests, untested
from llava_remap.authoring.rule_tests import run_rule_tests
from llava_remap.core.problem import RemapError
from llava_remap.rulefile import load_rule_file
from tests.rewrite.conftest import Load

RULES = """\
names:
  - {id: block, from: 'h.{rest...}', to: 'model.{rest}'}
tensors:
  - {id: qkv, from: '{m...}.qkv.weight', to: ['{m}.q', '{m}.k', '{m}.v'], how: {split: 0}}
  - id: grouped
    from: '{m...}.wqkv.weight'
    to: ['{m}.q', '{m}.k']
    how: {view: [groups, '*', size], split: 1}
    let: {groups: target.text_config.num_key_value_heads, size: target.text_config.head_dim}
  - id: experts
    from: ['{m...}.{e:each}.w1', '{m...}.{e:each}.w3']
    to: '{m}.gate_up'
    how: {stack: 0, concat: 1}
  - {id: unstacked, from: '{m...}.packed', to: '{m}.{e:each}.w', how: {unstack: 0}}
  - {id: turned, from: '{m...}.conv', to: '{m}.conv', how: {axes: [1, 0]}}
  - {id: cut, from: '{m...}.rows', to: ['{m}.rows', {drop: padding}], how: {split: 0}}
"""
Q, K, V = "model.q", "model.k", "model.v"


def one(load: Load, test: str) -> tuple[str, str, str]:
    """Wanted, got and status of a test."""
    [result] = run_tests(load(f"{RULES}tests:\n  - {test}\n"))
    return result.wanted, result.got, result.status


@pytest.mark.parametrize(
    ("test", "got"),
    [
        (f"{{from: h.qkv.weight, to: [{Q}, {K}, {V}]}}", f"{Q}, {K}, {V}"),
        (f"{{from: h.qkv.weight, to: [{Q}, {K}]}}", f"{Q}, {K}, {V}"),
        (f"{{from: h.qkv.weight, to: [{K}, {Q}, {V}]}}", f"{Q}, {K}, {V}"),
        ("{from: [x.0.w1, x.1.w1, x.0.w3, x.1.w3], to: x.gate_up}", "x.gate_up"),
        (
            "{from: [x.0.w1, x.1.w1], to: x.gate_up}",
            "x.gate_up, (no tensor for {m...}.{e:each}.w3)",
        ),
        ("{from: [x.0.w1, x.0.w3, y.0.w1, y.0.w3], to: x.gate_up}", "x.gate_up, y.gate_up"),
        ("{from: x.packed, to: [x.0.w, x.1.w, x.2.w]}", "x.0.w, x.1.w, x.2.w"),
        ("{from: x.packed, to: [x.0.w, x.2.w]}", "x.0.w"),
        ("{from: x.conv, to: x.conv}", "x.conv"),
        ("{from: x.conv, unmapped: true}", "x.conv"),
        ("{from: x.rows, to: x.rows}", "x.rows"),
        ("{from: [h.a, h.b], to: model.a}", "model.a, model.b"),
    ],
)
def test_names_of_several_tensors(load: Load, test: str, got: str) -> None:
    wanted, found, status = one(load, test)
    assert found == got
    assert status == ("passed" if wanted == got else "failed")


def flow(array: np.ndarray) -> str:
    return json.dumps(array.tolist())


WHOLE = np.arange(24).reshape(12, 2)
GROUPED = WHOLE.reshape(2, 3, 2, 2)
TARGET = "given: {target: {text_config.num_key_value_heads: 2, text_config.head_dim: 2}}"
CASES = {
    "split": (
        "from: x.qkv.weight, to: [x.q, x.k, x.v]",
        flow(WHOLE),
        ", ".join(map(flow, np.split(WHOLE, [6, 9]))),
    ),
    "grouped": (
        f"from: x.wqkv.weight, to: [x.q, x.k], {TARGET}",
        flow(WHOLE),
        f"{flow(GROUPED[:, :2].reshape(8, 2))}, {flow(GROUPED[:, 2].reshape(4, 2))}",
    ),
    "experts": (
        "from: [x.0.w1, x.1.w1, x.0.w3, x.1.w3], to: x.gate_up",
        ", ".join(map(flow, np.split(WHOLE, 4))),
        flow(
            np.stack(
                [np.concatenate([WHOLE[:3], WHOLE[6:9]]), np.concatenate([WHOLE[3:6], WHOLE[9:]])]
            )
        ),
    ),
    "unstacked": (
        "from: x.packed, to: [x.0.w, x.1.w]",
        flow(WHOLE.reshape(2, 6, 2)),
        f"{flow(WHOLE[:6])}, {flow(WHOLE[6:])}",
    ),
    "turned": ("from: x.conv, to: x.conv", flow(WHOLE), flow(WHOLE.T)),
    "cut": ("from: x.rows, to: x.rows", flow(WHOLE), flow(WHOLE[:5])),
}


def values(names: str, before: str, after: str) -> str:
    """A test with numbers; of several names, several tensors."""
    if names.startswith("from: ["):
        before = f"[{before}]"
    if "to: [" in names:
        after = f"[{after}]"
    return f"{{{names}, values: {{from: {before}, to: {after}}}}}"


@pytest.mark.parametrize("case", CASES)
def test_numbers_go_where_numpy_puts_them(load: Load, case: str) -> None:
    names, before, after = CASES[case]
    wanted, got, status = one(load, values(names, before, after))
    assert (got, status) == (wanted, "passed")


@pytest.mark.parametrize("case", CASES)
def test_another_number_fails(load: Load, case: str) -> None:
    names, before, after = CASES[case]
    wanted, got, status = one(load, values(names, before, after.replace("4", "99", 1)))
    assert status == "failed"
    assert "99" in wanted
    assert "99" not in got


@pytest.mark.parametrize(
    ("test", "why"),
    [
        (
            "{from: [x.qkv.weight, x.wqkv.weight], to: [x.q, x.k, x.v, x.q, x.k], "
            "shapes: {from: [[9], [6]], to: [[3], [3], [3], [3], [3]]}, "
            "given: {target: {text_config.num_key_value_heads: 1, text_config.head_dim: 1}}}",
            "(several operations make x.q)",
        ),
        (
            "{from: x.qkv.weight, to: [x.q, x.k, x.v], shapes: {from: [10], to: [[3], [3], [3]]}}",
            "don't add up to the 10 of `x.qkv.weight`",
        ),
        (
            "{from: x.wqkv.weight, to: [x.q, x.k], shapes: {from: [12, 2], to: [[8, 2], [4, 2]]}}",
            "`given.target` doesn't say text_config.head_dim, text_config.num_key_value_heads",
        ),
        (
            "{from: [x.0.w1, x.0.w3], to: x.gate_up, shapes: {from: [[1], [1]], to: [3, 2]}}",
            "(rows 1..2 of x.gate_up are left)",
        ),
        (
            "{from: h.a, to: model.a, shapes: {from: [1], to: [1]}}",
            "no operation takes the tensors",
        ),
    ],
)
def test_sizes_that_dont_add_up_fail(load: Load, test: str, why: str) -> None:
    _, got, status = one(load, test)
    assert status == "failed"
    assert why in got


def test_real_sizes_of_a_fused_matrix_pass(load: Load) -> None:
    """microsoft/Phi-3-mini: 32 heads of 96 for each of q, k and v."""
    shapes = "{from: [9216, 3072], to: [[3072, 3072], [3072, 3072], [3072, 3072]]}"
    _, _, status = one(load, f"{{from: x.qkv.weight, to: [x.q, x.k, x.v], shapes: {shapes}}}")
    assert status == "passed"


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("{from: [a, b], dropped: true}", "several names of `from` are only allowed with `to`"),
        ("{from: a, unmapped: true, shapes: {from: [1], to: [1]}}", "only allowed with `to`"),
        (
            "{from: a, to: b, shapes: {from: [1], to: [1]}, values: {from: [1], to: [1]}}",
            "`values` give the shapes",
        ),
        ("{from: a, to: [b, c], values: {from: [1], to: [[1]]}}", "`to` has 2 names"),
        ("{from: a, to: b, values: {from: [[1], [2, 3]], to: [1]}}", "the same length"),
        ("{from: a, to: b, values: {from: [x], to: [1]}}", "numbers must be in nested lists"),
        ("{from: a, to: b, shapes: {from: [1.5], to: [1]}}", "lists of whole numbers"),
        ("{from: a, to: b, shapes: {from: [[2, 3]], to: [2, 3]}}", "lists of whole numbers"),
        ("{from: a, to: 3}", "need a name, or a list of names"),
        ("{from: a, to: [b]}", "at least 2 items"),
    ],
)
def test_a_mistake_in_a_test_is_told_at_its_place(load: Load, test: str, why: str) -> None:
    with pytest.raises(RemapError) as refused:
        load(f"{RULES}tests:\n  - {test}\n")
    [problem] = refused.value.problems
    assert why in problem.cause
    assert problem.place is not None


def test_operations_without_a_test_are_named_and_get_one(load: Load) -> None:
    rules = load(RULES)
    labels = [
        "names/block", "tensors/qkv", "tensors/grouped", "tensors/experts", "tensors/unstacked",
        "tensors/turned", "tensors/cut",
    ]  # fmt: skip
    assert untested(rules) == labels
    assert run_rule_tests(rules, "r.yaml", [], update=True, offline=True).passed
    again = load_rule_file(rules.path)
    assert untested(again) == []
    results = {result.rules[-1]: result for result in run_tests(again)}
    assert {result.status for result in results.values()} == {"passed"}
    assert results["tensors/experts"].name == "x.0.w1, x.1.w1, x.0.w3, x.1.w3"
    assert results["tensors/unstacked"].wanted == "x.0.w, x.1.w"


def test_the_real_names_that_belong_together_make_the_test(load: Load) -> None:
    names = ("a.0.w1", "a.0.w3", "b.0.w1", "b.0.w3", "b.1.w1", "b.1.w3")
    test = new_test(load(RULES), "tensors/experts", Known(names, names))
    assert test is not None
    assert (test.from_, test.to) == (("a.0.w1", "a.0.w3"), "a.gate_up")


def test_the_old_name_of_a_renamed_tensor_makes_the_test(load: Load) -> None:
    rules = load(
        "names: [{id: up, from: 'old.{p...}', to: 'new.{p}'}]\n"
        "tensors: [{id: turn, from: 'new.{p...}.w', to: 'new.{p}.w', how: {axes: [1, 0]}}]\n"
    )
    test = new_test(rules, "tensors/turn", Known())
    assert test is not None
    assert (test.from_, test.to) == ("old.x.w", "new.x.w")


def test_results_as_json_are_texts(load: Load, tmp_path: Path) -> None:
    rules = load(f"{RULES}tests:\n  - {{from: x.qkv.weight, to: [x.q, x.k, x.v]}}\n")
    [test] = run_rule_tests(rules, "r.yaml", [], update=False, offline=True).to_json()["tests"]
    assert test["name"] == "x.qkv.weight"
    assert test["wanted"] == test["got"] == "x.q, x.k, x.v"
