"""Results as JSON, for programs. The functions return the content of the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava_remap.core import Problem

#: Further fields of each kind of document if the command was refused, and its version if not 1.
_REFUSED: dict[str, dict[str, bool | int]] = {
    "plan": {"format_version": 2, "complete": False},
    "verification": {"verified": False},
    "reversion": {"format_version": 2, "reverted": False},
    "diff": {"equal": False},
    "lint": {"clean": False},
    "tests": {"passed": False},
    "rule-files": {},
    "explanation": {},
    "imported": {},
    "inspection": {},
    "key-mapping": {},
    "usage": {},
}


def document(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """A document `llava-remap/KIND`; its version is 1 unless `content` has another one."""
    return {"format": f"llava-remap/{kind}", "format_version": 1, **content}


def refusal_json(problems: Sequence[Problem], kind: str) -> dict[str, Any]:
    """The document of a command that was refused before it had a result.

    Args:
        kind: the kind of document that was asked for: a key of `_REFUSED`.
    """
    return document(kind, {**_REFUSED[kind], "problems": [p.to_json() for p in problems]})
