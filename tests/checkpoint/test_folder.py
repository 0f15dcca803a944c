"""Which form of a folder is read, what an index must keep, manifests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_remap.checkpoint import Checkpoint, open_checkpoint
from llava_remap.core.problem import Problem, RemapError

from .stored import DATA, TINY


def put(folder: Path, name: str, *tensors: str) -> None:
    """A weight file of these tensors; by default one that is called like the file."""
    values = {tensor: torch.ones(2) for tensor in tensors or [name]}
    if name.endswith(".safetensors"):
        save_file(values, folder / name)
    else:
        torch.save(values, folder / name)


def put_index(folder: Path, name: str, weight_map: Any) -> None:
    (folder / name).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )


def shards(stem: str, suffix: str, total: int = 2) -> list[str]:
    return [f"{stem}-{number:05}-of-{total:05}{suffix}" for number in range(1, total + 1)]


def put_shards(folder: Path, stem: str, suffix: str, *, index: bool) -> None:
    names = shards(stem, suffix)
    for name in names:
        put(folder, name)
    if index:
        put_index(folder, f"{stem}{suffix}.index.json", {name: name for name in names})


#: Each makes one form; the order is that of precedence.
FORMS: dict[str, Callable[[Path], None]] = {
    "model.safetensors": lambda folder: put(folder, "model.safetensors"),
    "model.safetensors.index.json": lambda folder: put_shards(
        folder, "model", ".safetensors", index=True
    ),
    "pytorch_model.bin": lambda folder: put(folder, "pytorch_model.bin"),
    "pytorch_model.bin.index.json": lambda folder: put_shards(
        folder, "pytorch_model", ".bin", index=True
    ),
    "model_state_dict.bin": lambda folder: put(folder, "model_state_dict.bin"),
    "shards without an index": lambda folder: put_shards(
        folder, "other", ".safetensors", index=False
    ),
    "consolidated.00.pth": lambda folder: put(folder, "consolidated.00.pth"),
}
ASIDE = ["adapter_model.bin", "mm_projector.bin", "optimizer.pt", "training_args.bin"]


@pytest.mark.parametrize("best", range(len(FORMS)))
def test_precedence(tmp_path: Path, best: int) -> None:
    names = list(FORMS)[best:]
    for name in names:
        FORMS[name](tmp_path)
    for name in ASIDE:
        put(tmp_path, name)
    checkpoint = open_checkpoint(tmp_path)
    assert names[0] in checkpoint.form
    without_index = shards("other", ".safetensors")
    expected = {name for name in names[1:] if not name.startswith("shards")} | {
        "adapter_model.bin",
        "mm_projector.bin",
    }
    expected |= set(without_index) if "shards without an index" in names[1:] else set()
    assert checkpoint.passed_over == tuple(sorted(expected))
    assert {file.name for file in checkpoint.files}.isdisjoint(expected)


def test_a_file_given_by_name_passes_nothing_over(tmp_path: Path) -> None:
    for make in FORMS.values():
        make(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "pytorch_model.bin")
    assert list(checkpoint.catalog) == ["pytorch_model.bin"]
    assert checkpoint.passed_over == ()
    assert (
        open_checkpoint(tmp_path / "pytorch_model.bin.index.json").form
        == "torch .bin, 2 shards (pytorch_model.bin.index.json)"
    )


def test_shards_without_an_index(tmp_path: Path) -> None:
    for name in shards("model", ".safetensors"):
        shutil.copy(
            TINY / "llava-v1.5" / "released" / "sharded_safetensors" / name, tmp_path / name
        )
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.catalog) == 27
    assert checkpoint.form == "safetensors, 2 shards without an index"
    assert checkpoint.config is None


def test_an_index_of_another_name_is_used_for_its_shards(tmp_path: Path) -> None:
    put_shards(tmp_path, "weights", ".bin", index=True)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.form == "torch .bin, 2 shards (weights.bin.index.json)"
    assert checkpoint.passed_over == ()


def test_files_named_in_the_index_are_not_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "first.bin", "a")
    (tmp_path / "sub").mkdir()
    put(tmp_path, "sub/second.bin", "b")
    put_index(tmp_path, "pytorch_model.bin.index.json", {"a": "first.bin", "b": "sub/second.bin"})
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.catalog) == ["a", "b"]
    assert checkpoint.passed_over == ()


def problems(path: Path) -> list[Problem]:
    with pytest.raises(RemapError) as caught:
        open_checkpoint(path)
    assert {problem.code for problem in caught.value.problems} == {"LR103"}
    assert all(problem.fix for problem in caught.value.problems)
    return list(caught.value.problems)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: `a` and `b` in the first, `c` in the second."""
    put(tmp_path, "one.safetensors", "a", "b")
    put(tmp_path, "two.safetensors", "c")
    return tmp_path


def indexed(folder: Path, **weight_map: Any) -> Path:
    put_index(folder, "model.safetensors.index.json", weight_map)
    return folder


ONE, TWO = "one.safetensors", "two.safetensors"


def test_a_sound_index(folder: Path) -> None:
    assert list(open_checkpoint(indexed(folder, a=ONE, c=TWO, b=ONE)).catalog) == ["a", "b", "c"]


def test_shard_that_is_not_there(folder: Path) -> None:
    (problem,) = problems(indexed(folder, a=ONE, b=ONE, c=TWO, d="three.safetensors"))
    assert (
        "1 of the 3 shards in `model.safetensors.index.json` are missing: `three.safetensors`"
        in problem.cause
    )
    assert problem.names == ("d",)


