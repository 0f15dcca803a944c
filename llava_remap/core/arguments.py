"""Checks a user's arguments, and suggests the value that was probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from pathlib import Path

from llava_remap.core.problem import RemapError, refuse

#: Other words for a value → the value.
_MEANT = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16",
    "fp32": "float32", "float": "float32", "f32": "float32", "auto": "keep", "same": "keep",
    "hf": "classic", "legacy": "classic", "yaml": "json", "text": "human", "strict": "meta",
    "all": "full", "off": "none", "no": "none", "false": "none",
}  # fmt: skip


def nearest_choice(given: object, choices: Collection[str]) -> str:
    """The choice that may have been meant; empty if none is near.

    >>> nearest_choice("torch.bf16", ["float16", "bfloat16"])
    'bfloat16'
    """
    word = str(given).lower().removeprefix("torch.")
    return "".join(difflib.get_close_matches(_MEANT.get(word, word), choices, 1))


def not_one_of(name: str, given: object, choices: Collection[str], more: str = "") -> RemapError:
    """LR211 for an invalid value of a Python argument, to be raised by the caller.

    Args:
        more: other allowed values, in words.
    """
    near = nearest_choice(given, choices)
    return refuse(
        "LR211",
        f"{name}={given!r}: {name} must be one of {', '.join(choices)}{more}.",
        f"Did you mean {near}?" if near else "Write one of them.",
    )


def as_path(name: str, given: object) -> Path:
    """A Python argument as a path.

    Raises:
        RemapError: LR211 if the argument isn't a path.
    """
    if isinstance(given, str | os.PathLike):
        return Path(given)
    raise refuse("LR211", f"{name} is of type {type(given).__name__}.", "Give a path.")
