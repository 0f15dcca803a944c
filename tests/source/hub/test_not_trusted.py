"""Answers that no hub gives, and cache contents that no hub leaves, are refused by name, and
nothing is written outside the cache.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from llava_remap.source.hub import Repository, guard, parse_repository
from tests.conftest import RELEASED

from .server import Hub, Repo, serve
from .test_download import INDEX, REPOSITORY, SHARDED, refused, take

Twist = Callable[[str, str, int, dict[str, str]], tuple[int, dict[str, str]]]
CONFIG = "config.json"


def outside(cache: Path) -> set[str]:
    """Everything beside the hub's cache in the test's folder."""
    top = cache.parents[1]
    return {
        str(path.relative_to(top))
        for path in top.rglob("*")
        if cache not in (path, *path.parents) and path != cache.parent
    }


def says(file: str, method: str = "HEAD", **headers: str) -> Twist:
    """Answers to `method` about a file have these headers; those without a value are left out."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}

    def twist(
        asked: str, path: str, status: int, old: dict[str, str]
    ) -> tuple[int, dict[str, str]]:
        if asked == method and path.endswith("/" + file):
            old = {
                key: value
                for key, value in old.items()
                if key.lower() not in {name.lower() for name in said}
            }
            old |= {key: value for key, value in said.items() if value}
        return status, old

    return twist


def leads(file: str, to: str, method: str = "HEAD") -> Twist:
    def twist(
        asked: str, path: str, status: int, old: dict[str, str]
    ) -> tuple[int, dict[str, str]]:
        return (
            (302, {**old, "Location": to})
            if asked == method and path.endswith("/" + file)
            else (status, old)
        )

    return twist


def refused_here(hub: Hub, cache: Path, what: str) -> None:
    """The whole message of the refusal, held against what has to be in it; and nothing was
    written elsewhere.
    """
    before = outside(cache)
    code, message = refused()
    assert code == "LR114"
    assert "`org/name`" in message
    assert what in message
    assert message.isprintable()
    assert outside(cache) == before
    assert not hub.told


@pytest.mark.parametrize(
    "tag",
    [
        "/{0}/x.txt",
        "../../../../x",
        "..",
        ".",
        ".hidden",
        "a/b",
        "a\\b",
        "C:x",
        "a b",
        "x" * 300,
        "a\tb",
        "ä",
        "''",
    ],
)
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag"])
def test_an_etag_that_is_no_plain_word(hub: Hub, cache: Path, tag: str, header: str) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says("generation_config.json", **{header: f'"{tag.format(cache.parents[1])}"'})
    refused_here(hub, cache, "as the ETag of a file, which isn't a plain word")


@pytest.mark.parametrize("tag", ['"5f3c-1a2b"', 'W/"abc_1.2"', "0" * 64, '"d41d8+x=="'])
def test_an_etag_of_a_mirror(hub: Hub, tag: str) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says("generation_config.json", ETag=tag)
    assert (take().folder / "generation_config.json").is_file()


@pytest.mark.parametrize("commit", ["../../../x", "/tmp/x", "main", "A" * 40, "a" * 39, "a" * 41])
def test_a_commit_that_is_none(hub: Hub, cache: Path, commit: str) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says(CONFIG, **{"X-Repo-Commit": commit})
    refused_here(hub, cache, f"gives `{commit}` for a commit")
    hub.twist = Hub().twist
    hub.facts = lambda content: {**content, "sha": commit} if isinstance(content, dict) else content
    refused_here(hub, cache, f"gives `{commit}` for a commit")


def test_a_file_of_another_commit(hub: Hub, cache: Path) -> None:
    asked = hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says(CONFIG, **{"X-Repo-Commit": "b" * 40})
    refused_here(hub, cache, f"answers for commit {'b' * 40}, but {asked} was asked for")


def test_another_commit_than_the_one_that_is_named(hub: Hub, cache: Path) -> None:
    asked = hub.add("org/name", RELEASED / "safetensors")
    hub.facts = lambda content: (
        {**content, "sha": "b" * 40} if isinstance(content, dict) else content
    )
    message = refused(Repository("org/name", asked))[1]
    assert f"answers for commit {'b' * 40}, but {asked} was asked for" in message
    assert not outside(cache)


def test_a_missing_file_of_a_commit_that_is_none(hub: Hub, cache: Path) -> None:
    """The library notes in the cache that a file isn't there, under the commit that the answer
    names.
    """
    hub.add("org/name", RELEASED / "safetensors")

    def twist(
        method: str, path: str, status: int, old: dict[str, str]
    ) -> tuple[int, dict[str, str]]:
        if path.endswith("/" + CONFIG):
            return 404, {**old, "X-Error-Code": "EntryNotFound", "X-Repo-Commit": "../../../../x"}
        return status, old

    hub.twist = twist
    refused_here(hub, cache, "gives `../../../../x` for a commit")


