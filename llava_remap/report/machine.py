"""Plan and result as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llava_remap.apply import Job, Result
from llava_remap.errors import Problem
from llava_remap.plan import FORMAT, FORMAT_VERSION


def plan_json(job: Job, result: Result | None = None) -> str:
    """The plan (`llava-remap/plan`, version 1); after a job that was carried out with `result` in it."""
    content = job.plan.to_json()
    if result is not None:
        content["result"] = result.to_json()
    return json.dumps(content, indent=2, ensure_ascii=False)


def refusal_json(problems: Sequence[Problem]) -> str:
    """What is said where there is no plan at all: a source, a rule file or the command line can't be read."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "complete": False, "problems": [p.to_json() for p in problems]}
    return json.dumps(content, indent=2, ensure_ascii=False)
