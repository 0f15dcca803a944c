"""Validation: what a field may be, and the place of each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_remap.core.codes import Exit

from .written import COMPLETE, load, put, refused, said

RULE = "schema: 1\nnames: [{"

MISTAKES = {
    # text: place, whole message
    "unknown, near": ("schema: 1\nnmae: x\n", "2:1", "unknown field `nmae`. Did you mean `name`?"),
    "unknown in a source": (
        "schema: 1\nsources:\n  model: {defualt: x}\n",
        "3:11",
        "unknown field `defualt`. Did you mean `default`?",
    ),
    "unknown in a rule": (
        RULE + "id: a, frm: a, to: b}]\n",
        "2:17",
        "unknown field `frm`. Did you mean `from`?",
    ),
    "unknown, far": (
        RULE + "id: a, zzz: 1, from: a, to: b}]\n",
        "2:17",
        "unknown field `zzz`. Known here: id, from, to, match, replace, unwrap, drop, when, "
        "optional, one_way, reverse.",
    ),
    "unknown in a target": (
        "schema: 1\ntarget: {clas: X}\n",
        "2:10",
        "unknown field `clas`. Did you mean `class`?",
    ),
    "unknown in a config value": (
        "schema: 1\ntarget: {config: {a: {form: b}}}\n",
        "2:23",
        "unknown field `form`. Did you mean `from`?",
    ),
    "unknown in a case": (
        "schema: 1\ntarget: {config: {a: {cases: [{whn: {}, const: 1}]}}}\n",
        "2:32",
        "unknown field `whn`. Did you mean `when`?",
    ),
    "unknown in post_load": (
        "schema: 1\npost_load:\n  - use: x\n    wiht: {}\n",
        "4:5",
        "unknown field `wiht`. Did you mean `with`?",
    ),
    "missing in a rule": (RULE + "from: a, to: b}]\n", "2:9", "the field `id` is missing."),
    "missing in a token": (
        "schema: 1\ntokens:\n  - text: x\n",
        "3:5",
        "the field `role` is missing.",
    ),
    "missing in a test": (
        "schema: 1\ntests:\n  - {to: x}\n",
        "3:5",
        "the field `from` is missing.",
    ),
    "rules that are a number": ("schema: 1\nnames: 5\n", "2:8", "`names` has to be a list."),
    "rules that are nothing": ("schema: 1\nnames:\nname: x\n", "2:7", "`names` has to be a list."),
    "a rule that is a number": ("schema: 1\nnames: [5]\n", "2:9", "`names.0` has to be a mapping."),
    "extends that is a word": (
        "schema: 1\nextends: x.yaml\n",
        "2:10",
        "`extends` has to be a list.",
    ),
    "extends with a number": ("schema: 1\nextends: [5]\n", "2:11", "`extends` is a list of files."),
    "a number for a text": (
        "schema: 1\nsummary: 5\n",
        "2:10",
        "`summary` has to be text (quote it",
    ),
    "a version that is a float": (
        "schema: 1\nversion: 1.0\n",
        "2:10",
        "`version` has to be text (quote it",
    ),
    "a version of two numbers": (
        "schema: 1\nversion: '1.0'\n",
        "2:10",
        "`version` has to be of another form: ",
    ),
    "a text for a boolean": (
        "schema: 1\nsources: {model: {optional: maybe}}\n",
        "2:29",
        "`sources.model.optional` has to be true or false.",
    ),
    "a boolean for a text": ("schema: 1\nname: true\n", "2:7", "`name` has to be text"),
    "an id with capitals": (
        RULE + "id: Head, from: a, to: b}]\n",
        "2:14",
        "`names.0.id` has to be of another form: ",
    ),
    "an empty reason": (RULE + "id: a, from: a, drop: ''}]\n", "2:32", "`names.0.drop`: "),
    "an unknown role": (
        "schema: 1\ntokens: [{text: a, role: audio}]\n",
        "2:26",
        "`tokens.0.role`: input should be 'image'",
    ),
    "a default that is a number": (
        "schema: 1\nsources: {a: {}, b: {default: 5}}\n",
        "2:31",
        "a `default` is a hub repository, or {from: KEY} for",
    ),
    "a default from nowhere": (
        "schema: 1\nsources: {a: {}, b: {default: {from: x, form: x}}}\n",
        "2:41",
        "unknown field `form`. Known here: from,",
    ),
    "a default from a number": (
        "schema: 1\nsources: {a: {}, b: {default: {from: 5}}}\n",
        "2:38",
        "`sources.b.default.from` has to be text",
    ),
    "a first default from a config": (
        "schema: 1\nsources: {a: {default: {from: x}}}\n",
        "1:1",
        "the first of `sources` has no source before it whose config",
    ),
    "an unknown use": (
        "schema: 1\nsources: {model: {use: [tensor]}}\n",
        "2:25",
        "`sources.model.use.0`: ",
    ),
    "to and drop": (
        RULE + "id: a, from: a, to: b, drop: c}]\n",
        "2:9",
        "a rule is from + to, match + replace, unwrap, from +",
    ),
    "from and replace": (
        RULE + "id: a, from: a, replace: b}]\n",
        "2:9",
        "a rule is from + to, match + replace,",
    ),
    "unwrap in names": (
        RULE + "id: a, unwrap: a}]\n",
        "1:1",
        "`unwrap` is for `prepare`; `a` is a rule of `names`",
    ),
    "unwrap and to": (
        RULE + "id: a, unwrap: a, to: b}]\n",
        "2:9",
        "a rule is from + to, match + replace, unwrap, from +",
    ),
    "unwrap one way": (
        RULE + "id: a, unwrap: a, one_way: true}]\n",
        "2:9",
        "`unwrap` has no way back anyway",
    ),
    "from alone": (
        RULE + "id: a, from: a}]\n",
        "2:9",
        "a rule is from + to, match + replace, unwrap, from + drop or",
    ),
    "two origins": (
        "schema: 1\ntarget: {config: {a: {from: b, const: 1}}}\n",
        "2:22",
        "give exactly one of from, const, tower, token, target, cases.",
    ),
    "no origin": ("schema: 1\ntarget: {config: {a: {}}}\n", "2:22", "give exactly one of from,"),
    "a default without from": (
        "schema: 1\ntarget: {config: {a: {const: 1, default: 2}}}\n",
        "2:22",
        "`map` and `default` are only allowed with `from`.",
    ),
    "two outcomes": (
        "schema: 1\ntests: [{from: a, to: b, unmapped: true}]\n",
        "2:9",
        "give exactly one of to, dropped: true,",
    ),
    "no outcome": (
        "schema: 1\ntests: [{from: a}]\n",
        "2:9",
        "give exactly one of to, dropped: true, unmapped: true.",
    ),
    "not dropped": (
        "schema: 1\ntests: [{from: a, dropped: false}]\n",
        "2:28",
        "`tests.0.dropped`: input should be True.",
    ),
    "schema missing": (
        "name: x\n",
        "1:1",
        "the field `schema` is missing; known: 1. Start the file with `schema: 1`.",
    ),
    "schema of tomorrow": (
        "name: x\nschema: 2\n",
        "2:9",
        "version `2` of the rule language is unknown; known: 1.",
    ),
    "schema as text": (
        "schema: '1'\n",
        "1:9",
        "version `1` of the rule language is unknown; known: 1.",
    ),
    "schema as boolean": (
        "schema: true\n",
        "1:9",
        "version `True` of the rule language is unknown; known: 1.",
    ),
    "schema as float": ("schema: 1.0\n", "1:9", "`schema` has to be a whole number."),
    "schema as list": (
        "schema: [1]\n",
        "1:9",
        "version `(1,)` of the rule language is unknown; known: 1.",
    ),
    "an empty file": ("", "1:1", "the field `schema` is missing; known: 1."),
    "a comment": ("# nothing\n", "1:1", "the field `schema` is missing; known: 1."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_invalid_field(mistake: str, tmp_path: Path) -> None:
    text, place, words = MISTAKES[mistake]
    [(code, where, message)] = said(tmp_path, text)
    assert (code, where) == ("LR201", f"r.yaml:{place}")
    assert message.startswith(words)


PATTERNS = {
    "bad regex": (RULE + "id: a, match: '(', replace: b}]\n", "2:9", "`(` is not a regex: "),
    "bad regex of a drop": (
        RULE + "id: a, match: '[z-a]', drop: b}]\n",
        "2:9",
        "`[z-a]` is not a regex: ",
    ),
    "unknown number": (
        RULE + r"id: a, match: '(a)', replace: 'b\2'}]",
        "2:9",
        r"`\2` in `b\2` "
        r"refers to no group of `(a)`.",
    ),
    "unknown group": (
        RULE + r"id: a, match: '(?<x>a)', replace: '\g<y>'}]",
        "2:9",
        r"`\g<y>` in `\g<y>` refers "
        r"to no group of `(?<x>a)`.",
    ),
    "unknown escape": (
        RULE + r"id: a, match: 'a', replace: '\n'}]",
        "2:9",
        r"`\n` in `\n` refers to no group of `a`.",
    ),
    "no group 0 in short": (
        RULE + r"id: a, match: 'a', replace: '\0'}]",
        "2:9",
        r"`\0` in `\0` refers to no group of `a`.",
    ),
    "group number with a zero": (
        RULE + r"id: a, match: '(a)', replace: '\01'}]",
        "2:9",
        r"`\01` in `\01` refers to no group",
    ),
    "a digit that isn't one": (
        RULE + r"id: a, match: '(a)', replace: '\g<²>'}]",
        "2:9",
        r"`\g<²>` in `\g<²>` refers to",
    ),
    "backslash at the end": (RULE + "id: a, match: 'a', replace: 'b\\'}]", "2:9", ""),
    "unknown field in to": (
        RULE + "id: a, from: 'a.{x}', to: 'b.{y}'}]",
        "2:9",
        "field `{y}` of `to` is not in `from`.",
    ),
    "touching fields": (
        RULE + "id: a, from: '{x}{y}', to: b}]",
        "2:23",
        "`{x}{y}` has two fields without text between them",
    ),
    "touching fields, kinds": (
        RULE + "id: a, from: 'a.{x...}{n:int}', to: b}]",
        "2:23",
        "`a.{x...}{n:int}` has two fields without text between them",
    ),
    "repeated field": (
        RULE + "id: a, from: '{x}.{x}', to: b}]",
        "2:23",
        "`{x}.{x}` has the field `{x}` twice.",
    ),
    "repeated field in to": (
        RULE + "id: a, from: '{x}', to: '{x}.{x}'}]",
        "2:34",
        "`{x}.{x}` has the field `{x}` twice.",
    ),
    "lone brace": (
        RULE + "id: a, from: 'a.{x', to: b}]",
        "2:23",
        "`a.{x` has a brace that isn't part of a field",
    ),
    "unknown kind": (
        RULE + "id: a, from: 'a.{x:str}', to: b}]",
        "2:23",
        "`a.{x:str}` has a brace that isn't part of a field",
    ),
    "doubled braces": (
        RULE + "id: a, from: 'a.{{x}}', to: b}]",
        "2:23",
        "`a.{{x}}` has a brace that isn't part of a field",
    ),
    "empty template": (RULE + "id: a, from: '', to: b}]", "2:23", "`` is empty or has white space"),
    "white space": (
        RULE + "id: a, from: 'a b', to: b}]",
        "2:23",
        "`a b` is empty or has white space",
    ),
    "in prepare": (
        "schema: 1\nprepare:\n  - {id: a, from: a, to: b}\n  - id: c\n    from: '{x}{y}'\n"
        "    to: d\n",
        "5:11",
        "`{x}{y}` has two fields without text between them",
    ),
    "in detect": (
        "schema: 1\ndetect:\n  absent: ['{x}.{x}']\n",
        "3:12",
        "`{x}.{x}` has the field `{x}` twice.",
    ),
    "in a source": ("schema: 1\nsources: {model: {select: '{'}}\n", "2:27", "`{` has a brace"),
}


@pytest.mark.parametrize("mistake", PATTERNS)
def test_invalid_pattern(mistake: str, tmp_path: Path) -> None:
    text, place, words = PATTERNS[mistake]
    [(code, where, message)] = said(tmp_path, text)
    assert (code, where) == ("LR202", f"r.yaml:{place}")
    assert message.startswith(words)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = """\
