"""Each finding, with a file that has it and a similar file without it; the traps that other
projects fell into; no guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_remap.authoring.lint import lint
from llava_remap.core.problem import RemapError
from llava_remap.rewrite import CompiledRule
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_folder
from tests.conftest import run_away

from .conftest import Lint, codes, found


def test_nothing_to_find(linted: Lint) -> None:
    result = linted("""\
prepare: [{id: wrapper, from: 'module.{r...}', to: '{r}'}]
names:
  - {id: layers, from: 'model.layers.{n:int}.{r...}', to: 'text.layers.{n}.{r}'}
  - {id: norm, match: '^model\\.norm\\.', replace: 'text.norm.',
     reverse: {match: '^text\\.norm\\.', replace: 'model.norm.'}}
tests:
  - {from: module.model.layers.3.w, to: text.layers.3.w}
  - {from: model.norm.weight, to: text.norm.weight}
""")
    assert result.findings == ()
    assert (result.rules, result.tests, result.names, result.reversible, result.failed) == (
        3,
        2,
        None,
        True,
        False,
    )
    assert result.witnesses > result.rules
    assert result.targets > 2


# --- LR203


@pytest.mark.parametrize(
    ("names", "tested", "chain"),
    [
        (
            "- {id: a, match: 'head\\.weight$', replace: lm_head.weight}",
            "head.weight",
            "lm_head.weight → lm_lm_head.weight",
        ),
        (
            "- {id: a, match: 'layers\\.', replace: encoder.layers.}",
            "layers.0",
            "encoder.layers.0 → encoder.encoder.layers.0",
        ),
        (
            "- {id: a, match: '^model\\.', replace: model.language_model.}",
            "model.norm",
            "→ model.language_model.language_model.norm",
        ),
        (
            "- {id: a, from: 'model.{r...}', to: 'model.language_model.{r}'}",
            "",
            "→ model.language_model.language_model.qza",
        ),
        (
            "- {id: a, from: 'conv1.{p}', to: 'conv0.{p}'}\n"
            "  - {id: b, from: 'conv2.{p}', to: 'conv1.{p}'}",
            "",
            "conv1.qza → conv0.qza",
        ),
    ],
    ids=["head", "layers", "^model.", "template", "conv"],
)
def test_a_second_run_would_rename_again(names: str, tested: str, chain: str, linted: Lint) -> None:
    result = linted(f"names:\n  {names}\n", tested=[tested] if tested else [])
    problem = found(result, "LR203").problem
    assert any(chain in fact for _, fact in problem.table)
    assert "names/" in problem.placed_cause


@pytest.mark.parametrize(
    "names",
    [
        "- {id: a, from: head.weight, to: lm_head.weight}",
        "- {id: a, match: '^head\\.weight$', replace: lm_head.weight}",
        "- {id: a, match: '^encoder\\.layers\\.', replace: layers.}",
        "- {id: a, from: 'x.{r...}', to: 'x.{r}'}",
        "- {id: keep, from: 'model.language_model.{r...}', to: 'model.language_model.{r}'}\n"
        "  - {id: a, from: 'model.{r...}', to: 'model.language_model.{r}'}",
        "- {id: a, from: 'conv1.{p}', to: 'features.0.{p}'}\n"
        "  - {id: b, from: 'conv2.{p}', to: 'features.1.{p}'}",
    ],
    ids=["head", "anchored", "layers", "identity", "kept", "conv"],
)
def test_a_second_run_would_change_nothing(names: str, linted: Lint) -> None:
    tested = ["head.weight", "encoder.layers.0", "model.norm.weight", "conv1.weight"]
    assert "LR203" not in codes(linted(f"names:\n  {names}\n", tested=tested))


def test_it_says_which_rule_takes_what_which_made(linted: Lint) -> None:
    text = (
        "names:\n  - {id: a, from: 'conv1.{p}', to: 'conv0.{p}'}\n"
        "  - {id: b, from: 'conv2.{p}', to: 'conv1.{p}'}\n"
    )
    finding = found(linted(text), "LR203")
    assert (
        finding.problem.placed_cause
        == "`names/a` renames the new names of `names/b` if the rules run twice."
    )
    assert finding.problem.table[0] == ("conv2.qza", "→ conv1.qza → conv0.qza")
    assert (finding.mark.line, finding.mark.column) == (4, 5) if finding.mark else False


def test_prepare_alone_is_run_twice_as_well(linted: Lint) -> None:
    text = "prepare: [{id: a, match: 'head\\.w$', replace: lm_head.w}]\n"
    assert codes(linted(text, tested=["head.w"])) == ["LR203", "LR208"]
    assert codes(linted("prepare: [{id: a, from: 'module.{r...}', to: '{r}'}]\n")) == []


def test_a_way_back_that_takes_its_own_names(linted: Lint) -> None:
    text = (
        "names: [{id: a, match: '^enc\\.layers\\.', replace: layers., reverse: {match: "
        "'%slayers\\.', replace: enc.layers.}}]\n"
    )
    tested = ["enc.layers.0"]
    assert codes(linted(text % "", tested=tested)) == ["LR203", "LR208"]
    assert codes(linted(text % "^", tested=tested)) == []


# --- LR204


@pytest.mark.parametrize(
    ("wide", "narrow", "shadowed"),
    [
        ("from: 'model.{r...}', to: 'a.{r}'", "from: 'model.norm.{p}', to: 'b.{p}'", True),
        ("from: 'model.{p}', to: 'a.{p}'", "from: 'model.{r...}', to: 'b.{r}'", False),
        ("from: 'model.{n:int}.w', to: 'a.{n}'", "from: 'model.{n}.w', to: 'b.{n}'", False),
        ("match: 'norm', replace: a", "from: 'model.norm.{p}', to: 'b.{p}'", True),
        ("match: 'weight$', replace: a", "from: 'model.norm.{p}', to: 'b.{p}'", False),
    ],
    ids=["wider", "one-segment", "number", "regex", "regex-in-part"],
)
def test_shadowed(wide: str, narrow: str, shadowed: bool, linted: Lint) -> None:
    result = linted(f"names:\n  - {{id: wide, {wide}}}\n  - {{id: b, {narrow}}}\n")
    assert ("LR204" in codes(result)) is shadowed
    if shadowed:
        assert (
            found(result, "LR204").problem.placed_cause
            == "`names/b` can take no name: `names/wide` takes its names first."
        )


def test_two_rules_that_take_a_part_each(linted: Lint) -> None:
    text = """\
