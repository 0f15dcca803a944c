"""Every recorded conversation, in every version of transformers: a converted folder computes
what the research code computed.
"""

from __future__ import annotations

import pytest

from tests.original import facts
from tests.original.answers import ALL_VERSIONS, Answers
from tests.original.facts import FAMILIES
from tests.original.verdict import judge_alone, judge_case

CASES = [
    pytest.param(name, case, version, id=f"{name}-{case}-{version}")
    for name in FAMILIES
    for case in facts.family(name).cases
    for version in ALL_VERSIONS
]


@pytest.mark.parametrize(("family", "case", "version"), CASES)
def test_the_whole_way(family: str, case: str, version: str, answers: Answers) -> None:
    """Prompt, token ids, pixels and logits are those of one reading, or differ by a declared and
    proven fault alone.
    """
    recorded = facts.family(family)
    assert not (wrong := judge_case(recorded, recorded.cases[case], answers, version).wrong), (
        "\n".join(wrong)
    )


@pytest.mark.parametrize(("family", "case", "version"), CASES)
def test_the_model_alone(family: str, case: str, version: str, answers: Answers) -> None:
    """With the recorded ids and the research code's pixels, every reading has its logits and its
    best tokens.
    """
    recorded = facts.family(family)
    assert not (wrong := judge_alone(recorded, recorded.cases[case], answers, version).wrong), (
        "\n".join(wrong)
    )
