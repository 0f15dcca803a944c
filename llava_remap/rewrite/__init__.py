"""Compiles a rule file into a program that translates names to new names, and back. Pure: no files,
no tensors.
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

__all__ = [
    "CompiledOperation", "CompiledRule", "Operated", "Program", "Rewrite", "Step", "compile_all",
    "compile_rules", "contradictions",
]  # fmt: skip
