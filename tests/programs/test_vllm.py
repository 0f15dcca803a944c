"""vLLM loads the folders as they are, and answers as transformers does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.compat.checkpoints import FAMILIES, convert_family
from tests.compat.known import WITH_VIDEOS
from tests.programs.outcomes import (
    EQUAL,
    Limit,
    Outcomes,
    explain,
    judge,
    judge_all,
    record,
)
from tests.programs.run import ask
from tests.programs.twins import Twins

pytestmark = [pytest.mark.programs, pytest.mark.vllm]

LIMITS = (
    Limit(("llava-v1",), "Activation function 'linear' is not supported."),
    # Its own class for these checkpoints takes videos alone.
    Limit(
        ("llava-next-video",),
        "At most 0 image(s) may be provided in one prompt.",
        ("picture", "padded"),
    ),
    # It has no class of its own for them, and its way through transformers needs what this
    # processor doesn't have.
    Limit(
        ("video-llava",),
        "'VideoLlavaProcessor' object has no attribute '_get_num_multimodal_tokens'",
    ),
)
#: Has a linear projector, and vLLM's limit is met by another form of the projector.
LINEAR, GELU = "llava-lightning-7b-v1-1.released", "gelu"
KINDS = ("text", "picture", "padded", "video")
ASKED = [
    (name, kind)
    for name, twin in FAMILIES.items()
    for kind in KINDS
    if kind != "video" or twin.rules in WITH_VIDEOS
]
LOADED = [
    name
    for name in FAMILIES
    if not any(limit.concerns(name, "text") and not limit.kinds for limit in LIMITS)
]


@pytest.fixture(scope="module")
def said(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM says of the twins, and of the second form of a linear projector."""
    work = tmp_path_factory.mktemp("vllm")
    convert_family(LINEAR, work / "twin", work / GELU, dtype="float32", projector_form=GELU)
    asked = twins.asked()
    asked[GELU] = {**asked[LINEAR], "folder": str(work / GELU)}
    answers: dict[str, Any] = ask("vllm", Path(__file__).with_name("ask_vllm.py"), asked, work)
    return answers


@pytest.fixture(scope="module")
def outcomes(twins: Twins, said: dict[str, Any]) -> Outcomes:
    return record("vllm", judge_all(twins, said))


@pytest.mark.parametrize(("name", "kind"), ASKED)
def test_it_answers_as_transformers_does(name: str, kind: str, outcomes: Outcomes) -> None:
    """Prompt ids and greedy tokens equal, log-probabilities within `LOGPROBS`."""
    assert explain(name, kind, outcomes[name][kind], LIMITS) is None


@pytest.mark.parametrize("kind", [kind for name, kind in ASKED if name == LINEAR])
def test_the_second_form_of_a_linear_projector_lifts_the_limit(
    kind: str, twins: Twins, said: dict[str, Any]
) -> None:
    """It answers what transformers answers of the first form."""
    assert judge(twins.answers[LINEAR][kind], said[GELU][kind]) == EQUAL


def test_every_question_is_asked(outcomes: Outcomes) -> None:
    assert {(name, kind) for name, of in outcomes.items() for kind in of} == set(ASKED)


@pytest.mark.parametrize("name", LOADED)
def test_another_picture_would_be_noticed(name: str, twins: Twins) -> None:
    """So the answers depend on what is shown, and the comparison could fail."""
    answers = twins.answers[name]
    padded = asdict(answers["padded"])
    assert judge(answers["padded"], padded) == EQUAL
    ids = {"ids": answers["picture"].ids}
    assert judge(answers["picture"], padded | ids) != EQUAL


@pytest.mark.parametrize("name", LOADED)
def test_its_chat_api_adds_special_tokens_only_where_asked(
    name: str, twins: Twins, said: dict[str, Any]
) -> None:
    """Where the tokenizer puts a token in front of all (`<s>`), the chat API leaves it out unless a
    request says `add_special_tokens: true`; else both settings are the same.
    """
    chat, ids = said[name]["chat"], twins.answers[name]["text"].ids
    assert chat["add_special_tokens"] is False
    assert chat["other"] == ids
    assert chat["default"] == ids[begins(twins, name) :]


def begins(twins: Twins, name: str) -> int:
    """How many tokens a folder's tokenizer puts in front of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(twins.folders[name])
    return len(tokenizer("")["input_ids"])