names:
  - {id: one, from: 'a.{x}', to: 'c.{x}'}
  - {id: two, from: 'a.{x}.{y}', to: 'c.{x}.{y}'}
  - {id: more, from: 'a.{r...}', to: 'b.{r}'}
"""
    assert codes(linted(text)) == []


def test_shadowed_by_prepare(linted: Lint) -> None:
    text = (
        "prepare: [{id: unwrap, from: 'module.{r...}', to: '{r}'}]\n"
        "names: [{id: b, from: 'module.{p}', to: 'b.{p}'}]\n"
    )
    assert (
        "`prepare/unwrap` takes its names first"
        in found(linted(text), "LR204").problem.placed_cause
    )
    text = (
        "prepare: [{id: a, from: 'model.{r...}', to: 'm.{r}'}, {id: b, from: 'model.norm.{p}', "
        "to: 'm.n.{p}'}]\n"
    )
    assert (
        "`prepare/b` can take no name: `prepare/a`"
        in found(linted(text), "LR204").problem.placed_cause
    )


def test_what_prepare_would_make_is_no_name_to_try(linted: Lint) -> None:
    """From `layers.0.w` it makes what the rule takes; from what the rule takes it makes
    something else.
    """
    text = (
        "prepare: [{id: bare, from: '{r...}', to: 'model.{r}'}]\n"
        "names: [{id: b, from: 'model.layers.{r...}', to: 'b.{r}'}]\n"
    )
    assert "LR203" in codes(linted(text))
    assert "LR204" not in codes(linted(text))


def test_a_rule_with_a_condition_is_judged_where_it_holds(linted: Lint) -> None:
    """With another condition, or none, rules may take one another's names: that is what
    conditions are for.
    """
    text = """\