schema: 1
nmae: x
names:
  - {id: a, from: '{x}{y}', to: b}
  - {id: b, match: '(', replace: c}
  - {id: c, from: d}
"""
    assert [(code, place) for code, place, _ in said(tmp_path, text)] == [
        ("LR202", "r.yaml:4:19"),
        ("LR202", "r.yaml:5:5"),
        ("LR201", "r.yaml:6:5"),
        ("LR201", "r.yaml:2:1"),
    ]


def test_one_mistake_is_told_once(tmp_path: Path) -> None:
    """A value that fits none of several types is one mistake, told in the words of the file."""
    [(code, place, message)] = said(tmp_path, "schema: 1\ndetect: {config: {a: {b: c}}}\n")
    assert (code, place) == ("LR201", "r.yaml:2:22")
    assert message.startswith(
        "`detect.config.a` has to be a text, a number, true, false, null or a list of such values."
    )


@pytest.mark.parametrize("kind", ["names", "prepare"])
def test_two_rules_with_one_id(kind: str, tmp_path: Path) -> None:
    text = (
        f"schema: 1\n{kind}:\n  - {{id: a, from: a, to: b}}\n  - {{id: b, from: b, to: c}}\n"
        "  - {id: a, from: c, to: d}\n"
    )
    [problem] = said(tmp_path, text)
    assert problem == (
        "LR209", "r.yaml:5:5",
        f"the id `a` in `{kind}` is taken by the rule at line 3. Give one of them another id."
    )  # fmt: skip


def test_prepare_and_names_have_ids_of_their_own(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        "schema: 1\nprepare: [{id: a, from: a, to: b}]\nnames: [{id: a, from: b, to: c}]\n",
    )
    assert {label: str(mark).rpartition("/")[2] for label, mark in rules.marks.items()} == {
        "prepare/a": "r.yaml:2:11",
        "names/a": "r.yaml:3:9",
    }


@pytest.mark.parametrize("written", ["{a: b}", "[{a: b}]"])
def test_an_id_that_is_no_word(written: str, tmp_path: Path) -> None:
    [(code, place, _)] = said(tmp_path, f"schema: 1\nnames: [{{id: {written}, from: a, to: b}}]\n")
    assert (code, place) == ("LR201", "r.yaml:2:14")


@pytest.mark.parametrize("field", ["name", "version", "summary", "sources"])
def test_a_file_with_a_target_needs(field: str, tmp_path: Path) -> None:
    text = "".join(line for line in COMPLETE.splitlines(True) if not line.startswith(field))
    assert said(tmp_path, text) == [
        (
            "LR201",
            "r.yaml:1:1",
            f"a rule file with a target needs {field}. Correct it there; the shipped rule files "
            "show every field.",
        )
    ]


def test_a_file_with_a_target_needs_a_processor_class(tmp_path: Path) -> None:
    [(_, _, message)] = said(tmp_path, COMPLETE + "processor: {chat_template: x}\n")
    assert (
        message
        == "a rule file with a target needs processor.class. Correct it there; the shipped rule "
        "files show every field."
    )


SOURCE = COMPLETE.replace("{class: SomeForConditionalGeneration}", "{as: source}")


def test_a_target_that_is_the_source(tmp_path: Path) -> None:
    rules = load(tmp_path, SOURCE + "layouts: [classic, module-5.6]\n")
    assert (rules.target.as_, rules.target.class_) == ("source", None)
    assert [layout.name for layout in rules.layouts] == ["classic", "module-5.6"]
    assert {"layouts/classic.yaml", "layouts/module-5.6.yaml", "layouts/module-4.52.yaml"} <= {
        name for name, _ in rules.texts
    }
    assert rules.sha256 != load(tmp_path, SOURCE + "layouts: [classic]\n").sha256


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            SOURCE.replace("as: source", "as: source, class: X"),
            "`as` isn't allowed with `class`, `config` or `text_models`",
        ),
        (
            SOURCE + "tokens: [{text: x, role: pad}]\n",
            "`target.as` goes with neither `tokens` nor `post_load`",
        ),
        (
            SOURCE + "processor: {class: X}\n",
            "with `target.as`, a `processor` is for a `target.config_file`",
        ),
        (
            SOURCE.replace("as: source", "class: X, config_file: params.json"),
            "`config_file` is only allowed with `as: source`",
        ),
        (
            SOURCE + "layouts: [clasic]\n",
            "there is no layout `clasic`. The shipped layouts are classic, "
            "classic-5.6, mixed-5.4, ",
        ),
        (SOURCE.replace("as: source", "as: it"), "`target.as`: input should be 'source'"),
        (SOURCE.replace("version: 1.0.0\n", ""), "a rule file with a target needs version"),
    ],
)
def test_mistakes_in_a_target_that_is_the_source(text: str, wanted: str, tmp_path: Path) -> None:
    [(code, _, message)] = said(tmp_path, text)
    assert code == "LR201"
    assert message.startswith(wanted)


def test_a_complete_file(tmp_path: Path) -> None:
    rules = load(tmp_path, COMPLETE)
    assert (rules.name, rules.target.class_, rules.first_source) == (
        "complete",
        "SomeForConditionalGeneration",
        "model",
    )
    assert rules.text.sources["model"].use == ("tensors", "config", "tokenizer", "processor")


@pytest.mark.parametrize("text", ["schema: 1\n", "schema: 1\ntarget: {config: {a: {const: 1}}}\n"])
def test_a_part_has_no_target(text: str, tmp_path: Path) -> None:
    part = load(tmp_path, text)
    assert part.name == "r"
    with pytest.raises(
        Exception, match=r"r\.yaml:1:1 `r` has no `target\.class`: it is a part"
    ) as caught:
        _ = part.target
    assert caught.value.problems[0].code == "LR201"  # type: ignore[attr-defined]


def test_an_invalid_rule_file_is_wrong_usage(tmp_path: Path) -> None:
    assert refused(put(tmp_path, "r.yaml", "schema: 1\nx: 1\n")).exit is Exit.USAGE
