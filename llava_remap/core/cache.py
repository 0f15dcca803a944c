"""Answers of the installed libraries, kept on disk: whoever asks the same again needn't import
torch and transformers.

A key holds everything that an answer depends on: the question's own facts, the versions of the
libraries asked, and the bytes of this package's code. So an entry is never out of date; it is only
no longer asked for, and goes when there are too many. `LLAVA_REMAP_CACHE` names another folder than
the user's cache folder.

An entry is taken only if this user alone can have written it, and if it is whole, the answer to
this very question, and of the form that the question's own code expects. Whatever else lies there
is asked for again: it costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from platformdirs import user_cache_path
from pydantic import TypeAdapter

from llava_remap.core.files import is_foreign, unique_partial, write_all, write_whole
from llava_remap.core.libraries import check_libraries, import_asked
from llava_remap.core.limits import limit_reached

#: The libraries whose answers are kept.
_ASKED = ("transformers", "tokenizers", "sentencepiece", "torch", "pillow", "jinja2")
#: Entries kept of one question. The largest, a tokenizer with its processor, has about 3 MB.
_MOST = 64
#: Bytes of an answer, and how many contents it has: what is larger isn't kept, and isn't one of
#: ours.
_LARGEST, _MOST_CONTENTS = 2**28, 32

T = TypeVar("T")


def cached(
    question: str,
    facts: Mapping[str, Any],
    ask: Callable[[], dict[str, bytes]],
    read: Callable[[Mapping[str, bytes]], T],
) -> T:
    """The answer to a question, from disk where it was given before. What `ask` raises is never
    kept.

    Args:
        question: its name, that of a folder in the cache.
        facts: everything that the answer depends on, as JSON.
        ask: gives the answer, as contents by name.
        read: makes of it what is wanted; it raises whatever it likes where an answer isn't of the
            form that `ask` gives it.
    """
    if _in_development():
        return read(_asked(ask))
    key = _key(facts)
    with contextlib.suppress(
        Exception
    ):  # whatever somebody else's file makes the libraries stumble over
        return read(_find(question, key))
    answer = _asked(ask)
    with contextlib.suppress(OSError):
        _keep(question, key, answer)
    return read(answer)


def cached_value(
    question: str, facts: Mapping[str, Any], ask: Callable[[], Any], kind: type[T]
) -> T:
    """As `cached`, for an answer that is one JSON value.

    Args:
        kind: a dataclass or another type that says of which form it is.
    """
    name, adapter = f"{question}.json", TypeAdapter(kind)
    return cached(
        question,
        facts,
        lambda: {name: json.dumps(ask()).encode()},
        lambda answer: adapter.validate_json(answer[name], strict=True),
    )


def _asked(ask: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """A fresh answer, of libraries that can be imported and that work: what else goes wrong in
    them is the question's fault.
    """
    import_asked()
    try:
        return ask()
    except Exception as error:  # it may blame a file of the user's for what a library doesn't do
        if (reached := limit_reached(error)) is not None:
            raise reached from error
        check_libraries()
        raise


def is_kept(question: str, facts: Mapping[str, Any]) -> bool:
    """Whether the answer to a question was given before; `cached` may find that it can't be read
    all the same.
    """
    with contextlib.suppress(OSError), _open(_path(question, _key(facts))):
        return not _in_development()
    return False


def cache_folder() -> Path:
    """Where the entries are; it needn't exist.

    Raises:
        FileNotFoundError: this user has no home.
    """
    given = os.environ.get("LLAVA_REMAP_CACHE")
    folder = Path(given) if given else user_cache_path("llava-remap", appauthor=False)
    if not given and not folder.is_absolute():
        raise FileNotFoundError(str(folder))
    return folder


def _in_development() -> bool:
    """Whether a library that is asked can be in two states under one number."""
    return any("dev" in number for number in _versions().values())


def _key(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(
        [facts, _versions(), code_digest()]
    ).encode()  # in the order given: an answer may have it too


def _path(question: str, key: bytes) -> Path:
    return cache_folder() / question / f"{hashlib.sha256(key).hexdigest()}.zip"


def _find(question: str, key: bytes) -> dict[str, bytes]:
    """A kept answer; raises anything where there is none that can be believed."""
    path = _path(question, key)
    with _open(path) as file, zipfile.ZipFile(file) as entry:
        names = entry.namelist()
        if (
            len(set(names)) != len(names)
            or len(names) > _MOST_CONTENTS
            or sum(i.file_size for i in entry.infolist()) > _LARGEST
        ):
            raise ValueError("no answer has so much in it")
        answer = {name: entry.read(name) for name in names}
        if entry.comment != _digest(key, answer):
            raise ValueError("it isn't the answer to this question")
    with contextlib.suppress(OSError):
        os.utime(path)
    return answer


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """An entry, if nobody but this user can have written it, nor have put it there.

    Raises:
        OSError: another may have, or there is none.
    """
    _refuse_foreign(path.parents[1])
    _refuse_foreign(path.parent)
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    )  # neither a link nor a pipe holds it up
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or is_foreign(status):
            raise PermissionError(str(path))
        yield file


def _refuse_foreign(folder: Path) -> None:
    if is_foreign(folder.stat()) or folder.lstat().st_uid != os.geteuid():
        raise PermissionError(str(folder))


def _keep(question: str, key: bytes, answer: Mapping[str, bytes]) -> None:
    """Raises OSError where it can't be kept, or others could change it."""
    if sum(map(len, answer.values())) > _LARGEST:
        return
    path = _path(question, key)
    path.parents[1].parent.mkdir(parents=True, exist_ok=True)
    for folder in (path.parents[1], path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
        _refuse_foreign(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as entry:
        for content_name, content in answer.items():
            entry.writestr(content_name, content)
        entry.comment = _digest(key, answer)

    def fill(file: io.FileIO) -> None:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask allows others
        write_all(file, packed.getvalue())

    write_whole(path, unique_partial(path), fill)
    entries = sorted(path.parent.glob("*.zip"), key=lambda entry: entry.stat().st_mtime)
    for old in entries[:-_MOST]:
        old.unlink(missing_ok=True)


def _digest(key: bytes, answer: Mapping[str, bytes]) -> bytes:
    """Of question and answer together, so that an entry under another one's name is none."""
    digest = hashlib.sha256()
    for part in (
        key,
        *(part for name, content in answer.items() for part in (name.encode(), content)),
    ):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest().encode()


@cache
def _versions() -> dict[str, str]:
    return {library: version(library) for library in _ASKED}


@cache
def code_digest() -> str:
    """Digest of this package's code: while it is worked on, its version stays the same."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
