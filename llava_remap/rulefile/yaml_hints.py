"""Advice for a line that isn't valid YAML. Most often, quotes are missing."""

from __future__ import annotations

import re
from typing import Any

#: The advice if no better one is known.
MEND = "Correct it there, if this is the rule file that you mean."
#: The most characters of a line to look at; lines of rule files stay below 150.
_LONGEST = 500
#: Where a text can begin: at the start of a line, behind a key, in a list or mapping.
_START = r"(?:^\s*(?:- +)*|: +|[\[{,] *)"
#: A template. Where it begins with a brace, or stands inside `{…}` or `[…]`, YAML reads its fields
#: as mappings.
_TEMPLATE = (
    r"(?<![\w.'\"}])(?P<text>[\w.]*\{\w+(?::int|\.\.\.)?\}(?:[\w.]|\{\w+(?::int|\.\.\.)?\})*)"
)
#: Pairs of a pattern for a mistaken line and the advice, in which `{text}` is put in quotes. The
#: first pattern that matches counts.
_HINTS = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (
            r"^ *\t|^[ \t]*[\u00a0\u2000-\u200b\u3000]",
            "Indent with plain spaces. Tabs and other kinds of spaces aren't allowed.",
        ),
        (
            rf"{_START}\{{[{{%]",
            "Put a text that begins with braces in quotes, or after a `|` on its own lines.",
        ),
        (
            rf"{_START}(?P<text>[%@`*&](?:\{{\w+[^}}]*\}}|[^,\]}}])*|[!|>?][^\s,\]}}][^,\]}}]*)",
            "Put it in quotes: {text}.",
        ),
        (_TEMPLATE, "Put a name with braces in quotes: {text}."),
        (
            r"(?P<text>\"[^\"]*\\[^\"]*\")",
            "Write it in single quotes, in which a \\ stands for itself: {text}.",
        ),
        (
            rf"{_START}(?P<text>(?:'[^']*'|\"[^\"]*\")[^\s,\]}}:](?:[^,\]}}]|(?<=[.\w])\}})*)",
            "Put the whole value in quotes: {text}.",
        ),
        (rf"{_START}(?P<text>\[[^\]]*\][^\s,\]}}][^,}}]*)", "Put a regex in quotes: {text}."),
        (r"^ *-(?P<item>[\[{\w'\"].*)", "Put a space after the hyphen: - {item}"),
        (
            r": +- ",
            "Begin a list on its own line. Put a text that begins with a hyphen in quotes.",
        ),
        (
            r"[{,] *[\w-]+: *(?P<text>[^\s,{}\[\]'\":]+ +(?P<item>[\w-]+): [^,{}\[\]]*)",
            "Put a comma before `{item}:`. If the whole value is one text, put it in quotes: "
            "{text}.",
        ),
        (
            r"(?:^\s*(?:- +)?|[{,]\s*)[\w.-]+: +(?P<text>[^'\"\[{,}]*?: [^,}\]]*)",
            "Put a text with a colon in it in quotes: {text}.",
        ),
        (
            r"[{,] *[\w-]+: +(?P<text>\w[^'\"{},\[\]]*\[\w*\][^'\"{},\[\]]*)",
            "Put a text with brackets in quotes: {text}.",
        ),
        (r"[\[{].* #", "Put a text with ` #` in it in quotes; otherwise it begins a comment."),
    )
)


def place(error: Any) -> Any:
    """The place of a YAML error. For a quote that isn't closed, it is where the quote begins; the
    parser reports the end of the file.
    """
    if (
        error.context_mark is not None
        and "quoted scalar" in (error.context or "")
        and "escape" not in (error.problem or "")
    ):
        return error.context_mark
    return error.problem_mark or error.context_mark


def hint(text: str, error: Any) -> str:
    """How to mend the line with a YAML error."""
    lines, context = text.splitlines(), error.context or ""
    at = place(error)
    numbers = [at.line] if at is not None else []
    if at is not None and error.context_mark is not None and re.search("flow|quoted", context):
        numbers = [*range(error.context_mark.line, at.line + 1)]
    looked_at = [lines[number][:_LONGEST] for number in numbers if number < len(lines)]
    for pattern, advice in _HINTS:
        for line in looked_at:
            if found := pattern.search(line):
                parts = found.groupdict()
                bare = re.sub(r"^(['\"])(.*?)\1", r"\2", (parts.get("text") or "").strip())
                return advice.format(
                    text="'" + bare.replace("'", "''") + "'",
                    item=(parts.get("item") or "").strip(),
                )
    if "quoted scalar" in context:
        return "Close the quote that begins there."
    if "flow" in context:
        opened = error.context_mark
        return (
            f"Close the bracket of line {opened.line + 1}, column {opened.column + 1}, or insert "
            "the missing comma."
        )
    if at is not None and "block" in context:
        return (
            "Begin lines that belong together in the same column; this line begins in column "
            f"{at.column + 1}."
        )
    return MEND
