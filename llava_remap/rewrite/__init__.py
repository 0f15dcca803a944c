"""Rule file to a compiled program; the program takes names to new names, and back. Pure: no files, no tensors."""

from llava_remap.rewrite.conditions import contradictions
from llava_remap.rewrite.program import CompiledRule, Program, Rewrite, Step, compile_all, compile_rules, one_way
from llava_remap.rewrite.testing import TestResult, outcome, run_tests

__all__ = [
    "CompiledRule", "Program", "Rewrite", "Step", "TestResult", "compile_all", "compile_rules", "contradictions", "one_way",
    "outcome", "run_tests",
]  # fmt: skip
