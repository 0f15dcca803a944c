"""Tensors in memory: where they lie, what of them is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llava_remap.checkpoint import InMemory, open_checkpoint, open_in_memory
from llava_remap.core import RemapError
from llava_remap.core.dtypes import DTYPES

BASE = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4)
#: Views of one tensor as a program may hold them.
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda t: t,
    "parameter": torch.nn.Parameter,
    "transposed": lambda t: t.permute(3, 1, 0, 2),
    "every second": lambda t: t[:, :, ::2],
    "a column": lambda t: t[0, 0, :, 2],
    "expanded": lambda t: t[:, :1].expand(2, 7, 5, 4),
    "one number": lambda t: t[1, 2, 3, 3],
    "nothing": lambda t: t[:0],
    "with its sign bit aside": lambda t: torch.conj(torch.complex(t, t)).imag,
}


def tensors_of_every_dtype() -> dict[str, torch.Tensor]:
    return {
        f"n.{name}": (torch.arange(6).reshape(2, 3) % 2).to(getattr(torch, dtype.torch))
        for name, dtype in DTYPES.items()
    }


def test_a_tensor_has_the_place_that_safetensors_gives_it(tmp_path: Path) -> None:
    """So the same plan follows as from the file, and the same padding of headers."""
    tensors = {
        **tensors_of_every_dtype(),
        "é\n\x7f\U0001f600": torch.zeros(3),
        "a": torch.zeros(()),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    wanted = open_checkpoint(tmp_path / "model.safetensors").catalog
    found = open_in_memory("model", InMemory(tensors)).catalog
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        (one,), (other,) = found[name].pieces, tensor.pieces
        assert one.location.offset == other.location.offset


@pytest.mark.parametrize("dtype", [dtype.torch for dtype in DTYPES.values()])
@pytest.mark.parametrize("view", [view for view in VIEWS if view != "with its sign bit aside"])
@settings(max_examples=10)
@given(data=st.data())
def test_any_run_of_bytes_is_that_of_a_contiguous_copy(
    view: str, dtype: str, data: st.DataObject
) -> None:
    kind = getattr(torch, dtype)
    if view == "parameter" and not kind.is_floating_point:
        view = "whole"
    tensor = VIEWS[view]((BASE % 7).to(kind))
    memory = open_in_memory("model", InMemory({"a": tensor})).catalog["a"].pieces[0].location.memory
    assert memory is not None
    whole = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert memory.read(start, stop) == whole[start:stop]


def test_a_lazy_sign_is_applied() -> None:
    tensor = VIEWS["with its sign bit aside"](BASE)
    assert tensor.is_neg()
    location = open_in_memory("model", InMemory({"a": tensor})).catalog["a"].pieces[0].location
    assert location.memory is not None
    assert location.memory.read(0, 480) == (-BASE).numpy().tobytes()


def test_nothing_is_copied_when_it_is_opened() -> None:
    """An array of numpy and a view of torch are read where they lie."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"torch": BASE.permute(3, 1, 0, 2), "numpy": array}
    catalog = open_in_memory("model", InMemory(tensors)).catalog
    addresses = {
        name: tensor.pieces[0].location.memory.tensor.data_ptr()  # type: ignore[union-attr]
        for name, tensor in catalog.items()
    }
    assert addresses == {"torch": BASE.data_ptr(), "numpy": array.ctypes.data}


def test_arrays_of_numpy_may_be_read_only_and_reversed() -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    array.setflags(write=False)
    for given_array in (array, array[::-1], array.T):
        catalog = open_in_memory("model", InMemory({"a": given_array})).catalog
        memory = catalog["a"].pieces[0].location.memory
        assert memory is not None
        assert memory.read(0, 24) == given_array.tobytes()


def test_names_of_one_tensor_are_aliases_and_views_of_one_storage_are_not() -> None:
    tensors = {
        "a": BASE,
        "tied": torch.nn.Parameter(BASE),
        "view": BASE[0],
        "other shape": BASE.view(-1),
        "no elements": BASE[:0],
        "none either": BASE[:0],
    }
    assert open_in_memory("model", InMemory(tensors)).aliases == (("a", "tied"),)


def test_a_write_by_torch_is_noticed() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.nn.Parameter(torch.zeros(3)), "c": torch.zeros(3)}
    checkpoint = open_in_memory("model", InMemory(tensors))
    assert checkpoint.changed() == []
    with torch.no_grad():
        tensors["b"].add_(1)
    tensors["c"].data = torch.ones(3)
    assert checkpoint.changed() == ["b", "c"]


class Quantised(torch.Tensor):
    """A tensor whose values lie elsewhere."""

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


META = torch.zeros(3, device="meta")


@pytest.mark.parametrize(
    ("tensors", "code", "words"),
    [
        ({"a": META}, "LR106", "`a` is on the meta device"),
        ({"a": BASE[0, 0].to_sparse()}, "LR106", "`a` is torch.sparse_coo, not dense"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "LR106", "`a` has dtype `complex128`"),
        ({"a": np.zeros(2, dtype=">f4")}, "LR106", "`a` has dtype `>f4`"),
        ({"a": np.array(["x"])}, "LR106", "`a` has dtype `<U1`"),
        (
            {"a": torch.Tensor._make_wrapper_subclass(Quantised, (3,))},
            "LR106",
            "`a` is a Quantised, which doesn't hold its own values",
        ),
        ({"a": BASE, "b": [1.0]}, "LR211", "`b` has a value of type list"),
        ({"a": BASE, 7: BASE}, "LR211", "a key of type int"),
        ([BASE], "LR211", "is of type list"),
        ({}, "LR106", "holds no tensor"),
        ({"a" * 501: BASE}, "LR102", "longer than 500 characters"),
        ({"\ud800": BASE}, "LR102", "not valid Unicode"),
        ({"model.layers.0.q.weight": BASE, "model.layers.0.q.qweight": BASE}, "LR106", "quantised"),
    ],
)
def test_what_has_no_bytes_or_no_name_is_refused_in_words(
    tensors: dict[str, object], code: str, words: str
) -> None:
    with pytest.raises(RemapError) as caught:
        open_in_memory("model", InMemory(tensors))
    [problem] = caught.value.problems
    assert (problem.code, words in problem.cause) == (code, True), problem.cause
    assert "tensor(" not in str(caught.value)


@pytest.mark.parametrize("config", [{"a": {1, 2}}, {"a": float("nan")}, [1], "config.json"])
def test_a_config_that_is_no_object_is_refused(config: object) -> None:
    with pytest.raises(RemapError) as caught:
        open_in_memory("model", InMemory({"a": BASE}, config=config))
    assert [problem.code for problem in caught.value.problems] == ["LR211"]


def test_a_config_of_transformers_is_the_file_that_it_writes(tmp_path: Path) -> None:
    from transformers import LlavaConfig

    config = LlavaConfig(image_token_index=7)
    config.save_pretrained(tmp_path)
    checkpoint = open_in_memory("model", InMemory({"a": BASE}, config=config))
    assert checkpoint.config == json.loads((tmp_path / "config.json").read_text())
