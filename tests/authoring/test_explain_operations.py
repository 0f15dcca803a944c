"""What `rules explain` says of tensors that operations take, and what snapshots hold of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_remap.authoring.explain import explain_names
from llava_remap.planning import Box
from llava_remap.rulefile import load_rule_file
from tests.conftest import CLIP, Ran, Run
from tests.fused import RULES, weights
from tests.planning.test_boxes import region

WQKV = "model.layers.0.self_attn.wqkv.weight"
SPLIT = """\
schema: 1
tensors:
  - id: qkv
    from: '{m...}.qkv.{p}'
    to: ['{m}.q_proj.{p}', '{m}.k_proj.{p}', {drop: not computed with}]
    how: {split: 0}
    when: {config: {fused: true}}
"""


def entry(run: Run, *arguments: object) -> dict[str, Any]:
    """The one entry of the JSON."""
    [found] = run("rules", "explain", *arguments, "--format", "json").json["names"]
    return dict(found)


def test_boxes_of_a_name_as_json(fused_source: Path, fused_rules: Path, run: Run) -> None:
    """The boxes of the JSON have the numbers that the job writes."""
    sources = ("--source", fused_source, "--source", f"vision_tower={CLIP}")
    found = entry(run, fused_rules, WQKV, *sources)
    assert (found["outcome"], found["target"]) == ("mapped", None)
    operation = found["operation"]
    assert operation["rule"] == "tensors/qkv"
    assert operation["does"] == "split along axis 1, seen with axis 0 as [groups, *, size]"
    layer = "language_model.model.layers.0.self_attn"
    targets = [f"{layer}.{kind}_proj.weight" for kind in "qkv"]
    assert operation["targets"] == [move["target"] for move in operation["moves"]] == targets
    before = weights(fused_source)[WQKV].float().numpy()
    from llava_remap import apply

    apply(fused_rules, {"model": str(fused_source), "vision_tower": str(CLIP)}, "made")
    made = weights(Path("made"))
    for move in operation["moves"]:
        taken = region(before.ravel(), Box.from_json(WQKV, move["taken"]))
        wanted = made[move["target"]].float().numpy()
        placed = region(wanted.ravel(), Box.from_json(move["target"], move["placed"]))
        np.testing.assert_array_equal(taken, placed)
    assert operation["moves"][1]["words"] == (
        f"[all, 1, all, all] of it seen as [4, 3, 16, 64] → `{targets[1]}`"
    )


def explained(run: Run, rules: Path, source: Path) -> Ran:
    sources = ("--source", source, "--source", f"vision_tower={CLIP}")
    return run("rules", "explain", rules, *sources)


def test_layers_are_folded_on_a_terminal(fused_source: Path, fused_rules: Path, run: Run) -> None:
    out = explained(run, fused_rules, fused_source).out
    assert (
        "    [all, 1, all] of it seen as [112, 2, 64] → "
        "`language_model.model.layers.{0..1}.mlp.up_proj.weight`\n"
    ) in out
    assert out.count("up_proj.weight`") == 1


def test_without_a_checkpoint_there_are_no_sizes(fused_rules: Path, run: Run) -> None:
    found = entry(run, fused_rules, WQKV)
    assert found["operation"]["moves"] == []
    assert len(found["operation"]["targets"]) == 3
    ran = run("rules", "explain", fused_rules, WQKV)
    assert "no checkpoint is given, so sizes are unknown" in ran.out
    assert "split along axis 1, seen with axis 0 as [groups, *, size]" in ran.out


def test_sizes_that_dont_add_up_are_told(fused_source: Path, fused_rules: Path, run: Run) -> None:
    fused_rules.write_text(RULES.replace("split: 1", "split: 0"))
    ran = explained(run, fused_rules, fused_source)
    assert ran.code == 0
    assert "`tensors/qkv` takes 2 tensors whose sizes don't add up" in ran.out


def test_a_part_that_is_dropped_has_its_reason(
    fused_source: Path, fused_rules: Path, run: Run
) -> None:
    text = RULES.replace("'{m}.up_proj.weight']", "{drop: padding}]").replace(
        "how: {view: ['*', 2], unstack: 1}", "how: {split: 0}"
    )
    fused_rules.write_text(text)
    name = "model.layers.0.mlp.gate_up.weight"
    sources = ("--source", fused_source, "--source", f"vision_tower={CLIP}")
    words = [
        move["words"] for move in entry(run, fused_rules, name, *sources)["operation"]["moves"]
    ]
    assert words == [
        "rows 0..111 of it → `language_model.model.layers.0.mlp.gate_proj.weight`",
        "rows 112..223 of it → dropped: padding",
    ]


def test_an_operation_whose_when_doesnt_hold() -> None:
    Path("split.yaml").write_text(SPLIT)
    found = explain_names(load_rule_file("split.yaml"), ["a.qkv.weight"], [], offline=True)
    assert [left.rule for left in found.left_out] == ["tensors/qkv"]
    [name] = found.names
    assert name.explanation.outcome == "unmapped"


@pytest.mark.parametrize("change", ["split: 1", "{m}.k_proj.{p}"])
def test_a_snapshot_sees_another_operation(run: Run, change: str) -> None:
    text = SPLIT.replace("    when: {config: {fused: true}}\n", "") + "sources: {model: {}}\n"
    Path("split.yaml").write_text(text)
    Path("names.txt").write_text("a.qkv.weight\n")
    arguments = ("rules", "test", "split.yaml", "--source", "names.txt", "--update")
    assert run(*arguments).code == 0
    content = json.loads(Path("split.snapshots/names.txt.json").read_text())
    assert content["mapping"] == {
        "model": {"a.qkv.weight": "a.q_proj.weight, a.k_proj.weight (split along axis 0)"}
    }
    new = {"split: 1": "split: 0", "{m}.k_proj.{p}": "{m}.v_proj.{p}"}[change]
    old = {"split: 1": "split: 0"}.get(change, change)
    Path("split.yaml").write_text(text.replace(old, change if old != change else new))
    ran = run("rules", "test", "split.yaml")
    assert ran.code == 1
    assert "wanted a.q_proj.weight, a.k_proj.weight (split along axis 0)" in ran.out
