"""What is downloaded, from which commit, and what the cache is good for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llava_remap.checkpoint import Tensor, open_checkpoint
from llava_remap.core.problem import RemapError
from llava_remap.source.hub import Repository, Snapshot, download
from tests.conftest import RELEASED, TINY
from tests.forks import HANGS

from .server import Hub, Repo

ROOT = Path(__file__).parents[2]
ALL = ("tensors", "config", "tokenizer", "processor")
REPOSITORY = Repository("org/name")
SHARDED = RELEASED / "sharded_safetensors"
SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
INDEX = "model.safetensors.index.json"
SMALL = {
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
}

#: The files of each form, the preferred form first.
FORMS: list[tuple[Path, set[str]]] = [
    (RELEASED / "safetensors", {"model.safetensors"}),
    (SHARDED, {INDEX, *SHARDS}),
    (RELEASED / "bin", {"pytorch_model.bin"}),
    (
        RELEASED / "sharded",
        {
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
        },
    ),
    (TINY / "llava-v1.5" / "full_state_dict", {"model_state_dict.bin"}),
]


def take(repository: Repository = REPOSITORY, *use: str, offline: bool = False) -> Snapshot:
    return download(repository, use or ALL, name="model", offline=offline)


def in_folder(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def facts(catalog: Mapping[str, Tensor]) -> list[object]:
    """A catalog without the place of its files."""
    rows: list[object] = []
    for tensor in catalog.values():
        assert tensor.location is not None
        at = tensor.location
        rows.append(
            (
                tensor.name,
                tensor.dtype,
                tensor.shape,
                at.file.name,
                at.offset,
                at.stride,
                at.storage,
            )
        )
    return rows


def refused(
    repository: Repository = REPOSITORY, *use: str, offline: bool = False
) -> tuple[str, str]:
    """Code and whole message of the one problem."""
    with pytest.raises(RemapError) as caught:
        take(repository, *use, offline=offline)
    (problem,) = caught.value.problems
    assert problem.fix
    return problem.code, problem.message


@pytest.mark.parametrize("best", range(len(FORMS)))
def test_one_form_is_downloaded(hub: Hub, best: int, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for folder, _ in FORMS[best:]:
        for path in folder.iterdir():
            (local / path.name).write_bytes(path.read_bytes())
    for name in ("README.md", "training_args.bin", "trainer_state.json", "mm_projector.bin"):
        (local / name).write_bytes(b"x")
    commit = hub.add("org/name", local)
    snapshot = take()
    wanted = {name for name in SMALL if (local / name).exists()} | FORMS[best][1]
    assert snapshot == Snapshot(
        snapshot.folder, "org/name", commit, tuple(sorted(wanted)), cached=False
    )
    assert hub.got() == wanted == in_folder(snapshot.folder)
    checkpoint, same = open_checkpoint(snapshot.folder), open_checkpoint(local)
    assert facts(checkpoint.catalog) == facts(same.catalog)
    assert (checkpoint.config, checkpoint.form) == (same.config, same.form)
    assert all(
        (snapshot.folder / name).read_bytes() == (local / name).read_bytes() for name in wanted
    )


def test_shards_without_an_index(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    files = dict(hub.repos["org/name"].commits[hub.repos["org/name"].refs["main"]])
    del files[INDEX]
    hub.repos["org/name"].commit(files)
    snapshot = take(REPOSITORY, "tensors")
    assert hub.got() == {"config.json", *SHARDS}
    assert facts(open_checkpoint(snapshot.folder).catalog) == facts(
        open_checkpoint(SHARDED).catalog
    )


def test_weight_file_of_another_name(hub: Hub) -> None:
    hub.repos["org/name"] = Repo()
    hub.repos["org/name"].commit(
        {
            "consolidated.00.pth": (RELEASED / "bin" / "pytorch_model.bin").read_bytes(),
            "notes.txt": b"x",
        }
    )
    snapshot = take(REPOSITORY, "tensors")
    assert snapshot.files == ("consolidated.00.pth",)
    assert len(open_checkpoint(snapshot.folder).catalog) == 27


def test_shards_in_a_folder_below(hub: Hub) -> None:
    content = json.loads((SHARDED / INDEX).read_text())
    content["weight_map"] = {
        name: f"weights/{file}" for name, file in content["weight_map"].items()
    }
    hub.add("org/name", SHARDED)
    files = {f"weights/{name}": (SHARDED / name).read_bytes() for name in SHARDS}
    hub.repos["org/name"].commit({INDEX: json.dumps(content).encode(), **files})
    snapshot = take(REPOSITORY, "tensors")
    assert in_folder(snapshot.folder) == {INDEX, *files}
    assert len(open_checkpoint(snapshot.folder).catalog) == 27
    assert take(REPOSITORY, "tensors", offline=True) == replace(snapshot, cached=True)


@pytest.mark.parametrize(
    ("folder", "code"),
    [("llava-v1.5-lora", "LR107"), ("llava-v1.5/pretrain_projector_only", "LR108")],
)
def test_what_is_no_model_is_refused_as_in_a_folder(hub: Hub, folder: str, code: str) -> None:
    hub.add("org/name", TINY / folder)
    snapshot = take()
    messages = []
    for place in (snapshot.folder, TINY / folder):
        with pytest.raises(RemapError) as caught:
            open_checkpoint(place)
        assert [problem.code for problem in caught.value.problems] == [code]
        assert str(place) in str(caught.value)
        messages.append(str(caught.value).replace(str(place), "PLACE"))
    assert messages[0] == messages[1]


def test_an_adapter_with_what_lies_beside_it(hub: Hub) -> None:
    hub.add("org/name", TINY / "llava-v1.5-lora")
    found = open_checkpoint(take().folder, part=True)
    assert (len(found.catalog), len(found.pairs)) == (32, 14)


def test_adapter_config_alone(hub: Hub) -> None:
    hub.repos["org/name"] = Repo()
    hub.repos["org/name"].commit({"adapter_config.json": b'{"r": 8}', "adapter_model.gguf": b"x"})
    snapshot = take(REPOSITORY, "tensors")
    assert snapshot.files == ("adapter_config.json",)
    with pytest.raises(RemapError, match="rank 8"):
        open_checkpoint(snapshot.folder)


@pytest.mark.parametrize(
    ("use", "wanted"),
    [
        ("config", {"config.json", "generation_config.json"}),
        ("tokenizer", SMALL - {"generation_config.json"}),
        ("processor", {"config.json", "preprocessor_config.json"}),
        ("tensors", {"config.json", "model.safetensors"}),
    ],
)
def test_only_what_is_used(hub: Hub, use: str, wanted: set[str]) -> None:
    hub.add("org/name", RELEASED / "safetensors", more={"preprocessor_config.json": b"{}"})
    snapshot = take(REPOSITORY, use)
    assert hub.got() == set(snapshot.files) == in_folder(snapshot.folder) == wanted


def test_revisions(hub: Hub) -> None:
    old = hub.add("org/name", RELEASED / "bin", branch="old")
    new = hub.add("org/name", RELEASED / "safetensors")
    assert take().commit == new
    assert take(Repository("org/name", "old")).commit == old
    assert take(Repository("org/name", "main")).commit == new
    by_commit = take(Repository("org/name", old))
    assert (by_commit.commit, by_commit.folder.name) == (old, old)
    assert "pytorch_model.bin" in by_commit.files


def test_all_files_are_of_one_commit_though_the_branch_moves(hub: Hub) -> None:
    first = hub.add("org/name", RELEASED / "safetensors")
    later = {
        **hub.repos["org/name"].commits[first],
        "config.json": b'{"changed": 1}',
        "model.safetensors": b"changed",
    }

    class Moving(list[tuple[str, str]]):
        def append(self, item: tuple[str, str]) -> None:
            super().append(item)
            if len(self) == 2:
                hub.repos["org/name"].commit(later)

    hub.asked = Moving()
    snapshot = take()
    assert hub.repos["org/name"].refs["main"] != first == snapshot.commit
    assert (snapshot.folder / "config.json").read_bytes() == (
        RELEASED / "safetensors" / "config.json"
    ).read_bytes()
    assert facts(open_checkpoint(snapshot.folder).catalog) == facts(
        open_checkpoint(RELEASED / "safetensors").catalog
    )


def test_second_call_downloads_nothing(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    snapshot = take()
    hub.asked.clear()
    assert take() == snapshot
    assert hub.asked
    assert not [path for _, path in hub.asked if "/resolve/" in path]


def test_offline_with_everything_in_the_cache(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    snapshot = take()
    hub.asked.clear()
    assert take(offline=True) == replace(snapshot, cached=True)
    assert take(Repository("org/name", snapshot.commit), offline=True) == replace(
        snapshot, cached=True
    )
    assert not hub.asked


def test_offline_with_an_empty_cache(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    code, message = refused(offline=True)
    assert code == "LR114"
    assert "`org/name`" in message
    assert "--source model=DIR" in message
    assert "hf download org/name --local-dir name" in message
    assert not hub.asked


def test_offline_with_a_shard_missing(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    (take().folder / "model-00002-of-00002.safetensors").unlink()
    code, message = refused(offline=True)
    assert (code, "lacks its `model-00002-of-00002.safetensors`" in message) == ("LR114", True)


def test_offline_with_a_shard_of_no_index_missing(hub: Hub) -> None:
    hub.repos["org/name"] = Repo()
    hub.repos["org/name"].commit({name: (SHARDED / name).read_bytes() for name in SHARDS})
    (take(REPOSITORY, "tensors").folder / "model-00001-of-00002.safetensors").unlink()
    code, message = refused(REPOSITORY, "tensors", offline=True)
    assert (code, "lacks its `model-00001-of-00002.safetensors`" in message) == ("LR114", True)


def test_offline_after_only_the_config_was_downloaded(hub: Hub) -> None:
    hub.add("org/name", SHARDED)
    snapshot = take(REPOSITORY, "config")
    assert take(REPOSITORY, "config", offline=True) == replace(snapshot, cached=True)
    assert refused(REPOSITORY, "tensors", offline=True)[0] == "LR114"


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.cut, hub.cuts = {"model.safetensors": 1000}, 1
    try:
        snapshot = take()
    except RemapError:  # older versions of the library leave it to the next call
        snapshot = take()
    assert hub.cuts == 0
    assert (snapshot.folder / "model.safetensors").read_bytes() == (
        RELEASED / "safetensors" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("how", ["cut", "short"])
def test_a_half_file_is_never_taken_for_a_whole_one(hub: Hub, how: str) -> None:
    hub.add("org/name", RELEASED / "safetensors")
    hub.cut, hub.cuts = ({"model.safetensors": 0}, 1000) if how == "cut" else ({}, 0)
    hub.short = {"model.safetensors": 1000} if how == "short" else {}
    code, message = refused()
    assert (code, hub.url in message) == ("LR114", True)
    assert refused(offline=True)[0] == "LR114"
    hub.cuts, hub.short = 0, {}
    snapshot = take()
    assert (snapshot.folder / "model.safetensors").read_bytes() == (
        RELEASED / "safetensors" / "model.safetensors"
    ).read_bytes()


SCRIPT = """
import sys
import llava_remap.source.hub
assert "huggingface_hub" not in sys.modules
hub = llava_remap.source.hub
print(hub.download(hub.parse_repository(sys.argv[1]), ["tensors"], name="model").commit)
"""


def own_process(
    hub: Hub, home: Path, text: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = {
        **inherited,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        **environment,
    }
    command = [sys.executable, "-c", SCRIPT, text]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=HANGS, check=False
    )


def test_in_a_process_of_its_own(hub: Hub, tmp_path: Path) -> None:
    """The environment counts, the library is imported when it is needed, and nothing of its own
    is printed.
    """
    commit = hub.add("org/name", SHARDED)
    for _ in range(2):
        ran = own_process(hub, tmp_path / "own", "org/name")
        assert (ran.stdout, ran.stderr) == (commit + "\n", "")
    asked = len(hub.asked)
    assert (
        own_process(hub, tmp_path / "own", "org/name", HF_HUB_OFFLINE="1").stdout == commit + "\n"
    )
    assert len(hub.asked) == asked
    ran = own_process(hub, tmp_path / "other", "org/name", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in ran.stderr


def test_a_broken_download_says_nothing_if_it_succeeds(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("org/name", RELEASED / "safetensors")
    hub.cut, hub.cuts = {"model.safetensors": 1000}, 1
    ran = own_process(hub, tmp_path / "own", "org/name")
    if ran.returncode:  # older versions of the library leave it to the next call
        ran = own_process(hub, tmp_path / "own", "org/name")
    assert hub.cuts == 0
    assert (ran.stdout, ran.stderr) == (commit + "\n", "")
