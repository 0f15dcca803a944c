"""Values as YAML text on one line: the only writer of YAML here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llava_remap.core.escaped import printable

#: Texts that need no quotes in YAML, unless they are one of the words.
PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
#: Words that YAML, or some readers of it, take for something else than text.
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def quoted(text: str) -> str:
    """A text in quotes. A lone surrogate, which YAML can't say, becomes text: `\\udcff`."""
    text = "".join(printable(one) if "\ud800" <= one <= "\udfff" else one for one in text)
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'


def flow(value: Any, plain: re.Pattern[str] = PLAIN_TEXT) -> str:
    """A JSON value in YAML's flow style.

    Args:
        plain: texts that are written without quotes.
    """
    if isinstance(value, Mapping):
        entries = (f"{flow(key, plain)}: {flow(one, plain)}" for key, one in value.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(one, plain) for one in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if plain.fullmatch(value) and value.lower() not in _WORDS else quoted(value)
