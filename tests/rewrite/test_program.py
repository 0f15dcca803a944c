"""What becomes of a name: prepare in turn, then the first of names; drops, traces, tests that
stand in a file.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_remap.authoring.in_file_tests import run_tests
from llava_remap.core.problem import RemapError
from llava_remap.rewrite import Program, Rewrite, Step, compile_rules
from llava_remap.rulefile import Regex, Template, load_rule_file, pattern
from tests.conftest import run_away

from .conftest import Load

RUNS = settings(deadline=None)


@pytest.fixture(scope="module")
def llava() -> Program:
    return compile_rules(load_rule_file("llava-v1.5"))


def test_names_first_match_wins(load: Load) -> None:
    program = compile_rules(load("""\
names:
  - {id: special, from: 'a.b.{x}', to: 'first.{x}'}
  - {id: general, from: 'a.{rest...}', to: 'second.{rest}'}
  - {id: chained, from: 'first.{x}', to: 'third.{x}'}
"""))  # fmt: skip
    assert program.rewrite("a.b.c").target == "first.c"
    assert program.rewrite("a.b.c").rules == ("names/special",)
    assert program.rewrite("a.c.b").target == "second.c.b"
    assert program.rewrite("first.c").target == "third.c"


def test_prepare_runs_every_rule_in_turn(load: Load) -> None:
    program = compile_rules(load("""\
prepare:
  - {id: one, from: 'x.{r...}', to: 'y.{r}'}
  - {id: none, from: 'q.{r...}', to: 'nowhere.{r}'}
  - {id: two, from: 'y.{r...}', to: 'z.{r}'}
  - {id: back, from: 'w.{r...}', to: 'x.{r}'}
names:
  - {id: keep, from: '{r...}', to: 'kept.{r}'}
"""))  # fmt: skip
    assert program.rewrite("x.a") == Rewrite(
        source="x.a",
        target="kept.z.a",
        reason=None,
        prepared="z.a",
        trace=(
            Step("prepare/one", "x.a", "y.a"),
            Step("prepare/two", "y.a", "z.a"),
            Step("names/keep", "z.a", "kept.z.a"),
        ),
    )
    assert program.rewrite("x.a").rules == ("prepare/one", "prepare/two", "names/keep")
    assert program.rewrite("w.a").prepared == "x.a"  # a rule before doesn't get a second turn


def test_prepare_runs_each_rule_at_most_once(load: Load) -> None:
    program = compile_rules(
        load(
            "prepare: [{id: unwrap, from: 'module.{r...}', to: '{r}'}]\n"
            "names: [{id: a, from: a, to: b}]\n"
        )
    )
    assert program.rewrite("module.a").target == "b"
    twice = program.rewrite("module.module.a")
    assert (twice.target, twice.prepared, twice.rules) == (None, "module.a", ("prepare/unwrap",))


def test_prepare_alone_maps_nothing(load: Load) -> None:
    program = compile_rules(load("prepare: [{id: p, from: a, to: b}]\n"))
    assert program.rewrite("a") == Rewrite("a", None, None, "b", (Step("prepare/p", "a", "b"),))


def test_unmapped_without_any_rule(load: Load) -> None:
    assert compile_rules(load("name: empty\n")).rewrite("a.b") == Rewrite(
        "a.b", None, None, "a.b", ()
    )


def test_a_drop_in_prepare_ends_it(load: Load) -> None:
    program = compile_rules(load("""\
prepare:
  - {id: unwrap, from: 'module.{r...}', to: '{r}'}
  - {id: buffers, from: '{r...}.inv_freq', drop: computed by the model}
  - {id: after, from: '{r...}', to: 'after.{r}'}
names:
  - {id: keep, from: '{r...}', to: '{r}'}
"""))  # fmt: skip
    assert program.rewrite("module.a.inv_freq") == Rewrite(
        source="module.a.inv_freq",
        target=None,
        reason="computed by the model",
        prepared="a.inv_freq",
        trace=(
            Step("prepare/unwrap", "module.a.inv_freq", "a.inv_freq"),
            Step("prepare/buffers", "a.inv_freq", None),
        ),
    )


def test_a_drop_in_names(load: Load) -> None:
    program = compile_rules(load("""\
names:
  - {id: regex, match: 'newline$', drop: no tiles}
  - {id: never, from: 'image_newline', to: 'image_newline'}
"""))  # fmt: skip
    assert program.rewrite("image_newline") == Rewrite(
        "image_newline",
        None,
        "no tiles",
        "image_newline",
        (Step("names/regex", "image_newline", None),),
    )


def test_an_identity_rule_maps(load: Load) -> None:
    program = compile_rules(load("names: [{id: keep, from: a.b, to: a.b}]\n"))
    assert program.rewrite("a.b") == Rewrite(
        "a.b", "a.b", None, "a.b", (Step("names/keep", "a.b", "a.b"),)
    )
    assert program.rewrite("a.c").target is None


def test_regex_rules(load: Load) -> None:
    program = compile_rules(load(r"""
