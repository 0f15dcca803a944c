"""Reads Mistral's tokenizer, tekken.json, by the libraries that know it: mistral-common gives the
ids, transformers makes the tokenizer of the tokenizers library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llava_remap.checkpoint import has_file, read_file
from llava_remap.core import quoted, refuse
from llava_remap.core.cache import cached
from llava_remap.core.wording import one_line

TEKKEN = "tekken.json"
_LIBRARY = "mistral-common"


@dataclass(frozen=True, slots=True)
class Tekken:
    """The tokenizer that transformers makes of a tekken.json.

    Attributes:
        tokenizer: the content of `tokenizer.json`.
        special: role (`bos_token`, …) → word.
        chat_template: the template that mistral-common makes of it, in Jinja.
    """

    tokenizer: str
    special: dict[str, str]
    chat_template: str


def has_tekken(folder: Path) -> bool:
    """Whether a folder has a tekken.json that can be read here."""
    return has_file(folder / TEKKEN) and bool(_version())


def lacks_library(folder: Path) -> bool:
    """Whether a folder has a tekken.json, and the library that reads it isn't installed."""
    return has_file(folder / TEKKEN) and not _version()


def read_tekken(folder: Path) -> Tekken:
    """Convert the tekken.json of a folder.

    Raises:
        RemapError: LR113 if a library can't read it.
    """
    file = folder / TEKKEN
    facts = {"file": hashlib.sha256(read_file(file)).hexdigest(), _LIBRARY: _version()}

    def ask() -> dict[str, bytes]:
        from mistral_common.integrations.chat_templates.chat_templates import (
            convert_tokenizer_to_chat_template,
        )
        from transformers.integrations.mistral import convert_tekken_tokenizer

        made = convert_tekken_tokenizer(str(file))
        return {
            "tokenizer.json": made.backend_tokenizer.to_str().encode(),
            "special.json": json.dumps(made.special_tokens_map).encode(),
            "chat_template.jinja": convert_tokenizer_to_chat_template(str(file)).encode(),
        }

    try:
        return cached(
            "tekken",
            facts,
            ask,
            lambda made: Tekken(
                made["tokenizer.json"].decode(),
                {
                    role: word
                    for role, word in json.loads(made["special.json"]).items()
                    if isinstance(word, str)
                },
                made["chat_template.jinja"].decode(),
            ),
        )
    except Exception as error:  # whatever the libraries raise: the file is the user's
        raise refuse(
            "LR113",
            f"{quoted(str(file))} can't be read as Mistral's tokenizer: {one_line(error)}.",
            "Replace it with the original file.",
        ) from error


def tekken_encoder(folder: Path) -> Callable[[str], list[int]]:
    """Mistral's own encoding of a text. Its special tokens are those that stand in the text."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    tokenizer = Tekkenizer.from_file(folder / TEKKEN)
    special = {tokenizer.id_to_piece(i): i for i in range(tokenizer.num_special_tokens)}
    cut = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for piece in cut.split(text):
            if piece in special:
                ids.append(special[piece])
            elif piece:
                ids += tokenizer.encode(piece, bos=False, eos=False)
        return ids

    return encode


def _version() -> str:
    try:
        return version(_LIBRARY)
    except PackageNotFoundError:
        return ""
