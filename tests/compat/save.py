"""Small models of several classes, built from scratch and saved by whatever transformers is on the
path.

`python save.py OUT` writes OUT/NAME for each, with what the model computed in `logits.pt`. Several
versions run it, so it keeps to what all of them have.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
import transformers as t

IMAGE, VIDEO = 120, 121
TEXT = {
    "vocab_size": 128,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 12345.0,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TOWER = {**SMALL, "image_size": 28, "patch_size": 14}
GRID = [[28, 56], [56, 28], [56, 56]]
WORDS = [1, 5, 9, 11, 17, 90]


def models() -> dict[str, tuple[Any, Any]]:
    """By name: a class and its config. The tied one has no head on disk; all have towers of
    every kind among them.
    """
    llama, qwen2 = (
        t.LlamaConfig(**SMALL, **TEXT),
        t.Qwen2Config(**SMALL, **TEXT, tie_word_embeddings=True),
    )
    clip, siglip = t.CLIPVisionConfig(**TOWER), t.SiglipVisionConfig(**TOWER)
    common = {
        "text_config": llama,
        "vision_config": clip,
        "image_token_index": IMAGE,
        "image_seq_length": 4,
    }
    whole = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    tied = {
        **common,
        "text_config": qwen2,
        "vision_config": siglip,
        "tie_word_embeddings": True,
        **whole,
    }
    return {
        "llava-tied": (t.LlavaForConditionalGeneration, t.LlavaConfig(**tied)),
        "llava-next": (
            t.LlavaNextForConditionalGeneration,
            t.LlavaNextConfig(**common, image_grid_pinpoints=GRID),
        ),
        "vip-llava": (
            t.VipLlavaForConditionalGeneration,
            t.VipLlavaConfig(**common, vision_feature_layers=[-1, -2, 1]),
        ),
        "video-llava": (
            t.VideoLlavaForConditionalGeneration,
            t.VideoLlavaConfig(**common, video_token_index=VIDEO),
        ),
    }


def inputs(name: str) -> dict[str, Any]:
    """Words, and where the class takes a picture as it is, four image tokens and a picture."""
    picture = name in ("llava-tied", "vip-llava")
    ids = torch.tensor([[1, 5, *[IMAGE] * (4 * picture), *WORDS]])
    pixels = (
        {"pixel_values": torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)}
        if picture
        else {}
    )
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}


def logits(model: Any, name: str) -> Any:
    inner = getattr(
        model, "language_model", model
    )  # 4.46 takes no prompt without a picture; its language model does
    asked = model if name in ("llava-tied", "vip-llava") or not hasattr(inner, "lm_head") else inner
    with torch.no_grad():
        return asked.float().eval()(**inputs(name)).logits


def main(out: str) -> None:
    torch.set_num_threads(1)
    for number, (name, (kind, config)) in enumerate(models().items()):
        torch.manual_seed(number)
        model = kind(config)
        model.save_pretrained(Path(out) / name)
        torch.save(logits(model, name), Path(out) / name / "logits.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
