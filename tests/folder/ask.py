"""Open tokenizers with the transformers that is on the path, and write down what they make of
texts.

`python ask.py QUESTIONS ANSWERS`, two JSON files: `[folder, way, texts]` of each tokenizer, and
`{ids, decoded, class}` or `{error}`. The way is `fast`, `slow` (`use_fast=False`), or a class.
Several versions run this module, so it keeps to what all of them have.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

import transformers


def answer(folder: str, way: str, texts: list[str]) -> dict[str, Any]:
    try:
        if way in ("fast", "slow"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, **({"use_fast": False} if way == "slow" else {})
            )
        else:
            tokenizer = getattr(transformers, way).from_pretrained(folder)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        return {
            "ids": ids,
            "decoded": [tokenizer.decode(of_text) for of_text in ids],
            "class": type(tokenizer).__name__,
        }
    except Exception as error:  # the other tokenizers are still worth a question
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(
        json.dumps([answer(*question) for question in asked]), encoding="utf-8"
    )
