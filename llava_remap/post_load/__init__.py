"""Post-load rules: plug-ins that change or make tensors after the rename.

This module exports everything that a plug-in needs: the protocol (`PostLoadRule`, with its
arguments and results), dtypes and their conversion, and the means to refuse.
"""

from llava_remap.core.dtypes import DTYPE_BITS, FLOATS, from_float64, is_finite, to_float64
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.post_load.protocol import Before, Change, Effect, OldBytes, PostLoadRule, Reader

__all__ = [
    "DTYPE_BITS",
    "FLOATS",
    "Before",
    "Change",
    "Effect",
    "OldBytes",
    "PostLoadRule",
    "Problem",
    "Reader",
    "RemapError",
    "from_float64",
    "is_finite",
    "refuse",
    "to_float64",
]
