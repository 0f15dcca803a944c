"""Merging: what a file takes from the files that it extends, and the places that errors name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_remap.core.problem import Mark, RemapError
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_folder

from .written import COMPLETE, load, put, refused, said


def ids(rules: RuleFile) -> list[str]:
    return [rule.id for rule in rules.text.names]


def outcomes(rules: RuleFile) -> list[tuple[str, str | None]]:
    return [(rule.id, str(rule.to)) for rule in rules.text.names]


@pytest.fixture(autouse=True)
def parents(tmp_path: Path) -> None:
    put(
        tmp_path,
        "one.yaml",
        "schema: 1\nnames:\n  - {id: a, from: a, to: one-a}\n  - {id: b, from: b, to: one-b}\n",
    )
    put(
        tmp_path,
        "two.yaml",
        "schema: 1\nnames:\n  - {id: c, from: c, to: two-c}\n  - {id: b, from: b, to: two-b}\n",
    )


def test_own_rules_stand_before_the_parents(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        "schema: 1\nextends: [one.yaml]\n"
        "names: [{id: z, from: z, to: t}, {id: x, from: x, to: w}]\n",
    )
    assert ids(rules) == ["z", "x", "a", "b"]


def test_parents_stand_in_order(tmp_path: Path) -> None:
    put(tmp_path, "three.yaml", "schema: 1\nnames: [{id: d, from: d, to: e}]\n")
    assert ids(load(tmp_path, "schema: 1\nextends: [one.yaml, three.yaml]\n")) == ["a", "b", "d"]
    assert ids(load(tmp_path, "schema: 1\nextends: [three.yaml, one.yaml]\n")) == ["d", "a", "b"]


def test_prepare_is_merged_as_names_are(tmp_path: Path) -> None:
    put(
        tmp_path,
        "p.yaml",
        "schema: 1\nprepare: [{id: a, from: a, drop: old}, {id: b, from: b, drop: old}]\n",
    )
    rules = load(
        tmp_path,
        "schema: 1\nextends: [p.yaml]\nprepare: [{id: b, from: b, drop: new}, {id: c, from: c, "
        "drop: new}]\n",
    )
    assert [(rule.id, rule.drop) for rule in rules.text.prepare] == [
        ("c", "new"),
        ("a", "old"),
        ("b", "new"),
    ]


def test_a_rule_replaces_its_parents_in_place(tmp_path: Path) -> None:
    text = (
        "schema: 1\nextends: [one.yaml]\nnames:\n  - {id: a, from: a, to: own-a}\n"
        "  - {id: z, from: z, to: own-z}\n"
    )
    rules = load(tmp_path, text)
    assert outcomes(rules) == [("z", "own-z"), ("a", "own-a"), ("b", "one-b")]


def test_a_later_parent_replaces_an_earlier_ones_in_place(tmp_path: Path) -> None:
    rules = load(tmp_path, "schema: 1\nextends: [one.yaml, two.yaml]\n")
    assert outcomes(rules) == [("a", "one-a"), ("b", "two-b"), ("c", "two-c")]


def test_grandparents(tmp_path: Path) -> None:
    put(
        tmp_path,
        "middle.yaml",
        "schema: 1\nextends: [one.yaml]\nnames: [{id: m, from: m, to: middle}]\n",
    )
    rules = load(
        tmp_path,
        "schema: 1\nextends: [middle.yaml]\n"
        "names: [{id: o, from: o, to: own}, {id: b, from: b, to: own-b}]\n",
    )
    assert outcomes(rules) == [("o", "own"), ("m", "middle"), ("a", "one-a"), ("b", "own-b")]


def test_one_file_reached_on_two_ways(tmp_path: Path) -> None:
    for name in ("left", "right"):
        put(
            tmp_path,
            f"{name}.yaml",
            f"schema: 1\nextends: [one.yaml]\nnames: [{{id: {name}, from: x, to: x}}]\n",
        )
    assert ids(load(tmp_path, "schema: 1\nextends: [left.yaml, right.yaml]\n")) == [
        "left",
        "a",
        "b",
        "right",
    ]


def test_marks_point_into_the_file_of_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = load(
        tmp_path, "schema: 1\nextends: [one.yaml]\nnames:\n  - {id: a, from: a, to: own}\n"
    )
    assert rules.marks["names/a"] == Mark("r.yaml", 4, 5)
    assert rules.marks["names/b"] == Mark("one.yaml", 4, 5)


def test_mappings_merge_at_every_depth(tmp_path: Path) -> None:
    put(tmp_path, "p.yaml", """\
