"""Templates and regexes: what they match, and what they make of it."""

from __future__ import annotations

import contextlib
import itertools
import re

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from llava_remap.rulefile import (
    PatternError,
    Regex,
    RunawayError,
    Template,
    TimeSpent,
    Wrapper,
    pattern,
    reversed_template,
)

RUNS = settings(deadline=None)

MATCHES: list[tuple[str, str, dict[str, str] | None]] = [
    # one segment
    ("a.{x}", "a.b", {"x": "b"}),
    ("a.{x}", "a.b.c", None),
    ("a.{x}", "a.", None),
    ("a.{x}", "a", None),
    ("{x}", "b", {"x": "b"}),
    ("{x}.{y}", "a.b", {"x": "a", "y": "b"}),
    ("{x}.w", "ä-1.w", {"x": "ä-1"}),
    # a number
    ("h.{n:int}.w", "h.0.w", {"n": "0"}),
    ("h.{n:int}.w", "h.031.w", {"n": "031"}),
    ("h.{n:int}.w", "h.x.w", None),
    ("h.{n:int}.w", "h.1a.w", None),
    ("h.{n:int}.w", "h.-1.w", None),
    ("h.{n:int}.w", "h.٣.w", None),
    # one or more segments
    ("a.{x...}", "a.b", {"x": "b"}),
    ("a.{x...}", "a.b.c.d", {"x": "b.c.d"}),
    ("a.{x...}", "a.", None),
    ("a.{x...}", "a", None),
    ("a.{x...}", "a.b.", None),
    ("a.{x...}", "a..b", None),
    ("{x...}.w", "a.b.w", {"x": "a.b"}),
    ("{x...}.w", "w", None),
    ("{x...}.w.{y...}", "a.w.w.b", {"x": "a.w", "y": "b"}),
    # literal text that touches a field
    ("temporal_{x}", "temporal_conv", {"x": "conv"}),
    ("temporal_{x}", "temporal_", None),
    ("temporal_{x}", "temporal.conv", None),
    ("m.temporal_{x}_in.w", "m.temporal_conv_in.w", {"x": "conv"}),
    ("fc{n:int}.w", "fc12.w", {"n": "12"}),
    ("q{x...}", "query.a", {"x": "uery.a"}),
    # dots and other signs are themselves
    ("a.b", "a.b", {}),
    ("a.b", "aXb", None),
    ("a+b.(c)", "a+b.(c)", {}),
    ("a+b", "aab", None),
    ("a*.{x}", "a*.1", {"x": "1"}),
    ("^a$", "^a$", {}),
    ("^a$", "a", None),
    ("a\\d", "a1", None),
    # the whole name, and nothing but
    ("a.b", "a.b.c", None),
    ("a.b", "x.a.b", None),
    ("a.b", "a.b\n", None),
    ("model.layers.{rest...}", "modelX.layers.0.w", None),
    ("model.layers.{rest...}", "model.layers.0.w", {"rest": "0.w"}),
    ("model.layers.{rest...}", "Model.layers.0.w", None),
    ("a", "", None),
]


@pytest.mark.parametrize(("template", "name", "fields"), MATCHES)
def test_match(template: str, name: str, fields: dict[str, str] | None) -> None:
    assert Template(template).match(name) == fields


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("a.{x}.{n:int}.{rest...}", "a.b.3.c.d"),
        ("temporal_{x}_in.{y}", "temporal_a_b_in.w"),
        ("plain.name", "plain.name"),
    ],
)
def test_fill_is_the_way_back(template: str, name: str) -> None:
    fields = Template(template).match(name)
    assert fields is not None
    assert Template(template).fill(fields) == name


def test_fill_takes_the_kind_from_nobody() -> None:
    values = {"n": "3", "rest": "w.x"}
    assert Template("h.{n}.m.{rest}").fill(values) == "h.3.m.w.x"
    assert Template("h.{n:int}.m.{rest...}").fill(values) == "h.3.m.w.x"
    assert Template("{rest}_{n}").fill(values) == "w.x_3"
    assert Template("const").fill(values) == "const"


