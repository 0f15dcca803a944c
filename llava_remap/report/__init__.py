"""Plan and result to a terminal or to JSON."""

from llava_remap.report.inspection import print_inspection
from llava_remap.report.machine import refusal_json
from llava_remap.report.plan import print_plan
from llava_remap.report.results import (
    print_result,
    print_reverted,
    print_shrunk,
    print_verification,
)
from llava_remap.report.terminal import print_problems, shown

__all__ = [
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
