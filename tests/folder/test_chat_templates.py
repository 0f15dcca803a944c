"""The chat templates of the rule files, rendered as transformers renders them, against prompts
written out by hand.
"""

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


def rendered(
    rules: str, messages: list[dict[str, Any]], generate: bool, name: str, **values: str
) -> str:
    """By the rule file's template with this name; `values`: what a config or a caller gives in
    place of the usual ones.
    """
    processor = load_rule_file(rules).text.processor
    assert processor is not None
    template = processor.chat_templates[name]
    given = {
        "image": "<image>",
        "video": "<video>",
        "between_pictures": "\n",
        **template.values,
        **values,
    }
    texts, _ = render_jinja_template(
        [messages], chat_template=template.text, add_generation_prompt=generate, **given
    )
    return str(texts[0])


@pytest.mark.parametrize("generate", [True, False])
def test_vicuna(generate: bool) -> None:
    """As LLaVA-1.5's `vicuna_v1` conversation has it: images first, turns parted by a space or
    `</s>`.
    """
    wanted = "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? " + (
        "ASSISTANT:" if generate else ""
    )
    assert rendered("llava-v1.5", CONVERSATION, generate, "vicuna") == wanted


def test_vicuna_several_images() -> None:
    message: dict[str, Any] = {
        "role": "user",
        "content": [IMAGE, IMAGE, {"type": "text", "text": "Which?"}],
    }
    assert (
        rendered("llava-v1.5", [message], True, "vicuna")
        == "USER: <image>\n<image>\nWhich? ASSISTANT:"
    )


@pytest.mark.parametrize("generate", [True, False])
def test_chatml(generate: bool) -> None:
    """As Qwen has it; images stay where the message has them."""
    wanted = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it?<image>\n"
        "<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
    )
    got = rendered("llava-interleave", CONVERSATION, generate, "chatml-qwen")
    assert got == wanted + ("<|im_start|>assistant\n" if generate else "")


@pytest.mark.parametrize("generate", [True, False])
def test_chatml_of_yi(generate: bool) -> None:
    """As LLaVA-1.6's `chatml_direct` conversation has it: nothing between turns."""
    wanted = (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nWhat is it?<image>\n<|im_end|>"
        "<|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?<|im_end|>"
    )
    got = rendered("llava-next", CONVERSATION, generate, "chatml-direct")
    assert got == wanted + ("<|im_start|>assistant\n" if generate else "")


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("rules", ["llava-next", "llava-med-v1.5"])
def test_mistral(rules: str, generate: bool) -> None:
    """As LLaVA-1.6's `mistral_instruct` conversation has it; the tokenizer puts `<s>` in front."""
    wanted = (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\n"
        "What is it? [/INST] A cat. </s>[INST] Sure? [/INST]"
    )
    assert rendered(rules, CONVERSATION, generate, "mistral") == wanted


@pytest.mark.parametrize("generate", [True, False])
def test_llama_3(generate: bool) -> None:
    """As LLaVA-NeXT's `llava_llama_3` conversation has it; the tokenizer puts
    `<|begin_of_text|>` in front.
    """
    wanted = (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
    )
    more = "<|start_header_id|>assistant<|end_header_id|>\n\n" if generate else ""
    assert rendered("llava-next", CONVERSATION, generate, "llama-3") == wanted + more


def test_videos_stand_where_images_do() -> None:
    message: dict[str, Any] = {
        "role": "user",
        "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}],
    }
    assert (
        rendered("video-llava", [message], True, "vicuna")
        == "USER: <video>\nWhat happens? ASSISTANT:"
    )
    assert (
        rendered("llava-next-video", [message], True, "mistral")
        == "[INST] <video>\nWhat happens? [/INST]"
    )
    qwen = "<|im_start|>user\n<video>\nWhat happens?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered("llava-onevision", [message], True, "chatml-qwen") == qwen