names:
  - {id: norm, match: '^model\.(?<what>norm|scale)\.', replace: 'text.\g<what>.'}
  - {id: swap, match: '(\w+)\.(\w+)', replace: '\2.\1'}
"""))  # fmt: skip
    assert program.rewrite("model.norm.weight").target == "text.norm.weight"
    assert program.rewrite("a.b.c.d").target == "b.a.c.d"
    assert program.rewrite("a").target is None


RUNAWAY = "names: [{id: slow, match: '^(a|aa)+$', replace: b}]\n"


def test_a_regex_that_runs_away(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compile_rules(load(RUNAWAY))
    name = "a" * 50 + "!"
    run_away(monkeypatch, "(a|aa)", 51)
    with pytest.raises(RemapError) as caught:
        program.rewrite(name)
    (problem,) = caught.value.problems
    assert problem.code == "LR206"
    assert "r.yaml:2:9 the regex of `names/slow` ran into the time limit" in problem.placed_cause
    assert name not in problem.cause
    assert problem.names == (name,)
    assert problem.fix
    monkeypatch.undo()
    assert program.rewrite("a" * 50).target == "b"


def test_a_regex_that_runs_away_in_prepare(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "TIME_LIMIT", 0.05)
    program = compile_rules(
        load(
            "prepare: [{id: slow, match: '^(a|aa)+$', drop: slow}]\n"
            "names: [{id: a, from: a, to: b}]\n"
        )
    )
    with pytest.raises(RemapError, match=r"LR206.*`prepare/slow`"):
        program.rewrite("a" * 50 + "!")


def test_without(load: Load) -> None:
    program = compile_rules(load("""\
prepare: [{id: a, from: a, drop: gone}]
names: [{id: a, from: a, to: b}, {id: c, from: '{x}', to: 'c.{x}'}]
"""))  # fmt: skip
    assert program.rewrite("a").reason == "gone"
    assert program.without("prepare/a").rewrite("a").target == "b"
    assert program.without("prepare/a").without("names/a").rewrite("a").target == "c.a"
    assert program.without("names/a").rewrite("a").reason == "gone"
    assert program.without("a") == program.without("names/none") == program
    assert program.rewrite("a", without="prepare/a") == program.without("prepare/a").rewrite("a")
    assert program.rewrite("a", without="names/a") == program.rewrite("a")
    assert program.rewrite("a").reason == "gone"  # the first one is as it was


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("model.layers.31.mlp.up_proj.weight", "language_model.model.layers.31.mlp.up_proj.weight"),
        (
            "module.model.layers.0.mlp.up_proj.weight",
            "language_model.model.layers.0.mlp.up_proj.weight",
        ),
        ("base_model.model.model.norm.weight", "language_model.model.norm.weight"),
        ("module.base_model.model.lm_head.weight", "language_model.lm_head.weight"),
        ("module.module._orig_mod.lm_head.weight", "language_model.lm_head.weight"),
        ("base_model._orig_mod.model.module.lm_head.weight", "language_model.lm_head.weight"),
        (
            "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.mlp.up_proj.weight",
            "language_model.model.layers.0.mlp.up_proj.weight",
        ),
        (
            "model.vision_tower.base_model.model.vision_tower.vision_model.post_layernorm.bias",
            "vision_tower.vision_model.post_layernorm.bias",
        ),
        ("modules.lm_head.weight", None),
        ("model.vision_resampler.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"),
        ("modelX.layers.0.mlp.up_proj.weight", None),
        ("model.layers.x.mlp.up_proj.weight", None),
        ("model.layersX.0.mlp.up_proj.weight", None),
        ("model.layers.0", None),
        ("xmodel.norm.weight", None),
        ("model.norm.weight.extra", None),
        ("language_model.model.norm.weight", None),  # already converted
        ("", None),
        (".", None),
        ("model.", None),
    ],
)
def test_llava(llava: Program, name: str, target: str | None) -> None:
    outcome = llava.rewrite(name)
    assert (outcome.target, outcome.reason) == (target, None)


def test_llava_drops_buffers_only(llava: Program) -> None:
    dropped = llava.rewrite("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert dropped.rules == ("prepare/inv-freq",)
    assert dropped.reason == "computed by the model since transformers 4.32"
    assert llava.rewrite("model.image_newline").reason is None


SEGMENTS = st.sampled_from(
    [
        "model",
        "module",
        "base_model",
        "layers",
        "0",
        "31",
        "mm_projector",
        "2",
        "norm",
        "weight",
        "lm_head",
        "rotary_emb",
        "inv_freq",
        "vision_tower",
        "vision_model",
        "vision_resampler",
        "embed_tokens",
        "modelX",
        "",
        "{rest}",
        "\\1",
    ]
)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=7).map(".".join)
WRAPPED = re.compile(r"\.(module|base_model\.model)\.")
FIRST = compile_rules(load_rule_file("llava-v1.5"))
SECOND = compile_rules(load_rule_file("llava-v1.5"))


@RUNS
@given(NAMES | st.text(max_size=30))
def test_rewriting_is_deterministic(name: str) -> None:
    assert FIRST.rewrite(name) == FIRST.rewrite(name) == SECOND.rewrite(name)


@RUNS
@given(NAMES, NAMES)
def test_a_name_doesnt_change_what_becomes_of_another(one: str, other: str) -> None:
    before = FIRST.rewrite(one)
    FIRST.rewrite(other)
    assert FIRST.rewrite(one) == before


@RUNS
@given(NAMES.map("elsewhere.{}.not_ours".format).filter(lambda name: not WRAPPED.search(name)))
def test_a_name_no_rule_touches_is_unmapped(name: str) -> None:
    assert FIRST.rewrite(name) == Rewrite(name, None, None, name, ())


@RUNS
@given(NAMES)
def test_a_trace_is_a_chain(name: str) -> None:
    outcome = FIRST.rewrite(name)
    at: str | None = name
    for step in outcome.trace:
        assert step.before == at
        at = step.after
    assert len(set(outcome.rules)) == len(outcome.rules)
    assert not any(rule.startswith("names/") for rule in outcome.rules[:-1])
    if not outcome.trace or (outcome.rules[-1].startswith("prepare/") and outcome.reason is None):
        assert outcome.target is None
        assert outcome.prepared == at
    else:
        assert outcome.target == at
        assert (outcome.reason is None) == (at is not None)
        assert outcome.prepared == outcome.trace[-1].before


def test_in_file_tests(load: Load) -> None:
    rules = load("""\