def test_fill_leaves_values_as_they_are() -> None:
    assert Template("a.{x}").fill({"x": r"\1{x}\g<0>"}) == r"a.\1{x}\g<0>"


def test_fields_and_prefix() -> None:
    template = Template("model.h_{n:int}.{rest...}")
    assert (dict(template.fields), template.prefix) == ({"n": ":int", "rest": "..."}, "model.h_")
    assert (Template("{x}.a").prefix, Template("a.b").prefix) == ("", "a.b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "a\n",
        "{",
        "}",
        "a{",
        "{x",
        "{1x}",
        "{x-y}",
        "{x:float}",
        "{x..}",
        "{}",
        "{{x}}",
    ],
)
def test_no_template(text: str) -> None:
    with pytest.raises(PatternError):
        Template(text)


LITERALS = st.text("ab1_.+*?()[]|^$\\-", min_size=1, max_size=4)
SEGMENTS = st.text("ab1_-", min_size=1, max_size=3)
VALUES = {
    "": SEGMENTS,
    ":int": st.text("0123456789", min_size=1, max_size=3),
    "...": st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join),
}


@st.composite
def templates_with_a_name(draw: st.DrawFn) -> tuple[str, str]:
    """A template, and a name that it has to match since it was made from it."""
    template = name = draw(st.just("") | LITERALS)
    for at in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(sorted(VALUES)))
        literal = draw(LITERALS)
        template += f"{{f{at}{kind}}}{literal}"
        name += draw(VALUES[kind]) + literal
    try:
        Template(template)
    except PatternError:  # it can match in too many ways
        reject()
    return template, name


@RUNS
@given(templates_with_a_name())
def test_a_filled_match_is_the_name(made: tuple[str, str]) -> None:
    template, name = Template(made[0]), made[1]
    fields = template.match(name)
    assert fields is not None
    assert template.fill(fields) == name


@RUNS
@given(templates_with_a_name(), st.sampled_from([".", ".x", "\n"]))
def test_a_match_ends_where_the_name_ends(made: tuple[str, str], more: str) -> None:
    text, name = made
    template = Template(text + "!")
    assert template.match(name + "!") is not None
    assert template.match(name + "!" + more) is None
    assert template.match(name) is None


SEARCHES: list[tuple[str, str | None, str, str | None]] = [
    ("b", "X", "abab", "aXab"),  # the first match only
    ("b", None, "abab", "abab"),
    ("c", "X", "abab", None),
    ("c", None, "abab", None),
    (r"^model\.norm\.", "text.norm.", "model.norm.w", "text.norm.w"),
    (r"^model\.norm\.", "text.norm.", "a.model.norm.w", None),
    (r"(\w+)\.(\w+)", r"\2.\1", "a.b.c.d", "b.a.c.d"),
    (r"(?<first>\w+)\.(?P<second>\w+)", r"\g<second>.\g<first>", "a.b", "b.a"),
    (r"(\w+)\.(?<second>\w+)", r"\g<1>\2", "a.b", "ab"),
    ("a", r"<\g<0>>", "bab", "b<a>b"),
    ("a", r"\\", "bab", "b\\b"),
    ("a", "", "bab", "bb"),
    ("", "X", "ab", "Xab"),
    ("(a)|(b)", r"[\2]", "a", "[]"),  # a group that took no part
    ("a", "{x}", "a", "{x}"),
]


@pytest.mark.parametrize(("match", "replace", "name", "after"), SEARCHES)
def test_regex(match: str, replace: str | None, name: str, after: str | None) -> None:
    assert Regex(match, replace).search(name) == after


def test_where_a_regex_matches() -> None:
    assert Regex("b+", None).span("abba") == (1, 3)
    assert Regex("b+", "c").span("aa") is None


