"""Interleave by `llava-interleave`: `LlavaForConditionalGeneration` takes pictures of one tile,
and has no newline token.
"""

from __future__ import annotations

import pytest

from tests.original import facts
from tests.original.answers import ALL_VERSIONS, Answers
from tests.original.convert import Target
from tests.original.judge import one_for_each_run

NAME = "interleave"


@pytest.mark.parametrize("family", [NAME])
@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("case", facts.family(NAME).cases)
def test_prompt_and_text_are_equal(family: str, case: str, version: str, answers: Answers) -> None:
    """Only the count of image tokens differs from the research code's ids."""
    folder = answers.of(Target(family, "llava-interleave"), version)
    assert not isinstance(folder, str), folder
    answer, (reading,) = folder.cases[case], facts.family(family).cases[case].readings
    assert answer.prompt == reading.prompt
    assert answer.ids is not None, answer.error
    token = folder.image_token
    assert one_for_each_run(answer.ids, token) == one_for_each_run(reading.ids_with(token), token)
    assert answer.ids.count(token) == 729 * len(reading.image_positions)
