"""Every rule that took a name and what it left; for an unmapped one the nearest rules, and
exactly why they don't match.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_remap.authoring.explain import Explainer
from llava_remap.core.problem import RemapError
from llava_remap.rulefile import PatternError, RuleFile, Template, load_rule_file
from llava_remap.rulefile import template as template_module
from tests.rewrite.conftest import Load


def nearest(rules: RuleFile, name: str) -> list[tuple[str, str]]:
    explainer = Explainer(rules, (), None)
    explanation = explainer.explain(explainer.program.rewrite(name))
    assert explanation.outcome == "unmapped"
    return [(near.rule.removeprefix("names/"), near.why) for near in explanation.nearest]


@pytest.mark.parametrize(
    ("template", "name", "why"),
    [
        (
            "model.mm_projector.0.{p}",
            "model.mm_projector.1.weight",
            "`0` is expected where the name has `1`",
        ),
        ("model.norm.weight", "model.nor", "`norm` is expected where the name has `nor`"),
        ("a.b.{x}", "a.bc.d", "`b` is expected where the name has `bc`"),
        ("model.{r...}", "modelX.a", "`model` is expected where the name has `modelX`"),
        ("a.{x}.weight", "a.bias.bias", "`weight` is expected where the name has `bias`"),
        ("temporal_{x}", "spatial_3", "`temporal_{x}` is expected where the name has `spatial_3`"),
        ("temporal_{x}", "temporal_", "`temporal_{x}` is expected where the name has `temporal_`"),
        (
            "layers.{n:int}.{r...}",
            "layers.x.y",
            "`{n:int}` expects a number where the name has `x`",
        ),
        (
            "layers.{n:int}.{r...}",
            "layers.3x.y",
            "`{n:int}` expects a number where the name has `3x`",
        ),
        ("layers.{n:int}.{r...}", "layers.3", "the name ends where `.{r...}` is expected"),
        ("model.norm.weight", "model.norm", "the name ends where `.weight` is expected"),
        ("model.norm.{p}", "model.norm.", "the name ends where `{p}` is expected"),
        ("model.norm.{p}", "model.norm..", "`{p}` is expected where the name has an empty segment"),
        ("model.norm.{p}", "model.norm.a.b", "`{p}` is one segment, but the name has `a.b` there"),
        (
            "layers.{n:int}",
            "layers.3.x",
            "the template ends with `{n:int}`, but the name continues with `.x`",
        ),
        (
            "lm_head",
            "lm_head.weight",
            "the template ends with `lm_head`, but the name continues with `.weight`",
        ),
        (
            "a.{r...}",
            "a.b..c",
            "`{r...}` takes whole segments, but the name has an empty segment there",
        ),
        ("{r...}.inv_freq", "a.b.c", "the name has no `.inv_freq` after `{r...}`"),
        (
            "{r...}.inv_freq",
            "a.inv_freq.c",
            "the template ends with `inv_freq`, but the name continues with `.c`",
        ),
        ("a.{r...}", "", "the name ends where `a.{r...}` is expected"),
    ],
)
def test_why_a_template_does_not_match(template: str, name: str, why: str) -> None:
    mismatch = Template(template).mismatch(name)
    assert mismatch is not None
    assert mismatch.why == why


pieces = st.lists(
    st.sampled_from(["a", "b.", "1", ".", "{x}", "{y}", "{n:int}", "{m:int}", "{r...}", "{s...}"]),
    min_size=1,
    max_size=5,
)


@given(pieces, st.text("ab1.", max_size=8))
def test_there_is_a_reason_exactly_where_it_does_not_match(parts: list[str], name: str) -> None:
    try:
        template = Template("".join(parts))
    except PatternError:
        return
    assert (template.mismatch(name) is None) == (template.match(name) is not None)


@pytest.mark.parametrize("template", ["{a...}.x.{b...}.y", "{a...}.ab.{b...}.ab.{c...}z"])
@pytest.mark.parametrize("length", [300, 6_000])
def test_a_field_reads_a_name_once_however_many_ways_there_are(
    template: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can begin at each of the name's characters, and end at each behind."""
    ends, read = template_module._ends, []

    class Counted:
        def __init__(self, piece: re.Pattern[str]) -> None:
            self.piece = piece

        def match(self, name: str, start: int) -> re.Match[str] | None:
            found = self.piece.match(name, start)
            read.append(found.end() - start if found else 1)
            return found

    monkeypatch.setattr(
        template_module,
        "_ends",
        lambda piece, *rest: ends(Counted(piece), *rest),  # type: ignore[arg-type]
    )
    assert Template(template).mismatch("ab." * (length // 3)) is not None
    assert length - 1 <= sum(read) <= 3 * length, "which is once for each field"


def test_the_nearest_rules_stand_first() -> None:
    rules = load_rule_file("llava-v1.5")
    assert nearest(rules, "model.mm_projector.1.weight")[:2] == [
        ("projector-in", "`0` is expected where the name has `1`"),
        ("projector-out", "`2` is expected where the name has `1`"),
    ]
    assert nearest(rules, "model.layers.x.weight")[0] == (
        "text-layers",
        "`{n:int}` expects a number where the name has `x`",
    )
    assert nearest(rules, "wrapper.model.norm.weight")[0] == (
        "text-norm",
        "`model` is expected where the name has `wrapper`",
    )
    assert len(nearest(rules, "model.x")) == 3


def test_what_has_nothing_in_common_is_not_near() -> None:
    assert nearest(load_rule_file("llava-v1.5"), "mystery") == []


def test_a_regex_finds_nothing(load: Load) -> None:
    rules = load(
        r"names: [{id: norm, match: '^model\.norm\.', replace: 'n.'}, {id: far, match: '^other$', "
        r"drop: unwanted}]"
    )
    assert nearest(rules, "wrapper.model.norm.x") == [("norm", "it finds nothing in the name")]


def test_a_regex_that_runs_away(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is left out by its `when`, it is asked whether it would have matched."""
    monkeypatch.setattr("llava_remap.rulefile.pattern.TIME_LIMIT", 0.05)
    rule = "{id: runaway, match: '^(a|a|aa)+$b', drop: unwanted, when: {present: [b]}}"
    explainer = Explainer(load(f"names: [{rule}]"), (), None)
    rewrite = explainer.program.rewrite("a" * 200)
    with pytest.raises(RemapError, match="LR206"):
        explainer.explain(rewrite)


def test_every_step_has_its_pattern_as_written_and_what_it_left(load: Load) -> None:
    rules = load(r"""
prepare:
  - {id: unwrap, match: '^w\.', replace: ''}
  - {id: buffers, from: '{r...}.inv_freq', drop: computed}
names:
  - {id: all, from: 'a.{r...}', to: 'b.{r}'}
""")
    explainer = Explainer(rules, (), None)
    steps = explainer.explain(explainer.program.rewrite("w.a.x")).steps
    assert [(s.rule, s.pattern, s.makes, s.after) for s in steps] == [
        ("prepare/unwrap", r"^w\.", "", "a.x"),
        ("names/all", "a.{r...}", "b.{r}", "b.x"),
    ]
    dropped = explainer.explain(explainer.program.rewrite("w.a.inv_freq"))
    assert dropped.outcome == "dropped"
    assert [(s.rule, s.makes, s.after) for s in dropped.steps] == [
        ("prepare/unwrap", "", "a.inv_freq"),
        ("prepare/buffers", None, None),
    ]
    assert dropped.nearest == ()


WHEN = """
prepare:
  - {id: unwrap, from: 'w.{r...}', to: '{r}', when: {present: ['w.marker']}}
names:
  - {id: new, from: 'head.{p}', to: 'new.{p}', when: {config: {kind: a}, absent: [old]}}
"""


def test_rules_left_out_and_why(load: Load) -> None:
    left = {
        rule.rule: rule.why for rule in Explainer(load(WHEN), ("old", "x"), {"kind": "b"}).left_out
    }
    assert left == {
        "prepare/unwrap": ("as it is stored it has no `w.marker`",),
        "names/new": ("after `prepare` it has `old`", "its config says kind: 'b', not 'a'"),
    }
    assert Explainer(load(WHEN), ("w.marker",), {"kind": "a"}).left_out == ()


def test_a_rule_that_would_take_the_name_if_it_counted(load: Load) -> None:
    assert nearest(load(WHEN), "head.x") == [
        (
            "new",
            "it matches, but its `when` doesn't hold: it has no config.json to say kind, not 'a'",
        )
    ]
