"""Renders a chat template as transformers does. `bounded` runs this module in a process of its own,
since the template may be anybody's.
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from llava_remap.core.wording import one_line

#: The most characters of a prompt. Prompts of the shipped templates have under a thousand.
LONGEST = 100_000


def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    """For each conversation the `prompt`, or the template's `error` and the `line` of a syntax
    error.

    Args:
        request: the `template`, the `special` tokens by role, and `conversations`: pairs of
            messages and whether an answer follows.

    Raises:
        MemoryError: from the template.
    """
    return [
        _rendered(request["template"], request["special"], *conversation)
        for conversation in request["conversations"]
    ]


def _rendered(
    template: str, special: dict[str, str], conversation: list[dict[str, Any]], begins: bool
) -> dict[str, Any]:
    try:
        made, _ = render_jinja_template(
            [conversation], chat_template=template, add_generation_prompt=begins, **special
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever a template raises: some take no system message
        return {
            "error": one_line(error),
            "line": error.lineno if isinstance(error, TemplateSyntaxError) else None,
        }
    prompt = str(made[0])
    if len(prompt) > LONGEST:
        return {
            "error": f"it makes a prompt of {len(prompt)} characters; {LONGEST} are allowed",
            "line": None,
        }
    return {"prompt": prompt}
