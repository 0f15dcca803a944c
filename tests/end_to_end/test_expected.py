"""Real manifests at full size: the plan's mapping equals what the official converter maps each
name to, shapes included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_remap.checkpoint import open_checkpoint
from llava_remap.routing.fits import fits
from tests.conftest import DATA, MANIFESTS, Run
from tests.families import AS_WELL, RULES_OF

#: Every manifest with an expected file.
CASES = {path.stem: RULES_OF[path.stem] for path in sorted((DATA / "expected").glob("*.json"))}
#: Those of no family that there is a rule file for.
NONE = (
    "mobilevlm-1.7b",
    "clip-vit-large-patch14",
    "clip-vit-large-patch14-336",
    "siglip-so400m-patch14-384",
)
SEVENTY_TWO = ("llava-next-qwen1.5-72b", "llava-onevision-qwen2-7b")
#: What is needed of LanguageBind's towers, whose heads and activation are in no checkpoint of
#: Video-LLaVA.
LANGUAGE_BIND = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip


def expected(name: str) -> Any:
    return json.loads((DATA / "expected" / f"{name}.json").read_text())


def shapes_from_source(plan: Any) -> dict[str, list[int]]:
    """The shapes of `mapped` before post-load rules: what `expected` has."""
    before = {change["target"]: change["shape_before"] for change in plan["post_load"]}
    return {m["target"]: before.get(m["target"], m["shape"]) for m in plan["mapped"]}


@pytest.mark.parametrize(("name", "rules"), CASES.items(), ids=CASES)
def test_mapping_equals_the_official_converter(
    name: str, rules: str, run: Run, tmp_path: Path
) -> None:
    wanted = expected(name)
    sources = ["--source", MANIFESTS / f"{name}.json"]
    if rules == "video-llava":
        (tmp_path / "tower").mkdir()
        (tmp_path / "tower" / "config.json").write_text(
            json.dumps({"vision_config": LANGUAGE_BIND})
        )
        sources += ["--source", f"vision_tower={tmp_path / 'tower'}"]
    ran = run("apply", rules, *sources, "--dry-run", "--format", "json")
    plan = ran.json
    assert ran.code == 0
    assert plan["complete"] is True
    assert {m["from"][0]["name"]: m["target"] for m in plan["mapped"]} == wanted["map"]
    assert [d["name"] for d in plan["dropped"]] == sorted(wanted["dropped"])
    assert all(d["reason"] for d in plan["dropped"])
    shapes = shapes_from_source(plan)
    tied = set(wanted["target"]) - set(wanted["map"].values())
    assert shapes == {
        target: shape for target, shape in wanted["target"].items() if target not in tied
    }
    assert plan["target"] == {
        "class": wanted["class"],
        "layout": "classic",
        "tensors": len(wanted["target"]),
    }
    dtypes = {
        n: t["dtype"]
        for n, t in json.loads((MANIFESTS / f"{name}.json").read_text())["tensors"].items()
    }
    assert all(m["dtype"] == dtypes[m["from"][0]["name"]] for m in plan["mapped"])


def test_every_manifest_has_one_rule_file_that_takes_it() -> None:
    """Each is offered to each: by names and config, before anything else is known of it."""
    taken = {
        path.stem: [fit.rules for fit in fits(open_checkpoint(path)) if fit.fits]
        for path in sorted(MANIFESTS.glob("*.json"))
    }
    wanted = {name: [rules, *AS_WELL.get(rules, ())] for name, rules in RULES_OF.items()}
    assert taken == {**wanted, **{name: [] for name in NONE}}


def test_released_checkpoint_with_its_tower_from_clip(run: Run) -> None:
    """The same mapping in two sources: the tower's names are CLIP's own, the text half of CLIP
    stays behind.
    """
    wanted = expected("llava-v1.5-7b")
    tower = "model.vision_tower.vision_tower."
    sources = ["--source", MANIFESTS / "llava-v1.5-7b.released.json"]
    sources += ["--source", f"vision_tower={MANIFESTS / 'clip-vit-large-patch14-336.json'}"]
    ran = run("apply", "llava-v1.5", *sources, "--dry-run", "--format", "json")
    plan = ran.json
    assert ran.code == 0
    mapped = {m["from"][0]["name"]: (m["from"][0]["source"], m["target"]) for m in plan["mapped"]}
    assert mapped == {
        name.removeprefix(tower): ("vision_tower" if name.startswith(tower) else "model", target)
        for name, target in wanted["map"].items()
    }
    assert shapes_from_source(plan) == wanted["target"]
    assert plan["sources"]["vision_tower"]["tensors"] == 592
    assert (
        plan["sources"]["vision_tower"]["taken"] == 392
    )  # 391 parameters and the position_ids buffer
    dropped = {d["name"] for d in plan["dropped"] if d["source"] == "vision_tower"}
    assert dropped == {"vision_model.embeddings.position_ids"}


def test_expansion_is_in_the_plan(run: Run) -> None:
    plan = run(
        "apply",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--dry-run",
        "--format",
        "json",
    ).json
    written = {m["target"]: (m["shape"], m["then"]) for m in plan["mapped"]}
    expanded = {"post_load": {"use": "expand_embeddings", "before": [32000, 4096]}}
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        assert written[name] == ([32064, 4096], [expanded])
    assert [c["target"] for c in plan["post_load"]] == [
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
    ]
    finite, norms = sorted(plan["value_checks"], key=lambda check: check["check"])
    assert (finite["check"], finite["target"]) == (
        "finite",
        "language_model.model.embed_tokens.weight",
    )
    assert (norms["check"], len(norms["from"])) == ("norms", 65)  # two of each layer, and the last
    assert all(
        m["then"] == []
        for m in plan["mapped"]
        if not m["target"].endswith(("embed_tokens.weight", "lm_head.weight"))
    )


def test_tied_head_needs_no_source(run: Run) -> None:
    """LLaVA-Interleave is tied: its `lm_head` isn't stored, isn't missing and isn't written."""
    name = "llava-interleave-qwen-0.5b.released"
    plan = run(
        "apply",
        "llava-interleave",
        "--source",
        MANIFESTS / f"{name}.json",
        "--dry-run",
        "--format",
        "json",
    ).json
    assert plan["missing"] == []
    assert "language_model.lm_head.weight" not in {m["target"] for m in plan["mapped"]}
    assert plan["target"]["tensors"] == 716


