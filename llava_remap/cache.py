"""Answers of the installed libraries, kept on disk: whoever asks the same again needn't import torch and transformers.

A key holds everything that an answer depends on: the question's own facts, the versions of the libraries asked, and the bytes
of this package's code. So an entry is never out of date; it is only no longer asked for, and goes when there are too many.
`LLAVA_REMAP_CACHE` names another folder than the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

#: The libraries whose answers are kept.
_ASKED = ("transformers", "tokenizers", "sentencepiece", "torch", "pillow", "jinja2")
#: Entries kept of one question. The largest, a tokenizer with its processor, has about 3 MB.
_MOST = 64


def cached(question: str, facts: Mapping[str, Any], ask: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """The answer to a question, from disk where it was given before. What `ask` raises is never kept.

    Args:
        question: its name, that of a folder in the cache.
        facts: everything that the answer depends on, as JSON.
        ask: gives the answer, as contents by name.
    """
    if _in_development():
        return ask()
    path = _path(question, facts)
    with contextlib.suppress(OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError):
        with zipfile.ZipFile(path) as entry:  # every content has a checksum
            answer = {name: entry.read(name) for name in entry.namelist()}
        os.utime(path)
        return answer
    answer = ask()
    with contextlib.suppress(OSError):  # a cache that can't be written costs time, nothing else
        _keep(path, answer)
    return answer


def is_kept(question: str, facts: Mapping[str, Any]) -> bool:
    """Whether the answer to a question was given before; `cached` may find that it can't be read all the same."""
    return not _in_development() and _path(question, facts).is_file()


def cache_folder() -> Path:
    """Where the entries are; it needn't exist."""
    given = os.environ.get("LLAVA_REMAP_CACHE")
    return Path(given) if given else user_cache_path("llava-remap", appauthor=False)


def _in_development() -> bool:
    """Whether a library that is asked can be in two states under one number."""
    return any("dev" in number for number in _versions().values())


def _path(question: str, facts: Mapping[str, Any]) -> Path:
    key = json.dumps([facts, _versions(), code_digest()])  # in the order given: an answer may have it too
    return cache_folder() / question / f"{hashlib.sha256(key.encode()).hexdigest()}.zip"


def _keep(path: Path, answer: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as entry:
            for content_name, content in answer.items():
                entry.writestr(content_name, content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    entries = sorted(path.parent.glob("*.zip"), key=lambda entry: entry.stat().st_mtime)
    for old in entries[:-_MOST]:
        old.unlink(missing_ok=True)


@cache
def _versions() -> dict[str, str]:
    return {library: version(library) for library in _ASKED}


@cache
def code_digest() -> str:
    """Digest of this package's code: while it is worked on, its version stays the same."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
