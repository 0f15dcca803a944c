"""Post-load rules: plug-ins that change or make tensors after the rename.

Everything that a plug-in needs is exported here: the protocol (`PostLoadRule`, with what it takes
and returns), dtypes and their conversion, and how a plug-in refuses.
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
