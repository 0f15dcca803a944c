"""What other programs need of a folder, and the commands that take it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors

from llava_remap.folder.programs import program_notes, serving


def files(
    kind: str = "llama",
    *,
    fallback: bool = True,
    processor: Any = None,
    model: str = "LlavaForConditionalGeneration",
    **more: Any,
) -> dict[str, bytes]:
    """The small files of a folder, with a tokenizer of three tokens."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=fallback))
    if processor is not None:
        tokenizer.post_processor = processor
    config = {"text_config": {"model_type": kind}, "architectures": [model], **more}
    return {
        "chat_template.jinja": b"USER: {{ messages[0].content }}",
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
    }


BOS = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
NONE = processors.TemplateProcessing("$A", "$A $B", [])
BYTES = processors.ByteLevel()
ROBERTA = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (files(), ["tokenizer.model"]),
        (files("mistral"), ["tokenizer.model"]),
        (files() | {"tokenizer.model": b""}, []),
        (files("qwen2"), []),
        (files(fallback=False), []),  # Llama 3
        ({"config.json": b"{}"}, []),
        (files("qwen2", processor=BOS), ["`<s>`"]),
        (files("qwen2", processor=processors.Sequence([BYTES, BOS])), ["`<s>`"]),
        (files("qwen2", processor=processors.Sequence([BYTES, NONE])), []),
        (files("qwen2", processor=BYTES), []),
        (files(processor=BOS), ["tokenizer.model", "`<s>`"]),
        (files("qwen2", processor=ROBERTA), ["`<s>`"]),
        # The template writes it itself, so one more would be too many.
        (files("qwen2", processor=BOS) | {"chat_template.jinja": b"{{ bos_token }}USER:"}, []),
        (files("qwen2", processor=BOS) | {"chat_template.jinja": b"<s>USER:"}, []),
    ],
)
def test_what_is_told(made: dict[str, bytes], said: list[str]) -> None:
    notes = program_notes(made)
    assert [note.code for note in notes] == ["LR315"] * len(said)
    assert all(words in note.cause for words, note in zip(said, notes, strict=True))


@pytest.mark.parametrize(
    ("made", "layout", "programs"),
    [
        (files(), "classic", ["transformers", "vLLM", "SGLang", "llama.cpp"]),
        (
            files(projector_hidden_act="linear"),
            "classic",
            ["transformers", "SGLang", "llama.cpp"],
        ),
        (
            files(model="VideoLlavaForConditionalGeneration"),
            "classic",
            ["transformers", "llama.cpp"],
        ),
        (
            files(model="VideoLlavaForConditionalGeneration"),
            "module-5.6",
            ["transformers", "SGLang", "llama.cpp"],
        ),
        ({"config.json": files()["config.json"]}, "classic", ["transformers"]),
    ],
)
def test_which_programs_take_it(made: dict[str, bytes], layout: str, programs: list[str]) -> None:
    assert list(serving("./out", made, layout)) == programs


def test_what_vllm_takes_of_a_class() -> None:
    made = serving("./out", files(model="LlavaNextVideoForConditionalGeneration"), "classic")
    assert made["vLLM"] == "vllm serve ./out (text and videos, no pictures)"


def test_a_path_is_quoted() -> None:
    made = serving("./my model's", files(), "classic")
    assert made["transformers"].endswith('("./my model\'s")')
    assert made["vLLM"] == """vllm serve './my model'"'"'s'"""
