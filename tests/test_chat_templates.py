"""The chat templates of the rule files, rendered as transformers renders them, against prompts written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llava_remap.rulefile import load_rule_file

IMAGE: dict[str, Any] = {"type": "image"}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Sure?"},
]


def rendered(rules: str, messages: list[dict[str, Any]], generate: bool) -> str:
    processor = load_rule_file(rules).text.processor
    assert processor is not None
    texts, _ = render_jinja_template([messages], chat_template=processor.chat_template, add_generation_prompt=generate)
    return str(texts[0])


@pytest.mark.parametrize("generate", [True, False])
def test_vicuna(generate: bool) -> None:
    """As LLaVA-1.5's `vicuna_v1` conversation has it: images first, turns parted by a space or `</s>`."""
    wanted = "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? " + ("ASSISTANT:" if generate else "")
    assert rendered("llava-v1.5", CONVERSATION, generate) == wanted


def test_vicuna_several_images() -> None:
    message: dict[str, Any] = {"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "Which?"}]}
    assert rendered("llava-v1.5", [message], True) == "USER: <image>\n<image>\nWhich? ASSISTANT:"


@pytest.mark.parametrize("generate", [True, False])
def test_chatml(generate: bool) -> None:
    """As Qwen has it; images stay where the message has them."""
    wanted = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it?<image>\n<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
    )
    assert rendered("llava-interleave", CONVERSATION, generate) == wanted + ("<|im_start|>assistant\n" if generate else "")