names:
  - {{id: a, from: 'model.{{r...}}', to: 'a.{{r}}', when: {{config: {{kind: 1}}}}}}
  - {{id: b, from: 'model.norm.{{p}}', to: 'b.{{p}}'{}}}
"""
    assert codes(linted(text.format(""))) == []
    assert codes(linted(text.format(", when: {config: {kind: 2}}"))) == []
    assert codes(linted(text.format(", when: {config: {kind: 1}}"))) == ["LR204"]


def test_an_inherited_rule_is_replaced_by_id(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    text = (
        "schema: 1\nextends: [parts/llava.yaml]\n"
        "names: [{id: %s, from: 'model.mm_projector.0.{p}', to: 'projector.{p}'}]\n"
    )
    child.write_text(text % "own-in" + "tests: [{from: model.mm_projector.0.w, to: projector.w}]\n")
    finding = found(lint(load_rule_file(child)), "LR204")
    assert (
        finding.problem.fix
        == "Give `names/own-in` the id `projector-in`: then it replaces the inherited rule."
    )
    assert finding.mark is not None
    assert finding.mark.line == 3
    child.write_text(
        text % "projector-in" + "tests: [{from: model.mm_projector.0.w, to: projector.w}]\n"
    )
    assert lint(load_rule_file(child)).findings == ()


def test_inherited_rules_that_one_rule_shadows_are_told_together(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text(
        "schema: 1\nextends: [parts/llava.yaml]\n"
        "names: [{id: all, from: 'model.{rest...}', to: 'x.{rest}'}]\n"
    )
    found = [f.problem for f in lint(load_rule_file(child)).findings if f.problem.code == "LR204"]
    [problem] = found
    assert "`names/projector-in`, `names/projector-out`" in problem.cause
    assert problem.fix == "Make `names/all` narrower."
    assert "model.mm_projector.0.qza" in problem.names


# --- LR205


def test_matched_nothing_is_a_note(linted: Lint) -> None:
    text = "names: [{id: a, from: a.w, to: b.w}, {id: c, from: c.w, to: d.w%s}]\n"
    result = linted(text % "", "a.w", "x.y")
    assert codes(result) == ["LR205"]
    assert found(result, "LR205").note
    assert found(result, "LR205").problem.placed_cause == "`names/c` takes none of the 2 names."
    assert codes(linted(text % ", optional: true", "a.w")) == []
    assert codes(linted(text % "", "a.w", "c.w")) == []
    assert codes(linted(text % ", when: {present: [x]}", "a.w")) == []
    assert codes(linted(text % ", when: {present: [a.w]}", "a.w")) == ["LR205"]
    assert codes(linted(text % "")) == []


# --- LR206


def test_it_runs_away(linted: Lint, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the name of a test. The other rules are tried all the same."""
    run_away(monkeypatch, "(a|aa)", 100)
    name = "a" * 100 + "!"
    text = (
        "names: [{id: a, match: '^(a|aa)+$', replace: x}, {id: b, from: 'b.{p}', to: 'x.{p}'}, "
        "{id: c, from: 'b.w', to: c.w}]\n"
    )
    result = linted(text, tested=[name])
    finding = found(result, "LR206")
    assert "`names/a` ran into the time limit" in finding.problem.placed_cause
    assert finding.problem.names == (name,)
    assert finding.mark is not None
    assert result.loaded
    assert codes(result) == ["LR206", "LR204"]


