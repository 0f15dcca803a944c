"""Notes about a folder for programs other than transformers, and the commands that load it there.

docs/programs.md lists the tests and the versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llava_remap.core.escaped import quote
from llava_remap.core.problem import Problem

#: Text models whose tokenizers llama.cpp's converter reads from `tokenizer.model`, if they are
#: SentencePiece's.
_SENTENCEPIECE = ("llama", "mistral")
_BYTE_FALLBACK = re.compile(rb'"byte_fallback"\s*:\s*true')
#: vLLM's class takes only videos.
_NEXT_VIDEO = "LlavaNextVideoForConditionalGeneration"
#: vLLM has no such class, and SGLang knows its parameters only by the names of this layout.
_VIDEO_LLAVA, _VIDEO_LAYOUT = "VideoLlavaForConditionalGeneration", "module-5.6"


def program_notes(files: Mapping[str, bytes]) -> list[Problem]:
    """LR315 if vLLM or llama.cpp would use a folder differently, and what helps.

    Args:
        files: the folder's small files, by name.
    """
    notes: list[Problem] = []
    if (tokenizer := files.get("tokenizer.json")) is None:
        return notes
    kind = json.loads(files["config.json"])["text_config"]["model_type"]
    by_model = kind in _SENTENCEPIECE and _BYTE_FALLBACK.search(tokenizer) is not None
    if by_model and "tokenizer.model" not in files:
        cause = (
            "llama.cpp reads the tokenizer of this language model from tokenizer.model, and no "
            "source has that file. What its converter makes of tokenizer.json doesn't load."
        )
        fix = "For llama.cpp, put the base model's tokenizer.model beside the source's tokenizer."
        notes.append(Problem("LR315", cause, fix))
    template = files.get("chat_template.jinja", b"").decode()
    begins = next(_first_tokens(json.loads(tokenizer).get("post_processor")), "")
    if begins and template and begins not in template and "bos_token" not in template:
        cause = (
            f"vLLM's chat API leaves out the `{begins}` before a prompt, unlike the model's "
            "training."
        )
        notes.append(Problem("LR315", cause, 'Send "add_special_tokens": true with each request.'))
    return notes


def _first_tokens(processor: Any) -> Iterator[str]:
    """The tokens that the post-processors of a `tokenizer.json` put in front of every text."""
    if isinstance(processor, Mapping):
        for inner in processor.get("processors") or ():
            yield from _first_tokens(inner)
        first: Mapping[str, Any] = next(iter(processor.get("single") or ()), {})
        if "SpecialToken" in first:
            yield first["SpecialToken"]["id"]
        elif "cls" in processor:
            yield processor["cls"][0]


def serving(folder: str, files: Mapping[str, bytes], layout: str) -> dict[str, str]:
    """The command or the call that loads a folder, by program, without programs that can't load it.

    Args:
        folder: the folder's path; in the current folder, it begins with `./`.
        files: the folder's small files, by name.
        layout: the layout of its tensor names.
    """
    config, quoted = json.loads(files["config.json"]), quote(folder)
    made = {"transformers": f"AutoModelForImageTextToText.from_pretrained({folder!r})"}
    if "tokenizer.json" not in files:
        return made
    is_video_llava = config["architectures"] == [_VIDEO_LLAVA]
    if not is_video_llava and config.get("projector_hidden_act") != "linear":
        some = " (text and videos, no pictures)" * (config["architectures"] == [_NEXT_VIDEO])
        made["vLLM"] = f"vllm serve {quoted}{some}"
    if not is_video_llava or layout == _VIDEO_LAYOUT:
        made["SGLang"] = (
            f"python -m sglang.launch_server --model-path {quoted} --model-impl transformers"
        )
    made["llama.cpp"] = f"python convert_hf_to_gguf.py {quoted} (the language model alone)"
    return made
