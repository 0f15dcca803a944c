"""What a program made of the twins, beside transformers' answers: equal, or the program's limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.compat.checkpoints import FAMILIES
from tests.programs.run import ROOT
from tests.programs.twins import Answer, Twins

EQUAL = "equal"
#: Natural logarithms of probabilities, some -4 here, in float32: programs add in other orders, and
#: that makes up to 2e-6. Another picture is 1e-3 away at least.
LOGPROBS = 1e-5
#: Where the tests leave what they found, for `tools/programs_table.py`.
FOUND = ROOT / "build" / "programs"

#: Outcome by the family's name, by the kind of question: `EQUAL`, an error, or a difference.
Outcomes = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Limit:
    """What a program refuses or answers otherwise, whatever the folder.

    Attributes:
        rules: the rule files that it concerns.
        message: a part of the program's own words.
        kinds: the questions that it concerns; all if empty.
    """

    rules: tuple[str, ...]
    message: str
    kinds: tuple[str, ...] = ()

    def concerns(self, name: str, kind: str) -> bool:
        return FAMILIES[name].rules in self.rules and (not self.kinds or kind in self.kinds)


def judge(wanted: Answer, said: Mapping[str, Any], within: float = LOGPROBS) -> str:
    """Compare a program's answer with transformers'.

    Args:
        wanted: what transformers answers.
        said: `ids`, `tokens` and `logprobs` of the program, or its `error`.
        within: how far the log-probabilities may be away.
    """
    if "error" in said:
        return str(said["error"])
    if said["ids"] != wanted.ids:
        return f"other prompt ids: {said['ids']} for {wanted.ids}"
    if said["tokens"] != wanted.tokens:
        return f"other tokens: {said['tokens']} for {wanted.tokens}"
    away = max(abs(a - b) for a, b in zip(said["logprobs"], wanted.logprobs, strict=True))
    return EQUAL if away <= within else f"log-probabilities are {away:.1e} away"


def judge_all(twins: Twins, said: Mapping[str, Any]) -> Outcomes:
    """The outcome of each question. An error of a family as a whole is that of all its questions.

    Args:
        twins: the folders, questions and transformers' answers.
        said: by the family's name, the program's answers by kind; or its `error`.
    """
    return {
        name: {
            kind: judge(wanted, said[name] if "error" in said[name] else said[name][kind])
            for kind, wanted in answers.items()
        }
        for name, answers in twins.answers.items()
    }


def explain(name: str, kind: str, outcome: str, limits: tuple[Limit, ...]) -> str | None:
    """Why an outcome is not what is known of the program, or None.

    A limit that no longer shows is such a reason as well.
    """
    of = [limit for limit in limits if limit.concerns(name, kind)]
    if not of:
        return None if outcome == EQUAL else outcome
    if any(limit.message in outcome for limit in of):
        return None
    return f"not the known limit ({of[0].message}): {outcome}"


def record(program: str, outcomes: Outcomes) -> Outcomes:
    """Leave a program's outcomes in build/, and return them."""
    FOUND.mkdir(parents=True, exist_ok=True)
    (FOUND / f"{program}.json").write_text(json.dumps(outcomes, indent=1) + "\n")
    return outcomes
