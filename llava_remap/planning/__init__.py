"""Makes the plan and its coverage from program, catalogs, target and post-load shapes. Pure: no
files, no torch, no printing.
"""

from llava_remap.planning.back import Before, TakenBack, take_back
from llava_remap.planning.boxes import (
    Axis,
    Block,
    Box,
    Part,
    Run,
    blocks_between,
    coverage_gaps,
    runs_in_order,
)
from llava_remap.planning.build import build_plan
from llava_remap.planning.layout import Layout
from llava_remap.planning.mapped import (
    AddLora,
    Alias,
    Cast,
    Mapped,
    PostLoad,
    Step,
    aligned,
    holds,
    refuse_uncovered,
    written_dtype,
)
from llava_remap.planning.model import (
    Dropped,
    Plan,
    PostLoadChange,
    Shard,
)
from llava_remap.planning.operations import Operations

__all__ = [
    "AddLora",
    "Alias",
    "Axis",
    "Before",
    "Block",
    "Box",
    "Cast",
    "Dropped",
    "Layout",
    "Mapped",
    "Operations",
    "Part",
    "Plan",
    "PostLoad",
    "PostLoadChange",
    "Run",
    "Shard",
    "Step",
    "TakenBack",
    "aligned",
    "blocks_between",
    "build_plan",
    "coverage_gaps",
    "holds",
    "refuse_uncovered",
    "runs_in_order",
    "take_back",
    "written_dtype",
]
