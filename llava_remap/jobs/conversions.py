"""Several conversions in one process: where each is written, and how it ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_remap.core import Problem, refuse
from llava_remap.jobs.run import Result
from llava_remap.source.sources import short_name

State = Literal["converted", "nothing to do", "planned", "refused", "interrupted", "not begun"]


@dataclass(frozen=True, slots=True)
class Converted:
    """How the conversion of one checkpoint ended.

    Attributes:
        source: the SRC.
        output: the folder that was written or would have been.
        state: `planned` after a dry run, `nothing to do` if the folder was finished already,
            `not begun` if an earlier conversion was interrupted.
        exit: the exit code of this conversion alone.
        rules: the name of the rule file; empty if none was chosen.
        seconds: how long it took, with its plan.
        problems: why it was refused, or why its report can't be written.
        result: the result, if the conversion was carried out.
        report: the file with its plan and result, if one was written.
    """

    source: str
    output: Path
    state: State
    exit: int = 0
    rules: str = ""
    seconds: float = 0.0
    problems: tuple[Problem, ...] = ()
    result: Result | None = None
    report: Path | None = None

    @property
    def is_well(self) -> bool:
        return self.state in ("converted", "nothing to do", "planned")

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "output": str(self.output),
            "state": self.state,
            "exit": self.exit,
            "rules": self.rules,
            "seconds": round(self.seconds, 3),
            "problems": [problem.to_json() for problem in self.problems],
            "report": str(self.report) if self.report is not None else None,
        }


def outputs_in(folder: Path, sources: Sequence[str]) -> list[Path]:
    """The folder inside `folder` that each SRC is written to.

    Raises:
        RemapError: LR211 if two of them would be written to one folder.
    """
    outputs = [folder / f"{short_name(source)}-hf" for source in sources]
    same: dict[str, list[str]] = defaultdict(list)
    for source, output in zip(sources, outputs, strict=True):
        same[str(output).casefold()].append(source)  # some file systems know no upper case
    for name, several in same.items():
        if len(several) > 1:
            raise refuse(
                "LR211",
                f"{' and '.join(several)} would both be written to {name}.",
                "Convert one of them separately, with --output.",
            )
    return outputs
