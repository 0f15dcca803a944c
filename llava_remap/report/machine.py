"""Plan and result as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava_remap.core.problem import Problem

if TYPE_CHECKING:
    from llava_remap.jobs.job import Job
    from llava_remap.jobs.resources import Predicted
    from llava_remap.jobs.run import Result


#: What else stands in the JSON of each kind, where nothing came of it.
_NONE: dict[str, dict[str, bool]] = {
    "plan": {"complete": False},
    "verification": {"verified": False},
    "reversion": {"reverted": False},
    "lint": {"clean": False},
    "tests": {"passed": False},
    "rule-files": {},
    "explanation": {},
    "key-mapping": {},
}


def plan_json(job: Job, result: Result | None = None, predicted: Predicted | None = None) -> str:
    """The plan (`llava-remap/plan`, version 1); with what it will need, and after a job that was
    carried out with `result`.
    """
    content = job.plan.to_json()
    if predicted is not None:
        content["predicted"] = predicted.to_json()
    if result is not None:
        content["result"] = result.to_json()
    return json.dumps(content, indent=2)


def refusal_json(problems: Sequence[Problem], kind: str) -> str:
    """What is said where there is nothing else to tell: a source, a rule file, a record or the
    command line can't be read.

    Args:
        kind: what was asked for: a key of `_NONE`.
    """
    content = {
        "format": f"llava-remap/{kind}",
        "format_version": 1,
        **_NONE[kind],
        "problems": [p.to_json() for p in problems],
    }
    return json.dumps(content, indent=2)
