"""Every kind of rule: what it makes of a name, its way back, and what is said of it."""

from __future__ import annotations

import pytest

from llava_remap.rulefile import (
    Drop,
    PatternError,
    Rename,
    Rule,
    RuleKind,
    Substitute,
    Template,
    TimeSpent,
    Unwrap,
)

RENAME = {"from": "h.{n:int}.{p}", "to": "layers.{n}.{p}"}
SUBSTITUTE = {"match": r"^a\.", "replace": "b."}
REVERSED = {**SUBSTITUTE, "reverse": {"match": r"^b\.", "replace": "a."}}


def kind(fields: dict[str, object]) -> RuleKind:
    return Rule.model_validate({"id": "a", **fields}).kind


@pytest.mark.parametrize(
    ("fields", "made", "described"),
    [
        (RENAME, Rename, ("h.{n:int}.{p}", "layers.{n}.{p}")),
        (SUBSTITUTE, Substitute, (r"^a\.", "b.")),
        ({"unwrap": "module"}, Unwrap, ("module", "")),
        ({"from": "x.{p}", "drop": "no use"}, Drop, ("x.{p}", None)),
        ({"match": "^x", "drop": "no use"}, Drop, ("^x", None)),
    ],
)
def test_the_fields_of_a_rule_choose_its_kind(
    fields: dict[str, object], made: type[RuleKind], described: tuple[str, str | None]
) -> None:
    assert type(kind(fields)) is made
    assert kind(fields).describe() == described
    assert kind(fields) == kind(fields)


@pytest.mark.parametrize(
    ("fields", "name", "after", "back"),
    [
        (RENAME, "h.3.w", "layers.3.w", "h.3.w"),
        (RENAME, "h.x.w", None, None),
        ({**RENAME, "one_way": True}, "h.3.w", "layers.3.w", None),
        ({"from": "h.{n}.{p}", "to": "layers.{p}"}, "h.3.w", "layers.w", None),
        ({"from": "h.{n}.{p}", "to": "l.{n}{p}"}, None, None, None),
        (SUBSTITUTE, "a.w", "b.w", None),
        (SUBSTITUTE, "x.a.w", None, None),
        (REVERSED, "a.w", "b.w", "a.w"),
        ({"unwrap": "module"}, "module.a", "a", None),
        ({"unwrap": "module"}, "modules.a", None, None),
        ({"from": "x.{p}", "drop": "no use"}, "x.w", "x.w", None),
        ({"match": r"\.w$", "drop": "no use"}, "x.w", "x.w", None),
        ({"match": r"\.w$", "drop": "no use"}, "x.v", None, None),
    ],
)
def test_there_and_back(
    fields: dict[str, object], name: str | None, after: str | None, back: str | None
) -> None:
    if name is None:  # two fields without text between them in a new name, which is no template
        with pytest.raises(ValueError, match="without text between"):
            kind(fields)
        return
    rule, spent = kind(fields), TimeSpent()
    assert rule.apply(name, spent) == after
    if after is not None:
        assert rule.back(after, spent) == back
        assert set(after.split(".")) >= rule.back_segments


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (RENAME, ""),
        ({**RENAME, "one_way": True}, "it says `one_way: true`"),
        ({"from": "h.{n}.{p}", "to": "layers.{p}"}, "`to` leaves out the field `{n}`"),
        (SUBSTITUTE, "a regex has no way back without `reverse:`"),
        ({**SUBSTITUTE, "one_way": True}, "it says `one_way: true`"),
        (REVERSED, ""),
        ({"unwrap": "module"}, ""),
        ({"from": "x.{p}", "drop": "no use"}, ""),
    ],
)
def test_why_it_can_not_be_reversed(fields: dict[str, object], why: str) -> None:
    assert kind(fields).one_way == why


@pytest.mark.parametrize(
    ("fields", "some"),
    [
        (RENAME, True),
        (SUBSTITUTE, False),
        ({"unwrap": "v.w"}, True),
        ({"from": "{r...}.ids", "drop": "no use"}, True),
        ({"match": "^x", "drop": "no use"}, False),
    ],
)
def test_it_takes_its_own_examples(fields: dict[str, object], some: bool) -> None:
    """A regex has none."""
    rule = kind(fields)
    assert bool(rule.pattern.examples) is some
    assert all(rule.apply(name, TimeSpent()) is not None for name in rule.pattern.examples)


@pytest.mark.parametrize(
    ("made", "old", "new"),
    [
        ("b.{n+1}.{rest}", "a.3.x.y", "b.4.x.y"),
        ("b.{2*n}.{rest}", "a.3.x", "b.6.x"),
        ("b.{2*n+1}.{rest}", "a.0.x", "b.1.x"),
        ("b.{n-1}.{rest}", "a.1.x", "b.0.x"),
        ("b.{n-1}.{rest}", "a.0.x", None),
        ("b.{n+1}.{rest}", "a.03.x", None),
        ("b.{n+1}.{rest}", f"a.{10**17}.x", f"b.{10**17 + 1}.x"),
        ("b.{n+1}.{rest}", f"a.{'9' * 5000}.x", None),  # no layer, and too long for `int`
    ],
)
def test_a_new_name_computes_with_a_number(made: str, old: str, new: str | None) -> None:
    rule = Rename(Template("a.{n:int}.{rest...}"), Template(made))
    assert rule.apply(old, TimeSpent()) == new
    if new is not None:
        assert rule.back(new, TimeSpent()) == old


def test_a_number_that_no_old_one_gives_is_not_taken_back() -> None:
    rule = Rename(Template("a.{n:int}"), Template("b.{2*n+1}"))
    assert [rule.back(f"b.{n}", TimeSpent()) for n in (0, 1, 2, 3)] == [None, "a.0", None, "a.1"]


@pytest.mark.parametrize(
    ("old", "new"), [("a.{n}", "b.{n+1}"), ("a.{n+1}", "b.{n}"), ("a.{n:each}", "b.{n}")]
)
def test_what_computes_is_a_number_of_the_old_name(old: str, new: str) -> None:
    with pytest.raises(PatternError):
        Rename(Template(old), Template(new))