@pytest.mark.parametrize(
    ("match", "replace"),
    [
        ("(", "a"),
        ("(?<x", "a"),
        ("[", None),
        ("a{2", "\\1"),
        ("a", r"\1"),
        ("(a)", r"\2"),
        ("(?<x>a)", r"\g<y>"),
        ("(a)", r"\g<2>"),
        ("a", r"\n"),
        ("a", r"\g<>"),
        ("a", r"\g<1"),
        ("a", "b\\"),
    ],
)
def test_no_regex(match: str, replace: str | None) -> None:
    with pytest.raises(PatternError):
        Regex(match, replace)


@pytest.mark.parametrize("replace", ["b", None])
def test_the_time_limit_holds(replace: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A billionth of a second, in which no machine takes the 10^5 ways to take this name."""
    assert pattern.TIME_LIMIT == 0.5
    monkeypatch.setattr(pattern, "TIME_LIMIT", 1e-9)
    with pytest.raises(RunawayError):
        Regex("^(a|aa)+$", replace).search("a" * 25 + "!")


def test_regexes_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which counts what each took, whether it hit its own or not."""
    ticks = itertools.count(step=20)
    monkeypatch.setattr(pattern, "perf_counter", lambda: next(ticks))
    spent = TimeSpent()
    first, second = Regex("^(a|aa)+$", "b"), Regex("(a|b)+$")
    assert first.search("aaa", spent) == "b"
    assert second.search("b", spent) == "b"
    with pytest.raises(RunawayError) as raised:
        first.search("aaa", spent)
    assert raised.value.why == "and others took more than 30 s"
    assert Regex("^(a|aa)+$", "b").search("aaa") == "b"


def test_nested_repetition_that_matches_at_once_is_fine() -> None:
    assert Regex("^(a|aa)+$", "b").search("a" * 50) == "b"


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        ("a.{n:int}.{rest...}", "b.{rest}.{n}", "a.3.x.y"),
        ("{rest...}.gamma", "{rest}.weight", "x.y.gamma"),
        ("a", "b", "a"),
        ("h_{n:int}.{p}", "layers.{n}.{p}", "h_12.weight"),
    ],
)
def test_reversed_template_leads_back(source: str, target: str, name: str) -> None:
    there, back = Template(source), reversed_template(Template(source), Template(target))
    fields = there.match(name)
    assert fields is not None
    assert back.match(Template(target).fill(fields)) == fields


def test_a_reversed_field_keeps_its_kind() -> None:
    back = reversed_template(Template("a.{n:int}.{p}"), Template("b.{n}.{p}"))
    assert back.match("b.x.p") is None
    assert back.match("b.1.p.q") is None


def test_fields_that_touch_can_not_be_reversed() -> None:
    with pytest.raises(PatternError, match="without text between"):
        reversed_template(Template("a.{x}.{y}"), Template("b.{x}{y}"))


@pytest.mark.parametrize("text", ["a.b", "{x}", "a.{n:int}.{rest...}", "h_{n:int}.b", "{r...}.p"])
@pytest.mark.parametrize(
    "name", ["a.b", "a.3.x", "a.3.x.y", "h_3.b", "x", "x.y.p", "a..b", "a.b\n"]
)
def test_the_regex_of_a_template_matches_what_it_does(text: str, name: str) -> None:
    template = Template(text)
    assert bool(re.fullmatch(template.candidates, name)) == (template.match(name) is not None)


@pytest.mark.parametrize(
    ("match", "prefix"),
    [
        (r"^model\.layers\.(\d+)", "model.layers."), ("^models?", "model"), (r"^ab\.*", "ab"),
        ("^ab{2}", "a"),
        (r"^a\-b.c", "a-b"),
        ("^a|b", ""), ("^a(?i)b", ""), ("(?m)^a", ""), ("^(?:x)y", ""), ("abc", ""), ("^", ""),
    ],
)  # fmt: skip
def test_what_a_regex_begins_with(match: str, prefix: str) -> None:
    assert Regex(match, None).prefix == prefix


