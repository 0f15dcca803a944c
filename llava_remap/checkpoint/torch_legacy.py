"""One torch file from before 1.6: five pickles, then the storages, each behind its number of
elements.

The pickles: a magic number, the protocol's version, facts about the machine, the value, the keys of
the storages in the order in which they follow. Format: `_legacy_save` in torch/serialization.py,
`THPStorage_writeFileRaw` in torch/csrc/serialization.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from llava_remap.checkpoint.catalog import Tensor
from llava_remap.checkpoint.errors import corrupt
from llava_remap.checkpoint.state_dict import StateDict, find_state_dict, place
from llava_remap.checkpoint.torch_pickle import LARGEST, STORAGES, Storage, unpickle
from llava_remap.core.problem import refuse
from llava_remap.core.wording import quoted

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_torch_legacy(file: Path) -> tuple[list[Tensor], StateDict]:
    """The tensors of `file`, by offset, and the state dict they stand in. Reads the pickles and 8
    bytes of each storage.

    Never big-endian: whatever the machine, torch wrote counts and elements of this format with the
    low byte first.

    Raises:
        RemapError: LR102, LR105, LR106.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:

        def pickled() -> object:
            return unpickle(stream, min(size - stream.tell(), LARGEST), file.name).value

        if pickled() != _MAGIC:
            raise refuse(
                "LR106",
                f"{quoted(file.name)} is a pickle, but not one of torch's: the magic number "
                "is missing.",
                "Give a file that was saved with `torch.save`.",
            )
        if pickled() != _PROTOCOL:
            raise corrupt(
                file, f"the protocol's version in it is not {_PROTOCOL}, the only one there is"
            )
        pickled()  # the machine's byte order and sizes, of which nothing in the file depends
        content = unpickle(stream, min(size - stream.tell(), LARGEST), file.name)
        state = find_state_dict(content.value, file)
        places = _places(stream, file, size, content.storages, pickled())

    tensors = []
    for name, found in state.tensors.items():
        if found.storage.key not in places:
            raise corrupt(
                file,
                f"the storage {quoted(found.storage.key)} of {quoted(name)} is not in it",
                name,
            )
        tensors.append(place(name, found, file, places[found.storage.key]))
    return sorted(
        tensors, key=lambda tensor: tensor.location.offset if tensor.location else 0
    ), state


def _places(
    stream: BinaryIO, file: Path, size: int, storages: dict[str, Storage], keys: object
) -> dict[str, tuple[int, int]]:
    """Offset from the start of the file and size in bytes of each storage; `stream` stands where
    they begin.
    """
    if not isinstance(keys, list) or not all(
        isinstance(key, str) and key in storages for key in keys
    ):
        raise corrupt(file, "its list of storages names one that no tensor has")
    places: dict[str, tuple[int, int]] = {}
    at = stream.tell()
    for key in keys:
        storage = storages[key]
        stream.seek(at)
        prefix = stream.read(8)
        count = int.from_bytes(prefix, "little")
        # The unit is an element of the type with which the storage was mentioned first, both in
        # torch's writer and its reader.
        start, nbytes = at + 8, count * STORAGES[storage.kind][0]
        if start + nbytes > size or len(prefix) < 8:
            raise corrupt(
                file,
                f"the storage {quoted(key)} ends at byte {start + nbytes}, the file has {size}",
            )
        if count != storage.numel:
            raise corrupt(
                file, f"the storage {quoted(key)} has {count} elements, the pickle says otherwise"
            )
        if key in places:
            raise corrupt(file, f"the storage {quoted(key)} is in it twice")
        places[key] = (start, nbytes)
        at = start + nbytes
    return places
