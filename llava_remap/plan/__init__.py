"""Program, catalogs, target and post-load shapes to a plan and its coverage. Pure: no files, no
torch, no printing.
"""

from llava_remap.plan.build import build_plan
from llava_remap.plan.layout import in_layout
from llava_remap.plan.model import (
    Dropped,
    Mapped,
    Merge,
    Plan,
    PostLoadChange,
    Shard,
    aligned,
    written_dtype,
)

__all__ = [
    "Dropped",
    "Mapped",
    "Merge",
    "Plan",
    "PostLoadChange",
    "Shard",
    "aligned",
    "build_plan",
    "in_layout",
    "written_dtype",
]
