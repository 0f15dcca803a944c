"""Experts: a tensor for each matrix of each, as on disk, or those of a layer in one tensor, as
transformers keeps them in memory and a training dumps them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_remap import apply
from tests.text_models.matrix import NEAR, TEXT, TOWERS, Own, build, checkpoint


@pytest.mark.parametrize("dumped", [False, True])
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_compute_the_same(kind: str, dumped: bool, tmp_path: Path) -> None:
    own = build(kind)
    assert isinstance(own, Own), own
    source = checkpoint(own, tmp_path / "source")
    stored = load_file(source / "model.safetensors")
    in_memory = {name: value.contiguous() for name, value in own.model.state_dict().items()}
    fused = [name for name in in_memory if name.endswith(".experts.gate_up_proj")]
    assert fused
    assert not [name for name in fused if name in stored]
    beside = {name: value for name, value in stored.items() if "mm_projector" in name}
    rules = "llava-v1.5"
    if dumped:
        rules = "mine.yaml"
        part = f"experts-{kind.partition('_')[0].rstrip('23')}"
        Path(rules).write_text(
            "schema: 1\nname: mine\nversion: 1.0.0\nsummary: experts in one tensor\n"
            f"extends: [llava-v1.5.yaml, parts/{part}.yaml]\n"
        )
        save_file(in_memory | beside, source / "model.safetensors", {"format": "pt"})
    apply(rules, [source, f"vision_tower={TOWERS['llava-v1.5']}"], "out", verify="full")
    model = AutoModelForImageTextToText.from_pretrained(
        "out", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        wanted = own.model(input_ids=TEXT, use_cache=False).logits
        logits = model(input_ids=TEXT, use_cache=False).logits[..., : wanted.shape[-1]]
    assert (logits - wanted).abs().max() <= NEAR * wanted.abs().max()
