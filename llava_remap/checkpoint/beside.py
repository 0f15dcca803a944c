"""The files of a checkpoint beside its weights, by what uses them."""

from __future__ import annotations

from collections.abc import Mapping

BESIDE: Mapping[str, tuple[str, ...]] = {
    "config": ("config.json", "generation_config.json"),
    "tokenizer": (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}
