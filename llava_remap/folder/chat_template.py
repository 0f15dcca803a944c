"""Tries chat templates: the prompts that they make of conversations, their special tokens, and the
token that ends a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llava_remap.core.bounded import BeyondBoundsError, bounded
from llava_remap.core.problem import refuse
from llava_remap.target_model import PlacedToken

#: The form of a special token: `<s>`, `</s>`, `<|im_end|>`. Llama 2's `<<SYS>>` is plain text.
_SPECIAL = re.compile(r"(?<!<)(?:<\|[^|<>\s]+\|>|</?\w+>)(?!>)")
_SYSTEM: dict[str, Any] = {"role": "system", "content": "You are brief."}
_ANSWER = "A red  boat."
_QUESTION = {"type": "text", "text": "What is it?"}
_TURNS: tuple[dict[str, Any], ...] = (
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "And  behind it?\n\n    x = 1\n"},
)


@dataclass(frozen=True, slots=True)
class Tried:
    """The prompts that a chat template made of conversations.

    Attributes:
        prompts: prompts of conversations of one and several turns, with and without pictures and a
            system message.
        turn_end: the special token behind an answer, or None. Generation has to stop at this token,
            as the research code stops at the separator of a conversation.
        question: the prompt for a question, with a picture if the model takes pictures.
    """

    prompts: tuple[str, ...]
    turn_end: str | None
    question: str


def try_template(
    name: str,
    template: str,
    tokens: Sequence[PlacedToken],
    special: Mapping[str, str],
    *,
    place: str,
) -> Tried:
    """Render a chat template, within bounds of time and memory.

    Args:
        name: the template's name, for messages.
        template: the template in Jinja.
        tokens: the rule file's tokens. Their roles say whether messages may hold pictures or
            videos.
        special: role (`bos_token`, …) → token, as `apply_chat_template` hands them to a template.
        place: the template's place, for messages.

    Raises:
        RemapError: LR605 for a template that fails on the question, exceeds the bounds, or leaves
            pictures out. A template may fail on other conversations: some take no system message.
    """
    question = [*({"type": token.role} for token in tokens if token.role == "image"), _QUESTION]
    asked = [
        ([{"role": "user", "content": "Hello"}, _TURNS[0]], False),
        ([{"role": "user", "content": question}], True),
        *(
            (conversation, begins)
            for conversation in conversations(tokens)
            for begins in (True, False)
        ),
    ]
    mend = "Correct the template in the rule file, or in the file that it names."
    try:
        of_answer, of_question, *sampled = _rendered(
            json.dumps({"template": template, "special": dict(special), "conversations": asked})
        )
    except BeyondBoundsError as error:
        raise refuse(
            "LR605",
            f"{place} the chat template {name} {error}, to make prompts of a few words.",
            mend,
        ) from None
    if "error" in of_question:
        line = f", line {of_question['line']}" if of_question["line"] is not None else ""
        raise refuse(
            "LR605", f"{place} the chat template {name}{line}: {of_question['error']}.", mend
        )
    prompts = tuple(one["prompt"] for one in sampled if "prompt" in one)
    if unseen := [
        token.text
        for token in tokens
        if token.role in ("image", "video") and not any(token.text in p for p in prompts)
    ]:
        raise refuse(
            "LR605",
            f"{place} the chat template {name} writes no `{'` and no `'.join(unseen)}` for "
            "a part of a message.",
            "Let it write the token for each part of a message's content that has this type.",
        )
    return Tried(prompts, _turn_end(of_answer.get("prompt", "")), of_question["prompt"])


def conversations(tokens: Sequence[PlacedToken]) -> Iterator[list[dict[str, Any]]]:
    """Conversations of one and several turns, with and without the tokens' pictures and videos, and
    with and without a system message.
    """
    text = {"type": "text", "text": "What is  shown here?"}
    yield [{"role": "user", "content": [text]}]
    for part in ({"type": token.role} for token in tokens if token.role in ("image", "video")):
        yield [{"role": "user", "content": [part, text]}]
        yield [
            _SYSTEM,
            {"role": "user", "content": [part, text]},
            *_TURNS,
            {"role": "assistant", "content": _ANSWER},
        ]
        yield [{"role": "user", "content": [part, part, text]}, *_TURNS]
        yield [
            {"role": "user", "content": "Hello"},
            _TURNS[0],
            {"role": "user", "content": [part, text]},
        ]


@lru_cache(maxsize=64)
def _rendered(request: str) -> list[dict[str, Any]]:
    return list(bounded("llava_remap.folder.render", json.loads(request)))


def _turn_end(prompt: str) -> str | None:
    found = (
        _SPECIAL.search(prompt, prompt.rfind(_ANSWER) + len(_ANSWER)) if _ANSWER in prompt else None
    )
    return found.group() if found else None


def check_special_tokens(
    name: str, prompts: Sequence[str], words: Collection[str], plain: Collection[str], *, place: str
) -> None:
    """LR413 unless every special token that a chat template writes is one token of the tokenizer.

    Args:
        name: the template's name.
        prompts: the template's prompts.
        words: the words of the tokenizer, with the rule file's tokens.
        plain: texts that look like special tokens but aren't.
        place: the template's place.
    """
    written = dict.fromkeys(token for prompt in prompts for token in _SPECIAL.findall(prompt))
    if unknown := [token for token in written if token not in words and token not in plain]:
        raise refuse(
            "LR413",
            f"{place} the chat template {name} writes `{'`, `'.join(unknown)}`, which the "
            "tokenizer doesn't have as one token.",
            "Put the tokenizer files of the training there, or write the template of the training "
            "into a rule file that extends this one. If these texts aren't special tokens, list "
            f"them in that rule file: `processor: {{plain_text: {json.dumps(unknown)}}}`.",
        )
