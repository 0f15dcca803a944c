"""From a manifest to a model that computes: shrink, convert, load strictly; and every family's
shapes against the classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from llava_remap.authoring.shrink import shrink
from llava_remap.jobs.apply import apply
from tests.conftest import DATA, MANIFESTS

EXPECTED = sorted((DATA / "expected").iterdir())


def left_over(info: dict[str, Any]) -> dict[str, Any]:
    return {kind: names for kind, names in info.items() if names}


@pytest.mark.parametrize(
    ("name", "rules", "form"),
    [
        ("llava-v1.5-7b.released", "llava-v1.5", "sharded"),
        ("llava-v1.5-7b", "llava-v1.5", "safetensors"),
        ("bakllava-v1.released", "bakllava", "legacy"),
        ("bakllava-v1", "bakllava", "bin"),
        ("llava-interleave-qwen-0.5b.released", "llava-interleave", "sharded_safetensors"),
    ],
)
def test_to_finite_logits(name: str, rules: str, form: str) -> None:
    shrink(MANIFESTS / f"{name}.json", "small", form=form)
    apply(rules, ["small", "vision_tower=small/vision_tower"], Path("out"))
    processor = transformers.AutoProcessor.from_pretrained("out")
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        "out", dtype=torch.float32, output_loading_info=True
    )
    assert not left_over(info)
    message = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}],
    }
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (64, 48), "teal"), text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_a_converted_checkpoint_has_a_twin_too() -> None:
    """Its config describes the tower, and names ids behind the original vocabulary."""
    shrink(MANIFESTS / "llava-v1.5-7b.json", "small")
    apply("llava-v1.5", ["small", "vision_tower=small/vision_tower"], Path("converted"))
    shrink("converted", "again", form="sharded_safetensors")
    config = json.loads(Path("again/config.json").read_text())
    assert (
        config["image_token_index"],
        config["pad_token_id"],
        config["text_config"]["vocab_size"],
    ) == (301, 302, 320)
    tokenizer = transformers.AutoTokenizer.from_pretrained("again")
    assert tokenizer.convert_ids_to_tokens([301, 302]) == ["<image>", "<pad>"]
    assert not Path("again/vision_tower").exists()
    _, info = transformers.AutoModelForImageTextToText.from_pretrained(
        "again", output_loading_info=True
    )
    assert not left_over(info)


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: path.stem)
def test_every_family_loads_by_the_official_mapping(expected: Path) -> None:
    """The twin's sizes, under the names to which the official script takes it, are those of the
    class with the twin's config.
    """
    mapping = json.loads(expected.read_text())
    done = shrink(MANIFESTS / expected.name, "small")
    small = load_file("small/model.safetensors")
    renamed = {
        mapping["map"][name]: tensor
        for name, tensor in small.items()
        if name not in mapping["dropped"]
    }
    said = json.loads(Path("small/config.json").read_text())
    vision = json.loads(Path("small/vision_tower/config.json").read_text())["vision_config"]
    vision["num_hidden_layers"] -= done.twin.last_layer_deleted
    kind = next(kind for word, kind in KINDS.items() if word in said["architectures"][0])
    model_class = getattr(transformers, mapping["class"])
    config = {
        "text_config": {
            **{key: value for key, value in said.items() if key != "rope_scaling"},
            "model_type": kind,
        },
        "vision_config": {**vision, "vision_use_head": False},
        "tie_word_embeddings": said["tie_word_embeddings"],
    }
    model_class.config_class.from_dict(config).save_pretrained("out")
    save_file(renamed, "out/model.safetensors", {"format": "pt"})
    _, info = model_class.from_pretrained("out", output_loading_info=True)
    assert not left_over(info)


#: The text model that a class of LLaVA's is made with.
KINDS = {"Llama": "llama", "Mistral": "mistral", "Qwen": "qwen2"}