schema: 1
detect: {present: [p], config: {a: parent, b: parent}}
sources: {model: {default: parent/model, optional: true}, extra: {prefix: x.}}
target: {config: {k: {from: there, map: {x: 1}}}}
tokens: [{text: <p>, role: pad}]
""")  # fmt: skip
    rules = load(tmp_path, """\
schema: 1
extends: [p.yaml]
detect: {config: {b: own, c: own}}
sources: {model: {default: own/model}}
target: {config: {k: {map: {z: 2}}, m: {const: 3}}}
tokens: [{text: <o>, role: image}]
""")  # fmt: skip
    assert [str(name) for name in rules.text.detect.present] == ["p"]
    assert rules.text.detect.config == {"a": "parent", "b": "own", "c": "own"}
    assert (rules.text.sources["model"].default, rules.text.sources["model"].optional) == (
        "own/model",
        True,
    )
    assert rules.text.sources["extra"].prefix == "x."
    assert rules.text.target is not None
    assert rules.text.target.config["k"].from_ == "there"
    assert rules.text.target.config["k"].map == {"x": 1, "z": 2}
    assert rules.text.target.config["m"].const == 3
    assert [token.text for token in rules.text.tokens] == [
        "<o>"
    ]  # only lists of rules are merged; other lists are replaced


def test_the_parents_sources_keep_their_place(tmp_path: Path) -> None:
    """A child that changes one source, or adds one, doesn't change which is the first: the one
    that a bare `--source` means.
    """
    put(tmp_path, "p.yaml", "schema: 1\nsources: {model: {}, tower: {}}\n")
    rules = load(
        tmp_path, "schema: 1\nextends: [p.yaml]\nsources: {extra: {}, tower: {prefix: x.}}\n"
    )
    assert list(rules.text.sources) == ["model", "tower", "extra"]
    assert rules.first_source == "model"


def test_what_a_file_says_of_itself_stays_there(tmp_path: Path) -> None:
    put(tmp_path, "p.yaml", """\
schema: 1
name: parent
version: 2.0.0
summary: the parent
changes: [{version: 2.0.0, what: all}]
tests: [{from: a, unmapped: true}]
target: {config: {a: {const: 1}}}
""")  # fmt: skip
    rules = load(tmp_path, "schema: 1\nextends: [p.yaml]\n")
    text = rules.text
    assert (rules.name, text.name, text.version, text.summary, text.changes, text.tests) == (
        "r",
        None,
        None,
        None,
        (),
        (),
    )
    assert text.extends == ("p.yaml",)
    assert text.target is not None


def test_a_config_value_of_another_kind_replaces_its_parents(tmp_path: Path) -> None:
    """Else no variant could take a value from its config that the part it extends has as a
    constant.
    """
    put(
        tmp_path,
        "p.yaml",
        "schema: 1\ntarget: {config: {a: {const: 1}, b: {from: there, map: {x: 1}}}}\n",
    )
    rules = load(
        tmp_path,
        "schema: 1\nextends: [p.yaml]\ntarget: {config: {a: {from: here}, b: {const: 2}}}\n",
    )
    assert rules.text.target is not None
    values = rules.text.target.config
    assert (values["a"].from_, values["a"].const) == ("here", None)
    assert (values["b"].from_, values["b"].map, values["b"].const) == (None, None, 2)


def test_only_the_lists_of_rules_are_joined(tmp_path: Path) -> None:
    """A key of a source's config may be called `names` too."""
    put(tmp_path, "p.yaml", "schema: 1\ndetect: {config: {names: [a, b]}}\n")
    rules = load(tmp_path, "schema: 1\nextends: [p.yaml]\ndetect: {config: {names: [c]}}\n")
    assert rules.text.detect.config == {"names": ("c",)}


def test_parents_lie_beside_the_child_or_among_the_shipped(tmp_path: Path) -> None:
    put(tmp_path, "up.yaml", "schema: 1\nnames: [{id: up, from: u, to: v}]\n")
    child = put(tmp_path, "sub/r.yaml", "schema: 1\nextends: [../up.yaml, parts/wrappers.yaml]\n")
    rules = load_rule_file(child)
    assert ids(rules) == ["up"]
    assert [rule.id for rule in rules.text.prepare][-2:] == ["peft-trained", "peft-base"]


def test_a_file_beside_the_child_comes_first(tmp_path: Path) -> None:
    put(tmp_path, "parts/wrappers.yaml", "schema: 1\nnames: [{id: own, from: u, to: v}]\n")
    rules = load(tmp_path, "schema: 1\nextends: [parts/wrappers.yaml]\n")
    assert (ids(rules), rules.text.prepare) == (["own"], ())


