"""Rule file to a compiled program; the program takes names to new names, and back. Pure: no
files, no tensors.
"""

from llava_remap.rewrite.compiled import CompiledOperation, CompiledRule
from llava_remap.rewrite.program import (
    Operated,
    Program,
    Rewrite,
    Step,
    compile_all,
    compile_rules,
    contradictions,
)
from llava_remap.rewrite.testing import (
    UNMAPPED,
    Known,
    Status,
    TestResult,
    new_test,
    outcome,
    run_tests,
    untested,
)

__all__ = [
    "UNMAPPED", "CompiledOperation", "CompiledRule", "Known", "Operated", "Program", "Rewrite",
    "Status", "Step", "TestResult", "compile_all", "compile_rules", "contradictions", "new_test",
    "outcome", "run_tests", "untested",
]  # fmt: skip
