"""The ids of new tokens, for tokenizers of the sizes that the families' own have, against those
of the official scripts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_remap.rulefile import load_rule_file
from llava_remap.target_model import Vocabulary, place_tokens

#: Rule file, tokens that the tokenizer has and its own pad token, and the ids that the official
#: scripts give.
OFFICIAL = {
    "LLaVA-1.5": ("llava-v1.5", 32000, None, {"image": 32000, "pad": 32001}),
    "ViP-LLaVA": ("vip-llava", 32000, None, {"image": 32000, "pad": 32001}),
    "Interleave": ("llava-interleave", 151646, "<|endoftext|>", {"image": 151646}),
    "1.6 Vicuna": ("llava-next", 32000, None, {"image": 32000}),
    "1.6 Mistral": ("llava-next", 32000, None, {"image": 32000, "pad": 32001}),
    "1.6 Yi-34B": ("llava-next", 64000, "<|endoftext|>", {"image": 64000}),
    "NeXT Llama-3": ("llava-next", 128256, None, {"image": 128256, "pad": 128257}),
    "NeXT Qwen1.5": ("llava-next", 151646, "<|endoftext|>", {"image": 151646}),
    "NeXT-Video": ("llava-next-video", 32000, None, {"video": 32000, "image": 32001, "pad": 32002}),
    "NeXT-Video Yi": ("llava-next-video", 64000, "<|endoftext|>", {"video": 64000, "image": 64001}),
    "OneVision": ("llava-onevision", 151646, "<|endoftext|>", {"image": 151646, "video": 151647}),
    "Video-LLaVA": ("video-llava", 32000, None, {"image": 32000, "video": 32001, "pad": 32002}),
}


@pytest.mark.parametrize("model", OFFICIAL)
def test_ids_are_those_of_the_official_scripts(model: str) -> None:
    rules, size, pad, wanted = OFFICIAL[model]
    words = {f"word{i}": i for i in range(3)} | ({pad: 0} if pad else {"<unk>": 0})
    # Llama's and Mistral's tokenizers have `<unk>` for a pad token, or none.
    vocabulary = Vocabulary(
        Path("tokenizer"), words, size, {"pad_token": pad or "<unk>", "unk_token": "<unk>"}
    )
    placed = {
        token.role: token
        for token in place_tokens(load_rule_file(rules).text.tokens, vocabulary, size, {})
    }
    assert {role: placed[role].id for role in wanted} == wanted
    assert {role for role, token in placed.items() if token.added} == wanted.keys() | (
        {"pad"} if pad is None else set()
    )
