"""The catalogs of genuine checkpoints, against torch's and safetensors' own readers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch._subclasses.fake_tensor import FakeTensorMode

from llava_remap.checkpoint import Checkpoint, open_checkpoint
from llava_remap.checkpoint.weight_file import read_weight_file

from .stored import SPELLING, TINY, same

FORMS = {
    "llava-v1.5/released": (
        "bin",
        "safetensors",
        "sharded",
        "sharded_safetensors",
        "../legacy_pickle",
    ),
    "llava-v1.6-mistral": ("bin", "safetensors", "sharded", "sharded_safetensors"),
    "llava-onevision": ("bin", "safetensors", "sharded", "sharded_safetensors"),
}
TORCH_ZIPS = [
    file for file in sorted(TINY.rglob("*.bin")) if "legacy_pickle" not in file.parts
]  # adapters and projectors among them
SAFETENSORS = sorted(TINY.rglob("*.safetensors"))
LEGACY = TINY / "llava-v1.5" / "legacy_pickle" / "pytorch_model.bin"


def relative(path: Path) -> str:
    return str(path.relative_to(TINY))


def facts(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.catalog.items()}


def test_the_data_is_there() -> None:
    assert len(TORCH_ZIPS) >= 15
    assert len(SAFETENSORS) >= 12


@pytest.mark.parametrize("file", TORCH_ZIPS, ids=relative)
def test_torch_zip_is_what_torch_says(file: Path) -> None:
    found = {tensor.name: tensor for tensor in read_weight_file(file).tensors}
    with FakeTensorMode():
        fakes = torch.load(file, weights_only=True)
    values = torch.load(file, weights_only=True)
    assert found.keys() == fakes.keys()
    for name, fake in fakes.items():
        tensor = found[name]
        assert (tensor.dtype, tensor.shape) == (SPELLING[fake.dtype], tuple(fake.shape))
        assert tensor.location is not None
        start = fake.untyped_storage()._checkpoint_offset
        assert tensor.location.offset == start + fake.storage_offset() * fake.element_size()
        assert tensor.location.storage == (start, fake.untyped_storage().nbytes())
        assert tensor.location.stride == (None if fake.is_contiguous() else fake.stride())
        assert not tensor.location.big_endian
        assert same(tensor, values[name])


def test_legacy_file_is_what_torch_says() -> None:
    found = {tensor.name: tensor for tensor in read_weight_file(LEGACY).tensors}
    values = torch.load(LEGACY, weights_only=True)
    assert found.keys() == values.keys()
    assert all(same(found[name], value) for name, value in values.items())


@pytest.mark.parametrize("file", SAFETENSORS, ids=relative)
def test_safetensors_is_what_safetensors_says(file: Path) -> None:
    found = {tensor.name: tensor for tensor in read_weight_file(file).tensors}
    with safe_open(file, "pt") as reference:
        assert found.keys() == set(reference.keys())
        assert all(same(found[name], reference.get_tensor(name)) for name in found)


@pytest.mark.parametrize("model", FORMS)
def test_all_forms_of_a_model_give_one_catalog(model: str) -> None:
    first, *others = [open_checkpoint(TINY / model / form) for form in FORMS[model]]
    assert len(facts(first)) > 20
    for other in others:
        assert facts(other) == facts(first), other.form
        for name, tensor in other.catalog.items():
            assert tensor.nbytes == first.catalog[name].nbytes


@pytest.mark.parametrize("model", FORMS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_forms_of_a_model_give_the_same_bytes(model: str, number: int) -> None:
    first = torch.load(TINY / model / "bin" / "pytorch_model.bin", weights_only=True)
    other = open_checkpoint(TINY / model / FORMS[model][number])
    assert all(same(tensor, first[name]) for name, tensor in other.catalog.items())


@pytest.mark.parametrize(
    ("folder", "form", "tensors"),
    [
        ("llava-v1.5/released/bin", "torch .bin (pytorch_model.bin)", 27),
        ("llava-v1.5/released/safetensors", "safetensors (model.safetensors)", 27),
        ("llava-v1.5/released/sharded", "torch .bin, 2 shards (pytorch_model.bin.index.json)", 27),
        (
            "llava-v1.5/released/sharded_safetensors",
            "safetensors, 2 shards (model.safetensors.index.json)",
            27,
        ),
        ("llava-v1.5/legacy_pickle", "torch .bin from before 1.6 (pytorch_model.bin)", 27),
        ("llava-v1.5/full_state_dict", "torch .bin (model_state_dict.bin)", 82),
        ("llava-v1.6-mistral/sharded", "torch .bin, 3 shards (pytorch_model.bin.index.json)", 81),
        ("llava-onevision/bin", "torch .bin (pytorch_model.bin)", 69),
        ("siglip-tiny-patch14-28", "safetensors (model.safetensors)", 104),
    ],
)
def test_what_a_folder_is(folder: str, form: str, tensors: int) -> None:
    checkpoint = open_checkpoint(TINY / folder)
    assert (checkpoint.form, len(checkpoint.catalog)) == (form, tensors)
    assert checkpoint.folder == checkpoint.path == TINY / folder
    assert checkpoint.config is not None
    assert checkpoint.config["hidden_size" if "llava" in folder else "model_type"] in (64, "siglip")
    assert checkpoint.passed_over == ()


@pytest.mark.parametrize("form", ["bin", "sharded", "sharded_safetensors"])
def test_catalog_is_in_the_order_of_files_and_offsets(form: str) -> None:
    checkpoint = open_checkpoint(TINY / "llava-v1.6-mistral" / form)
    order = [
        (t.location.file.name, t.location.offset) for t in checkpoint.catalog.values() if t.location
    ]
    assert len(order) == len(checkpoint.catalog)
    assert order == sorted(order)
    assert [file.name for file in checkpoint.files] == sorted({name for name, _ in order})


def test_an_index_or_a_file_given_by_name_stands_for_its_folder() -> None:
    folder = TINY / "llava-v1.5" / "released" / "sharded"
    assert facts(open_checkpoint(folder / "pytorch_model.bin.index.json")) == facts(
        open_checkpoint(folder)
    )
    alone = open_checkpoint(folder / "pytorch_model-00002-of-00002.bin")
    assert 0 < len(alone.catalog) < 27
    assert alone.folder == folder
    assert alone.config == open_checkpoint(folder).config
