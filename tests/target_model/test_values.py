"""Where values of the target's config come from, and what a `when` can ask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llava_remap.jobs.apply import plan
from tests.compat.checkpoints import qwen_tokenizer
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Changed, Run

PROBE = "processor:\n  config:\n    probe: "
LLAMA = RELEASED / "safetensors"
TILED = TINY / "llava-v1.6-mistral" / "safetensors"


def mine(text: str, parent: str = "llava-v1.5") -> Path:
    path = Path("mine.yaml")
    path.write_text(
        f"schema: 1\nname: mine\nversion: 1.0.0\nsummary: mine\nextends: [{parent}.yaml]\n{text}\n"
    )
    return path


def config(text: str, source: Path = LLAMA) -> Any:
    """What the processor would be made with by a rule file that says this of it: values of all
    configs are found in one way.
    """
    job = plan(mine(PROBE + text), [str(source), f"vision_tower={CLIP}"], dry_run=True)
    assert job.derived is not None, job.plan.problems
    return job.derived.config.processor.get("probe")


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("{source.mm_vision_select_layer: -2}", True),
        ("{source.mm_vision_select_layer: -1}", False),
        ("{source.of_no_config: null}", True),
        ("{text_config.model_type: llama}", True),
        ("{text_config.model_type: mistral}", False),
        ("{text_config.hidden_size: 64, patch_size: 14}", True),
        ("{text_config.hidden_size: 64, patch_size: 16}", False),
        ("{token: '<image>'}", True),
        ("{token: '<unk>'}", True),
        ("{token: '<|im_start|>'}", False),
    ],
)
def test_what_a_case_can_ask(when: str, holds: bool) -> None:
    assert config(f"{{cases: [{{when: {when}, const: yes it does}}, {{const: it doesn't}}]}}") == (
        "yes it does" if holds else "it doesn't"
    )


def test_a_multiple_of_a_fact() -> None:
    assert config("{tower: image_tokens, times: 0.5}") == 2
    assert config("{tower: positions, times: 8}") == 40


def test_a_list_that_is_written_out() -> None:
    assert config("{const: [-2, -5]}") == [-2, -5]


@pytest.mark.parametrize(
    "text",
    [
        "{const: 1, times: 2}",
        "{tower: positions, as: grid_pinpoints}",
        "{tower: positions, times: 0}",
    ],
)
def test_fields_that_do_not_go_together(text: str, run: Run) -> None:
    ran = run("apply", mine(PROBE + text), "--source", LLAMA, "--dry-run")
    assert (ran.code, "LR201" in ran.err) == (2, True)


def test_pinpoints_are_the_sources_own(changed: Changed, run: Run) -> None:
    """As a text, not symmetric, and not those of the class: in config, and in what cuts images."""
    source = changed(TILED, config=lambda c: c.update(image_grid_pinpoints="[(28, 56), (84, 28)]"))
    ran = run(
        "apply",
        "llava-next",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert ran.code == 0, ran.out + ran.err
    for file in ("config.json", "preprocessor_config.json"):
        assert json.loads(Path("out", file).read_text())["image_grid_pinpoints"] == [
            [56, 28],
            [28, 84],
        ]


def test_pinpoints_that_do_not_fit_the_tower(changed: Changed, run: Run) -> None:
    source = changed(TILED, config=lambda c: c.update(image_grid_pinpoints=[[30, 60]]))
    ran = run(
        "apply",
        "llava-next",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert (ran.code, "LR112" in ran.out, "multiples of the tower's 28 px" in ran.out) == (
        3,
        True,
        True,
    )
    assert not Path("out").exists()


def test_a_key_that_the_config_does_not_have(changed: Changed) -> None:
    key, fix = "image_grid_pinpoints", "Add it to the source's config.json."
    source = changed(TILED, config=lambda c: c.pop(key, None))
    rules = mine(f"{PROBE}{{from: {key}}}", "llava-next")
    [problem] = plan(rules, [str(source), f"vision_tower={CLIP}"], dry_run=True).plan.problems
    assert (problem.code, f"is read from `{key}`" in problem.cause, problem.fix) == (
        "LR112",
        True,
        fix,
    )


def test_the_chat_template_goes_by_the_tokenizer(changed: Changed, tmp_path: Path) -> None:
    """A LLaVA-NeXT with Qwen's words for turns, and without them."""
    source = changed(
        TILED,
        config=lambda c: c.update(architectures=["LlavaLlamaForCausalLM"], model_type="llava"),
    )

    def template() -> str:
        job = plan("llava-next", [str(source), f"vision_tower={CLIP}", *more], dry_run=True)
        assert job.derived is not None, job.plan.problems
        assert job.derived.config.chat_template is not None
        return job.derived.config.chat_template.name

    more: list[str] = []
    assert template() == "vicuna"
    for file in source.glob("*token*"):
        file.unlink()
    more = [f"language_model={qwen_tokenizer(tmp_path / 'qwen')}"]
    assert template() == "chatml-direct"
    shutil.rmtree(tmp_path / "qwen")


