"""Checks a hub's answers before `huggingface_hub` makes a path, a request or a file from them.

The library names a file in the cache after its ETag, and a folder after the commit. It follows
every redirect, and writes as many bytes as are sent. The checks are hooks of the library's HTTP
client, so they see every answer, including retries.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock, local
from time import monotonic
from typing import Any
from urllib.parse import urljoin, urlsplit

from llava_remap.checkpoint import LARGEST
from llava_remap.core import quoted, refuse

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
#: An ETag. The hub's own are hashes; mirrors' may have other characters, but none with a meaning in
#: a path.
_WORD = re.compile(r"\w[\w+=~-]*(?:\.[\w+=~-]+)*", re.ASCII)
#: The most characters of an ETag. The library appends `.incomplete`, `.lock` and a number, and a
#: file's name has at most 255 bytes.
_LONGEST_WORD = 128
#: Bytes of a file's name with its folders, and of one part of it.
_LONGEST_NAME, _LONGEST_PART = 1024, 255
#: The commit in the address of a file.
_ASKED = re.compile(r"/resolve(?:-cache/models/[^/]+/[^/]+)?/([0-9a-f]{40})/")
_REVISION = re.compile(r"/revision/([0-9a-f]{40})$")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
#: Bytes: a petabyte.
_ABSURD = 10**15
#: The most files in one answer. The hub asks its users to keep repositories below this number.
_MOST_FILES = 100_000
#: The least number of bytes of a body in a number of seconds. The library's own time limit restarts
#: with each piece, even of one byte.
_LEAST_NBYTES, _IN_SECONDS = 6_000, 60
#: The most redirects and pages of a listing in a row, without a file between them.
_MOST_IN_A_ROW = 100
#: The most seconds to wait. The library sleeps for as long as an answer says.
_LONGEST_WAIT = 300
#: The servers to which the library itself sends the token, besides the endpoint that is set.
_HUBS = ("https://huggingface.co", "https://hf.co")


class BadAnswerError(Exception):
    """An answer that no honest hub gives. The text completes a sentence that begins with the hub's
    address.
    """


class _Thread(local):
    """Facts of the last answers to this thread.

    Attributes:
        row: the number of answers since the last file.
        size: the file's bytes by the last answer to HEAD; None if the answer doesn't state them.
    """

    row = 0
    size: int | None = None


_thread = _Thread()
_lock = Lock()
_downloads = 0


@contextmanager
def guarded() -> Iterator[None]:
    """Within the block, an unsound answer makes the library's call fail with a
    `BadAnswerError`.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    global _downloads
    _thread.row, _thread.size = 0, None
    with _lock:
        # Done once, since changing the factory closes connections. A factory that an application
        # has set (proxies, certificates) is kept inside.
        if not isinstance(_http._GLOBAL_CLIENT_FACTORY, _Checked):
            set_client_factory(_Checked(_http._GLOBAL_CLIENT_FACTORY))
        _downloads += 1
    try:
        yield
    finally:
        with _lock:
            _downloads -= 1


