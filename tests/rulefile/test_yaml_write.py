"""Tests put into the text of a rule file: they are read as meant, and every byte that was there
stays.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_remap.core.problem import RemapError
from llava_remap.rulefile import Given, NameTest, yaml_write
from llava_remap.rulefile.load import _validate
from llava_remap.rulefile.yaml_text import parse_yaml
from llava_remap.rulefile.yaml_write import with_tests

NEW = NameTest.model_validate({"from": "new.name", "to": "b.c"})
LINE = "- {from: new.name, to: b.c}\n"


def read_tests(text: str) -> tuple[NameTest, ...]:
    return _validate(parse_yaml(text, "r.yaml")).tests


@pytest.mark.parametrize(
    ("before", "inserted", "after"),
    [
        ("schema: 1\n", "\ntests:\n  " + LINE, ""),
        ("schema: 1", "\n\ntests:\n  " + LINE, ""),
        ("  schema: 1\n", "\n  tests:\n    " + LINE, ""),
        ("schema: 1\ntests:\n- {from: a, to: b}  # why\n", LINE, "# behind\nname: x\n"),
        (
            "schema: 1\ntests:\n    - from: a\n      to: b # why\n",
            "    " + LINE,
            "\n\n# behind\n    # more\n",
        ),
        ("schema: 1\ntests:\n  - to: b\n    from:\n      'a'\n", "  " + LINE, "names: []"),
        ("schema: 1\ntests:\n  - {from: a,\n     to: b}\n", "  " + LINE, "\n# end"),
        ("schema: 1\ntests:\n  - from: a\n    to: |-\n      b\n", "  " + LINE, "name: x\n"),
        ("schema: 1\ntests:\n  - from: a\n    to: b", "\n  " + LINE, ""),
        ("schema: 1\ntests:\n  - {from: a, to: b}", "\n  " + LINE, ""),
        ("schema: 1\ntests: [", "{from: new.name, to: b.c}", "] # none\n"),
        ("schema: 1\ntests: [{from: a, to: b}", ", {from: new.name, to: b.c}", ",]\nname: x\n"),
        (
            "schema: 1\ntests: [\n    {from: a, to: b}",
            ",\n    {from: new.name, to: b.c}",
            "  # a comment\n]\n",
        ),
        (
            "\ufeff# é 😀\nschema: 1\ntests: [{from: é😀, to: b}",
            ", {from: new.name, to: b.c}",
            "] # é\n",
        ),
    ],
)
@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_what_is_inserted_and_where(
    loader: str, before: str, inserted: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_write, "LOADER", getattr(yaml, loader))
    for newline in ("\n", "\r\n"):
        if newline == "\r\n" and "\n" not in before + after:
            continue
        old, new = ((before + middle + after).replace("\n", newline) for middle in ("", inserted))
        assert with_tests(old, [NEW], "r.yaml") == new
        assert read_tests(new) == (*read_tests(old), NEW)


def test_a_long_test_is_written_over_lines() -> None:
    long = NameTest.model_validate({"from": "a" * 80, "to": "b" * 80})
    text = with_tests("schema: 1\n", [long], "r.yaml")
    assert text == f"schema: 1\n\ntests:\n  - from: {'a' * 80}\n    to: {'b' * 80}\n"
    assert read_tests(text) == (long,)


def test_a_file_in_braces_is_refused() -> None:
    with pytest.raises(RemapError, match=r"LR201.*in braces"):
        with_tests("{schema: 1}", [NEW], "r.yaml")


ODD = (
    "true", "No", "null", "~", "1", "1.5", ".5e3", "- a", "a: b", "a #b", "{a}",
    "[a", "'", '"', "\\", "&a", "*a", "!a", " a ",
    "a\nb",
)  # fmt: skip
names = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20
) | st.sampled_from(ODD)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | names
)
new_tests = st.builds(
    lambda name, outcome, given: NameTest.model_validate({"from": name, "given": given, **outcome}),
    names,
    st.just({"dropped": True}) | st.just({"unmapped": True}) | names.map(lambda to: {"to": to}),
    st.builds(
        lambda names, config: Given(names=tuple(names), config=config),
        st.lists(names, max_size=2),
        st.dictionaries(names, scalars, max_size=2),
    ),
)
ITEMS = (
    "- {from: a, to: b}",
    "- from: a\n  to: b",
    "-\n  from: 'a'\n  dropped: true",
    "- {from: a,\n   to: b}",
    "- from: a\n  to: >-\n    b",
)
COMMENTS = ("", "# x", "    # é 😀")
FLOW = (
    "tests: []",
    "tests: [{from: a, to: b}]",
    "tests: [{from: a, to: b}, ]  # x",
    "tests: [\n  {from: a, to: b},\n  ]",
)


@st.composite
def files(draw: st.DrawFn) -> str:
    comment = st.sampled_from(COMMENTS)
    lines = [draw(comment), "schema: 1", draw(comment)]
    if draw(st.booleans()):
        lines += ["names:", "  - {id: one, from: 'a', to: 'b'}   # one", draw(comment)]
    kind = draw(st.sampled_from(("none", "flow", "block")))
    if kind == "flow":
        lines += [draw(st.sampled_from(FLOW))]
    elif kind == "block":
        indent = " " * draw(st.integers(0, 4))
        lines += ["tests:" + draw(st.sampled_from(("", "   # é")))]
        for item in draw(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=3)):
            lines += [indent + line for line in item.split("\n")] + [draw(comment)]
    lines += draw(st.sampled_from(([], ["name: x"], ["summary: |", "  text", "", "# end"])))
    text = "\n".join(lines) + draw(st.sampled_from(("", "\n", "\n\n")))
    return text.replace("\n", draw(st.sampled_from(("\n", "\r\n"))))


@given(files(), st.lists(new_tests, min_size=1, max_size=3))
def test_nothing_but_what_is_inserted_changes(text: str, new: list[NameTest]) -> None:
    edited = with_tests(text, new, "r.yaml")
    at = next((n for n, (a, b) in enumerate(zip(text, edited, strict=False)) if a != b), len(text))
    # of several places where the same text could have gone in, one fits
    grown = len(edited) - len(text)
    assert any(
        edited == text[:start] + edited[start : start + grown] + text[start:]
        for start in range(at + 1)
    )
    old = _validate(parse_yaml(text, "r.yaml"))
    assert _validate(parse_yaml(edited, "r.yaml")) == old.model_copy(
        update={"tests": (*old.tests, *new)}
    )


def test_shipped_files_can_be_edited() -> None:
    for path in (Path(__file__).parents[2] / "rules").rglob("*.yaml"):
        text = path.read_text()
        edited = with_tests(text, [NEW], path.name)
        assert parse_yaml(edited, "r").plain["tests"][:-1] == parse_yaml(text, "r").plain.get(
            "tests", ()
        )
        assert parse_yaml(edited, "r").plain["tests"][-1] == {"from": "new.name", "to": "b.c"}
