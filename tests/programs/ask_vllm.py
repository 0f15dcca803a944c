"""Load converted folders with vLLM, and answer questions about them.

`ask_vllm.py QUESTIONS.json ANSWERS.json` answers all folders in one process, one after another.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    # The engine runs in this process: what it refuses is caught here, and its memory is freed here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Nothing that an earlier run left behind counts.
    "VLLM_CACHE_ROOT": str(Path.cwd() / "vllm-cache"),
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Compiling a sampler for a few tokens takes longer than all else.
    "TORCHDYNAMO_DISABLE": "1",
}

import numpy as np
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
)

#: Longer than any prompt here with all tokens of a picture or a video.
LONGEST = 2048
KV_CACHE = 64 * 2**20


def ask(folder: str, tokens: int, questions: dict[str, Any]) -> dict[str, Any]:
    """The answers by kind."""
    model = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=LONGEST,
        max_num_seqs=1,
        max_num_batched_tokens=LONGEST,
        enable_prefix_caching=False,
        disable_log_stats=True,
        kv_cache_memory_bytes=KV_CACHE,
        seed=0,
    )
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=1)
    answers = {kind: answer(model, sampling, question) for kind, question in questions.items()}
    return {**answers, "chat": chat(model, questions["text"]["messages"])}


def chat(model: Any, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The prompt ids that the chat API makes of a conversation, with the API's own setting for
    special tokens and with the other one.
    """
    default = ChatCompletionRequest(messages=messages).add_special_tokens
    ids = {}
    for name, special in (("default", default), ("other", not default)):
        (made,) = model.chat(
            messages,
            SamplingParams(max_tokens=1),
            use_tqdm=False,
            tokenization_kwargs={"add_special_tokens": special},
        )
        ids[name] = list(made.prompt_token_ids)
    return {"add_special_tokens": default, **ids}


def answer(model: Any, sampling: Any, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question, or why vLLM refuses it."""
    shown: dict[str, Any] = {}
    if question["image"]:
        shown["image"] = Image.open(question["image"]).convert("RGB")
    if question["video"]:
        shown["video"] = np.load(question["video"])
    asked = {"prompt": question["prompt"], "multi_modal_data": shown}
    try:
        (made,) = model.generate([asked], sampling, use_tqdm=False)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    (best,) = made.outputs
    chosen = zip(best.token_ids, best.logprobs, strict=True)
    return {
        "ids": list(made.prompt_token_ids),
        "tokens": list(best.token_ids),
        "logprobs": [at[token].logprob for token, at in chosen],
    }


def main(given: Path, answered: Path) -> None:
    asked = json.loads(given.read_text())
    answers: dict[str, Any] = {}
    for name, of in asked.items():
        try:
            answers[name] = ask(of["folder"], of["tokens"], of["questions"])
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        answered.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