prepare: [{id: gone, from: gone, drop: reasons}]
names: [{id: a, from: 'a.{x}', to: 'b.{x}'}]
tests:
  - {from: a.x, to: b.x}
  - {from: a.x, to: b.y}
  - {from: a.x, dropped: true}
  - {from: a.x, unmapped: true}
  - {from: gone, dropped: true}
  - {from: gone, to: gone}
  - {from: gone, unmapped: true}
  - {from: other, unmapped: true}
  - {from: other, to: other}
  - {from: other, dropped: true}
""")
    assert [(t.name, t.wanted, t.got, t.status) for t in run_tests(rules)] == [
        ("a.x", "b.x", "b.x", "passed"),
        ("a.x", "b.y", "b.x", "failed"),
        ("a.x", "(dropped)", "b.x", "failed"),
        ("a.x", "(unmapped)", "b.x", "failed"),
        ("gone", "(dropped)", "(dropped)", "passed"),
        ("gone", "gone", "(dropped)", "failed"),
        ("gone", "(unmapped)", "(dropped)", "failed"),
        ("other", "(unmapped)", "(unmapped)", "passed"),
        ("other", "other", "(unmapped)", "failed"),
        ("other", "(dropped)", "(unmapped)", "failed"),
    ]


def test_no_in_file_tests(load: Load) -> None:
    assert run_tests(load("names: [{id: a, from: a, to: b}]\n")) == []


PIECES = st.sampled_from(["a", "b", "{x}", "{n:int}", "{r...}", "a{y}", "w"])
EXPRESSIONS = st.sampled_from(
    [
        "^a",
        "a",
        r"^a\.b",
        r"^a\.(.+)$",
        r"^a\.?b",
        "^a|b",
        "^(?:a|b)+$",
        "^[ab]",
        r"\.b$",
        "^ab*",
        "^$",
        r"^w\.(\d+)\.(.*)$",
        "(?i)^A",
    ]
)


@RUNS
@given(
    st.lists(
        st.one_of(
            st.lists(PIECES, min_size=1, max_size=3, unique=True).map(".".join),
            EXPRESSIONS.map(lambda e: f"/{e}"),
        ),
        max_size=8,
    ),
    st.lists(
        st.sampled_from(["a", "b", "ab", "0", "12", "w", "A", ""]), min_size=1, max_size=4
    ).map(".".join),
)
def test_rules_asked_at_once_answer_as_one_by_one(patterns: list[str], name: str) -> None:
    """Every rule drops, so that the trace has the first of `names` that matches: the same as if
    each were tried in turn.
    """
    tried = [
        Regex(p[1:], None).search(name) if p.startswith("/") else Template(p).match(name)
        for p in patterns
    ]
    first = next((f"names/r{n}" for n, found in enumerate(tried) if found is not None), None)
    with tempfile.TemporaryDirectory() as folder:
        rules = [
            f"match: {json.dumps(p[1:])}" if p.startswith("/") else f"from: '{p}'" for p in patterns
        ]
        lines = "".join(f"\n  - {{id: r{n}, {rule}, drop: x}}" for n, rule in enumerate(rules))
        path = Path(folder) / "r.yaml"
        path.write_text(f"schema: 1\nnames:{lines or ' []'}\n")
        found = compile_rules(load_rule_file(path)).rewrite(name)
    assert found.rules == ((first,) if first else ())


def test_no_rules_at_all(load: Load) -> None:
    assert compile_rules(load("name: empty\n")).rewrite("a.b") == Rewrite(
        "a.b", None, None, "a.b", ()
    )
