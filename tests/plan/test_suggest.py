"""What a plan says of names that are left over: the nearest on the other side, and rules that would map them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava_remap.infer import Segments, suggest_rules
from llava_remap.plan import suggest
from llava_remap.plan.suggest import nearest
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
"""
SOURCES = ("--source", DATA / "fork", "--source", f"vision_tower={CLIP}")


def test_the_layer_is_the_names_own() -> None:
    names = {f"h.{n}.attn.{m}.weight": (8, 8) for n in range(3) for m in "qk"}
    others = {f"layers.{n}.self_attn.{m}.weight": (8, 8) for n in range(3) for m in ("q", "k", "o")}
    assert nearest(names, others)["h.1.attn.k.weight"][0] == "layers.1.self_attn.k.weight"


@pytest.mark.parametrize(
    ("name", "shape", "others", "found"),
    [
        ("a.b.weight", (2,), {"x.b.weight": (2,), "x.c.weight": (2,)}, ("x.b.weight", "x.c.weight")),
        ("a.b.weight", (2,), {"x.b.weight": (3,)}, ()),
        ("a.b", (2,), {"c.d": (2,)}, ()),
        ("proj.0.bias", (2,), {"linear_1.bias": (2,)}, ("linear_1.bias",)),  # a number alone is no list of layers
        ("linear_1.bias", (2,), {"proj.0.bias": (2,)}, ("proj.0.bias",)),
        ("w", (2,), {f"{x}.w": (2,) for x in "abcd"}, ("a.w", "b.w", "c.w")),
    ],
)
def test_nearest(name: str, shape: tuple[int, ...], others: dict[str, tuple[int, ...]], found: tuple[str, ...]) -> None:
    assert nearest({name: shape}, others) == {name: found}


def test_suggested_rules_mend_what_they_are_suggested_for(run: Run) -> None:
    """Pasted in front of `names`, what the report prints makes the plan complete."""
    Path("part.yaml").write_text(PART)
    ran = run("apply", "part.yaml", *SOURCES, "--dry-run", "--format", "json")
    plan = ran.json
    assert ran.code == 1
    assert {problem["code"] for problem in plan["problems"]} == {"LR301", "LR302", "LR303"}
    unmapped = {entry["name"]: entry["suggestions"] for entry in plan["unmapped"]}
    assert unmapped["language.layers.1.mlp.down_proj.weight"] == ["language_model.model.layers.1.mlp.down_proj.weight"]
    assert unmapped["value_head.weight"] == []
    human = run("apply", "part.yaml", *SOURCES, "--dry-run").out
    assert "language.norm.weight   nearest: language_model.model.norm.weight" in human
    assert (
        "language_model.model.layers.{0..1}.mlp.down_proj.weight   nearest: language.layers.{0..1}.mlp.down_proj.weight" in human
    )
    pasted = re.findall(r"^  (- \{id: .*\})$", human, re.MULTILINE)
    assert pasted == plan["suggested_rules"]
    assert len(pasted) == 5  # what nothing takes is never suggested to be dropped
    Path("part.yaml").write_text(PART.replace("names:\n", "names:\n" + "".join(f"  {rule}\n" for rule in pasted)))
    mended = run("apply", "part.yaml", *SOURCES, "--dry-run", "--format", "json")
    assert mended.json["missing"] == []
    assert mended.json["suggested_rules"] == []
    assert [entry["name"] for entry in mended.json["unmapped"]] == ["value_head.weight"]


def test_nothing_is_suggested_for_a_complete_plan(run: Run) -> None:
    plan = run("apply", "llava-v1.5", "--source", MANIFESTS / "llava-v1.5-7b.json", "--dry-run", "--format", "json").json
    assert plan["suggested_rules"] == []


def test_of_very_many_names_only_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand names on both sides that nothing tells apart: four million pairs."""
    compared = []

    def distance(one: Segments, other: Segments) -> tuple[int, float]:
        compared.append((one, other))
        return -1, 0.0

    monkeypatch.setattr(suggest, "_distance", distance)
    names, others = ({f"{side}.{n:x}x.weight": (64, 64) for n in range(2000)} for side in "ab")
    found = suggest.nearest(names, others)
    assert set(found) == set(names)
    assert 0 < len(compared) < 1_000_000
    assert suggest_rules(names, others) == ()
