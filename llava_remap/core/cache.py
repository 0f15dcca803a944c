"""Keeps answers of the installed libraries on disk. The same question can then be answered without
importing torch and transformers.

A key holds everything that an answer depends on: the question's own facts, the versions of the
libraries, and the bytes of this package's code. So an entry is never out of date. Old entries are
removed when there are too many. The environment variable `LLAVA_REMAP_CACHE` replaces the user's
cache folder.

An entry is used only if this user alone can have written it, if it is complete and answers this
very question, and if it has the form that the question's code expects. Otherwise the libraries are
asked again, which costs only time.
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
from typing import Any, BinaryIO, TypeVar, cast

from platformdirs import user_cache_path
from pydantic import TypeAdapter

from llava_remap.core.files import is_foreign, unique_partial, write_all, write_whole
from llava_remap.core.libraries import check_libraries, import_asked
from llava_remap.core.limits import limit_reached

#: The libraries whose answers are kept.
_ASKED = ("transformers", "tokenizers", "sentencepiece", "torch", "pillow", "jinja2")
#: The most entries of one question. The largest, a tokenizer with its processor, has about 3 MB.
_MOST = 64
#: Bytes of an answer, and its number of contents. A larger answer isn't kept, and a larger entry
#: isn't ours.
_LARGEST, _MOST_CONTENTS = 2**28, 32

T = TypeVar("T")
#: Made once for a type: a job asks one question of many configs.
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def cached(
    question: str,
    facts: Mapping[str, Any],
    ask: Callable[[], dict[str, bytes]],
    read: Callable[[Mapping[str, bytes]], T],
) -> T:
    """The answer to a question, from disk if it was asked before. Errors of `ask` are never kept.

    Args:
        question: the question's name, which also names its folder in the cache.
        facts: everything that the answer depends on, as JSON.
        ask: returns the answer: name → content.
        read: turns the answer into the result. It raises any exception if the answer doesn't have
            the form of `ask`'s answers.
    """
    if _in_development():
        return read(_asked(ask))
    key = _key(facts)
    with contextlib.suppress(Exception):  # somebody else's file may make libraries fail anyhow
        return read(_find(question, key))
    answer = _asked(ask)
    with contextlib.suppress(OSError):
        _keep(question, key, answer)
    return read(answer)


def cached_value(
    question: str, facts: Mapping[str, Any], ask: Callable[[], Any], kind: type[T]
) -> T:
    """Like `cached`, for an answer that is one JSON value.

    Args:
        kind: the type of the value: a dataclass, or another type that pydantic knows.
    """
    name, adapter = f"{question}.json", cast("TypeAdapter[T]", _adapter(kind))
    return cached(
        question,
        facts,
        lambda: {name: json.dumps(ask()).encode()},
        lambda answer: adapter.validate_json(answer[name], strict=True),
    )


def _asked(ask: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """A new answer. If it fails although the libraries work, the error is the question's own."""
    import_asked()
    try:
        return ask()
    except Exception as error:  # it may blame a user's file for a library's fault
        if (reached := limit_reached(error)) is not None:
            raise reached from error
        check_libraries()
        raise


def is_kept(question: str, facts: Mapping[str, Any]) -> bool:
    """Whether an entry for a question exists; `cached` may still find that it can't be used."""
    with contextlib.suppress(OSError), _open(_path(question, _key(facts))):
        return not _in_development()
    return False


def cache_folder() -> Path:
    """The folder of the entries. It need not exist.

    Raises:
        FileNotFoundError: this user has no home.
    """
    given = os.environ.get("LLAVA_REMAP_CACHE")
    folder = Path(given) if given else user_cache_path("llava-remap", appauthor=False)
    if not given and not folder.is_absolute():
        raise FileNotFoundError(str(folder))
    return folder


def _in_development() -> bool:
    """Whether a library is a development version, whose code can change under the same number."""
    return any("dev" in number for number in _versions().values())


def _key(facts: Mapping[str, Any]) -> bytes:
    # The order of the facts is kept, since the answer may depend on it.
    return json.dumps([facts, _versions(), code_digest()]).encode()


def _path(question: str, key: bytes) -> Path:
    return cache_folder() / question / f"{hashlib.sha256(key).hexdigest()}.zip"


def _find(question: str, key: bytes) -> dict[str, bytes]:
    """A kept answer; raises any exception if there is no trustworthy one."""
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
    """Open an entry that only this user can have written and put there.

    Raises:
        OSError: there is no entry, or another user may have written it.
    """
    _refuse_foreign(path.parents[1])
    _refuse_foreign(path.parent)
    # A link isn't followed, a pipe isn't waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or is_foreign(status):
            raise PermissionError(str(path))
        yield file


def _refuse_foreign(folder: Path) -> None:
    if is_foreign(folder.stat()) or folder.lstat().st_uid != os.geteuid():
        raise PermissionError(str(folder))


def _keep(question: str, key: bytes, answer: Mapping[str, bytes]) -> None:
    """Keep an answer; raises OSError if that fails, or if others could change it."""
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
        os.fchmod(file.fileno(), 0o600)  # the umask may allow others more
        write_all(file, packed.getvalue())

    write_whole(path, unique_partial(path), fill)
    for old in sorted(path.parent.glob("*.zip"), key=lambda entry: entry.stat().st_mtime)[:-_MOST]:
        old.unlink(missing_ok=True)


def _digest(key: bytes, answer: Mapping[str, bytes]) -> bytes:
    """The digest of question and answer together, so that a renamed entry isn't used."""
    digest = hashlib.sha256()
    for part in (key, *(part for item in answer.items() for part in (item[0].encode(), item[1]))):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest().encode()


@cache
def _versions() -> dict[str, str]:
    return {library: version(library) for library in _ASKED}


@cache
def code_digest() -> str:
    """Digest of this package's code. Its version alone doesn't change during development."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
