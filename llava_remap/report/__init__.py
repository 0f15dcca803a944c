"""Plan and result to a terminal or to JSON."""

from llava_remap.report.human import print_inspection, print_plan, print_result, print_verification
from llava_remap.report.machine import plan_json, refusal_json
from llava_remap.report.problems import print_problems
from llava_remap.report.reverted import print_reverted
from llava_remap.report.shrunk import print_shrunk
from llava_remap.report.terminal import shown

__all__ = [
    "plan_json",
    "print_inspection",
    "print_plan",
    "print_problems",
    "print_result",
    "print_reverted",
    "print_shrunk",
    "print_verification",
    "refusal_json",
    "shown",
]
