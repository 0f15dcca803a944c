"""Every kind of value that torch saves, in every way to save it: read as `torch.load` reads it,
byte by byte, or refused.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_remap.checkpoint import Catalog, open_checkpoint
from llava_remap.core.problem import Problem, RemapError

from .stored import SPELLING, raw, stored


class Sub(Tensor):
    pass


class SubParameter(torch.nn.Parameter):
    pass


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (
        torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape).to(dtype)
    )


def of_bytes(dtype: torch.dtype, nbytes: int = 48) -> Tensor:
    return torch.arange(nbytes, dtype=torch.uint8).view(dtype)


def complex_numbers(dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.complex(numbers(3, 4), -numbers(3, 4)).to(dtype)


def hooked() -> Tensor:
    made = numbers(3).requires_grad_()
    made.register_hook(print)  # type: ignore[no-untyped-call]
    return made


def with_attribute() -> Tensor:
    made = numbers(3)
    made.note = "something"  # type: ignore[attr-defined]
    return made


def per_channel() -> Tensor:
    return torch.quantize_per_channel(numbers(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8)


def fake() -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(3)


DTYPES = [name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)]
KINDS: dict[str, Callable[[], Any]] = {
    **{f"of {name}": partial(of_bytes, getattr(torch, name)) for name in DTYPES},
    "zero-dimensional": lambda: torch.tensor(3.5),
    "of one": lambda: numbers(1),
    "empty": lambda: torch.empty(0),
    "empty, with sides": lambda: torch.empty(0, 3, 0),
    "an empty view": lambda: numbers(6)[3:3],
    "an empty view at the end": lambda: numbers(6)[6:],
    "transposed": lambda: numbers(3, 4).t(),
    "permuted": lambda: numbers(2, 3, 4, 5).permute(3, 1, 0, 2),
    "channels last": lambda: numbers(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: numbers(3, 1).expand(3, 4),
    "expanded, of one": lambda: torch.tensor(2.5).expand(5, 5),
    "every second": lambda: numbers(10)[::2],
    "every second row, from the second": lambda: numbers(6, 4)[1::2, 1:],
    "narrowed": lambda: numbers(6, 8).narrow(1, 2, 3),
    "the diagonal": lambda: numbers(4, 4).diagonal(),
    "overlapping": lambda: numbers(8).unfold(0, 4, 1),
    "strided by hand": lambda: torch.as_strided(numbers(20), (3, 2), (5, 2), 4),
    "a row": lambda: numbers(6, 4)[3],
    "a number of a matrix": lambda: numbers(6, 4)[3, 2],
    "another dtype's view": lambda: numbers(3, 4).view(torch.uint8),
    "a wider dtype's view": lambda: numbers(4).half()[:4].view(torch.float32),
    "bytes inside floats": lambda: numbers(4).view(torch.uint8)[3:11],
    "conjugate": lambda: complex_numbers().conj(),
    "conjugate, transposed": lambda: complex_numbers().t().conj(),
    "negative": lambda: torch._neg_view(numbers(3, 4)),
    "real parts": lambda: complex_numbers().real,
    "imaginary parts": lambda: complex_numbers().imag,
    "imaginary parts of a conjugate": lambda: complex_numbers().conj().imag,
    "pairs of complex numbers": lambda: torch.view_as_real(complex_numbers()),
    "conjugate of 128 bits": lambda: complex_numbers(torch.complex128).conj(),
    "quantised": lambda: torch.quantize_per_tensor(numbers(2, 3), 0.5, 3, torch.quint8),
    "quantised in 32 bits": lambda: torch.quantize_per_tensor(numbers(2, 3), 0.5, 3, torch.qint32),
    "quantised by channel": per_channel,
    "sparse": lambda: numbers(3, 4).to_sparse(),
    "sparse, not coalesced": lambda: torch.sparse_coo_tensor(
        torch.zeros(2, 3, dtype=torch.int64), numbers(3), (3, 4)
    ),
    "sparse rows": lambda: numbers(4, 4).to_sparse_csr(),
    "sparse columns": lambda: numbers(4, 4).to_sparse_csc(),
    "sparse blocks of rows": lambda: numbers(4, 4).to_sparse_bsr((2, 2)),
    "sparse blocks of columns": lambda: numbers(4, 4).to_sparse_bsc((2, 2)),
    "nested": lambda: torch.nested.nested_tensor([numbers(2, 3), numbers(4, 3)]),
    "nested, jagged": lambda: torch.nested.nested_tensor(
        [numbers(2, 3), numbers(4, 3)], layout=torch.jagged
    ),
    "of MKL-DNN": lambda: numbers(3, 4).to_mkldnn(),
    "without values": lambda: torch.empty(3, 4, device="meta"),
    "fake": fake,
    "a parameter": lambda: torch.nn.Parameter(numbers(3, 4)),
    "a frozen parameter": lambda: torch.nn.Parameter(numbers(3, 4), requires_grad=False),
    "a parameter of a view": lambda: torch.nn.Parameter(numbers(3, 4).t()),
    "a parameter without a shape": lambda: torch.nn.UninitializedParameter(),
    "a parameter of a class of its own": lambda: SubParameter(numbers(3)),
    "a buffer": lambda: torch.nn.Buffer(numbers(3)),
    "with a gradient": lambda: numbers(3).requires_grad_(),
    "made in a graph": lambda: (numbers(3).requires_grad_() * 2).detach(),
    "with a hook": hooked,
    "with an attribute": with_attribute,
    "of a class of its own": lambda: numbers(3, 4).as_subclass(Sub),
    "with names of its sides": lambda: torch.zeros(3, 4, names=("a", "b")),  # type: ignore[call-overload]
    "pinned by nothing, shared": lambda: numbers(3).share_memory_(),  # type: ignore[no-untyped-call]
    "a storage": lambda: numbers(3).untyped_storage(),
    "a typed storage": lambda: numbers(3)._typed_storage(),  # type: ignore[no-untyped-call]
    "a list of tensors": lambda: [numbers(3), numbers(2)],
    "a module": lambda: torch.nn.Linear(2, 2),
    "an array": lambda: numbers(3).numpy(),
    "a number": lambda: 3,
    "nothing": lambda: None,
    "a dtype": lambda: torch.float16,
    "a size": lambda: torch.Size([2, 3]),
    "a device": lambda: torch.device("cpu"),
    "a generator's state": lambda: torch.get_rng_state(),
    "NaN and infinities": lambda: torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]),
}

State = dict[str, Any]
WAYS: dict[str, Callable[[State, Path], None]] = {
    "zip": lambda state, file: torch.save(state, file),
    "zip, protocol 5": lambda state, file: torch.save(state, file, pickle_protocol=5),
    "legacy": lambda state, file: torch.save(state, file, _use_new_zipfile_serialization=False),
    "legacy, protocol 5": lambda state, file: torch.save(
        state, file, pickle_protocol=5, _use_new_zipfile_serialization=False
    ),
    "in a wrapper": lambda state, file: torch.save({"state_dict": state, "epoch": 3}, file),
    "ordered": lambda state, file: torch.save(OrderedDict(state), file, pickle_protocol=3),
    "in two wrappers, legacy": lambda state, file: torch.save(
        {"model": OrderedDict(module=OrderedDict(state))}, file,
        _use_new_zipfile_serialization=False
    ),
}  # fmt: skip


def loaded(file: Path) -> dict[str, Any]:
    content = torch.load(file, weights_only=False)
    while (
        inner := next(
            (content[key] for key in ("state_dict", "model", "module") if key in content), None
        )
    ) is not None:
        content = inner
    return dict(content)


def as_stored(value: Tensor) -> Tensor:
    return value.detach().resolve_conj().resolve_neg()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_torch_reads_it_or_refused(kind: str, way: str, tmp_path: Path) -> None:
    """Beside a plain tensor, which shares its storage with one more."""
    plain = numbers(4, 3)
    file = tmp_path / "saved.bin"
    try:
        value = KINDS[kind]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            WAYS[way]({"plain": plain, "w": value, "row": plain[2]}, file)
            expected = loaded(file)
    except (
        Exception
    ) as error:  # whatever torch raises: of such values there are no files that it reads
        pytest.skip(f"torch doesn't make, save or load it: {error}")
    problems: tuple[Problem, ...] = ()
    found: Catalog = {}
    try:
        found = open_checkpoint(file).catalog
    except RemapError as error:
        problems = error.problems
    assert all("\n" not in problem.cause and problem.fix for problem in problems)
    if problems:
        assert kind not in MUST_BE_READ
        return
    tensors = {
        name: as_stored(value) for name, value in expected.items() if isinstance(value, Tensor)
    }
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        made = stored(found[name])
        assert (found[name].dtype, found[name].shape) == (
            SPELLING[tensor.dtype],
            tuple(tensor.shape),
        )
        assert raw(made) == raw(tensor)


#: What checkpoints do hold.
MUST_BE_READ = {
    *(
        f"of {name}"
        for name in (
            "float16",
            "bfloat16",
            "float32",
            "float64",
            "int64",
            "int32",
            "uint8",
            "bool",
            "complex64",
        )
    ),
    *(
        "zero-dimensional",
        "of one",
        "empty",
        "transposed",
        "permuted",
        "channels last",
        "expanded",
        "every second",
        "narrowed",
    ),
    *(
        "overlapping",
        "strided by hand",
        "a row",
        "a parameter",
        "a parameter of a view",
        "a frozen parameter",
        "with a gradient",
    ),
    *("NaN and infinities", "an empty view at the end"),
}
