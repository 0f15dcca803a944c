"""`load_model` gives the model that the folder written by `apply` gives, from the sources' own
files, and writes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import llava_remap
from llava_remap import RemapError, load_model
from llava_remap.jobs import load
from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Changed, Tensors
from tests.end_to_end.test_apply import FORMS, interleave, logits  # noqa: F401

LLAVA = TINY / "llava-v1.5"
TOWER = f"vision_tower={CLIP}"
SIGLIP = f"vision_tower={TINY / 'siglip-tiny-patch14-28'}"
EXPANDED = ("model.language_model.embed_tokens.weight", "lm_head.weight")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def equal_to_the_folder(rules: str, sources: list[str]) -> tuple[Any, Any]:
    """The model loaded from the sources, and the one loaded from the folder that `apply` writes:
    asserted to be the same.
    """
    model = load_model(rules, sources)
    apply(rules, sources, "out")
    other = AutoModelForImageTextToText.from_pretrained("out", dtype="auto")
    assert type(model) is type(other)
    assert not model.training
    assert not other.training
    for part in (torch.nn.Module.named_parameters, torch.nn.Module.named_buffers):
        found, wanted = dict(part(model)), dict(part(other))
        assert list(found) == list(wanted)
        for name, tensor in wanted.items():
            same = (found[name].dtype, found[name].shape, found[name].requires_grad)
            assert same == (tensor.dtype, tensor.shape, tensor.requires_grad)
            assert bits(found[name]) == bits(tensor), name
    assert {**model.config.to_dict(), "_name_or_path": ""} == {
        **other.config.to_dict(),
        "_name_or_path": "",
    }
    assert model.generation_config.to_dict() == other.generation_config.to_dict()
    return model, other


def strided(state: Tensors) -> None:
    """As `.T` leaves it; the embeddings, which are changed after the rename, among them."""
    for name in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"):
        state[name] = state[name].T.contiguous().T


def big_endian(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    sizes = {str(number): tensor.element_size() for number, tensor in enumerate(state.values())}
    old = file.rename(file.with_suffix(".old"))
    with zipfile.ZipFile(old) as archive, zipfile.ZipFile(file, "w") as new:
        for record in archive.infolist():
            data, (*folders, name) = archive.read(record), record.filename.split("/")
            if folders[-1] == "data":
                size = sizes[name]
                data = b"".join(data[at : at + size][::-1] for at in range(0, len(data), size))
            new.writestr(record.filename, b"big" if name == "byteorder" else data)
    old.unlink()
    again = torch.load(file, weights_only=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def unaligned(file: Path) -> None:
    """A header of an odd length: no tensor begins at a multiple of its element's size."""
    data = file.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    file.write_bytes(
        struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :]
    )
    assert load_file(file).keys()


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    """LLaVA-1.5 in the form of a name: one of `FORMS`, one dumped state dict, or the .bin made
    unusual.
    """

    def make(form: str) -> Path:
        folder = tmp_path / "source"
        if form == "full_state_dict":
            return shutil.copytree(LLAVA / form, folder)
        if form == "unaligned":
            shutil.copytree(RELEASED / "safetensors", folder)
            unaligned(folder / "model.safetensors")
            return folder
        shutil.copytree(FORMS.get(form, RELEASED / "bin"), folder)
        if form == "strided":
            state = torch.load(folder / "pytorch_model.bin", weights_only=True)
            strided(state)
            torch.save(state, folder / "pytorch_model.bin")
        elif form == "big-endian":
            big_endian(folder / "pytorch_model.bin")
        return folder

    return make


@pytest.mark.parametrize("form", [*FORMS, "full_state_dict", "strided", "big-endian", "unaligned"])
def test_it_is_the_model_of_the_folder(form: str, source: Callable[[str], Path]) -> None:
    """Names, dtypes, values, config; and what both compute of a picture and a sentence. The
    dumped tower is float32.
    """
    sources = [
        str(source(form)),
        TOWER,
        f"language_model={RELEASED / 'bin'}",
    ]  # the last one for its tokenizer
    model, other = equal_to_the_folder("llava-v1.5", sources)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float16}
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in model.parameters())
    found, wanted = logits(model.float(), Path("out")), logits(other.float(), Path("out"))
    assert torch.isfinite(found).all()
    assert torch.equal(found, wanted)


def test_interleave(interleave: Callable[..., Path]) -> None:  # noqa: F811
    """bfloat16, a dropped tensor, a SigLIP tower, and no tokenizer."""
    model, other = equal_to_the_folder("llava-interleave", [str(interleave()), SIGLIP])
    tokens = torch.tensor([[1, *[model.config.image_token_id] * 4, 5, 6]])
    picture = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = (
            m.float()(input_ids=tokens, pixel_values=picture).logits for m in (model, other)
        )
    assert torch.isfinite(found).all()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("stored", [True, False])
def test_a_tied_head(stored: bool, interleave: Callable[..., Path]) -> None:  # noqa: F811
    def tie(tensors: Tensors) -> None:
        tensors.pop("lm_head.weight", None)
        if stored:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    model, _ = equal_to_the_folder(
        "llava-interleave", [str(interleave(tie, tie_word_embeddings=True)), SIGLIP]
    )
    assert model.lm_head.weight is model.get_input_embeddings().weight


