"""Program, catalogs, target and post-load shapes to a plan and its coverage. Pure: no files, no torch, no printing."""

from llava_remap.plan.build import build_plan
from llava_remap.plan.model import (
    FORMAT,
    FORMAT_VERSION,
    Dropped,
    Mapped,
    Plan,
    PostLoadChange,
    Shard,
    SourceName,
    ValueCheck,
    written_dtype,
)
from llava_remap.plan.route import Routed, Routes, route

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Dropped",
    "Mapped",
    "Plan",
    "PostLoadChange",
    "Routed",
    "Routes",
    "Shard",
    "SourceName",
    "ValueCheck",
    "build_plan",
    "route",
    "written_dtype",
]
