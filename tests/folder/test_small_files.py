"""What is written beside the weights: config, generation config, processor, and what there is
without a tokenizer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoImageProcessor, AutoProcessor

from llava_remap.jobs.apply import apply
from llava_remap.verification.record import RECORD
from tests.compat.checkpoints import (
    LINEAR,
    LLAMA,
    QWEN2,
    SAMPLING,
    SIGLIP,
    SQUARE,
    change,
    qwen_tokenizer,
    without_newline,
)
from tests.conftest import CLIP, RELEASED, Changed, Run

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
VICUNA = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **SAMPLING}


def written(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def llama(source: Path, output: Path, *more: str) -> Path:
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}", *more], output)
    return output


def test_rope_in_the_words_of_both_generations(changed: Changed, tmp_path: Path) -> None:
    """`rope_scaling` is what the source says: 5.x, which is asked on the way, puts its own keys
    into the mapping it is given.
    """
    out = llama(
        changed(config=lambda c: c.update({"rope_scaling": LINEAR, "rope_theta": 5000.0})),
        tmp_path / "out",
    )
    text = written(out, "config.json")["text_config"]
    assert (text["rope_theta"], text["rope_scaling"]) == (5000.0, LINEAR)
    assert text["rope_parameters"] == {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}


def test_a_head_dim_of_null_is_not_kept(changed: Changed, tmp_path: Path) -> None:
    """Newer classes divide by it. It is what the class makes of it: 64 for 4 heads."""
    out = llama(changed(config=lambda c: c.update({"head_dim": None})), tmp_path / "out")
    assert written(out, "config.json")["text_config"]["head_dim"] == 16


def test_flags_of_sampling_are_kept_only_with_sampling(changed: Changed, tmp_path: Path) -> None:
    """Without `do_sample` they are of no effect but that newer versions complain."""
    source = changed()
    change(source / "generation_config.json", **VICUNA)
    greedy = written(llama(source, tmp_path / "greedy"), "generation_config.json")
    assert greedy == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 321, "max_length": 4096}
    change(source / "generation_config.json", **VICUNA, do_sample=True)
    sampling = written(llama(source, tmp_path / "sampling"), "generation_config.json")
    assert sampling == {**greedy, **SAMPLING, "do_sample": True}


def test_generation_config_of_a_source_whose_config_counts(
    changed: Changed, tmp_path: Path
) -> None:
    """One that is read for its tokenizer alone says nothing of generation."""
    source = changed()
    (source / "generation_config.json").unlink()
    language_model = tmp_path / "language_model"
    shutil.copytree(RELEASED / "bin", language_model)
    change(language_model / "generation_config.json", max_length=9)
    rules = tmp_path / "rules.yaml"
    own = "sources:\n  language_model: {use: [tokenizer]}\n"
    rules.write_text(
        "schema: 1\nname: own\nversion: 1.0.0\nsummary: own\nextends: [llava-v1.5.yaml]\n" + own
    )
    sources = [str(source), f"vision_tower={CLIP}", f"language_model={language_model}"]
    apply(rules, sources, tmp_path / "tokenizer")
    assert "max_length" not in written(tmp_path / "tokenizer", "generation_config.json")
    apply("llava-v1.5", sources, tmp_path / "both")
    assert written(tmp_path / "both", "generation_config.json")["max_length"] == 9


def test_siglip_is_described_so_that_every_version_counts_its_tokens(
    changed: Changed, tmp_path: Path
) -> None:
    source = changed(QWEN2, tensors=without_newline, config=lambda c: c.update(SQUARE))
    language_model = f"language_model={qwen_tokenizer(tmp_path / 'qwen2')}"
    apply("llava-v1.5", [str(source), f"vision_tower={SIGLIP}", language_model], tmp_path / "out")
    processor = written(tmp_path / "out", "processor_config.json")
    assert (
        processor["num_additional_image_tokens"],
        processor["vision_feature_select_strategy"],
    ) == (1, "default")
    assert written(tmp_path / "out", "config.json")["vision_feature_select_strategy"] == "full"


def test_config_and_tokenizer_of_a_checkpoint_that_is_weights_alone(
    tmp_path: Path, run: Run
) -> None:
    """`language_model=` gives both; what it gives is what the checkpoint's own files would have
    given.
    """
    weights, language_model = tmp_path / "weights", tmp_path / "language_model"
    for folder in (weights, language_model):
        folder.mkdir()
    shutil.copy(LLAMA / "model.safetensors", weights)
    for name in ("config.json", "generation_config.json", *TOKENIZER_FILES):
        shutil.copy(LLAMA / name, language_model)
    refused = run(
        "apply",
        "llava-v1.5",
        "--source",
        weights,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "refused",
    )
    assert (refused.code, "--source language_model=DIR" in refused.out) == (3, True)
    given = llama(weights, tmp_path / "given", f"language_model={language_model}")
    own = llama(LLAMA, tmp_path / "own")
    for file in (
        path for path in own.iterdir() if path.name != RECORD
    ):  # it says where the files were
        assert (given / file.name).read_bytes() == file.read_bytes(), file.name


def test_without_a_tokenizer_the_report_says_what_is_missing_and_how_to_add_it(
    changed: Changed, run: Run
) -> None:
    source = changed()
    for name in TOKENIZER_FILES:
        (source / name).unlink()
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
    assert ran.code == 0
    done = ran.out[ran.out.index("Done:") :]
    for said in (
        "LR408",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
        "--source language_model=DIR",
    ):
        assert said in done
    lacking = (
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
        "chat_template.jinja",
        "chat_template.json",
    )
    assert all(name in done and not Path("out", name).exists() for name in lacking)
    assert AutoImageProcessor.from_pretrained("out").crop_size["height"] == 28
    added = run(
        "apply", "llava-v1.5", "--source", source, "--source", f"vision_tower={CLIP}", "--source",
        f"language_model={LLAMA}",
        "--output", "whole",
    )  # fmt: skip
    assert "LR408" not in added.out
    assert AutoProcessor.from_pretrained("whole").tokenizer.pad_token == "<pad>"
    assert (
        AutoProcessor.from_pretrained("whole").chat_template
        == Path("whole/chat_template.jinja").read_text()
    )


@pytest.mark.parametrize("kind", ["files", "one file"])
def test_tokens_of_a_qwen2_tokenizer(kind: str, changed: Changed, tmp_path: Path) -> None:
    """Special tokens behind the vocabulary are counted, the pad token is its own, and `<image>`
    comes after them.
    """
    source = changed(QWEN2, tensors=without_newline, config=lambda c: c.update(SQUARE))
    language_model = qwen_tokenizer(tmp_path / "qwen2", one_file=kind == "one file")
    apply(
        "llava-v1.5",
        [str(source), f"vision_tower={SIGLIP}", f"language_model={language_model}"],
        tmp_path / "out",
    )
    config = written(tmp_path / "out", "config.json")
    assert (config["image_token_id"], config["pad_token_id"]) == (303, 300)
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<image>"]) == [
        300,
        302,
        303,
    ]
    assert tokenizer.decode(tokenizer(" a cat, 3 dogs\n")["input_ids"]) == " a cat, 3 dogs\n"
