"""A dict of tensors is a source: what is written of it equals what is written of the same tensors
saved as safetensors, and no byte of it is changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import llava_remap
from llava_remap import InMemory, RemapError
from llava_remap.verification.record import RECORD
from tests.conftest import CLIP, RELEASED, TINY

SIGLIP = TINY / "siglip-tiny-patch14-28"
SOURCE = RELEASED / "safetensors"
ONEVISION = TINY / "llava-onevision" / "safetensors"
LORA = TINY / "llava-v1.5-lora"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def saved(folder: Path, tensors: Mapping[str, torch.Tensor], to: Path) -> Path:
    """The folder with these tensors in place of its own, in one file of safetensors."""
    shutil.copytree(folder, to)
    save_file(
        {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        },
        to / "model.safetensors",
        metadata={"format": "pt"},
    )
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RECORD}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def refusal(function: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(RemapError) as caught:
        function()
    [problem] = caught.value.problems
    return problem.code, problem.cause


def as_trained(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a training may hold them: parameters, matrices stored transposed, views of one storage."""
    held: dict[str, torch.Tensor] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        if tensor.ndim == 2 and number % 3 == 0:
            tensor = tensor.T.contiguous().T
        elif number % 3 == 1:
            storage = torch.zeros(tensor.numel() + 5, dtype=tensor.dtype)
            storage[3:-2] = tensor.flatten()
            tensor = storage[3:-2].view(tensor.shape)
        held[name] = torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor
    return held


