"""The traps of YAML, each with the place where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_remap.core.problem import Mark
from llava_remap.rulefile import yaml_text
from llava_remap.rulefile.yaml_text import parse_yaml

from .written import load, put, refused, said

BOMB = "schema: 1\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

TRAPS = {
    "duplicate key": (
        "schema: 1\nname: a\nsummary: b\nname: c\n",
        "4:1",
        "`name` occurs twice, first at line 2. Remove one of them.",
    ),
    "duplicate key, deep": (
        "schema: 1\nsources:\n  model: {optional: true, optional: false}\n",
        "3:27",
        "`optional` occurs twice",
    ),
    "duplicate key, quoted once": ("schema: 1\nname: a\n'name': b\n", "3:1", "`name` occurs twice"),
    "duplicate key, as number": (
        "schema: 1\ndetect: {config: {1: a, '1': b}}\n",
        "2:25",
        "`1` occurs twice",
    ),
    "anchor": ("schema: 1\nname: &a b\n", "2:7", "anchors and aliases are not part"),
    "anchor on a list": (
        "schema: 1\nnames: &a\n- {id: a, from: a, to: b}\n",
        "2:8",
        "anchors and aliases are not part",
    ),
    "anchor on a key": ("schema: 1\n&a name: b\n", "2:1", "anchors and aliases are not part"),
    "alias": ("schema: 1\nname: x\nsummary: *a\n", "3:10", "anchors and aliases are not part"),
    "alias bomb": (BOMB, "2:4", "anchors and aliases are not part"),
    "tag": ("schema: 1\nname: !!str b\n", "2:7", "tags (`tag:yaml.org,2002:str`) are not part"),
    "tag that builds": (
        "schema: 1\nname: !!python/object/apply:os.getcwd []\n",
        "2:7",
        "tags (`tag:yaml.org,2002:python/",
    ),
    "tag without a name": ("schema: 1\nname: ! b\n", "2:7", "tags (`!`) are not part"),
    "own tag on a key": ("schema: 1\n!x name: b\n", "2:1", "tags (`!x`) are not part"),
    "yes": ("schema: 1\nname: yes\n", "2:7", "`yes` is a boolean"),
    "no": ("schema: 1\nname: no\n", "2:7", "`no` is a boolean"),
    "on": ("schema: 1\nname: on\n", "2:7", "`on` is a boolean"),
    "off": ("schema: 1\nname: off\n", "2:7", "`off` is a boolean"),
    "YES": ("schema: 1\nname: YES\n", "2:7", "`YES` is a boolean"),
    "y": ("schema: 1\nname: y\n", "2:7", "`y` is a boolean"),
    "n": ("schema: 1\nname: n\n", "2:7", "`n` is a boolean"),
    "on as a key": ("schema: 1\non: b\n", "2:1", "`on` is a boolean"),
    "no in a list": ("schema: 1\nextends: [a.yaml, no]\n", "2:19", "`no` is a boolean"),
    "True": ("schema: 1\nname: True\n", "2:7", "`True` is a boolean"),
    "NULL": ("schema: 1\nname: NULL\n", "2:7", "`NULL` is a boolean or null"),
    "two documents": ("schema: 1\n---\nschema: 1\n", "2:1", "a rule file is one YAML document."),
    "three documents": (
        "---\nschema: 1\n...\n---\nschema: 1\n---\nschema: 1\n",
        "4:1",
        "a rule file is one YAML document.",
    ),
    "list": ("- schema: 1\n", "1:1", "a rule file is a mapping of fields."),
    "word": ("\n\n  schema\n", "3:3", "a rule file is a mapping of fields."),
    "list as a key": (
        "schema: 1\n? [a]\n: b\n",
        "2:3",
        "a key must be a word, not a list or mapping.",
    ),
    "mapping as a key": (
        "schema: 1\nsources: {{a: b}: c}\n",
        "2:11",
        "a key must be a word, not a list or mapping.",
    ),
    "deep list": (
        "schema: 1\na: " + "[" * 51 + "]" * 51 + "\n",
        "2:54",
        "the values are nested more than 50 levels deep.",
    ),
    "endless list": (
        "schema: 1\na: " + "[" * 10_000,
        "2:54",
        "the values are nested more than 50 levels deep.",
    ),
    "deep mapping": (
        "".join(" " * level + "a:\n" for level in range(60)),
        "51:51",
        "the values are nested more than 50 levels deep.",
    ),
    "column counts characters": (
        "{schema: 1, summary: 'é 😀 → ü', name: yes}\n",
        "1:39",
        "`yes` is a boolean",
    ),
    "Windows line ends": ("schema: 1\r\nsummary: a\r\nname: yes\r\n", "3:7", "`yes` is a boolean"),
}


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize("trap", TRAPS)
def test_trap(trap: str, loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "LOADER", getattr(yaml, loader))
    text, place, words = TRAPS[trap]
    [(code, where, message)] = said(tmp_path, text)
    assert (code, where) == ("LR201", f"r.yaml:{place}")
    assert message.startswith(words)


def test_the_first_of_two_keys_is_shown_where_it_stands(tmp_path: Path) -> None:
    [(_, place, message)] = said(tmp_path, "schema: 1\nsources:\n  model: {}\nsources: {}\n")
    assert place == "r.yaml:4:1"
    assert message == "`sources` occurs twice, first at line 2. Remove one of them."


BROKEN = {
    "unclosed list": ("schema: 1\nextends: [a.yaml\nname: b\n", "3:5"),
    "unclosed text": ("schema: 1\nname: 'abc\n", "2:7"),
    "tab before a key": ("schema: 1\n\tname: a\n", "2:1"),
    "two colons": ("schema: 1\nname: a: b\n", "2:8"),
    "less indented than its list": (
        "schema: 1\nnames:\n    - {id: a, from: a, to: b}\n  - {id: b, from: c, to: d}\n",
        "4:3",
    ),
    "unknown escape": ('schema: 1\nname: "a\\qb"\n', "2:9"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_yaml(text: str, tmp_path: Path) -> None:
    broken, place = BROKEN[text]
    [(code, where, message)] = said(tmp_path, broken)
    assert (code, where) == ("LR201", f"r.yaml:{place}")
    assert message.startswith("not valid YAML: ")


def test_control_character(tmp_path: Path) -> None:
    [(code, _, message)] = said(tmp_path, "schema: 1\nname: \x01\n")
    assert code == "LR201"
    assert "U+0001" in message
    assert "\n" not in message


def test_not_utf8(tmp_path: Path) -> None:
    [(code, place, message)] = said(tmp_path, b"schema: 1\nname: caf\xe9\n")
    assert (code, place, message) == (
        "LR201",
        "r.yaml:1:1",
        "not UTF-8 at byte 19. Correct it there, if this is the rule file that you mean.",
    )


def test_utf16(tmp_path: Path) -> None:
    [(code, place, message)] = said(tmp_path, "schema: 1\n".encode("utf-16"))
    assert (code, place, message) == (
        "LR201",
        "r.yaml:1:1",
        "not UTF-8 at byte 0. Correct it there, if this is the rule file that you mean.",
    )


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbfschema: 1\nname: a\n").name == "a"


def test_size_limit(tmp_path: Path) -> None:
    head = "schema: 1\nname: large\n#"
    assert load(tmp_path, head + "x" * (1_000_000 - len(head))).name == "large"
    [(code, place, message)] = said(tmp_path, head + "x" * (1_000_001 - len(head)))
    assert (code, place) == ("LR201", "r.yaml:1:1")
    assert (
        message
        == "the file has 1000001 bytes; at most 1000000 are read. Correct it there, if this is the "
        "rule file that you mean."
    )


def test_unreadable_file(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path).problems
    assert problem.code == "LR200"


def test_quoted_words_are_words(tmp_path: Path) -> None:
    rules = load(tmp_path, "schema: 1\nname: 'yes'\nsummary: \"off\"\nversion: '1.0.0'\n")
    assert (rules.text.name, rules.text.summary, rules.text.version) == ("yes", "off", "1.0.0")


SCALARS: dict[str, Any] = {
    "true": True, "false": False, "null": None, "~": None, "": None, "0": 0, "-12": -12, "+3": 3,
    "1.5": 1.5, "1e-5": 1e-5,
    "1.0e-5": 1e-5, ".5": 0.5, "1.0.0": "1.0.0", "1_000": "1_000", "0x10": "0x10", "12:30": "12:30",
    "2024-01-01": "2024-01-01",
    "nope": "nope", "<<": "<<", "'1'": "1", "'null'": "null", "model.norm": "model.norm",
}  # fmt: skip


@pytest.mark.parametrize("written", SCALARS)
def test_plain_scalars_are_those_of_yaml_1_2(written: str) -> None:
    found = parse_yaml(f"a: {written}\n", "x").plain["a"]
    assert found == SCALARS[written]
    assert type(found) is type(SCALARS[written])


def test_fifty_levels_are_read() -> None:
    found = parse_yaml("a: " + "[" * 50 + "]" * 50, "x").plain["a"]
    for _ in range(49):
        (found,) = found
    assert found == ()


def test_marks_of_keys_and_values() -> None:
    root = parse_yaml("a: 1\nb:\n  - c: x\n    d: z\n", "file")
    item = root.locate(("b", 0, "d"))
    assert (item.value, item.mark, item.key_mark) == ("z", Mark("file", 4, 8), Mark("file", 4, 5))
    assert str(item.mark) == "file:4:8"


def test_a_missing_place_is_shown_where_it_should_have_been() -> None:
    root = parse_yaml("a: 1\nb:\n  - c: x\n", "file")
    assert root.locate(("b", 0, "d")).mark == Mark("file", 3, 5)
    assert root.locate(("b", 7)).mark == Mark("file", 3, 3)


def test_merge_keys_mean_nothing(tmp_path: Path) -> None:
    [(code, place, message)] = said(tmp_path, "schema: 1\n<<: {name: x}\n")
    assert (code, place) == ("LR201", "r.yaml:2:1")
    assert message.startswith("unknown field `<<`.")


def test_the_file_is_named_relative_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "sub/r.yaml", "schema: 1\nname: yes\n")
    monkeypatch.chdir(tmp_path)
    (problem,) = refused("sub/r.yaml").problems
    assert problem.placed_cause.startswith("sub/r.yaml:2:7 ")


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(
    ("rule", "quoted"),
    [
        ("{id: a, from: model.{rest...}, to: x.{rest}}", "'model.{rest...}'"),
        ("{id: a, from: layers.{n:int}.w, to: 'x.{n}.w'}", "'layers.{n:int}.w'"),
        ("{id: a, from: 'layers.{n:int}.w', to: x.{n}.w}", "'x.{n}.w'"),
        ("{id: a,\n     from: a.{x}.w,\n     to: b}", "'a.{x}.w'"),
        ("id: a\n    from: {m...}.qkv\n    to: '{m}.q'", "'{m...}.qkv'"),
        ("{id: a, from: {m...}, to: b}", "'{m...}"),  # valid YAML: a mapping
    ],
)
def test_a_template_without_quotes(
    rule: str, quoted: str, loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_text, "LOADER", getattr(yaml, loader))
    [(code, place, message), *_] = said(tmp_path, f"schema: 1\nnames:\n  - {rule}\n")
    assert (code, int(place.split(":")[1]) >= 3) == ("LR201", True)
    assert f"Put a name with braces in quotes: {quoted}" in message


#: A part of a rule file that isn't what its author meant, its place, and what the message says to
#: write.
SLIPS = {
    "list item": (
        "detect:\n  present:\n    - {a...}.weight\n",
        "4:",
        "Put a name with braces in quotes: '{a...}.weight'.",
    ),
    "list in flow style": (
        "detect: {present: [a.{n}.b, c]}\n",
        "2:",
        "Put a name with braces in quotes: 'a.{n}.b'.",
    ),
    "a field that a boolean is called like": (
        "detect: {present: [{n}]}\n",
        "2:20",
        "Put a name with braces in quotes: '{n}'.",
    ),
    "key": ("tests: []\n{x}: y\n", "3:1", "Put a text that begins with { or [ in quotes"),
    "Jinja": (
        "processor:\n  chat_template: {% for m in messages %}\n",
        "3:",
        "in quotes, or after a `|` on its own lines",
    ),
    "percent": ("summary: %x of it\n", "2:10", "Put it in quotes: '%x of it'."),
    "star": ("names:\n  - id: a\n    from: *.weight\n", "4:", "Put it in quotes: '*.weight'."),
    "star in flow style": ("names: [{id: a, from: *.{x}, to: b}]\n", "2:", "quotes: '*.{x}'."),
    "ampersand": ("names:\n  - id: a\n    from: &x.y\n", "4:", "Put it in quotes: '&x.y'."),
    "at": ("summary: @x\n", "2:10", "Put it in quotes: '@x'."),
    "backtick": ("summary: `x` of it\n", "2:10", "Put it in quotes: '`x` of it'."),
    "greater": ("summary: >x\n", "2:", "Put it in quotes: '>x'."),
    "regex": (
        "names:\n  - {id: a, match: [a-z]+.weight, replace: c}\n",
        "3:",
        "Put a regex in quotes: '[a-z]+.weight'.",
    ),
    "brackets": (
        "names: [{id: a, from: x.w, drop: the [SEG] head}]\n",
        "2:38",
        "Put a text with brackets in quotes: 'the [SEG] head'.",
    ),
    "backslash": (
        'names: [{id: a, match: "^model\\.(.*)"}]\n',
        "2:",
        r"in which a \ stands for "
        r"itself: '^model\.(.*)'.",
    ),
    "quotes around a part": (
        "names: [{id: a, from: 'model.'{x...}, to: d}]\n",
        "2:",
        "whole value in quotes: 'model.{x...}'.",
    ),
    "tab": ("names:\n\t- {id: a}\n", "3:1", "Indent with plain spaces"),
    "tab behind spaces": ("names:\n  - id: a\n\t  from: b\n", "4:1", "Indent with plain spaces"),
    "no-break space": ("names:\n\u00a0 - {id: a, from: b}\n", "3:", "Indent with plain spaces"),
    "colon": (
        "summary: LLaVA: mine\n",
        "2:",
        "Put a text with a colon in it in quotes: 'LLaVA: mine'.",
    ),
    "colon in flow style": (
        "names: [{id: a, drop: b: c's}]\n",
        "2:",
        "Put a text with a colon in it in quotes: 'b: c''s'.",
    ),
    "comma": (
        "names: [{id: a from: b, to: c}]\n",
        "2:",
        "Put a comma before `from:`. If the whole value is one text",
    ),
    "hash": ("names: [{id: a, from: b #c, to: d}]\n", "", "Put a text with ` #` in it in quotes"),
    "hyphen without a space": (
        "names:\n  -{id: a, from: b}\n",
        "3:",
        "Put a space after the hyphen: - {id: a, from: b}",
    ),
    "colon without a space": (
        "names: [{id:a, from: b, to: c}]\n",
        "2:",
        "Put a space after the colon: id: a",
    ),
    "hyphen": ("summary: - x\n", "2:10", "Put a text that begins with a hyphen in quotes"),
    "quote that isn't closed": (
        "names:\n  - {id: a, from: 'b, to: d}\ntests: []\n",
        "3:19",
        "Close the quote",
    ),
    "bracket that isn't closed": (
        "names:\n  - {id: a, from: b, to: d\ntests: []\n",
        "4:",
        "bracket of line 3, column 5",
    ),
    "columns": ("names:\n  - id: a\n   from: b\n", "4:4", "this line begins in column 4"),
    "control character": ("summary: '\U0001f600\x07'\n", "2:12", "Remove it"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_what_to_write(slip: str, tmp_path: Path) -> None:
    text, place, advice = SLIPS[slip]
    found = said(tmp_path, f"schema: 1\n{text}")
    assert {code for code, _, _ in found} == {"LR201"}
    message = next(
        (
            message
            for _, where, message in found
            if where.startswith(f"r.yaml:{place}") and advice in message
        ),
        None,
    )
    assert message is not None, found


def test_a_long_line_is_no_work(tmp_path: Path) -> None:
    """Counted in characters that are looked at, not in seconds."""
    [(code, _, message)] = said(tmp_path, "schema: 1\nsummary: " + "{a: " * 20_000 + "\n")
    assert code == "LR201"
    assert len(message) < 1000


def test_quotes_are_advised_only_where_they_lack(tmp_path: Path) -> None:
    [(code, _, message)] = said(
        tmp_path, "schema: 1\nnames:\n  - {id: a, from: 'a.{x}', to: 'b.{x}'\n  - {id: b}\n"
    )
    assert (code, "quotes" in message) == ("LR201", False)