@pytest.mark.parametrize("name", ["no.yaml", "''", ".", "parts", "a" * 300])
def test_missing_parent(name: str, tmp_path: Path) -> None:
    [(code, place, message)] = said(tmp_path, f"schema: 1\nextends:\n  - one.yaml\n  - {name}\n")
    assert (code, place) == ("LR210", "r.yaml:4:5")
    assert message.startswith(
        f"`{name.strip(chr(39))}` is neither beside r.yaml nor a shipped file."
    )


def test_a_file_that_extends_itself(tmp_path: Path) -> None:
    [(code, place, message)] = said(tmp_path, "schema: 1\nextends: [r.yaml]\n")
    assert (code, place) == ("LR210", "r.yaml:2:11")
    assert message == "`extends` runs in a circle: r.yaml → r.yaml. Remove one of them."


def test_a_circle_of_three(tmp_path: Path) -> None:
    put(tmp_path, "s.yaml", "schema: 1\nextends: [one.yaml, t.yaml]\n")
    put(tmp_path, "t.yaml", "schema: 1\nname: t\nextends:\n  - s.yaml\n")
    [(code, place, message)] = said(tmp_path, "schema: 1\nextends: [s.yaml]\n")
    assert (code, place) == ("LR210", "t.yaml:4:5")
    assert message.startswith("`extends` runs in a circle: r.yaml → s.yaml → t.yaml → s.yaml.")


@pytest.mark.parametrize(
    ("first", "second", "field", "places"),
    [
        ("processor: {class: A}", "processor: {class: B}", "class", "x.yaml:2:20 and y.yaml:2:20"),
        (
            "tokens: [{text: a, role: pad}]",
            "tokens: [{text: b, role: pad}]",
            "tokens",
            "x.yaml:2:9 and y.yaml:2:9",
        ),
        (
            "sources: {m: {default: a}}",
            "sources:\n  m:\n    default: b",
            "default",
            "x.yaml:2:24 and y.yaml:4:14",
        ),
        (
            "detect: {config: {a: 1}}",
            "detect: {config: {a: null}}",
            "a",
            "x.yaml:2:22 and y.yaml:2:22",
        ),
    ],
)
def test_two_parents_that_clash(
    first: str, second: str, field: str, places: str, tmp_path: Path
) -> None:
    put(tmp_path, "x.yaml", f"schema: 1\n{first}\n")
    put(tmp_path, "y.yaml", f"schema: 1\n{second}\n")
    assert said(tmp_path, "schema: 1\nextends: [x.yaml, one.yaml, y.yaml]\n") == [
        (
            "LR210",
            "r.yaml:2:29",
            f"two parents give `{field}` different values: {places}. Set `{field}` in this file.",
        )
    ]


def test_two_parents_of_one_mind(tmp_path: Path) -> None:
    put(tmp_path, "x.yaml", "schema: 1\nprocessor: {class: A}\n")
    put(tmp_path, "y.yaml", "schema: 1\nprocessor:\n  class: 'A'\n  chat_template: c\n")
    rules = load(tmp_path, "schema: 1\nextends: [x.yaml, y.yaml]\n")
    assert rules.text.processor is not None
    assert (rules.text.processor.class_, rules.text.processor.chat_template) == ("A", "c")


def test_the_child_settles_a_clash(tmp_path: Path) -> None:
    put(tmp_path, "x.yaml", "schema: 1\nprocessor: {class: A}\n")
    put(tmp_path, "y.yaml", "schema: 1\nprocessor: {class: B}\n")
    rules = load(tmp_path, "schema: 1\nextends: [x.yaml, y.yaml]\nprocessor: {class: C}\n")
    assert rules.text.processor is not None
    assert rules.text.processor.class_ == "C"


def test_the_child_settles_a_clash_only_where_it_says_something(tmp_path: Path) -> None:
    put(tmp_path, "x.yaml", "schema: 1\nprocessor: {class: A}\n")
    put(tmp_path, "y.yaml", "schema: 1\nprocessor: {class: B}\n")
    [(code, _, _)] = said(
        tmp_path, "schema: 1\nextends: [x.yaml, y.yaml]\nprocessor: {chat_template: t}\n"
    )
    assert code == "LR210"