@pytest.mark.parametrize(
    ("match", "length", "limit"),
    [
        (match, 30, pattern.TIME_LIMIT)
        for match in ("(a+)+$", "(a|aa)+$", "(a*)*b", "a*a*a*b", "((?:a)+)+$")
    ]
    + [(match, 30, pattern.TIME_LIMIT) for match in ("a?" * 30 + "a" * 30, "(a|aa)" * 30)]
    + [(match, 30, pattern.TIME_LIMIT) for match in ("(?:a+){2,}$", r"(a+)\1+$")]
    + [("^a*.*$", 100, None), ("^a*.*$", 101, pattern.TIME_LIMIT)]
    + [(r"^(?:a|b)\.[+*?{|]\++(?P<n>[^]+])c?$", 30, None)],
)
def test_every_search_that_can_run_away_has_its_time_limit(
    match: str, length: int, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short names under regexes of few quantifiers go without the limit, which costs more than
    they do.
    """
    asked = []

    class Spy:
        def search(self, name: str, timeout: float | None = None) -> None:
            asked.append(timeout)

    found = Regex(match, None)
    monkeypatch.setitem(vars(found), "_pattern", Spy())
    found.search("a" * length)
    assert asked == [limit]


@pytest.mark.parametrize("match", ["(?:[a-z]{9999}){9999}", "(?:(?:a{999}){999}){999}", "a" * 3000])
def test_a_regex_that_would_take_long_to_compile_is_refused(match: str) -> None:
    with pytest.raises(PatternError, match="too long"):
        Regex(match, None)


def test_how_deep_groups_may_be_nested_is_the_interpreters() -> None:
    with contextlib.suppress(PatternError):
        assert Regex("(?:a" * 300 + ")" * 300 + "{2}", None).search("a") is None


@pytest.mark.parametrize(
    "text",
    ["{a...}.{b...}.{c...}.{d...}.x", "{a}x{b}x{c}x{d}x{e}y", "{a}.{b...}.{c...}-{d}.{e...}"],
)
def test_a_template_that_could_match_in_too_many_ways_is_refused(text: str) -> None:
    with pytest.raises(PatternError, match="too many ways"):
        Template(text)


def test_a_template_with_many_plain_fields_is_fine() -> None:
    assert Template("{a}.{b}.{c}.{d}.{e}.{f...}").match("1.2.3.4.5.6.7") is not None


@pytest.mark.parametrize(
    ("wrapper", "name", "bare"),
    [
        ("w", "w.a", "a"),
        ("w", "w.w.a", "a"),
        ("w", "a.w.b.w.w.c", "a.b.c"),
        ("w", "a.w", None),
        ("w", "w", None),
        ("w", "w..a", None),
        ("w", "xw.a.wx.b", None),
        ("w", "w1.w2.a", None),
        ("v.w", "a.v.w.b", "a.b"),
        ("v.w", "a.v.x.w.b", None),
        ("v.w", "v.v.w.w.a", "a"),
        ("v+", "v+.vv.a", "vv.a"),
    ],
)
def test_a_wrapper_comes_off(wrapper: str, name: str, bare: str | None) -> None:
    found = Wrapper(wrapper)
    assert found.take_off(name) == bare
    assert bare is None or re.fullmatch(found.candidates, name, re.DOTALL)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "{x}", "a b"])
def test_no_wrapper(text: str) -> None:
    with pytest.raises(PatternError, match="isn't a segment of a name"):
        Wrapper(text)


WRAPPED = st.lists(st.sampled_from(["v", "w", "a", "vw", ""]), max_size=8).map(".".join)


@RUNS
@given(WRAPPED, st.sampled_from(["w", "v.w"]))
def test_a_wrapper_is_off_for_good(name: str, wrapper: str) -> None:
    """Nothing is left to be taken off, and only whole wrappers went."""
    found = Wrapper(wrapper)
    bare = found.take_off(name)
    assert bare != name
    if bare is not None:
        assert found.take_off(bare) is None
        assert len(name.split(".")) - len(bare.split(".")) in range(
            len(wrapper.split(".")), 9, len(wrapper.split("."))
        )
