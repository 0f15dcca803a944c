"""What a plan says of names that are left over: the nearest on the other side, and rules that
would map them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_remap.rewrite import CompiledOperation, CompiledRule, Program
from llava_remap.rewrite.infer import groups, match, nearest, suggest_rules
from tests.conftest import CLIP, DATA, MANIFESTS, Run

PART = """\
schema: 1
name: part
version: 1.0.0
summary: a variant of which some names are not known yet
extends: [parts/wrappers.yaml, parts/buffers.yaml, parts/llava-config.yaml, parts/chat-vicuna.yaml]
sources:
  vision_tower: {optional: true, use: [config, processor]}
target:
  class: LlavaForConditionalGeneration
  config: {model_type: {const: llava}, text_config.model_type: {const: llama}}
names:
  - {id: vision,     from: 'vision.{rest...}',             to: 'vision_tower.vision_model.{rest}'}
  - {id: embeddings, from: 'language.embed_tokens.weight', to: 'language_model.model.embed_tokens.weight'}
  - {id: layers,     from: 'language.layers.{rest...}',    to: 'language_model.layers.{rest}'}
"""  # noqa: E501
SOURCES = ("--source", DATA / "fork", "--source", f"vision_tower={CLIP}")


def test_the_layer_is_the_names_own() -> None:
    names = {f"h.{n}.attn.{m}.weight": (8, 8) for n in range(3) for m in "qk"}
    others = {f"layers.{n}.self_attn.{m}.weight": (8, 8) for n in range(3) for m in ("q", "k", "o")}
    assert nearest(names, others)["h.1.attn.k.weight"][0] == "layers.1.self_attn.k.weight"


@pytest.mark.parametrize(
    ("name", "shape", "others", "found"),
    [
        (
            "a.b.weight",
            (2,),
            {"x.b.weight": (2,), "x.c.weight": (2,)},
            ("x.b.weight", "x.c.weight"),
        ),
        ("a.b.weight", (2,), {"x.b.weight": (3,)}, ()),
        ("a.b", (2,), {"c.d": (2,)}, ()),
        (
            "proj.0.bias",
            (2,),
            {"linear_1.bias": (2,)},
            ("linear_1.bias",),
        ),  # a number alone is no list of layers
        ("linear_1.bias", (2,), {"proj.0.bias": (2,)}, ("proj.0.bias",)),
        ("w", (2,), {f"{x}.w": (2,) for x in "abcd"}, ("a.w", "b.w", "c.w")),
    ],
)
def test_nearest(
    name: str, shape: tuple[int, ...], others: dict[str, tuple[int, ...]], found: tuple[str, ...]
) -> None:
    assert nearest({name: shape}, others) == {name: found}


@pytest.mark.torch
def test_suggested_rules_mend_what_they_are_suggested_for(run: Run) -> None:
    """Pasted in front of `names`, what the report prints makes the plan complete."""
    Path("part.yaml").write_text(PART)
    ran = run("apply", "part.yaml", *SOURCES, "--dry-run", "--format", "json")
    plan = ran.json
    assert ran.code == 1
    assert {problem["code"] for problem in plan["problems"]} == {"LR301", "LR302", "LR303"}
    unmapped = {entry["name"]: entry["suggestions"] for entry in plan["unmapped"]}
    assert unmapped["language.layers.1.mlp.down_proj.weight"] == [
        "language_model.model.layers.1.mlp.down_proj.weight"
    ]
    assert unmapped["value_head.weight"] == []
    human = run("apply", "part.yaml", *SOURCES, "--dry-run").out
    assert "language.norm.weight   nearest: language_model.model.norm.weight" in human
    assert (
        "language_model.model.layers.{0..1}.mlp.down_proj.weight   nearest: "
        "language.layers.{0..1}.mlp.down_proj.weight" in human
    )
    pasted = re.findall(r"^  (- \{id: .*\})$", human, re.MULTILINE)
    assert pasted == plan["suggested_rules"]
    assert len(pasted) == 5  # what nothing takes is never suggested to be dropped
    Path("part.yaml").write_text(
        PART.replace("names:\n", "names:\n" + "".join(f"  {rule}\n" for rule in pasted))
    )
    mended = run("apply", "part.yaml", *SOURCES, "--dry-run", "--format", "json")
    assert mended.json["missing"] == []
    assert mended.json["suggested_rules"] == []
    assert [entry["name"] for entry in mended.json["unmapped"]] == ["value_head.weight"]


@pytest.mark.torch
def test_nothing_is_suggested_for_a_complete_plan(run: Run) -> None:
    plan = run(
        "apply",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--dry-run",
        "--format",
        "json",
    ).json
    assert plan["suggested_rules"] == []


#: Names that don't fit, by what they have in common: so many each, and those on the other side.
MANY = {
    "nothing": (
        {f"a.{n:x}x.weight": (64, 64) for n in range(2000)},
        {f"b.{n:x}y.weight": (64, 64) for n in range(2000)},
    ),
    "experts": (
        {
            f"h.{n}.e.{e}.{w}.weight": (8, 4)
            for n in range(10)
            for e in range(70)
            for w in ("w1", "w2", "w3")
        },
        {
            f"l.{n}.x.{e}.{w}.weight": (8, 4)
            for n in range(10)
            for e in range(70)
            for w in ("gate", "up", "down")
        },
    ),
    "gaps": (
        {f"x.{7 * n}.{m}.w.weight": (8, 8) for n in range(100) for m in range(20)},
        {f"y.{3 * n}.{m}.q.weight": (8, 8) for n in range(100) for m in range(20)},
    ),
    "layers of another number": (
        {f"h.{n}.{w}.weight": (8, 8) for n in range(200) for w in "qwertyuiop"},
        {f"l.{n}.{w}.weight": (8, 8) for n in range(20) for w in "abcdefghij"},
    ),
}


@pytest.mark.parametrize("kind", MANY)
def test_of_very_many_names_only_some_are_compared(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in pairs that are compared, of some four million."""
    compared = 0

    def count(target: object, name: str) -> None:
        real = getattr(target, name)

        def counting(*arguments: object) -> object:
            nonlocal compared
            compared += 1
            return real(*arguments)

        monkeypatch.setattr(target, name, counting)

    count(groups, "_distance")
    count(match._State, "_score")
    names, others = MANY[kind]
    found = groups.nearest(names, others)
    assert set(found) == set(names)
    assert all(
        near in others and others[near] == names[name]
        for name, every in found.items()
        for near in every
    )
    suggest_rules(names, others)
    assert 0 < compared < 200_000


