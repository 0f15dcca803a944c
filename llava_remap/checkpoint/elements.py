"""Reads the elements of a tensor in memory, like those of a tensor in a file."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Memory:
    """The elements of one tensor in memory. Two objects with the same `key` have the same elements
    at the same addresses.
    """

    __slots__ = ("_address", "_given", "_version", "tensor")

    def __init__(self, given: torch.Tensor) -> None:
        self._given = given
        self.tensor = given.detach()
        self._version, self._address = self._state()

    def _state(self) -> tuple[int | None, int]:
        """Values that change when torch writes into the tensor, or gives it another storage."""
        tensor = self._given
        return None if tensor.is_inference() else tensor._version, tensor.data_ptr()

    @property
    def has_changed(self) -> bool:
        """Whether torch wrote into the tensor since it was opened."""
        return self._state() != (self._version, self._address)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two names of one tensor."""
        tensor = self.tensor
        return tensor.device, self._address, tensor.dtype, tensor.shape, tensor.stride()

    @property
    def storage(self) -> tuple[int, int]:
        """Address and bytes of the storage that the tensor is a view of."""
        storage = self.tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()

    def read(self, start: int, stop: int) -> bytes:
        """Elements in row-major, little-endian order. `start` and `stop` count bytes from the first
        element. Only the rows with these bytes are copied.
        """
        import torch

        kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = self.tensor.view(kinds[self.tensor.element_size()])
        rows = bits.view(-1) if bits.is_contiguous() else bits
        width = max(1, prod(rows.shape[1:])) * bits.element_size()
        first, last = start // width, -(-stop // width)
        # numpy copies strided elements in this thread. torch would divide a megabyte among threads.
        data = rows[first:last].cpu().numpy().tobytes()
        return data[start - first * width : stop - first * width]
