"""Load GGUF files in llama.cpp and let them continue prompts, greedily and with float32 caches."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import xllamacpp  # type: ignore[import-not-found]

CONTEXT = 4096


class Model:
    """A GGUF file that is loaded.

    Args:
        model: the GGUF file of a language model.
        mmproj: that of its vision tower and projector, or None.
    """

    def __init__(self, model: str, mmproj: str | None = None) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = model
        if mmproj:
            params.mmproj.path = mmproj
            params.mmproj_use_gpu = False
        params.n_ctx = CONTEXT
        params.n_parallel = 1
        params.warmup = False
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(params)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """A request to this process's own server, on the loopback interface."""
        request = Request(
            self.server.listening_address + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=600) as said:
            return json.load(said)

    def ids(self, text: str, *, first: bool = True) -> list[int]:
        """The tokens of a text with special tokens in it.

        Args:
            text: the text.
            first: whether the token that begins every text is put before.
        """
        said = self.ask("/tokenize", {"content": text, "add_special": first, "parse_special": True})
        return list(said["tokens"])

    def answer(self, prompt: Any, tokens: int) -> dict[str, Any]:
        """The prompt's length in tokens and the generated ones, each with its log-probability."""
        said = self.ask(
            "/completion",
            {
                "prompt": prompt,
                "n_predict": tokens,
                "temperature": 0,
                "n_probs": 1,
                "return_tokens": True,
                "ignore_eos": True,
                "cache_prompt": False,
            },
        )
        return {
            "length": said["tokens_evaluated"],
            "tokens": said["tokens"],
            "logprobs": [one["logprob"] for one in said["completion_probabilities"]],
        }


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """All that is asked of one GGUF file, or why it does not load."""
    try:
        model = Model(question["model"], question.get("mmproj"))
    except RuntimeError as error:
        return {"error": str(error)}
    said: dict[str, Any] = {
        "ids": {text: model.ids(text) for text in question.get("texts", [])},
        "cases": [model.ids(text, first=False) for text in question.get("cases", [])],
    }
    said |= {
        kind: {"ids": model.ids(prompt), **model.answer(prompt, question["tokens"])}
        for kind, prompt in question.get("prompts", {}).items()
    }
    for kind, (prompt, picture) in question.get("pictures", {}).items():
        marker = model.ask("/props").get("media_marker", "<__media__>")
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        shown = {"prompt_string": prompt.replace("<image>", marker), "multimodal_data": [data]}
        said[kind] = model.answer(shown, question["tokens"])
    return said


def main(given: Path, answered: Path) -> None:
    answers = {name: ask(of) for name, of in json.loads(given.read_text()).items()}
    answered.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
