"""Plan and result to a terminal or to JSON."""

from llava_remap.report.conversion import (
    print_heading,
    print_short_plan,
    print_summary,
    summary_json,
)
from llava_remap.report.inspection import print_inspection
from llava_remap.report.machine import refusal_json
from llava_remap.report.plan import print_next, print_plan
from llava_remap.report.results import (
    print_result,
    print_reverted,
    print_shrunk,
    print_verification,
)
from llava_remap.report.terminal import print_problems, shown

__all__ = [
    "print_heading",
    "print_inspection",
    "print_next",
    "print_plan",
    "print_problems",
    "print_result",
    "print_reverted",
    "print_short_plan",
    "print_shrunk",
    "print_summary",
    "print_verification",
    "refusal_json",
    "shown",
    "summary_json",
]
