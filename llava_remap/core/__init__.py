"""The base of all rooms: problems and their codes, dtypes, names, files, the cache, libraries and
limits of the system.
"""

from llava_remap.core.codes import CODES, Exit
from llava_remap.core.dtypes import DTYPE_BITS, FLOATS
from llava_remap.core.escaped import printable, quote
from llava_remap.core.problem import EndedBySignal, Mark, Problem, RemapError, refuse
from llava_remap.core.wording import (
    amounts,
    counted,
    fold_groups,
    fold_names,
    quoted,
    several,
    size,
)

__all__ = [
    "CODES",
    "DTYPE_BITS",
    "EndedBySignal",
    "Exit",
    "FLOATS",
    "Mark",
    "Problem",
    "RemapError",
    "amounts",
    "counted",
    "fold_groups",
    "fold_names",
    "printable",
    "quote",
    "quoted",
    "refuse",
    "several",
    "size",
]
