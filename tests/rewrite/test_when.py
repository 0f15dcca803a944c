"""Rules that count for some checkpoints only, and tests that say what else the checkpoint has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_remap.authoring.in_file_tests import run_tests
from llava_remap.rewrite import compile_all, compile_rules
from tests.conftest import MANIFESTS, Run

from .conftest import Load

RULES = """\
prepare:
  - {id: unwrap, from: 'w.{r...}', to: '{r}', when: {present: ['w.marker']}}
names:
  - {id: new,  from: 'head.{p}', to: 'new.{p}', when: {config: {kind: [a, null]}, absent: [old]}}
  - {id: late, from: 'head.{p}', to: 'late.{p}', when: {present: ['marker']}}
  - {id: all,  from: 'head.{p}', to: 'old.{p}'}
"""


@pytest.mark.parametrize(
    ("names", "config", "target"),
    [
        ((), {"kind": "a"}, "new.x"),
        ((), {}, "new.x"),
        ((), None, "new.x"),
        ((), {"kind": "b"}, "old.x"),
        (("old",), {"kind": "a"}, "old.x"),
        (
            ("w.marker",),
            {"kind": "b"},
            "late.x",
        ),  # a `when` of `names` sees names as `prepare` left them
        (("w.other",), {"kind": "b"}, "old.x"),
        (("marker",), {"kind": "b"}, "late.x"),
    ],
)
def test_when(
    names: tuple[str, ...], config: dict[str, object] | None, target: str, load: Load
) -> None:
    assert compile_rules(load(RULES), names, config).rewrite("head.x").target == target


def test_a_when_of_prepare_sees_names_as_they_are_stored(load: Load) -> None:
    rules = load(RULES)
    assert (
        compile_rules(rules, ["w.marker", "w.head.x"], {"kind": "b"}).rewrite("w.head.x").target
        == "late.x"
    )
    assert (
        compile_rules(rules, ["marker", "w.head.x"], {"kind": "b"}).rewrite("w.head.x").target
        is None
    )


def test_assuming_one_condition(load: Load) -> None:
    program = compile_all(load(RULES))
    assert program.assuming(None).rewrite("head.x").rules == ("names/all",)
    assert program.assuming(program.names[1].when).rewrite("head.x").rules == ("names/late",)


def test_what_a_test_says_is_given(load: Load) -> None:
    rules = load(RULES + """\
tests:
  - {from: head.x, to: new.x}
  - {from: head.x, to: old.x, given: {config: {kind: b}}}
  - {from: head.x, to: late.x, given: {config: {kind: b}, names: [marker]}}
  - {from: w.head.x, to: late.x, given: {config: {kind: b}, names: [w.marker]}}
  - {from: w.head.x, unmapped: true}
  - {from: head.x, to: late.x}
""")  # fmt: skip
    assert [(result.got, result.status) for result in run_tests(rules)] == [
        ("new.x", "passed"), ("old.x", "passed"), ("late.x", "passed"), ("late.x", "passed"),
        ("(unmapped)", "passed"),
        ("new.x", "failed"),
    ]  # fmt: skip


@pytest.mark.torch
def test_a_job_asks_the_first_source(run: Run, tmp_path: Path) -> None:
    """The same manifest under two configs: the rule counts for one of them."""
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: mine\nextends: [llava-v1.5.yaml]\n"
        "names:\n  - {id: norm, from: 'model.norm.{p}', to: 'elsewhere.{p}', when: {config: "
        "{mm_hidden_size: 7}}}\n"
    )
    manifest = json.loads((MANIFESTS / "llava-v1.5-7b.json").read_text())
    for hidden_size, code in ((1024, 0), (7, 1)):
        manifest["config"]["mm_hidden_size"] = hidden_size
        Path("m.json").write_text(json.dumps(manifest))
        ran = run("apply", "mine.yaml", "--source", "m.json", "--dry-run", "--format", "json")
        assert ran.code == code
        assert [p["code"] for p in ran.json["problems"]] == ["LR302", "LR303"] * code