def in_bfloat16(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def as_arrays(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("rules", "source", "tower", "held", "options"),
    [
        ("llava-v1.5", SOURCE, CLIP, as_trained, {}),
        ("llava-v1.5", SOURCE, CLIP, in_bfloat16, {"max_shard_nbytes": 60_000}),
        ("llava-v1.5", SOURCE, CLIP, as_arrays, {"dtype": "bfloat16"}),
        ("llava-onevision", ONEVISION, SIGLIP, as_trained, {}),
    ],
)
def test_the_same_files_as_from_safetensors(
    rules: str,
    source: Path,
    tower: Path,
    held: Callable[[dict[str, torch.Tensor]], dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    """With every way in which tensors can be held, and the tower in memory as well."""
    tensors, of_tower = held(tensors_of(source)), tensors_of(tower)
    plain = {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}
    disk = saved(source, plain, tmp_path / "disk")
    before = {name: tensor.clone() for name, tensor in plain.items()}
    beside = saved(tower, of_tower, tmp_path / "tower")
    llava_remap.apply(rules, {"model": disk, "vision_tower": beside}, "from-disk", **options)
    llava_remap.apply(
        rules,
        {
            "model": InMemory(tensors, folder=source),
            "vision_tower": InMemory(of_tower, folder=tower),
        },
        "from-memory",
        verify="full",
        **options,
    )
    assert contents(Path("from-memory")) == contents(Path("from-disk"))
    assert all(torch.equal(plain[name], tensor) for name, tensor in before.items())


def test_ties_are_those_of_a_torch_file_with_shared_storage(tmp_path: Path) -> None:
    """`state_dict()` has a tied head under both names."""
    tensors = tensors_of(ONEVISION)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder = tmp_path / "tied"
    shutil.copytree(ONEVISION, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "pytorch_model.bin")
    disk = llava_remap.plan("llava-onevision", [folder, f"vision_tower={SIGLIP}"], "a")
    memory = llava_remap.plan(
        "llava-onevision", {"model": InMemory(tensors, folder=folder), "vision_tower": SIGLIP}, "b"
    )
    assert [note.cause for note in memory.plan.notes] == [note.cause for note in disk.plan.notes]
    assert any(note.code == "LR506" for note in memory.plan.notes)
    assert {alias.target for alias in memory.plan.aliases} == {
        alias.target for alias in disk.plan.aliases
    }
    one, other = (weights(job.run().output) for job in (memory, disk))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_record_verify_and_revert_say_that_it_was_in_memory(tmp_path: Path) -> None:
    """The record has the config that was given, and of the tensors no file and no digest."""
    tensors = tensors_of(SOURCE)
    config = json.loads((SOURCE / "config.json").read_text()) | {"use_cache": False}
    sources = {"model": InMemory(tensors, config, SOURCE), "vision_tower": CLIP}
    result = llava_remap.apply("llava-v1.5", sources, "out")
    record = json.loads(Path("out", RECORD).read_text())
    said = record["sources"]["model"]
    assert said["location"] == f"tensors in memory, with the files of {SOURCE}"
    assert not any(name.endswith((".safetensors", ".bin")) for name in said["files"])
    assert json.loads(said["texts"]["config.json"]) == config
    assert record["plan"]["sources"]["model"]["location"] == said["location"]

    assert llava_remap.verify(result.output, sources).problems == ()
    assert refusal(lambda: llava_remap.verify(result.output, {}))[0] == "LR211"
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    [problem] = llava_remap.verify(result.output, sources).problems
    assert (problem.code, len(problem.names)) == ("LR602", 1)

    tensors = tensors_of(SOURCE)
    llava_remap.revert("out", "back")
    back = load_file("back/model/model-00001-of-00001.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in back.items())
    assert json.loads(Path("back/model/config.json").read_text()) == config


def test_a_tensor_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    """Between plan and run, and while the job runs; nothing is left of it."""
    tensors = tensors_of(SOURCE)
    sources = {"model": InMemory(tensors, folder=SOURCE), "vision_tower": CLIP}

    def train(nbytes: int) -> None:
        tensors["model.norm.weight"].add_(1)

    job = llava_remap.plan("llava-v1.5", sources, "out")
    tensors["model.norm.weight"].add_(1)
    said = ("LR102", "`model.norm.weight`: changed since it was opened.")
    assert refusal(job.run) == said
    job = llava_remap.plan("llava-v1.5", sources, "out")
    assert refusal(lambda: job.run(train)) == said
    assert not Path("out").exists()
    llava_remap.plan("llava-v1.5", sources, "out").run()


def test_it_has_no_path_and_can_t_be_resumed() -> None:
    sources = {"model": InMemory(tensors_of(SOURCE), folder=SOURCE), "vision_tower": CLIP}
    code, cause = refusal(lambda: llava_remap.plan("llava-v1.5", sources))
    assert (code, cause.startswith("source `model` is in memory")) == ("LR211", True)
    code, cause = refusal(lambda: llava_remap.plan("llava-v1.5", sources, "out", resume=True))
    assert (code, cause.startswith("source `model` is in memory")) == ("LR211", True)
    code, _ = refusal(
        lambda: llava_remap.plan("llava-v1.5", InMemory(tensors_of(SOURCE), folder="nowhere"), "o")
    )
    assert code == "LR100"


def test_the_folder_beside_it_is_a_source_that_is_never_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "beside"
    shutil.copytree(SOURCE, folder)
    sources = {"model": InMemory(tensors_of(SOURCE), folder=folder), "vision_tower": CLIP}
    [problem] = llava_remap.plan("llava-v1.5", sources, folder / "out").plan.problems
    assert problem.code == "LR508"


def test_a_loaded_model_shares_no_memory_with_it() -> None:
    tensors = tensors_of(SOURCE)
    sources = {"model": InMemory(tensors, folder=SOURCE), "vision_tower": CLIP}
    model = llava_remap.load_model("llava-v1.5", sources)
    other = llava_remap.load_model("llava-v1.5", {"model": SOURCE, "vision_tower": CLIP})
    wanted = other.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())


def test_an_adapter_in_memory_is_merged() -> None:
    """With PEFT's config from its folder, and what was trained beside it in the same dict."""
    pairs = {
        **torch.load(LORA / "adapter_model.bin", weights_only=True),
        **torch.load(LORA / "non_lora_trainables.bin", weights_only=True),
    }
    adapter = InMemory(pairs, folder=LORA)
    for name, source in (("disk", LORA), ("memory", adapter)):
        llava_remap.apply(
            "llava-v1.5", {"model": SOURCE, "adapter": source, "vision_tower": CLIP}, name
        )
    one, other = weights(Path("memory")), weights(Path("disk"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_convert_inspect_and_diff_take_it() -> None:
    in_memory = InMemory(tensors_of(SOURCE), folder=SOURCE)
    llava_remap.convert(in_memory, "memory", sources={"vision_tower": CLIP})
    llava_remap.apply("llava-v1.5", {"model": SOURCE, "vision_tower": CLIP}, "disk")
    assert contents(Path("memory")) == contents(Path("disk"))
    said = refusal(lambda: llava_remap.convert(in_memory, sources={"vision_tower": CLIP}))
    assert said == (
        "LR211",
        "source `model` is in memory, so it has no path from which the output could get its name.",
    )
    found, wanted = (llava_remap.inspect(source) for source in (in_memory, SOURCE))
    assert found.fits == wanted.fits
    assert llava_remap.diff(in_memory, SOURCE).equal


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (7, "the sources are of type int"),
        (None, "the sources are of type NoneType"),
        (torch.zeros(3), "the sources are of type Tensor"),
        ([torch.zeros(3)], "a source is of type Tensor"),
        ({"model": 7}, "a source is of type int"),
        ({"model": {"a": 7}}, "a source is a dict without a tensor"),
        ({"model": {}}, "a source is an empty dict"),
        ({}, "the sources are an empty dict"),
        ({"a": torch.zeros(3), "b": 7}, "`b` has a value of type int"),
        ({"modle": {"a": torch.zeros(3)}}, "there is no source `modle`"),
    ],
)
def test_other_sources_are_refused_in_words(sources: Any, words: str) -> None:
    code, cause = refusal(lambda: llava_remap.plan("llava-v1.5", sources, "out"))
    assert (code, words in cause) == ("LR211", True), cause
    assert "tensor(" not in cause


def test_a_dict_of_paths_needs_no_names_in_its_paths(tmp_path: Path) -> None:
    """A path with an equals sign is a path."""
    shutil.copytree(SOURCE, tmp_path / "model=1")
    job = llava_remap.plan("llava-v1.5", {"model": "model=1", "vision_tower": CLIP}, "out")
    assert job.plan.complete
    assert job.checkpoints["model"].path == Path("model=1")
