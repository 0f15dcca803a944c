"""Seeded values, the same for a tensor of one name and shape whatever else is in the checkpoint,
and on every machine.
"""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np

from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, from_float64
from llava_remap.core.problem import refuse
from llava_remap.post_load.plugins.normals import normals

STD = 0.05


def values(tensor: Tensor, seed: int, rope_theta: float) -> bytes:
    """The elements of a tensor, little-endian in row-major order.

    Normal numbers with a standard deviation of 0.05, in vectors of weights, which are those of
    norms, around 1; the numbers that stand in a buffer of frequencies or positions; zeros in any
    other one of whole numbers.

    Raises:
        RemapError: LR409 for a dtype that has no arithmetic (eight-bit floats, complex numbers).
    """
    count = prod(tensor.shape)
    if tensor.name.endswith("inv_freq") and tensor.dtype in FLOATS:
        return from_float64(rope_theta ** (-np.arange(count) / count), tensor.dtype)
    if tensor.dtype in FLOATS:
        digest = hashlib.sha256(f"{seed} {tensor.name}".encode()).digest()
        numbers = STD * normals(np.random.Philox(key=int.from_bytes(digest[:16], "little")), count)
        norm = len(tensor.shape) == 1 and tensor.name.endswith("weight")
        return from_float64(numbers + norm, tensor.dtype)
    if tensor.dtype.startswith(("F", "C")):
        raise refuse(
            "LR409",
            f"no values can be made in dtype {tensor.dtype}.",
            "Give the checkpoint in F16, BF16 or F32.",
            [tensor.name],
        )
    nbytes = DTYPE_BITS[tensor.dtype] // 8
    row = (
        range(tensor.shape[-1])
        if tensor.shape and tensor.name.endswith("position_ids")
        else [0] * count
    )
    one = b"".join(i.to_bytes(nbytes, "little") for i in row)
    return one * (count * nbytes // len(one)) if one else b""