class _Checked:
    """A factory that adds the checks to another factory's clients. The checks do nothing outside
    `guarded`.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self) -> Any:
        client = self._make()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", ()), _check_request],
            "response": [*hooks.get("response", ()), _check_response],
        }
        return client


def _check_request(request: Any) -> None:
    """Refuse addresses to which no redirect may lead. Ask for uncompressed content, since its size
    is known.
    """
    if _downloads:
        _check_address(str(request.url), gets_token="authorization" in request.headers)
        request.headers["Accept-Encoding"] = "identity"


def _check_response(response: Any) -> None:
    if not _downloads:
        return
    url, headers = response.request.url, response.headers
    listing = "/api/models/" in url.path and "/resolve-cache/" not in url.path
    _thread.row = _thread.row + 1 if listing or response.is_redirect else 0
    if _thread.row > _MOST_IN_A_ROW:
        raise BadAnswerError(
            f"redirects {_MOST_IN_A_ROW} times in a row, and {quoted(str(url))} isn't the end"
        )
    _check_commit(headers.get("x-repo-commit"), _ASKED.search(url.path))
    _shorten_waits(headers)
    if response.is_redirect and (target := headers.get("location")):
        _check_address(urljoin(str(url), target), shown=target)
    sizes = {name: _size(headers, name) for name in ("content-length", "x-linked-size")}
    if response.status_code < 400:
        _check_xet(response)
    if response.request.method == "HEAD":
        if response.status_code < 400:
            _check_etag(headers)
            _thread.size = sizes["x-linked-size"] or (
                None if response.is_redirect else sizes["content-length"]
            )
            _refuse_large(PurePosixPath(url.path).name, _thread.size)
        return
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BadAnswerError("sends compressed content, which wasn't asked for")
    if listing or response.is_redirect or response.status_code >= 400:
        response.stream = _at_most(response.stream, LARGEST)
        if listing and response.status_code < 300:
            _check_listing(response.read(), _REVISION.search(url.path))
        return
    _check_content(response, sizes["content-length"])


def _check_content(response: Any, nbytes: int | None) -> None:
    """Check that a file's content has the announced number of bytes, and that the disk has room."""
    from huggingface_hub import constants

    total = nbytes
    if response.status_code == 206:
        whole = response.headers.get("content-range", "").rpartition("/")[2]
        total = int(whole) if whole.isdecimal() and len(whole) < 20 else None
    if total is not None and _thread.size is not None and total != _thread.size:
        raise BadAnswerError(f"says that a file has {_thread.size} bytes, but sends {total}")
    folder = next(
        path
        for path in (Path(constants.HF_HUB_CACHE), *Path(constants.HF_HUB_CACHE).parents)
        if path.exists()
    )
    if nbytes is not None and nbytes > (free := shutil.disk_usage(folder).free):
        raise refuse(
            "LR502",
            f"{quoted(PurePosixPath(response.request.url.path).name)} has {nbytes} bytes, but "
            f"only {free} are free in {folder}.",
            "Free some space, or set HF_HOME to a folder on a larger disk.",
        )
    known = _thread.size if _thread.size is not None else total
    response.stream = _at_most(response.stream, LARGEST if known is None else known)


def _at_most(stream: Any, limit: int) -> Any:
    """The stream of an answer's body. It fails if it is longer than `limit` bytes or slower than
    the least speed.
    """

    class Bounded(type(stream)):  # type: ignore[misc]  # the client wants its own class, httpx's or httpx2's
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[bytes]:
            nbytes, since, then = 0, monotonic(), 0
            for part in stream:
                nbytes += len(part)
                if nbytes > limit:
                    raise BadAnswerError(
                        f"sends more than {limit} bytes, the most that is expected"
                    )
                yield part
                if (now := monotonic()) - since > _IN_SECONDS:
                    if nbytes - then < _LEAST_NBYTES:
                        raise BadAnswerError(
                            f"sends less than {_LEAST_NBYTES} bytes in {_IN_SECONDS} seconds"
                        )
                    since, then = now, nbytes

        def close(self) -> None:
            stream.close()

    return Bounded()


def _check_commit(commit: object, asked: re.Match[str] | None) -> None:
    if commit is None:
        return
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise BadAnswerError(f"gives {quoted(str(commit))} for a commit")
    if asked is not None and asked[1] != commit:
        raise BadAnswerError(f"answers for commit {commit}, but {asked[1]} was asked for")


def _check_etag(headers: Any) -> None:
    for name in ("x-linked-etag", "etag"):
        tag = headers.get(name)
        word = tag.removeprefix("W/").strip('"') if tag is not None else None
        if word is not None and (len(word) > _LONGEST_WORD or not _WORD.fullmatch(word)):
            raise BadAnswerError(
                f"gives {quoted(tag)} as the ETag of a file, which isn't a plain word"
            )