BLAME = {
    "yaml": ("schema: 1\nname: yes\n", "LR201", "p.yaml:2:7"),
    "no schema": ("name: p\n", "LR201", "p.yaml:1:1"),
    "unknown field": (
        "schema: 1\nnames:\n  - {id: a, from: a,\n     too: b}\n",
        "LR201",
        "p.yaml:4:6",
    ),
    "pattern": ("schema: 1\nnames:\n  - {id: z, match: '(', replace: b}\n", "LR202", "p.yaml:3:5"),
    "one id twice": (
        "schema: 1\nnames:\n  - {id: z, from: a, to: b}\n  - {id: z, from: b, to: c}\n",
        "LR209",
        "p.yaml:4:5",
    ),
    "type": ("schema: 1\nsources: {model: {prefix: 5}}\n", "LR201", "p.yaml:2:27"),
}


@pytest.mark.parametrize("mistake", BLAME)
def test_a_mistake_of_the_parent_is_shown_in_the_parent(mistake: str, tmp_path: Path) -> None:
    text, code, place = BLAME[mistake]
    put(tmp_path, "p.yaml", text)
    child = (
        "schema: 1\nextends: [p.yaml]\nsources: {model: {optional: true}}\n"
        "names: [{id: own, from: x, to: w}]\n"
    )
    assert [problem[:2] for problem in said(tmp_path, child)] == [(code, place)]


def test_a_mistake_of_the_child_is_shown_in_the_child(tmp_path: Path) -> None:
    put(tmp_path, "p.yaml", "schema: 1\nsources: {model: {prefix: good}}\n")
    [(code, place, _)] = said(
        tmp_path, "schema: 1\nextends: [p.yaml]\nsources: {model: {prefix: 5}}\n"
    )
    assert (code, place) == ("LR201", "r.yaml:3:27")


def test_the_digest_covers_the_parents(tmp_path: Path) -> None:
    grandparent = put(tmp_path, "g.yaml", "schema: 1\nname: g\n")
    put(tmp_path, "p.yaml", "schema: 1\nextends: [g.yaml]\n")
    text = "schema: 1\nextends: [p.yaml]\n"
    before = load(tmp_path, text).sha256
    assert load(tmp_path, text).sha256 == before
    grandparent.write_text("schema: 1\nname: g # a comment\n")
    after = load(tmp_path, text).sha256
    assert len(before) == 64
    assert after != before
    assert load(tmp_path, text + "# a comment\n").sha256 not in (before, after)


def test_the_digest_of_a_file_alone_is_that_of_its_bytes(tmp_path: Path) -> None:
    # printf 'schema: 1\n' | sha256sum
    assert (
        load(tmp_path, "schema: 1\n").sha256
        == "69a63652bbf38cdfd6b9abd12b928dbaf80960689074397a2a8603c4a3c35845"
    )


def test_the_digest_is_that_of_parents_then_child(tmp_path: Path) -> None:
    put(tmp_path, "g.yaml", "schema: 1\n")
    # printf 'schema: 1\nschema: 1\nextends: [g.yaml]\n' | sha256sum
    assert (
        load(tmp_path, "schema: 1\nextends: [g.yaml]\n").sha256
        == "33964b840ac498c6c95dcb61517979a009f4adb022df726267207fe21f2f6256"
    )


def test_a_complete_file_is_no_less_complete_for_its_parents(tmp_path: Path) -> None:
    put(tmp_path, "c.yaml", COMPLETE)
    [problem] = refused(
        put(tmp_path, "r.yaml", "schema: 1\nextends: [c.yaml]\nname: child\nversion: 1.0.0\n")
    ).problems
    assert problem.placed_cause.endswith("r.yaml:1:1 a rule file with a target needs summary.")


def test_a_parents_own_rule_stays_where_another_parent_has_the_one_it_replaced(
    tmp_path: Path,
) -> None:
    """In a diamond, what the left file replaced of the base is not put back by the right file,
    which only has it as it was.
    """
    put(
        tmp_path,
        "base.yaml",
        "schema: 1\nsummary: b\ntarget: {class: Base}\nnames:\n  - {id: a, from: a, to: base}\n",
    )
    left = (
        "schema: 1\nextends: [base.yaml]\ntarget: {class: Left}\nnames:\n"
        "  - {id: a, from: a, to: left}\n"
    )
    put(
        tmp_path,
        "left.yaml",
        left.replace("target: {class: Left}", "tokens: [{text: L, role: pad}]"),
    )
    put(
        tmp_path,
        "right.yaml",
        "schema: 1\nextends: [base.yaml]\nnames:\n  - {id: r, from: r, to: r}\n",
    )
    put(
        tmp_path,
        "base.yaml",
        "schema: 1\ntokens: [{text: B, role: pad}]\nnames:\n  - {id: a, from: a, to: base}\n",
    )
    for order in ("left.yaml, right.yaml", "right.yaml, left.yaml"):
        rules = load(tmp_path, f"schema: 1\nextends: [{order}]\n")
        assert dict(outcomes(rules)) == {"a": "left", "r": "r"}, order
        assert [token.text for token in rules.text.tokens] == ["L"], order