def test_nothing_is_compared_where_all_names_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "fold", None)
    assert groups.nearest({}, MANY["experts"][0]) == {}
    assert groups.nearest({"a.b": (1,)}, {}) == {"a.b": ()}


@pytest.mark.torch
def test_a_drop_of_very_many_names_compiles_no_rules_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LR306 asks of every dropped name what it would be without the drop."""
    tensors = json.loads((MANIFESTS / "llava-v1.5-7b.json").read_text())
    Path("drop.yaml").write_text(
        "schema: 1\nname: drop\nversion: 1.0.0\nsummary: drops\nextends: [llava-v1.5]\n"
        "names: [{id: gone, from: 'model.layers.{rest...}', drop: nobody needs it}]\n"
    )
    Path("m.json").write_text(json.dumps(tensors))
    made: list[Program] = []
    only = Program._only

    def counting(
        self: Program, wanted: Callable[[CompiledRule | CompiledOperation], bool]
    ) -> Program:
        made.append(self)
        return only(self, wanted)

    monkeypatch.setattr(Program, "_only", counting)
    ran = run("apply", "drop.yaml", "--source", "m.json", "--dry-run", "--format", "json").json
    problem = next(problem for problem in ran["problems"] if problem["code"] == "LR306")
    assert len(problem["names"]) == 288  # 9 of each of 32 layers
    assert made == []
