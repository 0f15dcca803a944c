"""Tokenizers alone, in every version of transformers, also with `use_fast=False`: the ids of the
research code.
"""

from __future__ import annotations

import pytest

from tests.original import facts
from tests.original.answers import ALL_VERSIONS, Answers
from tests.original.facts import FAMILIES
from tests.original.verdict import judge_words

FAST = [
    pytest.param(name, version, False, id=f"{name}-{version}-fast")
    for name in FAMILIES
    for version in ALL_VERSIONS
]
#: transformers 5 doesn't know `use_fast`.
SLOW = [
    pytest.param(name, version, True, id=f"{name}-{version}-slow")
    for name in FAMILIES
    for version in ALL_VERSIONS
    if version.startswith("4.")
]


@pytest.mark.parametrize(("family", "version", "slow"), FAST + SLOW)
def test_texts(family: str, version: str, slow: bool, answers: Answers) -> None:
    """`tokenizer(text).input_ids`."""
    texts, _ = judge_words(facts.family(family), answers, version, slow=slow)
    assert not texts, "\n".join(texts)


@pytest.mark.parametrize(("family", "version", "slow"), FAST + SLOW)
def test_prompts(family: str, version: str, slow: bool, answers: Answers) -> None:
    """The recorded prompts of all counted cases, with as many tokens of a picture as it takes
    positions.
    """
    _, prompts = judge_words(facts.family(family), answers, version, slow=slow)
    assert not prompts, "\n".join(prompts)
