"""JSON that is an object, read without any way to crash on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llava_remap.checkpoint.small_file import has_file, read_file
from llava_remap.core.problem import refuse
from llava_remap.core.wording import quoted

#: Bytes. The safetensors format's own limit for a header; indexes, manifests and configs stay far
#: below it.
LARGEST = 100_000_000
#: Values in lists and objects. An index of 100,000 tensors has as many, a header of so many
#: 900,000, the tokenizers with the largest vocabularies 1,500,000; each takes up to 120 bytes of
#: memory, which for two bytes of a file are a lot.
MOST_VALUES = 2_000_000

#: A half of a letter, as an escape; without its other half, what is read can't be written again.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def _is_text(found: Any) -> bool:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in pairs:
        if key in known:
            raise ValueError(f"the key {quoted(key)} stands in it twice")
        known[key] = value
    return known


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def parse_object(
    data: bytes, code: str, what: str, fix: str, *, unique: bool = True, halves: bool = False
) -> dict[str, Any]:
    """The JSON object in `data`.

    Args:
        code, fix: the error's code and advice, should `data` be no JSON object in UTF-8.
        what: its name in the message.
        unique: whether a key that stands twice in one object is an error; otherwise the last one
            counts.
        halves: whether halves of letters may stand in it, as Python has them for bytes of a path
            that are no text.
    """
    if (values := sum(data.count(sign) for sign in (b",", b"[", b"{"))) > MOST_VALUES:
        raise refuse(code, f"{what} has {values} values, more than {MOST_VALUES}.", fix)
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique if unique else None,
            parse_constant=_no_number,
        )
        if not halves and _HALF.search(data) and not _is_text(found):
            raise ValueError("a text in it is not valid Unicode")
    except (ValueError, RecursionError) as error:
        raise refuse(
            code, f"{what} is not valid JSON ({error or type(error).__name__}).", fix
        ) from None
    if not isinstance(found, dict):
        raise refuse(
            code, f"{what} holds a JSON {type(found).__name__} where an object is expected.", fix
        )
    return found


def read_object(
    file: Path, code: str, fix: str, *, unique: bool = True, halves: bool = False
) -> dict[str, Any]:
    """The JSON object in `file`; errors as in `parse_object` and `read_file`."""
    if has_file(file) and (size := file.stat().st_size) > LARGEST:
        raise refuse(
            code, f"{quoted(file.name)} has {size} bytes, more than {LARGEST} for a JSON file.", fix
        )
    return parse_object(read_file(file), code, quoted(file.name), fix, unique=unique, halves=halves)
