"""Chat templates, tried: what they make of conversations, which special tokens they write, and which one ends a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jinja2 import TemplateSyntaxError

from llava_remap.errors import refuse
from llava_remap.folder.as_data import one_line
from llava_remap.target import PlacedToken

#: What looks like a special token: `<s>`, `</s>`, `<|im_end|>`. Llama 2's `<<SYS>>` is plain text.
_SPECIAL = re.compile(r"(?<!<)(?:<\|[^|<>\s]+\|>|</?\w+>)(?!>)")
_SYSTEM: dict[str, Any] = {"role": "system", "content": "You are brief."}
_ANSWER = "A red  boat."
_TURNS: tuple[dict[str, Any], ...] = (
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "And  behind it?\n\n    x = 1\n"},
)


def sample_prompts(name: str, template: str, tokens: Sequence[PlacedToken], special: Mapping[str, str]) -> tuple[str, ...]:
    """What a chat template makes of conversations: one and several turns, with and without pictures and a system message.

    Args:
        name: the template's, for messages.
        template: in Jinja.
        tokens: the rule file's; those for pictures and videos say what a message may hold.
        special: role (`bos_token`, …) → token, as `apply_chat_template` hands them to a template.

    Raises:
        RemapError: LR605 for a template that fails on each of them, or that leaves pictures out.
    """
    text = {"type": "text", "text": "What is  shown here?"}
    seen = [{"type": token.role} for token in tokens if token.role in ("image", "video")]
    conversations: list[list[dict[str, Any]]] = [[{"role": "user", "content": [text]}]]
    for part in seen:
        conversations += [
            [{"role": "user", "content": [part, text]}],
            [_SYSTEM, {"role": "user", "content": [part, text]}, *_TURNS, {"role": "assistant", "content": _ANSWER}],
            [{"role": "user", "content": [part, part, text]}, *_TURNS],
            [{"role": "user", "content": "Hello"}, _TURNS[0], {"role": "user", "content": [part, text]}],
        ]
    prompts, failed = [], None
    for conversation in conversations:
        try:
            prompts += [render(template, conversation, special, begins=begins) for begins in (True, False)]
        except Exception as error:  # whatever a template raises: some take no system message
            failed = error
    if failed is not None and not prompts:
        line = f", line {failed.lineno}" if isinstance(failed, TemplateSyntaxError) else ""
        cause = f"the chat template {name}{line}: {one_line(failed)}."
        raise refuse("LR605", cause, "Mend the template in the rule file, or in the file that it names.")
    unseen = [token.text for token in tokens if token.role in ("image", "video") and not any(token.text in p for p in prompts)]
    if unseen:
        cause = f"the chat template {name} writes no `{'` and no `'.join(unseen)}` for what a message holds."
        raise refuse("LR605", cause, "Let it write the token for each part of a message's content that has this type.")
    return tuple(prompts)


def render(template: str, conversation: Sequence[Mapping[str, Any]], special: Mapping[str, str], *, begins: bool = True) -> str:
    """A conversation as a prompt, as transformers renders it; `begins`: whether an answer is to follow."""
    from transformers.utils.chat_template_utils import render_jinja_template

    made, _ = render_jinja_template([conversation], chat_template=template, add_generation_prompt=begins, **special)
    return str(made[0])


def check_special_tokens(name: str, prompts: Sequence[str], words: Collection[str], plain: Collection[str]) -> None:
    """Every special token that a chat template writes is one token of the tokenizer.

    Args:
        name: the template's.
        prompts: what it wrote.
        words: those of the tokenizer, with the rule file's tokens.
        plain: what looks like a special token and is text.

    Raises:
        RemapError: LR413.
    """
    written = dict.fromkeys(token for prompt in prompts for token in _SPECIAL.findall(prompt))
    if unknown := [token for token in written if token not in words and token not in plain]:
        listed = ", ".join(f"`{token}`" for token in unknown)
        cause = f"the chat template {name} writes {listed}, which the tokenizer doesn't have as one token."
        fix = (
            "Put the tokenizer files there that the checkpoint was trained with, or write the template that it was trained with "
            f"into a rule file that extends this one. What is text is named there: `processor: {{plain_text: "
            f"{json.dumps(unknown)}}}`."
        )
        raise refuse("LR413", cause, fix)


def turn_end(template: str, special: Mapping[str, str]) -> str | None:
    """The special token that a chat template writes behind an answer; None for one that writes none.

    Generation has to stop at it: the research code stops there by its conversation's own separator.
    """
    question = {"role": "user", "content": "Hello"}
    try:
        prompt = render(template, [question, {"role": "assistant", "content": _ANSWER}], special, begins=False)
    except Exception:  # told by `sample_prompts`
        return None
    found = _SPECIAL.search(prompt, prompt.rfind(_ANSWER) + len(_ANSWER)) if _ANSWER in prompt else None
    return found.group() if found else None
