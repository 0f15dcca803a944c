"""Reads tensors in memory as a checkpoint: the state dict of a model that is being trained.

Opening copies nothing. Each tensor keeps its memory, and has the place that
`safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})` would give it in a file. So
plan and output are the same as from that file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_remap.checkpoint.catalog import Location, Tensor
from llava_remap.checkpoint.elements import Memory
from llava_remap.checkpoint.source_file import unknown_dtype
from llava_remap.core import quoted, refuse
from llava_remap.core.dtypes import TORCH_DTYPES

if TYPE_CHECKING:
    import torch

#: The place of a checkpoint in memory, in reports and records.
IN_MEMORY = "tensors in memory"
_GIVE = "Give {tensor name: tensor}, as `model.state_dict()` does."
#: The order in which safetensors writes dtypes, wide ones first. Within a dtype, it orders by name.
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)


@dataclass(frozen=True, slots=True)
class InMemory:
    """Tensors in memory, with their config and the folder of the other files.

    Attributes:
        tensors: tensor name → `torch.Tensor` or numpy array, under the names of the research code.
            A tensor on another device is copied to the CPU a megabyte at a time.
        config: the config of the model: a dict, or a config object of transformers. None takes the
            `config.json` in `folder`.
        folder: where tokenizer, processor and generation config lie; weights in it are not read.
    """

    tensors: Mapping[str, Any] = field(repr=False)
    config: Any = field(default=None, repr=False)
    folder: str | Path | None = None

    def read_config(self) -> dict[str, Any] | None:
        """The config as the JSON object that transformers writes; None if none is given.

        Raises:
            RemapError: LR211 for a config that isn't a dict of JSON values.
        """
        try:
            written = getattr(self.config, "to_json_string", None)
            found = json.loads(written() if written else json.dumps(self.config, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise refuse(
                "LR211",
                f"the config of the {IN_MEMORY} can't be written as JSON: {error}.",
                "Give a dict, or the config of the model (`model.config`).",
            ) from None
        if not isinstance(found, dict | None):
            raise refuse(
                "LR211",
                f"the config of the {IN_MEMORY} is a {type(self.config).__name__}.",
                "Give a dict, or the config of the model (`model.config`).",
            )
        return found


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor or a numpy array. Imports neither library."""
    return hasattr(value, "dtype") and hasattr(value, "shape")


def catalog_of(file: Path, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The catalog of tensors in memory, in the order of a safetensors file.

    Args:
        file: the name that stands for the file in messages.

    Raises:
        RemapError: LR211 for something that isn't a tensor, LR106 for a tensor without bytes that
            can be read (on the meta device, sparse, distributed) or of another dtype.
    """
    if not isinstance(tensors, Mapping):
        raise refuse("LR211", f"{quoted(file.name)} is of type {type(tensors).__name__}.", _GIVE)
    memories = {name: _memory(file, name, value) for name, value in tensors.items()}
    dtypes = {name: _dtype(file, name, memory.tensor.dtype) for name, memory in memories.items()}
    names = sorted(memories, key=lambda name: (_ORDER.index(dtypes[name]), name))
    shapes = {name: tuple(memories[name].tensor.shape) for name in names}
    ends, end = {}, 0
    for name in names:
        start, end = end, end + memories[name].tensor.nbytes
        ends[name] = (start, end)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name in names:
        header[name] = {"dtype": dtypes[name], "shape": shapes[name], "data_offsets": ends[name]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    begin = 8 + len(text) + -len(text) % 8
    return {
        name: Tensor.of(
            name,
            dtypes[name],
            shapes[name],
            Location(
                file,
                begin + ends[name][0],
                None,
                False,
                memories[name].storage,
                memories[name],
            ),
        )
        for name in names
    }


def _memory(file: Path, name: object, value: object) -> Memory:
    """The elements of a value that was given as a tensor."""
    import torch

    if not isinstance(name, str) or not is_tensor(value):
        key = quoted(name) if isinstance(name, str) else f"a key of type {type(name).__name__}"
        raise refuse(
            "LR211",
            f"in {quoted(file.name)} {key} has a value of type {type(value).__name__}, but "
            "tensors by name are expected.",
            _GIVE,
        )
    if not isinstance(value, torch.Tensor):
        value = _from_numpy(file, name, value)
    if why := _unreadable(value):
        place = f"in {quoted(file.name)} the tensor {quoted(name)}"
        raise refuse("LR106", f"{place} {why[0]}.", why[1], [name])
    return Memory(value.resolve_conj().resolve_neg())


def _unreadable(tensor: torch.Tensor) -> tuple[str, str] | None:
    """Why the bytes of a tensor can't be read, and what to do; None if they can."""
    import torch

    if hasattr(tensor, "full_tensor"):
        return "is distributed over processes", "Give `tensor.full_tensor()`."
    if tensor.device.type == "meta":
        return "is on the meta device, without values", "Load the model's values first."
    if tensor.layout != torch.strided:
        return f"is {tensor.layout}, not dense", "Give `tensor.to_dense()`."
    # Subclasses with their own dispatch (quantised, fake) don't keep elements where a tensor does.
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return (
            f"is a {type(tensor).__name__}, which doesn't hold its own values",
            "Give a torch.Tensor.",
        )
    return None


def _from_numpy(file: Path, name: str, value: Any) -> torch.Tensor:
    import numpy as np
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that a read-only array could be written
            return torch.from_numpy(
                value if all(step >= 0 for step in value.strides) else np.ascontiguousarray(value)
            )
    except (AttributeError, TypeError, ValueError):
        raise unknown_dtype(file, name, str(value.dtype)) from None


def _dtype(file: Path, name: str, dtype: torch.dtype) -> str:
    said = str(dtype).removeprefix("torch.")
    found = next((ours for ours, torchs in TORCH_DTYPES.items() if torchs == said), None)
    if found is None:
        raise unknown_dtype(file, name, said)
    return found