def mapped(files: set[Path]) -> list[range]:
    """The addresses at which files are mapped into this process."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    spans = (
        fields[0].split("-")
        for fields in lines
        if len(fields) == 6 and Path(fields[5].strip()) in files
    )
    return [range(int(start, 16), int(end, 16)) for start, end in spans]


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="the kernel doesn't say what is mapped"
)
@pytest.mark.parametrize("form", ["bin", "safetensors", "sharded"])
def test_what_is_only_renamed_lies_in_the_files(
    form: str, source: Callable[[str], Path], changed: Changed
) -> None:
    def half(tensors: Tensors) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    folder, tower = source(form), changed(CLIP, tensors=half)
    model = load_model("llava-v1.5", [str(folder), f"vision_tower={tower}"])
    spans = mapped({*folder.iterdir(), *tower.iterdir()})
    outside = {
        name
        for name, tensor in model.named_parameters()
        if not any(
            tensor.data_ptr() in span and tensor.data_ptr() + tensor.nbytes <= span.stop
            for span in spans
        )
    }
    assert outside == set(EXPANDED)


def test_the_sources_stay_as_they_are_when_the_model_is_changed(
    source: Callable[[str], Path],
) -> None:
    folder = source("safetensors")
    before = {file.name: hashlib.sha256(file.read_bytes()).digest() for file in folder.iterdir()}
    model = load_model("llava-v1.5", [str(folder), TOWER])
    norm = model.model.language_model.norm.weight
    old = norm.detach().clone()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(1)
    assert torch.equal(norm, old + 1)
    del model
    assert {
        file.name: hashlib.sha256(file.read_bytes()).digest() for file in folder.iterdir()
    } == before
    again = load_model("llava-v1.5", [str(folder), TOWER])
    assert torch.equal(again.model.language_model.norm.weight, old)


def test_nothing_is_written_and_no_output_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk, and a file where `apply` would make its folder."""
    Path("safetensors-hf").write_text("here")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: pytest.fail("the disk doesn't matter"))
    load_model("llava-v1.5", [str(RELEASED / "safetensors"), TOWER])
    assert [path.name for path in tmp_path.rglob("*")] == ["safetensors-hf"]


def refused(sources: list[str], rules: str = "llava-v1.5") -> list[str]:
    with pytest.raises(RemapError) as caught:
        load_model(rules, sources)
    return [problem.code for problem in caught.value.problems]


def test_an_incomplete_plan(changed: Changed) -> None:
    def lacking(tensors: Tensors) -> None:
        tensors["model.more.weight"] = tensors.pop("model.norm.weight")

    assert refused([str(changed(tensors=lacking)), TOWER]) == ["LR301", "LR302"]


def test_values_are_checked(changed: Changed) -> None:
    def poison(tensors: Tensors) -> None:
        tensors["model.embed_tokens.weight"][7, 3] = float("inf")

    assert refused([str(changed(tensors=poison)), TOWER]) == ["LR406"]


def test_a_manifest() -> None:
    assert refused([str(MANIFESTS / "llava-v1.5-7b.json")]) == ["LR111"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("multi_modal_projector.linear_1.bias"), ["missing"]),
        (lambda state: state.update({"more.weight": torch.ones(1)}), ["unexpected"]),
        (
            lambda state: state.update({"multi_modal_projector.linear_1.bias": torch.ones(3)}),
            ["mismatched"],
        ),
    ],
)
def test_the_loader_disagrees(
    change: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load._state_dict

    def other(job: Any) -> Any:
        state = made(job)
        change(state)
        return state

    monkeypatch.setattr(load, "_state_dict", other)
    with pytest.raises(RemapError) as caught:
        load_model("llava-v1.5", [str(RELEASED / "safetensors"), TOWER])
    assert [problem.code for problem in caught.value.problems] == ["LR601"] * len(said)
    assert all(
        f"1 names as {what}" in problem.cause
        for what, problem in zip(said, caught.value.problems, strict=True)
    )


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_source_that_changes_meanwhile(
    moment: str, source: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model is made, its file becomes shorter, or its config is written again."""
    folder, made = source("safetensors"), load._state_dict

    def meanwhile(job: Any) -> Any:
        if moment == "before":
            with (folder / "model.safetensors").open("r+b") as file:
                file.truncate(100_000)
            return made(job)
        state = made(job)
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "rope_theta": 5.0}))
        return state

    monkeypatch.setattr(load, "_state_dict", meanwhile)
    assert refused([str(folder), TOWER]) == ["LR102"]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOMEM, "LR501"), (errno.EIO, "LR102")])
def test_a_file_that_cannot_be_mapped(
    number: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, "no")

    monkeypatch.setattr(mmap, "mmap", fails)
    assert refused([str(RELEASED / "safetensors"), TOWER]) == [code]


def test_it_is_public_and_costs_nothing_until_it_is_used() -> None:
    assert llava_remap.load_model is load_model
    program = (
        "import sys, llava_remap; llava_remap.load_model; print({'torch', 'transformers'} & "
        "set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


def test_a_source_can_be_a_path() -> None:
    assert llava_remap.plan("llava-v1.5", [RELEASED / "bin", f"vision_tower={CLIP}"]).plan.complete
