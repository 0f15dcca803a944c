"""Whatever valid rules are given, lint has an answer: arbitrary templates, regexes and
conditions, with and without names.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_remap.authoring.lint import Names, lint
from llava_remap.authoring.lint.trial import Trial
from llava_remap.core.codes import CODES
from llava_remap.core.problem import RemapError
from llava_remap.rewrite import compile_all
from llava_remap.rulefile import PatternError, Template, load_rule_file, pattern

PIECES = st.sampled_from(["a", "b.", ".", "model", "{x}", "{n:int}", "{r...}", "_", "0"])
TEMPLATES = st.lists(PIECES, min_size=1, max_size=4).map("".join)
REGEX_PIECES = [
    *"ab.^$|()*+?\\1",
    "(a|b)",
    "[^.]",
    "\\.",
    "\\d",
    "\\w+",
    "(?<x>a)",
    "(?=b)",
    "(?!a)",
    "{2}",
    "{0,3}",
    "a*?",
    "(?>a)",
]
REGEXES = st.lists(
    st.sampled_from([*REGEX_PIECES, "\\p{L}", "(?i)", "\\b", "(?(1)a|b)", "[a-c]"]), max_size=6
).map("".join)
WHEN = st.none() | st.sampled_from(
    [{"config": {"a": 1}}, {"present": ["a"]}, {"absent": ["{r...}.b"]}]
)
NAMES = st.text("ab.0_", min_size=1, max_size=8)


@st.composite
def rules(draw: st.DrawFn, number: int) -> dict[str, object]:
    rule: dict[str, object] = {"id": f"r{number}"}
    kind = draw(st.sampled_from(["rename", "drop", "regex", "regex-drop", "reverse"]))
    if kind in ("rename", "drop"):
        rule["from"] = draw(TEMPLATES)
    else:
        rule["match"] = draw(REGEXES)
    if kind == "rename":
        rule["to"] = draw(TEMPLATES)
    elif kind in ("drop", "regex-drop"):
        rule["drop"] = "a reason"
    else:
        rule["replace"] = draw(st.sampled_from(["", "a", "b.", "\\g<0>", "model."]))
        if kind == "reverse":
            rule["reverse"] = {
                "match": draw(REGEXES),
                "replace": draw(st.sampled_from(["", "a", "b."])),
            }
    if (when := draw(WHEN)) is not None:
        rule["when"] = when
    return rule


@st.composite
def files(draw: st.DrawFn) -> str:
    lists = {
        key: [draw(rules(number)) for number in range(draw(st.integers(0, 3)))]
        for key in ("prepare", "names")
    }
    tests = [
        {"from": name, "unmapped": True}
        for name in draw(st.lists(NAMES, max_size=2))
        if name.strip()
    ]
    return json.dumps({"schema": 1, **lists, "tests": tests})


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files(), st.lists(NAMES, max_size=6))
def test_it_has_an_answer(tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with patch.object(pattern, "TIME_LIMIT", 0.02):
        try:
            loaded = load_rule_file(path)
        except RemapError:
            return
        for given_names in (
            None,
            Names(tuple(names), tuple(names), {"a": 1}, frozenset(names[:1])),
        ):
            for finding in lint(loaded, given_names).findings:
                assert finding.problem.code in CODES
                assert finding.mark is not None
                assert "\n" not in finding.problem.placed_cause


@given(TEMPLATES)
def test_a_template_takes_the_names_made_from_it(text: str) -> None:
    try:
        template = Template(text)
    except PatternError:
        return
    assert all(template.match(name) is not None for name in template.examples)


@pytest.mark.parametrize(
    "match",
    [
        "((a{100}){100}){100}",
        "(?:){1000000000}",
        "a{1000000}",
        "(" * 90 + "a" + ")" * 90,
        "((((a+)+)+)+)+",
    ],
)
def test_a_bomb_is_none(match: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        json.dumps({"schema": 1, "names": [{"id": "a", "match": match, "drop": "a reason"}]})
    )
    try:
        loaded = load_rule_file(path)
    except RemapError:
        return
    assert {finding.problem.code for finding in lint(loaded).findings} <= set(CODES)


def test_witnesses_are_taken_by_their_rules() -> None:
    rules = load_rule_file("llava-v1.5")
    trial = Trial.of(rules, compile_all(rules), None)
    for rule in trial.rules:
        assert trial.witnesses[rule.label]
        assert all(rule(name) is not None for name in trial.witnesses[rule.label])