def test_a_regex_runs_away_on_no_name_that_was_tried(
    linted: Lint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked for that nobody named."""
    run_away(monkeypatch, "(a|aa)", 100)
    text = "names: [{id: a, match: '^(a|aa)+$', replace: x}]\n"
    assert codes(linted(text, tested=["aa"])) == []


def test_a_way_back_that_runs_away(linted: Lint, monkeypatch: pytest.MonkeyPatch) -> None:
    run_away(monkeypatch, "(b|bb)", 100)
    text = "names: [{id: a, match: '^a', replace: b, reverse: {match: '^(b|bb)+$', replace: a}}]\n"
    assert "LR206" in codes(linted(text, tested=["a" + "b" * 99]))


def test_only_a_real_name_makes_it_run_away(linted: Lint, monkeypatch: pytest.MonkeyPatch) -> None:
    run_away(monkeypatch, "(a|aa)", 91)
    result = linted("names: [{id: a, match: '^(a|aa)+$', replace: x}]\n", "a" * 90 + "!")
    assert codes(result) == ["LR206"]


def test_a_name_that_is_nearly_one_of_the_rules_makes_it_run_away(
    linted: Lint, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_away(monkeypatch, "(A|AA)", 91, "x")
    result = linted("names: [{id: a, match: '^(A|AA)+$', replace: x}]\n", tested=["A" * 90])
    assert found(result, "LR206").problem.names == ("A" * 90 + "x",)


# --- LR208


@pytest.mark.parametrize(
    ("match", "name", "also"),
    [
        ("^model", "model.norm", "modelx.norm"),
        ("model\\.", "model.norm", "xmodel.norm"),
        ("inv_freq$", "rope.inv_freq", "rope.xinv_freq"),
        ("^head\\.(weight|bias)", "head.weight", "head.weightx"),
        ("^h\\.([0-9]+)", "h.4.w", "h.4x.w"),
        ("^\\p{L}{5}", "model.norm", "modelx.norm"),
    ],
)
def test_takes_more_than_it_seems_to(match: str, name: str, also: str, linted: Lint) -> None:
    """On the name of a test as on a real one; without a name there is nothing to see."""
    text = f"names: [{{id: a, match: '{match}', drop: nothing}}]\n"
    for result in (linted(text, tested=[name]), linted(text, name)):
        assert f"`{also}`" in found(result, "LR208").problem.placed_cause
    assert codes(linted(text)) == []


def test_both_ends_are_open(linted: Lint) -> None:
    """`pre_layer_proj_model` was hit by a rule for `model`."""
    text = "names: [{id: a, match: model, replace: language_model}]\n"
    cause = found(linted(text, tested=["model"]), "LR208").problem.placed_cause
    assert (
        cause == "`model` of `names/a` begins and ends inside a segment of a name: it also takes "
        "`xmodel` and `modelx`."
    )


def test_a_prefix_that_takes_the_tower_too(linted: Lint) -> None:
    """`^model` → `language_model` hit `model.visual.*`."""
    result = linted(
        "names: [{id: a, match: '^model', replace: language_model}]\n",
        "model.visual.w",
        "model.norm.w",
    )
    assert codes(result) == ["LR208"]


def test_a_name_made_from_a_template_shows_it_too(linted: Lint) -> None:
    text = (
        "prepare: [{id: a, match: '^module', replace: model}]\n"
        "names: [{id: b, from: 'module.{p}', to: 'b.{p}'}]\n"
    )
    assert "`modulex.qza`" in found(linted(text), "LR208").problem.cause


@pytest.mark.parametrize(
    "match",
    [
        "^model\\.norm\\.", "\\.norm\\.", "^model\\.(.*)\\.w$", "\\.inv_freq$", "^", "$", "",
        "^.*$", "(\\w+)\\.w$",
        "^(?i)model\\b\\.",
    ],
)  # fmt: skip
def test_takes_what_it_seems_to(match: str, linted: Lint) -> None:
    tested = ["model.norm.w", "x.inv_freq"]
    result = linted(f"names: [{{id: a, match: '{match}', drop: nothing}}]\n", tested=tested)
    assert "LR208" not in codes(result)


def test_a_way_back_that_is_open(linted: Lint) -> None:
    text = (
        "names: [{id: a, match: '^a\\.', replace: b.c., reverse: {match: 'b\\.c\\.', replace: "
        "a.}}]\n"
    )
    cause = found(linted(text, tested=["a.w"]), "LR208").problem.placed_cause
    assert "the `reverse` of `names/a`" in cause


# --- LR213, LR214, LR215, LR306


def test_a_rule_without_a_test(linted: Lint) -> None:
    text = (
        "names: [{id: a, from: 'a.{p}', to: 'b.{p}'}, {id: c, from: 'c.{p}', to: 'd.{p}'}]\n"
        "tests: [{from: a.w, to: b.w}%s]\n"
    )
    assert "`names/c`" in found(linted(text % ""), "LR213").problem.placed_cause
    assert linted(text % ", {from: c.w, to: d.w}").findings == ()


def test_an_inherited_rule_needs_no_test_here(tmp_path: Path) -> None:
    (tmp_path / "child.yaml").write_text("schema: 1\nextends: [parts/llava.yaml]\n")
    assert lint(load_rule_file(tmp_path / "child.yaml")).findings == ()


def test_a_field_that_is_left_out(linted: Lint) -> None:
    text = "names: [{id: a, from: 'a.{n:int}.{p}', to: 'b.{p}'%s}]\n"
    result = linted(text % "")
    assert codes(result) == ["LR214"]
    assert "`{n}`" in found(result, "LR214").problem.placed_cause
    assert not result.reversible
    assert codes(linted(text % ", one_way: true")) == []
    assert codes(linted("names: [{id: a, from: 'a.{n:int}.{p}', to: 'b.{p}.{n}'}]\n")) == []


def test_it_does_not_come_back(linted: Lint) -> None:
    text = (
        "names: [{id: a, match: '^a\\.', replace: b., reverse: {match: '^b\\.', replace: %s.}}]\n"
    )
    result = linted(text % "c", tested=["a.w"])
    assert codes(result) == ["LR215"]
    assert ("b.w", "→ c.w → (unmapped)") in found(result, "LR215").problem.table
    assert not result.reversible
    assert linted(text % "a", tested=["a.w"]).reversible


def test_without_a_way_back(linted: Lint) -> None:
    result = linted(
        "names: [{id: a, match: '^a\\.', replace: b.}, {id: c, from: c, to: d, one_way: true}]\n"
    )
    assert codes(result) == []
    assert dict(result.one_way) == {
        "names/a": "a regex has no way back without `reverse:`",
        "names/c": "it says `one_way: true`",
    }
    assert not result.reversible


def test_a_drop_that_leaves_a_rename_nothing(linted: Lint) -> None:
    text = (
        "prepare: [{id: d, from: '%s', drop: thought a buffer}]\n"
        "names: [{id: a, from: 'model.norm.{p}', to: 'norm.{p}'}]\n"
    )
    result = linted(text % "{r...}")
    assert codes(result) == ["LR306", "LR204"]
    assert (
        "the drop `prepare/d` takes every name that `names/a`"
        in found(result, "LR306").problem.placed_cause
    )
    assert (
        codes(linted(text % "{r...}.position_ids")) == []
    )  # a drop may be an exception from a rename
    assert codes(linted(text % "model.norm.bias")) == []


def test_a_drop_of_a_parameter(linted: Lint) -> None:
    text = (
        "prepare: [{id: d, from: '{r...}.ids', drop: thought a buffer}]\n"
        "names: [{id: a, from: 'model.{r...}', to: 't.{r}'}]\n"
    )
    given = ("model.x.ids", "model.x.w")
    result = linted(text, *given, wanted=frozenset({"t.x.w", "t.x.ids"}))
    assert codes(result) == ["LR306"]
    assert found(result, "LR306").problem.names == ("model.x.ids",)
    assert codes(linted(text, *given, wanted=frozenset({"t.x.w"}))) == []
    assert codes(linted(text, *given, "model.x.ids2", wanted=frozenset({"t.x.w"}))) == []


# --- the names that it tries


def test_regexes_that_no_name_was_tried_on_are_named(linted: Lint) -> None:
    text = (
        "names: [{id: a, match: '^\\p{L}\\.w$', replace: b.w}, {id: c, from: c.v, to: d.v}, "
        "{id: e, match: '^e$', drop: gone}]\n"
    )
    result = linted(text, tested=["q.w"])
    assert result.untried == ("names/e",)
    assert result.witnesses == 2  # from the test, and from the template
    assert linted(text).untried == ("names/a", "names/e")
    assert linted(text, "q.w", "e").untried == ()


def test_findings_are_in_order_of_place(linted: Lint) -> None:
    marks = [
        f.mark
        for f in linted(
            "names:\n" + "".join(f"  - {{id: r{n}, from: 'a.{n}', to: x}}\n" for n in range(4))
        ).findings
    ]
    assert marks == sorted(marks, key=lambda mark: mark.line if mark else 0)
    assert len({mark.line for mark in marks if mark}) == 4


@pytest.mark.parametrize(
    "path",
    sorted(shipped_folder().rglob("*.yaml")),
    ids=lambda path: str(path.relative_to(shipped_folder())),
)
def test_shipped_files_are_clean(path: Path) -> None:
    result = lint(load_rule_file(path))
    assert result.findings == ()
    # Prismatic's tower can be given under transformers' names; the way back leads to timm's.
    assert {rule for rule, _ in result.one_way} <= {"names/tower"}
    assert result.untried == ()


def test_load_is_not_linted(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("schema: 1\nnames: [{id: a, match: 'a.b', replace: c}]\n")
    assert isinstance(load_rule_file(tmp_path / "r.yaml"), RuleFile)
    with pytest.raises(RemapError):
        load_rule_file(tmp_path / "none.yaml")


# --- time and memory


@pytest.mark.parametrize(
    "rule",
    [
        "{{id: r{n}, from: 'a{n}.{{x}}.{{r...}}.w', to: 'b{n}.{{x}}.{{r}}.w'}}",
        "{{id: r{n}, from: 'layers.{n}.q.w', to: 'layers.{m}.q.weight'}}",
        "{{id: r{n}, from: '{{m...}}.a{n}.{{p}}', to: '{{m}}.b{n}.{{p}}'}}",
        "{{id: r{n}, match: '^l\\.a{n}\\.', replace: 'x.{n}.', reverse: {{match: '^x\\.{n}\\.', "
        "replace: 'l.a{n}.'}}}}",
        "{{id: d{n}, from: 'l.{n}.{{x}}', drop: gone}}\n"
        "  - {{id: r{n}, from: 'l.{n}.a', to: 'z.{n}'}}",
    ],
    ids=["templates", "exact", "inside", "regexes", "drops"],
)
def test_twice_the_rules_are_twice_the_work(
    rule: str, linted: Lint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in names that rules are asked for, there and back: with the square of the rules it
    would be four times.
    """
    asked = 0

    def counted(
        run: Callable[[CompiledRule, str], str | None],
    ) -> Callable[[CompiledRule, str], str | None]:
        def count(self: CompiledRule, name: str) -> str | None:
            nonlocal asked
            asked += 1
            return run(self, name)

        return count

    monkeypatch.setattr(CompiledRule, "__call__", counted(CompiledRule.__call__))
    monkeypatch.setattr(CompiledRule, "lead_back", counted(CompiledRule.lead_back))
    work = []
    for number in (100, 200):
        asked = 0
        linted(
            "names:\n" + "".join(f"  - {rule.format(n=n, m=n + 1)}\n" for n in range(number)),
            tested=[f"l.a{n}.w" for n in range(number)],
        )
        work.append(asked)
    assert 0 < work[1] < 2.2 * work[0]