def test_onevision_72b(run: Run) -> None:
    """Of which there is no manifest: the language model of LLaVA-NeXT's 72B has its size, the
    tower is that of the 7B.
    """
    large, small = (
        json.loads((MANIFESTS / f"{name}.released.json").read_text()) for name in SEVENTY_TWO
    )
    tower = {name: tensor for name, tensor in small["tensors"].items() if "vision_tower" in name}
    tensors = {
        name: tensor for name, tensor in large["tensors"].items() if "vision_tower" not in name
    } | tower
    tensors["model.mm_projector.0.weight"] = {"dtype": "BF16", "shape": [8192, 1152]}
    text = {
        key: value
        for key, value in large["config"].items()
        if not key.startswith(("mm_", "image_"))
    }
    config = text | {
        key: value for key, value in small["config"].items() if key.startswith(("mm_", "image_"))
    }
    Path("72b.json").write_text(json.dumps({**large, "tensors": tensors, "config": config}))
    plan = run(
        "apply", "llava-onevision", "--source", "72b.json", "--dry-run", "--format", "json"
    ).json
    assert (plan["complete"], len(plan["mapped"]), plan["target"]["tensors"]) == (
        True,
        len(tensors),
        len(tensors),
    )
    assert {
        m["from"][0]["name"]: m["target"] for m in plan["mapped"] if "vision" in m["target"]
    } == {
        name: target
        for name, target in expected(SEVENTY_TWO[1] + ".released")["map"].items()
        if "vision_tower" in name
    }