def test_tensor_that_is_not_there(folder: Path) -> None:
    (problem,) = problems(indexed(folder, a=ONE, b=ONE, c=TWO, d=TWO))
    assert "missing in their shards (`two.safetensors`): `d`" in problem.cause
    assert problem.names == ("d",)


def test_tensor_that_is_not_listed(folder: Path) -> None:
    (problem,) = problems(indexed(folder, a=ONE, c=TWO))
    assert (
        "1 tensors in the shards are not listed in `model.safetensors.index.json`: `b`"
        in problem.cause
    )


def test_tensor_in_another_shard(folder: Path) -> None:
    (problem,) = problems(indexed(folder, a=ONE, b=TWO, c=TWO))
    assert "`b` is in `one.safetensors`, not in `two.safetensors`" in problem.cause


def test_tensor_in_two_shards(folder: Path) -> None:
    put(folder, TWO, "c", "b")
    (problem,) = problems(indexed(folder, a=ONE, b=ONE, c=TWO))
    assert (
        "1 tensors are in more than one file: `b` in `one.safetensors`, `two.safetensors`"
        in problem.cause
    )


def test_all_disagreements_at_once(folder: Path) -> None:
    put(folder, TWO, "c", "b", "x", "m")
    found = problems(indexed(folder, a=ONE, b=ONE, c=TWO, lost=ONE, m=ONE))
    assert [problem.names for problem in found] == [("b",), ("lost",), ("m",), ("x",)]


@pytest.mark.parametrize(
    "name",
    [
        "../x.bin",
        "/etc/passwd",
        "a/../../x.bin",
        "C:\\x.bin",
        "..\\x.bin",
        "C:x.bin",
        "",
        "x\0.bin",
        "x\n",
    ],
)
def test_index_that_leads_outside(folder: Path, name: str) -> None:
    (problem,) = problems(indexed(folder, a=name))
    assert "outside its folder" in problem.cause
    assert problem.message.isprintable()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x", "a": "y"}}',
    ],
)
def test_index_that_is_none(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    (problem,) = problems(folder)
    assert "`model.safetensors.index.json`" in problem.cause


def test_incomplete_set_without_an_index(tmp_path: Path) -> None:
    for name in shards("model", ".safetensors", 3)[1:]:
        put(tmp_path, name)
    (problem,) = problems(tmp_path)
    assert (
        "2 of the 3 shards that names like `model-00002-of-00003.safetensors` promise"
        in problem.cause
    )


def test_one_tensor_in_two_shards_without_an_index(tmp_path: Path) -> None:
    for name in shards("model", ".bin"):
        put(tmp_path, name, "w")
    (problem,) = problems(tmp_path)
    assert "more than one file: `w`" in problem.cause


def test_problems_of_all_shards_are_told_together(tmp_path: Path) -> None:
    put_shards(tmp_path, "model", ".safetensors", index=True)
    for name in shards("model", ".safetensors"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RemapError) as caught:
        open_checkpoint(tmp_path)
    assert [problem.code for problem in caught.value.problems] == ["LR102", "LR102"]


def test_projector_in_a_shard_of_its_own(tmp_path: Path) -> None:
    put(tmp_path, shards("model", ".safetensors")[0], "model.layers.0.weight")
    put(tmp_path, shards("model", ".safetensors")[1], "model.mm_projector.0.weight")
    assert len(open_checkpoint(tmp_path).catalog) == 2


MANIFESTS = sorted((DATA / "manifests").glob("*.json"))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_manifests(file: Path) -> None:
    content = json.loads(file.read_text())
    checkpoint = open_checkpoint(file)
    assert checkpoint.is_manifest
    assert checkpoint.form == f"manifest ({file.name})"
    assert checkpoint.config == content.get("config")
    assert checkpoint.files == ()
    found = {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        for name, tensor in checkpoint.catalog.items()
    }
    assert list(found.items()) == list(content["tensors"].items())


def test_there_are_manifests() -> None:
    assert len(MANIFESTS) > 10


def test_aliases_of_a_manifest(tmp_path: Path) -> None:
    entry = {"dtype": "F16", "shape": [2]}
    content = {
        "format": "llava-remap/manifest",
        "format_version": 1,
        "aliases": [["a", "b"]],
        "tensors": {"a": entry, "b": entry},
    }
    (tmp_path / "any_name").write_text("\n " + json.dumps(content))
    assert open_checkpoint(tmp_path / "any_name").aliases == (("a", "b"),)


def test_real_shape_of_a_checkpoint_is_reported(tmp_path: Path) -> None:
    def names(checkpoint: Checkpoint) -> Iterable[str]:
        return [file.name for file in checkpoint.files]

    put_shards(tmp_path, "pytorch_model", ".bin", index=True)
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {"a": 2}
    assert names(checkpoint) == shards("pytorch_model", ".bin")
    assert checkpoint.nbytes == 16


def test_shards_of_an_earlier_save_beside_an_index_are_passed_over(tmp_path: Path) -> None:
    put_shards(tmp_path, "model", ".safetensors", index=True)
    stale = shards("model", ".safetensors", total=3)
    for name in stale:
        put(tmp_path, name)
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.catalog) == shards("model", ".safetensors")
    assert checkpoint.passed_over == tuple(stale)
