"""Shapes of what operations make, known before the target is: numpy does the same to arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llava_remap.rewrite import compile_rules
from llava_remap.routing.route import route
from llava_remap.rulefile import load_rule_file
from tests.planning.conftest import checkpoint

HEAD = "schema: 1\nname: t\nversion: 1.0.0\nsummary: t\nsources: {model: {}}\n"
ONE, TWO = np.zeros((1, 6, 4)), np.zeros((3, 6, 4))


@pytest.mark.parametrize(
    ("rule", "arrays", "made"),
    [
        ("from: a, to: b, how: {axes: [2, 0, 1]}", {"a": TWO}, TWO.transpose(2, 0, 1)),
        ("from: a, to: b, how: {unstack: 0}", {"a": ONE}, ONE[0]),
        ("from: a, to: b, how: {axis: 1, view: [2, '*'], axes: [0, 2, 1, 3]}", {"a": TWO}, TWO),
        (
            "from: a, to: b, how: {axis: 1, view: [2, '*']}",
            {"a": TWO},
            TWO.reshape(3, 2, 3, 4),
        ),
        ("from: [a, c], to: b, how: {concat: 0}", {"a": ONE, "c": TWO}, np.concatenate([ONE, TWO])),
        ("from: [a, c], to: b, how: {stack: 1}", {"a": TWO, "c": TWO}, np.stack([TWO, TWO], 1)),
        (
            "from: 'a.{e:each}', to: b, how: {stack: 0}",
            {"a.0": TWO, "a.1": TWO},
            np.stack([TWO] * 2),
        ),
    ],
)
def test_a_shape_that_the_old_tensors_tell(
    rule: str, arrays: dict[str, np.ndarray], made: np.ndarray
) -> None:
    assert shapes(rule, arrays) == {"b": made.shape}


@pytest.mark.parametrize(
    ("rule", "arrays"),
    [
        ("from: a, to: [b, c], how: {split: 0}", {"a": TWO}),
        ("from: a, to: b, how: {axis: 1, view: [2, '*'], axes: [1, 0, 2, 3]}", {"a": TWO}),
        ("from: a, to: b, how: {axis: 1, view: [4, '*']}", {"a": TWO}),
        ("from: a, to: {name: b, view: [3, 6]}, how: {}", {"a": TWO}),
        ("from: [a, c], to: b, how: {view: ['*', 2], stack: 1}", {"a": TWO, "c": TWO}),
        ("from: a, to: b, how: {axis: 5, view: [2, '*'], axes: [0, 1, 2, 3, 4, 6, 5]}", {"a": TWO}),
    ],
)
def test_a_shape_that_the_target_has_to_tell(rule: str, arrays: dict[str, np.ndarray]) -> None:
    assert shapes(rule, arrays) == {}


def shapes(rule: str, arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    path = Path("rules.yaml")
    path.write_text(f"{HEAD}tensors: [{{id: it, {rule}}}]\n")
    rules = load_rule_file(path)
    source = checkpoint({name: array.shape for name, array in arrays.items()})
    routes = route(rules, compile_rules(rules), {"model": source})
    return {name: tensor.shape for name, tensor in routes.produced.items()}
