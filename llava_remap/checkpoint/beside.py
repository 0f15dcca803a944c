"""The files of a checkpoint beside its weights, by what uses them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
    "processor": (
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "chat_template.jinja",
        "chat_template.json",
    ),
}
#: Read of every checkpoint, whatever it is used for.
_ALWAYS = "config.json"


def files_for(use: Collection[str]) -> list[str]:
    """The files that are read for what a checkpoint is used for: keys of `BESIDE`, and others
    that need none of these files.
    """
    return list(
        dict.fromkeys(
            [_ALWAYS, *(name for part, names in BESIDE.items() if part in use for name in names)]
        )
    )
