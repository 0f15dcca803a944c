"""Strict load of the written files; digests; bit equality with the sources; comparison of two
checkpoints or plans.
"""

from llava_remap.verification.folder import (
    Verification,
    compare,
    file_problems,
    header_problems,
    verify_folder,
)
from llava_remap.verification.strict import is_known, loading_problems, strict_load

__all__ = [
    "Verification",
    "compare",
    "file_problems",
    "header_problems",
    "is_known",
    "loading_problems",
    "strict_load",
    "verify_folder",
]