def test_processors_have_the_classes_of_the_rule_file(run: Run, tmp_path: Path) -> None:
    """What the tower's own image processor says of sizes and means stays; class and grid are the
    family's.
    """
    siglip = TINY / "siglip-tiny-patch14-28"
    tokenizer = qwen_tokenizer(tmp_path / "qwen")
    ran = run(
        "apply", "llava-onevision", "--source", TINY / "llava-onevision" / "safetensors",
        "--source", f"vision_tower={siglip}",
        "--source", f"language_model={tokenizer}", "--output", "out",
    )  # fmt: skip
    assert ran.code == 0, ran.out + ran.err
    own = json.loads((siglip / "preprocessor_config.json").read_text())
    images, videos = (
        json.loads(Path("out", f"{kind}preprocessor_config.json").read_text())
        for kind in ("", "video_")
    )
    assert images["image_processor_type"] == "LlavaOnevisionImageProcessor"
    assert videos["video_processor_type"] == "LlavaOnevisionVideoProcessor"
    assert "image_processor_type" not in videos
    for key in ("size", "image_mean", "image_std", "rescale_factor"):
        assert images[key] == videos[key] == own[key]
    assert len(images["image_grid_pinpoints"]) == 36
    processor = json.loads(Path("out/processor_config.json").read_text())
    assert (processor["image_token"], processor["video_token"], processor["num_image_tokens"]) == (
        "<image>",
        "<video>",
        4,
    )


@pytest.mark.parametrize("layers", [27, 26])
def test_siglip_is_read_from_its_last_layer_whatever_its_config_says(layers: int, run: Run) -> None:
    """A config that was written after the last layer was deleted, as converted models have it,
    says 26.
    """
    tower = Path("tower")
    tower.mkdir()
    sizes = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
    (tower / "config.json").write_text(
        json.dumps({"model_type": "siglip_vision_model", "num_hidden_layers": layers, **sizes})
    )
    for rules, manifest in (
        ("onevision", "onevision-qwen2-7b"),
        ("interleave", "interleave-qwen-0.5b"),
    ):
        source = str(MANIFESTS / f"llava-{manifest}.released.json")
        job = plan(f"llava-{rules}", [source, f"vision_tower={tower}"], dry_run=True)
        assert job.derived is not None, job.plan.problems
        written = job.derived.config.config
        assert (written["vision_feature_layer"], written["vision_feature_select_strategy"]) == (
            -1,
            "full",
        )
        assert job.derived.config.tower.facts["last_layer_deleted"] is True


@pytest.mark.parametrize("said", ["mlp2x_relu", "identity", 3])
def test_a_projector_of_a_kind_that_tensors_do_not_show(
    said: object, run: Run, changed: Changed
) -> None:
    source = changed(config=lambda c: c.update(mm_projector_type=said))
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert (ran.code, "LR112" in ran.out, repr(said) in ran.out) == (3, True, True)


def without_llava_keys(folder: Path, **kept: Any) -> Path:
    """The model with a plain config of its language model, as if LLaVA's own was lost."""
    shutil.copytree(LLAMA, folder)
    content = json.loads((folder / "config.json").read_text())
    plain = {key: value for key, value in content.items() if not key.startswith(("mm_", "image_"))}
    for key in ("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter", "use_mm_proj"):
        plain.pop(key, None)
    (folder / "config.json").write_text(json.dumps(plain | kept))
    return folder


def test_values_that_a_lost_config_does_not_say_are_named(tmp_path: Path) -> None:
    source = without_llava_keys(tmp_path / "plain")
    job = plan("llava-v1.5", [str(source), f"vision_tower={CLIP}"], dry_run=True)
    [note] = [note for note in job.plan.notes if note.cause.startswith("these values are assumed")]
    assert note.code == "LR315"
    for assumed in (
        "vision_feature_layer: -2 (`mm_vision_select_layer` of the source)",
        "vision_feature_select_strategy: 'default' (`mm_vision_select_feature` of the source)",
        "mm_projector_type: mlp2x_gelu",
        "image_aspect_ratio isn't 'pad', so there is no do_pad, do_center_crop",
        "mm_use_im_start_end isn't True",
    ):
        assert assumed in note.cause.partition(". ")[0]  # what `convert` shows of a note


@pytest.mark.parametrize("kept", [{"mm_hidden_size": 64}, {"image_aspect_ratio": "square"}])
def test_a_config_of_the_training_has_its_defaults(tmp_path: Path, kept: dict[str, Any]) -> None:
    """What LLaVA's code writes without some of its keys is computed with that code's defaults."""
    source = without_llava_keys(tmp_path / "own", **kept)
    job = plan("llava-v1.5", [str(source), f"vision_tower={CLIP}"], dry_run=True)
    assert not [
        note for note in job.plan.notes if note.cause.startswith("these values are assumed")
    ]
