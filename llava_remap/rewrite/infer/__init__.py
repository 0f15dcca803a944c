"""Infers rules from names and shapes alone. Pure: shapes come in as mappings, rules go out, and
nothing is read or printed.
"""

from llava_remap.rewrite.infer.engine import Inference, infer, suggest_operations, suggest_rules
from llava_remap.rewrite.infer.groups import (
    INDEX,
    Group,
    Segments,
    Shape,
    fill,
    fold,
    nearest,
    unfold,
)
from llava_remap.rewrite.infer.match import HOWS, How, Match, Question, grows
from llava_remap.rewrite.infer.rules import DROPPED, InferredRule, make_rules, rule_line

__all__ = [
    "DROPPED", "Group", "HOWS", "How", "INDEX", "Inference", "InferredRule", "Match",
    "Question", "Segments", "Shape", "fill", "fold",
    "grows", "infer", "make_rules", "nearest", "rule_line",
    "suggest_operations", "suggest_rules", "unfold",
]  # fmt: skip