def test_a_second_answer_is_looked_at_like_the_first(hub: Hub, cache: Path) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    asked: list[str] = []

    def facts(content: Any) -> Any:
        asked.append("listing")
        return (
            {**content, "sha": "../../../x"}
            if len(asked) > 1 and isinstance(content, dict)
            else content
        )

    hub.facts = facts
    refused_here(hub, cache, "gives `../../../x` for a commit")
    assert len(asked) == 2


NAMES = [
    "../x.bin",
    "/x.bin",
    "a/../x.bin",
    "a//b.bin",
    "./x.bin",
    "a\\x.bin",
    "a\0.bin",
    "a\x1b[2J.bin",
    "x" * 300,
    "",
    3,
    None,
    ["a"],
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["rfilename", "path"])
def test_a_name_that_no_file_has(hub: Hub, cache: Path, name: object, key: str) -> None:
    """In the repository's facts as well as in the list that the library asks for behind them."""
    hub.add("org/name", RELEASED / "safetensors")

    def facts(content: Any) -> Any:
        if key == "rfilename" and isinstance(content, dict):
            return {**content, "siblings": [*content["siblings"], {"rfilename": name}]}
        if key == "path" and isinstance(content, list):
            return [*content, {"type": "file", "path": name, "size": 1, "oid": "0" * 40}]
        return content

    hub.facts = facts
    refused_here(hub, cache, "which no repository can have")


@pytest.mark.parametrize("part", ["lfs", "xetHash"])
def test_a_hash_that_is_a_path(hub: Hub, cache: Path, part: str) -> None:
    """The library takes the hashes of its list for ETags, without asking about the file once
    more.
    """
    hub.add("org/name", RELEASED / "safetensors")
    more = {
        "lfs": {"oid": "../../../../x", "size": 1, "pointerSize": 1},
        "xetHash": "../../../../x",
    }

    def facts(content: Any) -> Any:
        return (
            [{**entry, part: more[part]} for entry in content]
            if isinstance(content, list)
            else content
        )

    hub.facts = facts
    refused_here(hub, cache, "gives `../../../../x` for a hash")


def test_a_xet_hash_that_is_a_path(hub: Hub, cache: Path) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says(
        CONFIG, **{"X-Xet-Hash": "../../../../x", "X-Xet-Refresh-Route": hub.url + "/x"}
    )
    refused_here(hub, cache, "gives `../../../../x` for a hash")


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("Content-Length", "9" * 19),
        *(("X-Linked-Size", size) for size in ("-1", "1e9", "9" * 19, "9" * 30)),
    ],
)
def test_a_size_that_can_not_be(hub: Hub, cache: Path, header: str, size: str) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says(CONFIG, **{header: size})
    refused_here(hub, cache, f"says `{size}` for the bytes of a file")


def test_a_small_file_that_would_be_large(hub: Hub, cache: Path) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says(CONFIG, **{"X-Linked-Size": str(10**10)})
    refused_here(hub, cache, "says that `config.json` has 10000000000 bytes")
    assert CONFIG not in hub.got()


def test_another_size_than_was_said(hub: Hub, cache: Path) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    nbytes = (RELEASED / "safetensors" / CONFIG).stat().st_size
    hub.twist = says(CONFIG, **{"X-Linked-Size": "17"})
    refused_here(hub, cache, f"says that a file has 17 bytes, but sends {nbytes}")


def test_more_than_the_disk_has_room_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    code, message = refused()
    assert (code, "but only 1000 are free" in message) == ("LR502", True)


