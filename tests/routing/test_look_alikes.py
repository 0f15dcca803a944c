"""Checkpoints with the names of a family whose config says that they compute something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_remap.jobs.apply import apply, plan
from tests.conftest import CLIP, DATA, Changed, Run
from tests.folder.test_prompts import mine, source

GRID = {"mm_newline_position": "grid"}
NO_TOKEN = {"mm_newline_position": "no_token"}
SCALED = {"rope_scaling": {"type": "linear", "factor": 2.0}}
MASKED = {
    "mm_resampler_type": "masked_drop",
    "mm_mask_drop_mode": "fixed",
    "mm_mask_drop_ratio": 0.25,
}


@pytest.mark.parametrize(
    ("name", "rules", "config", "code", "words"),
    [
        ("llava-1.5", "llava-v1.5", {"s2": True}, "LR314", "several scales"),
        ("llava-1.5", "llava-v1.5", {"use_s2": True}, "LR314", "several scales"),
        (
            "llava-1.5",
            "llava-v1.5",
            {"mm_resampler_type": "spatial_pool"},
            "LR314",
            "The model has a resampler between",
        ),
        (
            "llava-1.6-vicuna",
            "llava-next",
            {"mm_resampler_type": "qformer"},
            "LR314",
            "The model has a resampler between",
        ),
        (
            "llava-1.6-vicuna",
            "llava-next",
            {"add_faster_video": True},
            "LR314",
            "to two sizes",
        ),
        (
            "llava-1.6-vicuna",
            "llava-next",
            {"mm_spatial_pool_mode": "average"},
            "LR311",
            "mm_spatial_pool_mode: 'average'",
        ),
        (
            "llava-1.6-vicuna",
            "llava-next",
            {"mm_patch_merge_type": "flat"},
            "LR314",
            "features of the tiles",
        ),
        (
            "llava-1.6-vicuna",
            "llava-next",
            {"image_aspect_ratio": "pad"},
            "LR311",
            "image_aspect_ratio: 'pad'",
        ),
        (
            "llava-1.6-vicuna",
            "llava-v1.5",
            {"image_aspect_ratio": "pad"},
            "LR314",
            "whether image_newline follows a whole picture",
        ),
        (
            "llava-1.6-vicuna",
            "llava-v1.5",
            {"mm_patch_merge_type": "flat"},
            "LR311",
            "image_aspect_ratio: 'anyres'",
        ),
        (
            "next-qwen",
            "llava-onevision",
            {"image_aspect_ratio": "anyres_max_9"},
            "LR311",
            "class_embedding",
        ),
        (
            "llava-v1",
            "llava-v1",
            {"image_aspect_ratio": "anyres"},
            "LR311",
            "image_aspect_ratio: 'anyres'",
        ),
        (
            "onevision",
            "llava-onevision",
            GRID,
            "LR314",
            "the research code has image_newline in other places",
        ),
        ("onevision", "llava-onevision", NO_TOKEN, "LR314", "image_newline in other places"),
        (
            "onevision",
            "llava-onevision",
            {"mm_spatial_pool_mode": "average"},
            "LR314",
            "frames of a video bilinearly",
        ),
        ("onevision", "llava-onevision", SCALED, "LR314", "ignores the scaling of rope"),
        ("interleave", "llava-interleave", SCALED, "LR314", "ignores the scaling"),
        ("next-qwen", "llava-next", SCALED, "LR314", "ignores the scaling"),
        (
            "llava-1.6-mistral",
            "llava-next",
            SCALED,
            "LR314",
            "LLaVA-NeXT's code ignores the scaling of rope, and LLaVA's own code uses it",
        ),
        (
            "llava-1.5",
            "llava-v1.5",
            {"mm_use_im_start_end": "yes"},
            "LR314",
            "must be true or false",
        ),
    ],
)
def test_it_is_refused_with_what_differs(
    name: str, rules: str, config: dict[str, Any], code: str, words: str, run: Run, tmp_path: Path
) -> None:
    arguments = [
        part
        for given in source(name, tmp_path / "source", **config)
        for part in ("--source", given)
    ]
    ran = run("apply", rules, *arguments, "--output", "out", "--dry-run", "--format", "json")
    problem = ran.json["problems"][-1]  # behind LR311, what differs
    assert (ran.code, problem["code"], words in problem["message"]) == (1, code, True), problem
    told = run("inspect", tmp_path / "source" / "model").out.splitlines()
    assert f"  {rules}: fits, " not in " ".join(told)


@pytest.mark.parametrize(
    ("name", "rules", "config"),
    [
        ("llava-1.6-vicuna", "llava-next", GRID | {"mm_spatial_pool_mode": "bilinear"}),
        ("llava-1.6-vicuna", "llava-next", MASKED),
        (
            "llava-1.6-vicuna",
            "llava-next",
            {"add_faster_video": False, "faster_token_stride": 10, "use_pos_skipping": False},
        ),
        ("llava-1.5", "llava-v1.5", {"s2": False, "mm_patch_merge_type": "spatial"}),
        ("interleave", "llava-interleave", GRID),
    ],
)
def test_what_changes_nothing_for_the_target_is_taken(
    name: str, rules: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """The research code's later training writes such keys into every config. The folder's config
    doesn't depend on them.
    """
    plain = plan(rules, source(name, tmp_path / "plain"), "out", dry_run=True)
    job = plan(rules, source(name, tmp_path / "source", **config), "out", dry_run=True)
    assert plain.plan.problems == job.plan.problems == ()
    assert plain.small_files == job.small_files


def test_videos_are_said_to_be_missing(tmp_path: Path) -> None:
    sources = source("llava-1.6-vicuna", tmp_path / "source", mm_spatial_pool_mode="bilinear")
    notes = plan("llava-next", sources, "out", dry_run=True).plan.notes
    assert "The folder is for pictures." in " ".join(
        note.cause for note in notes if note.code == "LR315"
    )


def test_a_requirement_that_does_not_matter_is_allowed_by_a_rule_file(tmp_path: Path) -> None:
    """As the refusal says: for who only wants pictures."""
    sources = source("onevision", tmp_path / "source", **GRID)
    rules = mine(
        "llava-onevision.yaml", "requires: {newline: {config: {mm_newline_position: grid}}}"
    )
    assert plan(rules, sources, "out", dry_run=True).plan.complete


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_a_fine_tune_of_1_6_on_whole_pictures_computes_what_1_5_does(
    merge: str, tmp_path: Path
) -> None:
    """Its folder equals that of the same tensors without `image_newline`, and the drop has its
    reason.
    """
    whole = {"image_aspect_ratio": "pad", "mm_patch_merge_type": merge}
    sources = source("llava-1.6-vicuna", tmp_path / "source", **whole)
    [dropped] = [
        d
        for d in plan("llava-v1.5", sources, "out", dry_run=True).plan.dropped
        if "newline" in d.name
    ]
    assert "not cut into tiles" in str(dropped.reason)
    apply("llava-v1.5", sources, "out")
    index = tmp_path / "source" / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = index.parent / content["weight_map"].pop("model.image_newline")
    tensors = load_file(file)
    del tensors["model.image_newline"]
    save_file(tensors, file, {"format": "pt"})
    index.write_text(json.dumps(content))
    apply("llava-v1.5", sources, "without")
    one, other = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in ("out", "without")
    )
    assert type(one).__name__ == "LlavaForConditionalGeneration"
    ids = torch.tensor([[1, *[one.config.image_token_id] * one.config.image_seq_length, 13, 20]])
    side = one.config.vision_config.image_size
    given = {"input_ids": ids, "pixel_values": torch.ones(1, 3, side, side)}
    with torch.no_grad():
        assert torch.equal(one(**given).logits, other(**given).logits)


def test_image_newline_without_a_config_that_explains_it(changed: Changed, run: Run) -> None:
    """Neither of tiles nor of whole pictures: nobody knows what was trained."""

    def change(config: dict[str, Any]) -> None:
        config.pop("mm_patch_merge_type", None)
        config.pop("image_aspect_ratio", None)

    checkpoint = changed(
        tensors=lambda tensors: tensors.update({"model.image_newline": torch.ones(64)}),
        config=change,
    )
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        checkpoint,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert (ran.code, "LR301" in ran.out, "model.image_newline" in ran.out) == (1, True, True)


def test_a_draft_pads_where_the_config_says_so(run: Run) -> None:
    """`rules new` knows what to extend; a rule file that doesn't is told of it."""
    ran = run(
        "rules",
        "new",
        "--from",
        DATA / "fork",
        "--to",
        "LlavaForConditionalGeneration",
        "--output",
        "mine.yaml",
    )
    assert ran.code in (0, 1)
    assert "parts/pad.yaml" in Path("mine.yaml").read_text()
    assert "parts/look-alikes.yaml" in Path("mine.yaml").read_text()