def test_a_ladder_of_diamonds_is_read_at_once(tmp_path: Path) -> None:
    """Every file extends two that extend the same two: as many ways as two to the power of
    fifteen, and thirty files.
    """
    for side in "lr":
        put(tmp_path, f"{side}0.yaml", f"schema: 1\nnames: [{{id: {side}, from: {side}, to: x}}]\n")
        for step in range(1, 16):
            put(
                tmp_path,
                f"{side}{step}.yaml",
                f"schema: 1\nextends: [l{step - 1}.yaml, r{step - 1}.yaml]\n",
            )
    rules = load(tmp_path, "schema: 1\nextends: [l15.yaml, r15.yaml]\n")
    assert ids(rules) == ["l", "r"]
    assert len(rules.texts) == 33


def test_a_long_chain_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "f0.yaml", "schema: 1\n")
    for step in range(1, 3000):
        put(tmp_path, f"f{step}.yaml", f"schema: 1\nextends: [f{step - 1}.yaml]\n")
    [(code, place, message)] = said(tmp_path, "schema: 1\nextends: [f2999.yaml]\n")
    assert (code, place.split(":")[1:]) == ("LR210", ["2", "11"])
    assert message.startswith("more than 20 files extend one another")


def test_a_file_reached_under_two_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    put(tmp_path, "left.yaml", "schema: 1\nextends: [one.yaml]\n")
    put(tmp_path, "right.yaml", "schema: 1\nextends: [sub/../one.yaml]\n")
    assert ids(load(tmp_path, "schema: 1\nextends: [left.yaml, right.yaml]\n")) == ["a", "b"]


def test_the_ending_may_be_left_out(tmp_path: Path) -> None:
    """As on the command line, where the shipped file is `llava-onevision`; a file that is called
    so exactly comes first.
    """
    assert load(tmp_path, COMPLETE + "extends: [llava-onevision]\n").text.names
    assert load(tmp_path, "schema: 1\nextends: [parts/wrappers]\n").text.prepare
    put(tmp_path, "one", "schema: 1\nnames: [{id: bare, from: u, to: v}]\n")
    assert ids(load(tmp_path, "schema: 1\nextends: [one]\n")) == ["bare"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llava-onevison", "llava-onevision.yaml"),
        ("parts/chat-vicunna.yaml", "parts/chat-vicuna.yaml"),
    ],
)
def test_a_slip_in_a_parents_name(name: str, meant: str, tmp_path: Path) -> None:
    [(code, _, message)] = said(tmp_path, f"schema: 1\nextends: [{name}]\n")
    assert (code, message.endswith(f"Did you mean `{meant}`?")) == ("LR210", True)


SHIPPED = [
    path.relative_to(shipped_folder()).as_posix()
    for path in sorted(shipped_folder().rglob("*.yaml"))
]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_named_with_and_without_its_ending(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for spelt in (
        name,
        name.removesuffix(".yaml"),
        f"rules/{name}",
        f"rules/{name.removesuffix('.yaml')}",
    ):
        assert load_rule_file(spelt).path == shipped_folder() / name
        rules = load(
            tmp_path, f"schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [{spelt}]\n"
        )
        assert name in [file for file, _ in rules.texts]


def test_layouts_too(tmp_path: Path) -> None:
    rules = load(tmp_path, "schema: 1\nlayouts: [classic.yaml, module-4.52]\n")
    assert [layout.path.stem for layout in rules.layouts] == ["classic", "module-4.52"]


def test_a_file_of_ones_own_is_named_without_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipped file of the same name comes first, unless the ending is written."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "llava-v1.5"):
        put(tmp_path, f"{name}.yaml", "schema: 1\n")
    assert load_rule_file("mine").path == Path("mine.yaml")
    assert load_rule_file("llava-v1.5").path == shipped_folder() / "llava-v1.5.yaml"
    assert load_rule_file("llava-v1.5.yaml").path == Path("llava-v1.5.yaml")


@pytest.mark.parametrize(
    "name",
    ["../rules/llava-v1.5", "rules/../llava-v1.5", "parts/../../rules/llava-v1.5", "/llava-v1.5"],
)
def test_no_name_leads_out_of_the_shipped_files(name: str) -> None:
    with pytest.raises(RemapError) as caught:
        load_rule_file(name)
    assert caught.value.problems[0].code == "LR200"
