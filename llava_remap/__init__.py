"""llava-remap: research LLaVA checkpoints into ones that transformers, vLLM and SGLang load
and that llama.cpp converts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llava_remap.core.version import __version__ as __version__

if TYPE_CHECKING:
    from llava_remap.checkpoint import InMemory
    from llava_remap.core.problem import Problem, RemapError
    from llava_remap.jobs.apply import apply, plan
    from llava_remap.jobs.convert import convert
    from llava_remap.jobs.diff import diff
    from llava_remap.jobs.inspect_parts import inspect
    from llava_remap.jobs.inspection import Inspection
    from llava_remap.jobs.job import Job
    from llava_remap.jobs.load import load_model
    from llava_remap.jobs.revert import revert
    from llava_remap.jobs.run import Result
    from llava_remap.jobs.verify import verify
    from llava_remap.planning import Plan
    from llava_remap.verification import Verification
    from llava_remap.verification.difference import Difference

#: The modules in which the public names are defined.
_HOMES = {
    "Difference": "verification.difference",
    "InMemory": "checkpoint",
    "Inspection": "jobs.inspection",
    "Job": "jobs.job",
    "Plan": "planning",
    "Problem": "core.problem",
    "RemapError": "core.problem",
    "Result": "jobs.run",
    "Verification": "verification",
    "apply": "jobs.apply",
    "convert": "jobs.convert",
    "diff": "jobs.diff",
    "inspect": "jobs.inspect_parts",
    "load_model": "jobs.load",
    "plan": "jobs.apply",
    "revert": "jobs.revert",
    "verify": "jobs.verify",
}
__all__ = [
    "Difference",
    "InMemory",
    "Inspection",
    "Job",
    "Plan",
    "Problem",
    "RemapError",
    "Result",
    "Verification",
    "__version__",
    "apply",
    "convert",
    "diff",
    "inspect",
    "load_model",
    "plan",
    "revert",
    "verify",
]


if not TYPE_CHECKING:  # type checkers would take any name to exist

    def __getattr__(name: str) -> Any:
        """The public names, imported when they are first asked for: importing the package alone
        costs nothing.
        """
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"llava_remap.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