@pytest.mark.parametrize("told", [True, False])
def test_a_file_without_end(
    hub: Hub, cache: Path, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LARGEST", 5_000_000)
    hub.add("org/name", RELEASED / "safetensors")
    hub.endless = CONFIG
    hub.twist = says(CONFIG, **{"Content-Length": "" if not told else "1000"})
    refused_here(hub, cache, f"sends more than {1000 if told else 5_000_000} bytes")
    assert hub.sent < 50_000_000
    assert not [path for path in cache.rglob("*") if path.name == CONFIG]


def test_a_list_without_end(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LARGEST", 100_000)
    hub.add("org/name", RELEASED / "safetensors")
    hub.garbage = bytes(200_000)
    refused_here(hub, cache, "sends more than 100000 bytes")


def test_an_answer_that_drips(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a minute passes with every look at it."""
    hub.add("org/name", RELEASED / "safetensors")
    monkeypatch.setattr(guard, "monotonic", count(0, 61).__next__)
    refused_here(hub, cache, "sends less than 6000 bytes in 60 seconds")


def test_a_list_of_too_many(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_MOST_FILES", 3)
    hub.add("org/name", RELEASED / "safetensors")
    refused_here(hub, cache, "files, more than 3")


def test_compressed_content(hub: Hub, cache: Path) -> None:
    """A few bytes could become any number."""
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = says(CONFIG, method="GET", **{"Content-Encoding": "gzip"})
    refused_here(hub, cache, "sends compressed content")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"]
)
def test_a_redirect_to_what_is_not_the_web(hub: Hub, cache: Path, to: str, method: str) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.twist = leads(CONFIG, to, method)
    refused_here(hub, cache, f"redirects to `{to}`")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_redirects_without_end(hub: Hub, cache: Path, method: str) -> None:
    commit = hub.add("org/name", RELEASED / "safetensors")
    hub.twist = leads(CONFIG, f"/org/name/resolve/{commit}/{CONFIG}", method)
    refused_here(hub, cache, "edirects" if method == "GET" else "can't be downloaded")
    assert len(hub.asked) < 2 * 100 + 50


def test_a_listing_whose_pages_have_no_end(hub: Hub, cache: Path) -> None:
    hub.add("org/name", RELEASED / "safetensors")

    def twist(
        method: str, path: str, status: int, old: dict[str, str]
    ) -> tuple[int, dict[str, str]]:
        return status, (
            {**old, "Link": f'<{hub.url}{path}>; rel="next"'} if "/tree/" in path else old
        )

    hub.twist = twist
    refused_here(hub, cache, "redirects 100 times in a row")


@pytest.fixture
def token(hub: Hub, cache: Path) -> str:
    cache.parent.mkdir(parents=True, exist_ok=True)
    (cache.parent / "token").write_text("hf_secret")
    return "Bearer hf_secret"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_the_token_goes_to_the_hub_alone(hub: Hub, token: str, method: str) -> None:
    """A file may lie elsewhere, and nobody there is told the token."""
    hub.add("org/name", RELEASED / "safetensors")
    with serve() as other:
        commit = other.add("org/name", RELEASED / "safetensors")
        hub.twist = leads(CONFIG, f"{other.url}/org/name/resolve/{commit}/{CONFIG}", method)
        take()
        assert any(CONFIG in path for _, path in other.asked)
        assert not other.told
    assert token in {said for said, _ in hub.told}


@pytest.mark.parametrize("where", ["page", "route", "link"])
def test_what_would_take_the_token_elsewhere(hub: Hub, token: str, where: str) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    with serve() as other:

        def twist(
            method: str, path: str, status: int, old: dict[str, str]
        ) -> tuple[int, dict[str, str]]:
            if where == "page" and "/tree/" in path:
                old |= {"Link": f'<{other.url}{path}>; rel="next"'}
            if where != "page" and path.endswith("/" + CONFIG):
                old |= {"X-Xet-Hash": "0" * 64}
                old |= (
                    {"X-Xet-Refresh-Route": other.url}
                    if where == "route"
                    else {"Link": f'<{other.url}>; rel="xet-auth"'}
                )
            return status, old

        hub.twist = twist
        code, message = refused()
        assert (code, "another server, which would receive the token" in message) == ("LR114", True)
        assert not other.asked


def test_the_hub_does_not_say_how_long_we_sleep(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    hub.add("org/name", RELEASED / "safetensors")

    def twist(
        method: str, path: str, status: int, old: dict[str, str]
    ) -> tuple[int, dict[str, str]]:
        more = {"Retry-After": "999999999", "ratelimit": '"api";r=0;t=999999999'}
        return (
            (429, {**old, **more}) if method == "GET" and path.endswith(CONFIG) else (status, old)
        )

    hub.twist = twist
    assert refused()[0] == "LR114"
    assert slept
    assert max(slept) < 60


def test_an_applications_own_client_stays(hub: Hub) -> None:
    """Its factory makes the clients, checks hang on them, and outside a download they do
    nothing.
    """
    from huggingface_hub.utils import _http

    made: list[object] = []
    before = _http._GLOBAL_CLIENT_FACTORY

    def factory() -> Any:
        made.append(_http.default_client_factory())
        return made[-1]

    try:
        huggingface_hub.set_client_factory(factory)
        hub.add("org/name", RELEASED / "safetensors")
        take()
        assert huggingface_hub.get_session() is made[-1]
        hub.twist = says(CONFIG, ETag='"../x"')
        url = huggingface_hub.hf_hub_url("org/name", CONFIG)
        assert huggingface_hub.get_hf_file_metadata(url).etag == "../x"
    finally:
        huggingface_hub.set_client_factory(before)


@pytest.mark.parametrize(
    "text", ["org/name@/tmp/x", "org/name@a//b", "org/name@../x", "org/name@a/"]
)
def test_a_revision_that_is_a_path(text: str) -> None:
    """The library makes a file in the cache of it."""
    assert parse_repository(text) is None


# Contents of the cache


@pytest.fixture
def kept(hub: Hub, cache: Path) -> Path:
    """The repository's folder in the cache, after a download of all of it."""
    hub.add("org/name", SHARDED)
    take()
    return cache / "models--org--name"


def in_the_cache(what: str, *, online: bool = True) -> None:
    for offline in (True, *([False] if online else [])):
        code, message = refused(offline=offline)
        assert code == "LR114"
        assert "`org/name` isn't taken from the hub's cache" in message
        assert what in message
        assert "Delete it" in message


@pytest.mark.parametrize(
    "where", ["", "blobs", "snapshots", "refs", "snapshots/*", "snapshots/*/" + CONFIG, "blobs/*"]
)
def test_a_link_that_leads_out_of_the_cache(kept: Path, tmp_path: Path, where: str) -> None:
    path = min(kept.glob(where)) if where else kept
    real = tmp_path / "elsewhere"
    if path.is_symlink():
        real.write_bytes(path.read_bytes())
        path.unlink()
    else:
        path.rename(real)
    path.symlink_to(real)
    before = {str(found) for found in real.rglob("*")}
    named = "/snapshots/" if where == "blobs/*" else str(path)  # a link to the link
    in_the_cache(named)
    in_the_cache(f" is a link out of the cache, to {real}")
    assert {str(found) for found in real.rglob("*")} == before


def test_a_dangling_link_that_leads_out_of_the_cache(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """The library would write through it, or take its place."""
    hub.add("org/name", SHARDED)
    for path in (cache / "models--org--name" / "blobs", cache / ".locks" / "models--org--name"):
        path.parent.mkdir(parents=True)
        path.symlink_to(tmp_path / "elsewhere")
        in_the_cache(f"{path} is a link out of the cache")
        path.unlink()
        path.parent.rmdir()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "said", ["../../../elsewhere", "/tmp", "", "main", "snapshots/\0", "a" * 200]
)
def test_a_note_that_is_a_path(kept: Path, said: str) -> None:
    (kept / "refs" / "main").write_text(said)
    in_the_cache("refs/main holds", online=False)
    assert take().commit  # online, the file is written again
    assert len((kept / "refs" / "main").read_text()) == 40


def test_a_pipe_in_the_cache(kept: Path) -> None:
    (kept / "refs" / "main").unlink()
    os.mkfifo(kept / "refs" / "main")
    in_the_cache("refs/main is neither a file nor a folder")


def test_a_listing_in_the_cache_with_a_path_for_a_hash(kept: Path) -> None:
    (kept / "trees").mkdir(exist_ok=True)
    entry = {
        "size": 1,
        "blob_id": "0",
        "lfs_sha256": "../../../../x",
        "lfs_size": 1,
        "xet_hash": "0" * 64,
    }
    content = {"format_version": 1, "files": {CONFIG: entry}}
    (kept / "trees" / f"{'a' * 40}.json").write_text(json.dumps(content))
    in_the_cache("lists a file without a hash")


def test_a_file_that_was_deleted_from_the_cache_is_not_absent(kept: Path) -> None:
    """Offline a link to what is gone would be taken for a repository without the file; online it
    is downloaded again.
    """
    (link,) = kept.glob("snapshots/*/tokenizer.model")
    link.resolve().unlink()
    code, message = refused(offline=True)
    assert (code, "tokenizer.model" in message) == ("LR114", True)
    assert (take().folder / "tokenizer.model").is_file()


def test_an_index_that_names_a_file_that_can_not_be(hub: Hub, cache: Path) -> None:
    for name in ("x" * 300 + ".safetensors", "a\0b.safetensors", "a\x1b[2J.safetensors"):
        hub.repos["org/name"] = Repo()
        hub.repos["org/name"].commit({INDEX: json.dumps({"weight_map": {"a": name}}).encode()})
        code, message = refused(REPOSITORY, "tensors")
        assert (code, "`org/name`" in message, message.isprintable()) == ("LR103", True, True)
    assert not outside(cache)


def test_the_cache_may_be_a_link_itself(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large disk")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "link"))
    hub.add("org/name", SHARDED)
    assert take().commit == take(offline=True).commit