def _size(headers: Any, name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 20 or int(text) > _ABSURD:
        raise BadAnswerError(f"says {quoted(text)} for the bytes of a file ({name})")
    return int(text)


def _refuse_large(file: str, nbytes: int | None) -> None:
    if nbytes is not None and nbytes > LARGEST and not file.endswith(_WEIGHTS):
        raise BadAnswerError(
            f"says that {quoted(file)} has {nbytes} bytes; at most {LARGEST} are read of such a "
            "file"
        )


def _check_xet(response: Any) -> None:
    """Check the headers for the hub's other storage: a hash that becomes a file's name, the address
    that gets the token, and the address of the storage.
    """
    headers, links = response.headers, response.links
    if (digest := headers.get("x-xet-hash")) is not None and not SHA256.fullmatch(digest):
        raise BadAnswerError(f"gives {quoted(digest)} for a hash")
    route = links.get("xet-auth", {}).get("url") or headers.get("x-xet-refresh-route")
    if route is not None:
        _check_address(route, gets_token=True)
    if (store := headers.get("x-xet-cas-url")) is not None:
        _check_address(store)


def _check_listing(body: bytes, asked: re.Match[str] | None) -> None:
    """Check a repository's facts, or a page of its files."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):  # the library reports such a body
        return
    if isinstance(content, dict):
        _check_commit(content.get("sha"), asked)
        entries, key = content.get("siblings"), "rfilename"
    else:
        entries, key = content, "path"
    if isinstance(entries, list) and len(entries) > _MOST_FILES:
        raise BadAnswerError(f"lists {len(entries)} files, more than {_MOST_FILES}")
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            raise BadAnswerError("lists entries that aren't files")
        check_name(entry.get(key))
        lfs = entry.get("lfs")
        for digest in (lfs.get("oid") if isinstance(lfs, dict) else None, entry.get("xetHash")):
            if digest is not None and not (isinstance(digest, str) and SHA256.fullmatch(digest)):
                raise BadAnswerError(f"gives {quoted(str(digest))} for a hash")


def check_name(name: object) -> None:
    """Check a file's name in a repository: parts with `/` between them, each a valid name on any
    system.
    """
    text = name if isinstance(name, str) else repr(name)
    parts = text.split("/")
    if (
        not isinstance(name, str)
        or not {"", ".", ".."}.isdisjoint(parts)
        or "\\" in name
        or any(
            ord(letter) < 32 or 127 <= ord(letter) < 160 or "\ud800" <= letter <= "\udfff"
            for letter in name
        )
        or len(name.encode()) > _LONGEST_NAME
        or any(len(part.encode()) > _LONGEST_PART for part in parts)
    ):
        raise BadAnswerError(f"lists a file {quoted(text)}, which no repository can have")


def _shorten_waits(headers: Any) -> None:
    """Remove a waiting time from the headers if it is too long. The library then retries after its
    own time.
    """
    for name in ("retry-after", "ratelimit"):
        if any(
            len(number) > 9 or int(number) > _LONGEST_WAIT
            for number in re.findall(r"\d+", headers.get(name, ""))
        ):
            del headers[name]


def _check_address(url: str, *, gets_token: bool = False, shown: str = "") -> None:
    """Check that an address is of the web, and as protected as the hub's own.

    Args:
        gets_token: whether the token is sent to the address, so that it must be a hub's.
        shown: the address as written in the answer, for the message.
    """
    origin, hub = _origin(url), _origin(_endpoint())
    scheme, host, _ = origin
    if not host or scheme not in ("https", "http") or (scheme == "http" and hub[0] != "http"):
        raise BadAnswerError(f"redirects to {quoted(shown or url)}")
    if gets_token and origin not in (hub, *map(_origin, _HUBS)):
        raise BadAnswerError(
            f"redirects to {quoted(url)}, another server, which would receive the token"
        )


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme,
            (parts.hostname or "").lower(),
            parts.port or {"http": 80, "https": 443}.get(parts.scheme),
        )
    except ValueError:  # a port that is no number
        return "", "", None


def _endpoint() -> str:
    from huggingface_hub import HfApi

    return str(HfApi().endpoint)
