"""The way back: from a new name to the one it was made from."""

from __future__ import annotations

import json

import pytest

from llava_remap.core.problem import RemapError
from llava_remap.rewrite import compile_all, compile_rules
from llava_remap.rulefile import load_rule_file, pattern
from tests.conftest import MANIFESTS

from .conftest import Load

RULES = """\
prepare:
  - {id: unwrap, from: 'module.{r...}', to: '{r}'}
names:
  - {id: layers,  from: 'h.{n:int}.{rest...}', to: 'layers.{n}.{rest}'}
  - {id: head,    match: '^head\\.', replace: 'lm_head.',
     reverse: {match: '^lm_head\\.', replace: 'head.'}}
  - {id: regex,   match: '^a\\.', replace: 'b.'}
  - {id: oneway,  from: 'c.{p}', to: 'd.{p}', one_way: true}
  - {id: lossy,   from: 'e.{x}.{p}', to: 'f.{p}'}
  - {id: shadow,  from: 's.{p}', to: 't.{p}'}
  - {id: shadows, from: 's.{p}', to: 'u.{p}'}
  - {id: one,     from: 'k.{p}', to: 'w.{p}'}
  - {id: other,   from: 'l.{p}', to: 'w.{p}'}
  - {id: drop,    from: 'x.{p}', drop: no use}
"""


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("layers.3.mlp.up.weight", "h.3.mlp.up.weight"),
        ("layers.x.mlp", None),
        ("lm_head.weight", "head.weight"),
        ("b.weight", None),
        ("d.weight", None),
        ("f.weight", None),
        ("t.weight", "s.weight"),
        (
            "u.weight",
            None,
        ),  # `s.weight` would lead back here, but the way there takes it to `t.weight`
        ("w.weight", None),  # `k.weight` and `l.weight` both become it
        ("nothing", None),
    ],
)
def test_inverse(target: str, source: str | None, load: Load) -> None:
    program = compile_rules(load(RULES))
    assert program.inverse(target) == source
    if source is not None:
        assert program.rewrite(source).target == target


def test_why_a_rule_has_no_way_back(load: Load) -> None:
    program = compile_all(load(RULES))
    reasons = {rule.label: why for rule in program.names if (why := rule.kind.one_way)}
    assert reasons == {
        "names/regex": "a regex has no way back without `reverse:`",
        "names/oneway": "it says `one_way: true`",
        "names/lossy": "`to` leaves out the field `{x}`",
    }


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ("llava-v1.5", "llava-v1.5-7b"),
        ("llava-v1.5", "bakllava-v1"),
        ("llava-interleave", "llava-interleave-qwen-0.5b.released"),
    ],
)
def test_shipped_files_lead_back_from_every_target(rules: str, name: str) -> None:
    tensors = json.loads((MANIFESTS / f"{name}.json").read_text())["tensors"]
    program = compile_rules(load_rule_file(rules), tensors)
    there = {target: source for source in tensors if (target := program.rewrite(source).target)}
    assert len(there) > 500
    assert {target: program.inverse(target) for target in there} == there


def test_a_way_back_that_runs_away_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "TIME_LIMIT", 0.05)
    program = compile_all(
        load(
            "names: [{id: a, match: '^b$', replace: c, reverse: {match: '^(a|aa)+$', replace: "
            "b}}]\n"
        )
    )
    with pytest.raises(RemapError) as caught:
        program.inverse("a" * 60 + "!")
    assert [problem.code for problem in caught.value.problems] == ["LR206"]
