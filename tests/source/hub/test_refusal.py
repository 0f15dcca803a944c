"""One clear message for every way in which the hub gives nothing."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from llava_remap.core.codes import CODES, Exit
from llava_remap.core.problem import RemapError
from llava_remap.source.hub import Repository, download
from tests.conftest import RELEASED

from .server import Hub, Repo
from .test_download import INDEX, REPOSITORY, SHARDED, SHARDS, refused, take

#: A port that nothing listens on.
NOWHERE = "http://127.0.0.1:9"


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        NOWHERE + "/{repo_id}/resolve/{revision}/{filename}",
    )


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    unplug(monkeypatch)
    code, message = refused()
    assert code == "LR114"
    assert CODES[code].exit == Exit.INPUT
    assert f"`org/name` can't be downloaded: no connection to {NOWHERE}: " in message
    assert "refused" in message
    assert "Give its folder: --source model=DIR" in message
    assert "hf download org/name --local-dir name" in message


def test_no_network_but_everything_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", SHARDED)
    snapshot = take()
    unplug(monkeypatch)
    assert take() == replace(snapshot, cached=True)


def test_no_network_and_a_shard_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", SHARDED)
    (take().folder / "model-00001-of-00002.safetensors").unlink()
    unplug(monkeypatch)
    message = refused()[1]
    assert f"no connection to {NOWHERE}" in message
    assert "The hub's cache lacks its `model-00001-of-00002.safetensors`" in message


def test_hf_hub_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", SHARDED)
    snapshot = take()
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert take() == replace(snapshot, cached=True)
    assert "HF_HUB_OFFLINE is set" in refused(Repository("org/other"))[1]
    assert not hub.asked


def test_no_such_repository(hub: Hub) -> None:
    code, message = refused()
    assert (code, f"`org/name` doesn't exist on {hub.url}" in message) == ("LR114", True)
    assert "hf auth login" in message


@pytest.mark.parametrize("error", [(401, "RepoNotFound"), (401, "")])
def test_private_repository(hub: Hub, error: tuple[int, str]) -> None:
    hub.add("org/name", SHARDED)
    take()  # what is private now isn't taken from the cache
    hub.repos["org/name"].error = error
    code, message = refused()
    assert (code, "or it is private" in message, "HF_TOKEN" in message) == ("LR114", True, True)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("status", [401, 403])
def test_gated_repository(hub: Hub, status: int, listed: bool) -> None:
    hub.add("org/name", SHARDED)
    hub.repos["org/name"].error, hub.repos["org/name"].listed = (status, "GatedRepo"), listed
    code, message = refused()
    assert (code, "`org/name` is gated" in message) == ("LR114", True)
    assert f"{hub.url}/org/name" in message
    assert "hf auth login" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_no_such_revision(hub: Hub, revision: str) -> None:
    hub.add("org/name", SHARDED)
    code, message = refused(Repository("org/name", revision))
    assert (code, f"`org/name` has no revision `{revision}`" in message) == ("LR114", True)
    assert "--source model=org/name@REVISION" in message


def test_repository_without_weights(hub: Hub) -> None:
    hub.repos["org/name"] = Repo()
    hub.repos["org/name"].commit(
        {
            "README.md": b"x",
            "config.json": b"{}",
            "gguf/model.gguf": b"x",
            "training_args.bin": b"x",
        }
    )
    code, message = refused()
    assert code == "LR100"
    assert "`org/name` has no weight file" in message
    assert "The folder has: `README.md`, `config.json`, `gguf`, `training_args.bin`" in message
    assert take(REPOSITORY, "config").files == ("config.json",)


def test_repository_with_several_weight_files(hub: Hub) -> None:
    hub.repos["org/name"] = Repo()
    hub.repos["org/name"].commit({"one.safetensors": b"x", "two.safetensors": b"x"})
    code, message = refused()
    assert (code, "2 weight files" in message, "--source model=FILE" in message) == (
        "LR100",
        True,
        True,
    )
    assert not hub.got()


def test_empty_repository(hub: Hub) -> None:
    hub.repos["org/name"] = Repo()
    hub.repos["org/name"].commit({})
    assert refused()[0] == "LR100"
    assert refused(REPOSITORY, "config")[0] == "LR100"


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_hub_out_of_order(hub: Hub, status: int) -> None:
    hub.add("org/name", SHARDED)
    hub.status = status
    code, message = refused()
    assert (code, f"{hub.url} answers {status}" in message) == ("LR114", True)
    hub.status = None
    snapshot = take()
    hub.status = status
    assert take() == replace(snapshot, cached=True)


def test_an_answer_that_means_no(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    take()
    hub.status = 403
    code, message = refused()
    assert (code, "answers 403" in message) == ("LR114", True)


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>Please log in</html>",
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"id": "org/name", "siblings": 3}',
        b'{"id": "org/name", "siblings": []}',
        b"\xff",
    ],
)
def test_garbage(hub: Hub, garbage: bytes) -> None:
    hub.add("org/name", SHARDED)
    hub.garbage = garbage
    code, message = refused()
    assert (code, f"no usable answer from {hub.url}" in message) == ("LR114", True)
    assert "\n" not in message


@pytest.mark.parametrize(
    "outside", ["../evil.safetensors", "/etc/passwd", "sub/../../evil", "C:\\evil", "..\\evil"]
)
def test_index_that_leads_out_of_the_repository(hub: Hub, outside: str) -> None:
    hub.repos["org/name"] = Repo()
    hub.repos["org/name"].commit({INDEX: json.dumps({"weight_map": {"a": outside}}).encode()})
    code, message = refused(REPOSITORY, "tensors")
    assert (code, f"`org/name`: `{INDEX}` names files outside its folder" in message) == (
        "LR103",
        True,
    )
    assert hub.got() == {INDEX}


def test_shard_that_the_repository_lacks(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    files = dict(hub.repos["org/name"].commits[hub.repos["org/name"].refs["main"]])
    del files["model-00002-of-00002.safetensors"]
    for content in (files, {name: files[name] for name in files if name != INDEX}):
        hub.repos["org/name"].commit(content)
        code, message = refused(REPOSITORY, "tensors")
        assert (code, "`model-00002-of-00002.safetensors`" in message) == ("LR103", True)
    assert not hub.got() & SHARDS  # before anything large is downloaded


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Data processing error: No space left on device (os error 28)"),
    ],
)
def test_disk_full(hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hub.add("org/name", SHARDED)

    def full(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(file_download, "http_get", full)
    code, message = refused()
    assert (code, CODES[code].exit) == ("LR502", Exit.RESOURCES)
    assert "HF_HOME" in message


def test_cache_that_can_not_be_written(hub: Hub, cache: Path) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the cache should be")
    with pytest.raises(RemapError) as caught:
        download(REPOSITORY, ["tensors"], name="model")
    assert [problem.code for problem in caught.value.problems] == ["LR114"]
    assert "HF_HOME" in caught.value.problems[0].fix


def test_connection_that_is_forbidden(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **more: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", forbidden)
    message = refused()[1]
    assert "Operation not permitted" in message
    assert "HF_HOME" not in message
    assert "hf download org/name --local-dir name" in message
