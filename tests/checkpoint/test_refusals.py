"""Files that are no model checkpoint: each is refused with its code, its facts and what to do."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.codes import Exit
from llava_remap.core.problem import Problem, RemapError

from .stored import TINY

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 9976578928\n"
LORA = TINY / "llava-v1.5-lora"


def refusal(path: Path) -> Problem:
    """The one problem with which `path` is refused."""
    with pytest.raises(RemapError) as caught:
        open_checkpoint(path)
    (problem,) = caught.value.problems
    assert problem.exit == Exit.INPUT
    assert problem.fix
    assert "\n" not in problem.message
    assert len(problem.message) < 600
    return problem


def saved(file: Path, value: Any) -> Path:
    torch.save(value, file)
    return file


def test_no_such_path(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent").code == "LR100"


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    assert "The folder is empty" in refusal(tmp_path).cause
    for name in (
        "config.json",
        "tokenizer.model",
        "training_args.bin",
        "optimizer.pt",
        "rng_state_0.pth",
        "README.md",
    ):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "checkpoint-500").mkdir()
    problem = refusal(tmp_path)
    assert problem.code == "LR100"
    assert "`checkpoint-500`, `config.json`" in problem.cause


def test_several_files_of_which_none_is_meant(tmp_path: Path) -> None:
    for name in ("a.pt", "b.bin"):
        saved(tmp_path / name, {"w": torch.ones(1)})
    problem = refusal(tmp_path)
    assert (problem.code, problem.fix) == ("LR100", "Give one of these files.")
    assert "`a.pt`, `b.bin`" in problem.cause


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "w.bin", {"w": torch.ones(1)})

    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    problem = refusal(file)
    assert problem.code == "LR100"
    assert "w.bin` can't be read: Permission denied" in problem.cause


def test_an_input_error_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "w.bin", {"w": torch.ones(1)})

    def broken(self: Path, *_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(Path, "open", broken)
    assert refusal(file).code == "LR102"


def test_what_is_neither_file_nor_folder() -> None:
    problem = refusal(Path("/dev/null"))
    assert problem.code == "LR100"
    assert "neither a file nor a folder" in problem.cause


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "mm_projector.bin", "last.ckpt"]
)
def test_lfs_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    for path in (tmp_path, tmp_path / name):
        problem = refusal(path)
        assert problem.code == "LR101"
        assert f"`{name}` is a text in place of 9976578928 bytes" in problem.cause
        assert "git lfs pull" in problem.fix


def test_lfs_pointers_among_shards_are_one_problem(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(TINY / "llava-v1.6-mistral" / "sharded", folder)
    for number in (1, 3):
        (folder / f"pytorch_model-0000{number}-of-00003.bin").write_bytes(POINTER)
    problem = refusal(folder)
    assert problem.code == "LR101"
    assert "are 2 texts in place of 19953157856 bytes" in problem.cause


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", "LR102", "it has 0 bytes"),
        (b"<html>login</html>", "LR102", "first bytes are 3c 68 74 6d"),
        (
            b"PK\3\4" + bytes(100),
            "LR102",
            "zip archive of 104 bytes without a readable table of contents",
        ),
        (b"\x80\x02K\x01.", "LR106", "the magic number is missing"),
        (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02K\x07.",
            "LR102",
            "protocol version isn't 1001",
        ),
        (b"GGUF" + bytes(100), "LR106", "GGUF"),
        (b'{"a": 1}', "LR106", "neither a manifest nor the index"),
        (b'{"a": ', "LR102", "not valid JSON"),
    ],
)
def test_other_contents(tmp_path: Path, content: bytes, code: str, says: str) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(content)
    problem = refusal(file)
    assert problem.code == code
    assert says in problem.cause


def test_tar(tmp_path: Path) -> None:
    (tmp_path / "storages").write_bytes(b"x")
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    problem = refusal(tmp_path / "old.pth")
    assert problem.code == "LR102"
    assert "tar format" in problem.cause


def test_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/readme", "x")
    assert refusal(file).code == "LR106"
    source = saved(tmp_path / "w.bin", {"w": torch.ones(4)})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    problem = refusal(file)
    assert problem.code == "LR106"
    assert "compressed" in problem.cause


def test_zip_with_a_strange_byte_order(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"}.")
        archive.writestr("x/byteorder", b"middle\x1b")
    assert "byte order is `middle\\x1b`" in refusal(file).cause


def test_zip_with_two_records_of_one_name(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"}.")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x/data.pkl", b"].")
    assert "two of its records have one name" in refusal(file).cause


W = torch.ones(2)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"w": W, "step": 3}, "1 of 2 entries in `x.bin` aren't tensors with a name (`step`)"),
        ({"w": W, 5: W}, "1 of 2 entries"),
        ({"w": W, "nested": {"v": W}}, "(`nested`)"),
        ({"state": {0: {"exp_avg": W}}, "param_groups": [{"lr": 1.0}]}, "state of an optimizer"),
        ({"model": {"state": {}, "param_groups": [1]}}, "state of an optimizer"),
        (
            {"model": {"w": W}, "state_dict": {"w": W}},
            "more than one state dict: `state_dict`, `model`",
        ),
        ({"epoch": 3}, "(`epoch`)"),
        ({}, "holds no tensor"),
        ({"state_dict": {}}, "(`state_dict`)"),
        (W, "holds a value of type tensor, not"),
        ([W], "holds a value of type list, not"),
        (3, "holds a value of type int, not"),
        ({"w.weight": W, "w.SCB": W}, "is quantised by bitsandbytes: `w.SCB`"),
        ({"w.weight": W, "w.weight.quant_state.bitsandbytes__nf4": W}, "is quantised"),
        ({"w.weight.absmax": W}, "is quantised"),
        ({"w.qweight": W, "w.scales": W}, "is quantised"),
        ({"w": torch.ones(2, dtype=torch.complex128)}, "dtype `complex128`"),
        ({"w": torch.ones(2, dtype=torch.complex64).conj()}, "negated or conjugated"),
    ],
)
def test_what_is_not_a_model(tmp_path: Path, value: Any, says: str) -> None:
    problem = refusal(saved(tmp_path / "x.bin", value))
    assert problem.code == "LR106"
    assert says in problem.cause


@pytest.mark.filterwarnings("ignore")
def test_quantised_torch_tensors(tmp_path: Path) -> None:
    value = {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
    problem = refusal(saved(tmp_path / "x.bin", value))
    assert problem.code == "LR106"
    assert "quantised" in problem.cause


def test_a_wrapper_that_holds_itself(tmp_path: Path) -> None:
    value: dict[str, Any] = {"epoch": 1}
    value["model"] = {"module": value}
    assert refusal(saved(tmp_path / "x.bin", value)).code == "LR106"


def test_the_trainers_own_files(tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_3.pth"):
        problem = refusal(saved(tmp_path / name, {"w": W}))
        assert problem.code == "LR106"
        assert "trainer's own" in problem.cause


def test_adapter_folder_and_files() -> None:
    for path, facts in [
        (LORA, "`adapter_model.bin` is an adapter (rank 4, 14 LoRA pairs, 32 tensors)"),
        (LORA / "adapter_model.bin", "(rank 4, 14 LoRA pairs, 28 tensors)"),
        (LORA / "non_lora_trainables.bin", "(rank 4, 0 LoRA pairs, 4 tensors)"),
    ]:
        problem = refusal(path)
        assert problem.code == "LR107"
        assert facts in problem.cause
        assert problem.fix == f"Give its base too: --source model=BASE --source adapter={LORA}"


def test_adapter_by_its_content(tmp_path: Path) -> None:
    for name in ("adapter_model.bin", "non_lora_trainables.bin"):
        shutil.copy(LORA / name, tmp_path / "renamed.bin")
        problem = refusal(tmp_path / "renamed.bin")
        assert problem.code == "LR107"
    save_file(
        {"m.q.lora_A.weight": torch.ones(8, 2), "m.q.lora_B.weight": torch.ones(2, 8)},
        tmp_path / "adapter_model.safetensors",
    )
    assert "rank 8, 1 LoRA pairs" in refusal(tmp_path / "adapter_model.safetensors").cause
    (tmp_path / "renamed.bin").unlink()
    assert refusal(tmp_path).code == "LR107"


def test_adapter_config_alone_and_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"r": 128, "base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}'
    )
    problem = refusal(tmp_path)
    assert problem.code == "LR107"
    assert "rank 128, 0 LoRA pairs" in problem.cause
    assert (
        problem.fix
        == f"Give its base too: --source model=lmsys/vicuna-7b-v1.5 --source adapter={tmp_path}"
    )
    (tmp_path / "adapter_config.json").write_text("{")
    assert refusal(tmp_path).code == "LR113"


def test_adapters_inside_their_base_are_a_model(tmp_path: Path) -> None:
    names = [
        "q.base_layer.weight",
        "q.lora_A.default.weight",
        "q.lora_B.default.weight",
        "norm.weight",
    ]
    file = saved(
        tmp_path / "x.bin", {f"base_model.model.{name}": torch.ones(2, 2) for name in names}
    )
    assert refusal(file).code == "LR115"  # nothing says their alpha
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    checkpoint = open_checkpoint(file)
    assert len(checkpoint.catalog) == 4
    assert [(pair.base, pair.scale) for pair in checkpoint.pairs] == [
        ("base_model.model.q.weight", 2.0)
    ]


def test_projector_only(tmp_path: Path) -> None:
    folder = TINY / "llava-v1.5" / "pretrain_projector_only"
    names = ["model.mm_projector.0.weight", "model.embed_tokens.weight", "model.image_newline"]
    other = saved(tmp_path / "x.bin", dict.fromkeys(names, W))
    for path, tensors in [(folder, 4), (folder / "mm_projector.bin", 4), (other, 3)]:
        problem = refusal(path)
        assert problem.code == "LR108"
        assert f"only a projector ({tensors} tensors)" in problem.cause
        assert len(problem.names) == tensors


def test_stubs_are_catalogued_as_they_are(tmp_path: Path) -> None:
    catalog = open_checkpoint(saved(tmp_path / "x.bin", {"a": torch.empty(0), "b": W})).catalog
    assert catalog["a"].shape == (0,)


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    problem = refusal(saved(tmp_path / "x.bin", {"w\ud800": W}))
    assert problem.code == "LR102"
    assert problem.message.encode()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_broken_config(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path / "pytorch_model.bin", {"w": W})
    (tmp_path / "config.json").write_bytes(content)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        problem = refusal(path)
        assert problem.code == "LR113"
        assert "`config.json`" in problem.cause


def manifest(folder: Path, **changes: Any) -> Path:
    content = {
        "format": "llava-remap/manifest",
        "format_version": 1,
        "tensors": {"w": {"dtype": "F16", "shape": [2]}},
        **changes,
    }
    file = folder / "m.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"format_version": 2}, "LR106", "is `2`; the only known version is 1"),
        ({"format_version": None}, "LR106", "is missing"),
        ({"format_version": True}, "LR106", "is `True`"),
        ({"tensors": []}, "LR102", "not an object"),
        ({"tensors": {}}, "LR106", "holds no tensor"),
        ({"config": 3}, "LR102", "not an object"),
        ({"tensors": {"w": {"dtype": "F16"}}}, "LR102", "`w` has no dtype and shape"),
        (
            {"tensors": {"w": {"dtype": "F16", "shape": [-1]}}},
            "LR102",
            "`w` has no dtype and shape",
        ),
        (
            {"tensors": {"w": {"dtype": "F16", "shape": [2**60]}}},
            "LR102",
            "`w` has no dtype and shape",
        ),
        ({"tensors": {"w": {"dtype": "F3", "shape": [1]}}}, "LR106", "dtype `F3`"),
        ({"tensors": {"w": 3}}, "LR102", "`w` has no dtype and shape"),
        ({"aliases": [["w", "v"]]}, "LR102", "`aliases`"),
        (
            {"tensors": {"mm_projector.weight": {"dtype": "F16", "shape": [1]}}},
            "LR108",
            "only a projector",
        ),
    ],
)
def test_broken_manifests(tmp_path: Path, changes: dict[str, Any], code: str, says: str) -> None:
    problem = refusal(manifest(tmp_path, **changes))
    assert problem.code == code
    assert says in problem.cause
