"""A small hub on this machine: as much of the protocol as `huggingface_hub` asks for, with every
way to fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """A repository: commits by hash, each a folder's files, and the branches that point at them.

    Attributes:
        error: status and `X-Error-Code` with which everything in it is answered.
        listed: whether its files are listed in spite of `error`, as the hub does for a gated
            repository.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    error: tuple[int, str] | None = None
    listed: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit of these files; its hash."""
        digest = hashlib.sha1()
        for name in sorted(files):
            digest.update(name.encode() + b"\0" + files[name])
        self.commits[digest.hexdigest()] = files
        self.refs[branch] = digest.hexdigest()
        return digest.hexdigest()


@dataclass
class Hub:
    """What the server has, how it is to fail, and what it was asked for.

    Attributes:
        asked: method and path of every request, in order.
        status: answer everything with this one.
        garbage: answer what should be JSON with something else.
        cut: break the connection off after so many bytes of a file's content, by file name.
        cuts: how many more times `cut` is to be done.
        stalled: name of a file of which only half is sent, until the server is stopped.
        stalling: set once half of it is sent.
        short: announce that a file has so many bytes less than it has, and send no more, by file
            name.
        twist: gets method, path, status and headers of every answer, and gives the status and
            headers that are sent.
        facts: gets what is said as JSON of a repository or its files, and gives what is sent.
        endless: name of a file of which no size is told, and which ends only when the client hangs
            up.
        sent: bytes of it that were sent.
        told: the `Authorization` of every request that had one, with its path.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    status: int | None = None
    garbage: bytes | None = None
    cut: dict[str, int] = field(default_factory=dict)
    cuts: int = 0
    short: dict[str, int] = field(default_factory=dict)
    stalled: str = ""
    twist: Callable[[str, str, int, dict[str, str]], tuple[int, dict[str, str]]] = field(
        default=lambda method, path, status, headers: (status, headers)
    )
    facts: Callable[[Any], Any] = field(default=lambda content: content)
    endless: str = ""
    sent: int = 0
    told: list[tuple[str, str]] = field(default_factory=list)
    stalling: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def add(
        self, id: str, folder: Path, branch: str = "main", more: Mapping[str, bytes] | None = None
    ) -> str:
        """Publish a folder as a commit of repository `id`, with `more` files; the commit's hash."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return self.repos.setdefault(id, Repo()).commit({**files, **(more or {})}, branch)

    def got(self) -> set[str]:
        """Names of the files of which content was asked for."""
        return {
            path.split("/resolve/")[1].partition("/")[2]
            for method, path in self.asked
            if method == "GET" and "/resolve/" in path
        }


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at `hub.url` (to be put in HF_ENDPOINT) until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.stopped.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"
    #: Else a body waits 40 ms for the other side to acknowledge its headers.
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append((self.command, path))
        if token := self.headers.get("Authorization"):
            self.state.told.append((token, path))
        if self.state.status is not None:
            return self._answer(self.state.status)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            id, what, rest = (
                "/".join(parts[2:4]),
                parts[4] if len(parts) > 4 else "",
                "/".join(parts[5:]),
            )
        else:
            id, what, rest = (
                "/".join(parts[:2]),
                parts[2] if len(parts) > 2 else "",
                "/".join(parts[3:]),
            )
        repo = self.state.repos.get(id)
        if repo is None:
            return self._answer(
                404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        if repo.error is not None and not (repo.listed and what != "resolve"):
            return self._answer(repo.error[0], {"X-Error-Code": repo.error[1]})
        revision, file = rest or "main", ""
        if what == "resolve":
            revision, _, file = rest.partition("/")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._answer(
                404,
                {
                    "X-Error-Code": "RevisionNotFound",
                    "X-Error-Message": f"Invalid rev id: {revision}",
                },
            )
        files = repo.commits[commit]
        if what in ("", "revision"):
            siblings = [{"rfilename": name} for name in files]
            return self._json(
                {
                    "id": id,
                    "_id": "1",
                    "sha": commit,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                }
            )
        if what == "tree":
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in files.items()
                ]
            )
        if what == "resolve" and file in files:
            return self._file(file, files[file], commit)
        return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    do_HEAD = do_GET  # noqa: N815

    def _json(self, content: object) -> None:
        body = (
            self.state.garbage
            if self.state.garbage is not None
            else json.dumps(self.state.facts(content)).encode()
        )
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _file(self, name: str, data: bytes, commit: str) -> None:
        start = 0
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = None
        if self.command == "GET" and name in self.state.short:
            data = data[: -self.state.short[name]]
        if self.command == "GET" and name in self.state.cut and self.state.cuts > 0:
            self.state.cuts -= 1
            cut = self.state.cut[name]
        if self.command == "GET" and name == self.state.endless:
            self._send_without_end(headers)
            return
        if self.command == "GET" and name == self.state.stalled:
            cut = len(data) // 2
        self._answer(
            206 if wanted else 200, headers, data[start:], cut, stall=name == self.state.stalled
        )

    def _send_without_end(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(key, value)
        self.end_headers()
        block = bytes(2**20)
        with contextlib.suppress(OSError):
            while not self.state.stopped.is_set():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
                self.state.sent += len(block)
        self.close_connection = True

    def _answer(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        cut: int | None = None,
        *,
        stall: bool = False,
    ) -> None:
        said = {**(headers or {}), "Content-Length": str(len(body))}
        status, said = self.state.twist(
            self.command, unquote(urlsplit(self.path).path), status, said
        )
        self.send_response(status)
        for key, value in said.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
            if stall:
                self.wfile.flush()
                self.state.stalling.set()
                self.state.stopped.wait()
        if cut is not None:
            self.close_connection = True


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
