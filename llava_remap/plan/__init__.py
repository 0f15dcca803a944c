"""Program, catalogs, target and post-load shapes to a plan and its coverage. Pure: no files, no torch, no printing."""

from llava_remap.plan.build import build_plan
from llava_remap.plan.layout import in_layout
from llava_remap.plan.model import (
    FORMAT,
    FORMAT_VERSION,
    Dropped,
    Mapped,
    Merge,
    Plan,
    PostLoadChange,
    Shard,
    SourceName,
    ValueCheck,
    aligned,
    written_dtype,
)
from llava_remap.plan.problems import draft_command
from llava_remap.plan.route import Routed, RoutedPair, Routes, main_names, route

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Dropped",
    "Mapped",
    "Merge",
    "Plan",
    "PostLoadChange",
    "Routed",
    "RoutedPair",
    "Routes",
    "Shard",
    "SourceName",
    "ValueCheck",
    "aligned",
    "build_plan",
    "draft_command",
    "in_layout",
    "main_names",
    "route",
    "written_dtype",
]
