"""llava-remap: research LLaVA checkpoints into ones that transformers, vLLM and SGLang load
and that llama.cpp converts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llava_remap.core.version import __version__ as __version__

if TYPE_CHECKING:
    from llava_remap.core.problem import Problem, RemapError
    from llava_remap.jobs.apply import plan_job
    from llava_remap.jobs.job import Job
    from llava_remap.jobs.load import load_model
    from llava_remap.jobs.run import Result
    from llava_remap.jobs.run import run as apply_job

__all__ = ["Job", "Problem", "RemapError", "Result", "apply_job", "load_model", "plan_job"]
#: Where the public names are defined.
_HOMES = {
    "Job": "jobs.job",
    "Problem": "core.problem",
    "RemapError": "core.problem",
    "Result": "jobs.run",
    "apply_job": "jobs.run:run",
    "load_model": "jobs.load",
    "plan_job": "jobs.apply",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: importing the package alone
    costs nothing.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, own_name = _HOMES[name].partition(":")
    return getattr(import_module(f"llava_remap.{module}"), own_name or name)
