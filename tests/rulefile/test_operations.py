"""Tensor operations in rule files: what is said of mistakes, and what is taken for what."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_remap.core.problem import RemapError
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import load_rule_file

QKV = "to: ['{m}.q.{p}', '{m}.k.{p}', '{m}.v.{p}'], how: {split: 0}"


def written(rule: str) -> Path:
    path = Path("operations.yaml")
    path.write_text(f"schema: 1\ntensors:\n  - {{id: it, {rule}}}\n")
    return path


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        (f"from: 'x.{{m}}', {QKV}", "field `{p}` of `to` is not in `from`"),
        ("from: ['{m}.a', '{n}.b'], to: '{m}.c', how: {concat: 0}", "have different fields"),
        ("from: ['{m}.a', '{m}.b'], to: ['{m}.c', '{m}.d'], how: {}", "both have several tensors"),
        ("from: ['{m}.a', '{m}.b'], to: '{m}.c', how: {}", "`how` lacks the axis"),
        ("from: ['{m}.a', '{m}.b'], to: '{m}.c', how: {split: 0}", "take one tensor, but `from`"),
        ("from: '{m}.a', to: ['{m}.b', '{m}.c'], how: {concat: 0}", "make one tensor, but `to`"),
        ("from: '{m}.a', to: '{m}.b', how: {}", "`how` changes nothing"),
        ("from: '{m}.a', to: '{m}.b', how: {split: 0}", "nothing to join or divide"),
        ("from: '{m}.a', to: '{m}.b', how: {split: 0, concat: 0}", "divide, `concat` and"),
        ("from: '{m}.{e:each}.a', to: '{m}.b', how: {concat: 0}", "is stacked or unstacked"),
        ("from: ['{m}.{e:each}.a', '{m}.b'], to: '{m}.c', how: {stack: 0}", "all parts are lists"),
        (
            "from: ['{m}.a', '{m}.b'], to: '{m}.c', how: {stack: 0, concat: 1}",
            "only lists can have both",
        ),
        ("from: '{m}.a', to: 'b', how: {axes: [1, 0]}", "leaves out the field `{m}`"),
        ("from: '{m}.a', to: '{m}.b', how: {axes: [2, 0]}", "each number from 0 to 1 once"),
        ("from: '{m}.a', to: '{m}.b', how: {view: ['*', '*'], axes: [1, 0]}", "at most one `*`"),
        (
            "from: '{m}.a', to: '{m}.b', how: {view: [h, '*'], axes: [1, 0]}",
            "isn't a name of `let`",
        ),
        (
            "from: '{m}.a', to: '{m}.b', how: {axes: [1, 0]}, let: {h: target.text_config.x}",
            "no view or size uses the name `h`",
        ),
        ("from: '{m}.a', to: '{m}.b', how: {axis: 1, axes: [1, 0]}", "only allowed with `view`"),
        ("from: '{m}.a', to: [{drop: why}, {drop: why}], how: {split: 0}", "every part is dropped"),
        ("from: '{m}.a', to: ['{m}.b', '{m}.b'], how: {split: 0}", "`to` has `{m}.b` twice"),
        ("from: ['{m}.a', '{m}.a'], to: '{m}.b', how: {concat: 0}", "`from` has `{m}.a` twice"),
        ("from: '{m}.a', to: '{m}.b', how: {view: [a-b, '*'], axes: [1, 0]}", "a size is a whole"),
        ("from: '{m}.a', to: '{m}.b', how: {view: [0, '*'], axes: [1, 0]}", "a size is a whole"),
        ("from: '{m}.a', to: '{m}.b', how: {view: [1.5, '*'], axes: [1, 0]}", "a size is a whole"),
        (
            "from: '{m}.a', to: ['{m}.b', {drop: why, size: a b}], how: {split: 0}",
            "a size is a whole",
        ),
        (
            "from: '{m}.a', to: '{m}.b', how: {view: [h, '*'], axes: [1, 0]}, let: {h: source.x}",
            "`source.x` isn't `target.` and a key of its config",
        ),
        (
            "from: '{m}.a', to: [{drop: why}, {drop: why}, '{m}.b'], how: {split: 0}",
            "all but one need a `size`",
        ),
        (
            "from: [{drop: why}, '{m}.a'], to: '{m}.b', how: {concat: 0}",
            "can't have a dropped part",
        ),
        ("from: '{m}.a', to: ['{m}.b', {drop: x, name: z}], how: {split: 0}", "`name` or `drop`"),
        ("from: '{m}.a', to: ['{m}.b', 3], how: {split: 0}", "a tensor is a template"),
        ("from: '{m}.a', to: 3, how: {split: 0}", "need a tensor or a list of tensors"),
        ("from: '{n}.a', to: '{n+1}.b', how: {axes: [1, 0]}", "`to` computes with `{n}`"),
    ],
)
def test_a_mistake_is_told_at_its_place(rule: str, cause: str) -> None:
    with pytest.raises(RemapError) as refused:
        load_rule_file(written(rule))
    [problem] = refused.value.problems
    assert cause in problem.cause
    assert problem.place is not None
    assert problem.place.line == 3


def test_a_tensor_is_taken_by_the_name_that_the_names_made() -> None:
    path = written("from: '{m...}.experts.{e:each}.w2', to: '{m}.experts.down', how: {stack: 0}")
    path.write_text(path.read_text() + "names: [{id: body, from: 'b.{x...}', to: 'model.{x}'}]\n")
    program = compile_rules(load_rule_file(path))
    rewrite = program.rewrite("b.layers.3.experts.12.w2")
    assert rewrite.rules == ("names/body", "tensors/it")
    assert rewrite.target == "model.layers.3.experts.12.w2"
    assert rewrite.operated is not None
    assert rewrite.operated.makes == ["model.layers.3.experts.down"]
    assert rewrite.operated.taken.number == 12
    assert program.rewrite("b.layers.3.experts.012.w2").operated is None
    assert program.rewrite("layers.3.experts.0.w2").operated is not None, "without a rename"


def test_an_operation_of_a_file_replaces_that_of_the_file_it_extends() -> None:
    written("from: '{m}.a', to: '{m}.b', how: {axes: [1, 0]}")
    child = Path("child.yaml")
    child.write_text(
        "schema: 1\nextends: [operations.yaml]\n"
        "tensors: [{id: it, from: '{m}.c', to: '{m}.d', how: {axes: [1, 0]}}]\n"
    )
    program = compile_rules(load_rule_file(child))
    assert program.rewrite("x.a").operated is None
    assert program.rewrite("x.c").operated is not None
