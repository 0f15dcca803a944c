"""Chat templates, tried: what they make of conversations, which special tokens they write, and
which one ends a turn.
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

#: What looks like a special token: `<s>`, `</s>`, `<|im_end|>`. Llama 2's `<<SYS>>` is plain text.
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
    """What a chat template made of conversations.

    Attributes:
        prompts: of conversations of one and several turns, with and without pictures and a system
            message.
        turn_end: the special token behind an answer; None where there is none. Generation has to
            stop at it: the research code stops there by its conversation's own separator.
        question: of a picture, where there are pictures, and a question about it.
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
        name: the template's, for messages.
        template: in Jinja.
        tokens: the rule file's; those for pictures and videos say what a message may hold.
        special: role (`bos_token`, …) → token, as `apply_chat_template` hands them to a template.
        place: where the template stands, for messages.

    Raises:
        RemapError: LR605 for a template that fails on the question, that doesn't keep within the
            bounds, or that leaves pictures out. On other conversations it may fail: some take no
            system message.
    """
    question = [*({"type": token.role} for token in tokens if token.role == "image"), _QUESTION]
    answered: list[dict[str, Any]] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": _ANSWER},
    ]
    asked: list[Any] = [[answered, False], [[{"role": "user", "content": question}], True]]
    asked += [
        [conversation, begins]
        for conversation in _conversations(tokens)
        for begins in (True, False)
    ]
    request = {"template": template, "special": dict(special), "conversations": asked}
    mend = "Mend the template in the rule file, or in the file that it names."
    try:
        of_answer, of_question, *sampled = _rendered(json.dumps(request))
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
    unseen = [
        token.text
        for token in tokens
        if token.role in ("image", "video") and not any(token.text in p for p in prompts)
    ]
    if unseen:
        raise refuse(
            "LR605",
            f"{place} the chat template {name} writes no `{'` and no `'.join(unseen)}` for "
            "what a message holds.",
            "Let it write the token for each part of a message's content that has this type.",
        )
    return Tried(prompts, _turn_end(of_answer.get("prompt", "")), of_question["prompt"])


def _conversations(tokens: Sequence[PlacedToken]) -> Iterator[list[dict[str, Any]]]:
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
    answer: list[dict[str, Any]] = bounded("llava_remap.folder.render", json.loads(request))
    return answer


def _turn_end(prompt: str) -> str | None:
    found = (
        _SPECIAL.search(prompt, prompt.rfind(_ANSWER) + len(_ANSWER)) if _ANSWER in prompt else None
    )
    return found.group() if found else None


def check_special_tokens(
    name: str, prompts: Sequence[str], words: Collection[str], plain: Collection[str], *, place: str
) -> None:
    """Every special token that a chat template writes is one token of the tokenizer.

    Args:
        name: the template's.
        prompts: what it wrote.
        words: those of the tokenizer, with the rule file's tokens.
        plain: what looks like a special token and is text.
        place: where the template stands.

    Raises:
        RemapError: LR413.
    """
    written = dict.fromkeys(token for prompt in prompts for token in _SPECIAL.findall(prompt))
    if unknown := [token for token in written if token not in words and token not in plain]:
        listed = ", ".join(f"`{token}`" for token in unknown)
        raise refuse(
            "LR413",
            f"{place} the chat template {name} writes {listed}, which the tokenizer doesn't "
            "have as one token.",
            "Put the tokenizer files there that the checkpoint was trained with, or write the "
            "template that it was trained with "
            "into a rule file that extends this one. What is text is named there: `processor: "
            "{plain_text: "
            f"{json.dumps(unknown)}}}`.",
        )
