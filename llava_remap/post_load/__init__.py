"""Post-load rules: plug-ins that change tensors after the rename."""

from llava_remap.post_load.old_bytes import find_old_bytes
from llava_remap.post_load.protocol import Before, Change, Effect, OldBytes, PostLoadRule, Reader
from llava_remap.post_load.run import (
    load_post_load_rule,
    make_pieces,
    plan_changes,
    provenance,
    takes,
)

__all__ = [
    "Before",
    "Change",
    "Effect",
    "OldBytes",
    "PostLoadRule",
    "Reader",
    "find_old_bytes",
    "load_post_load_rule",
    "make_pieces",
    "plan_changes",
    "provenance",
    "takes",
]
