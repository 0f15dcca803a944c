"""The page of the package's functions and types, from their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import llava_remap

_SECTION = re.compile(r"(Args|Returns|Raises|Attributes):$")
_ENTRY = re.compile(r"( {4}(?P<name>\w[\w, `]*):) (?P<text>.*)")


def python_page(made: str) -> str:
    """The page.

    Args:
        made: the comment that says that the page is generated.
    """
    public = {name: getattr(llava_remap, name) for name in llava_remap.__all__}
    functions = {name: found for name, found in public.items() if inspect.isfunction(found)}
    types = {name: found for name, found in public.items() if inspect.isclass(found)}
    parts = [
        "# Functions and types\n",
        made,
        "How they are used: [From Python](../guide/python.md). In the examples, `llava-v1.5-7b` "
        "and `clip-vit-large-patch14-336` are folders.\n",
        "## Functions\n",
        *(_function(name, function) for name, function in functions.items()),
        "## Types\n",
        *(_type(name, found) for name, found in types.items()),
    ]
    return "\n".join(parts)


def _function(name: str, function: Any) -> str:
    return f"### `{name}`\n\n{_signature(name, function)}\n{_text(function)}"


def _type(name: str, found: Any) -> str:
    methods = "".join(
        f"- `{method}()`: {_first_sentence(member)}\n"
        for method, member in vars(found).items()
        if not method.startswith("_") and inspect.isfunction(member) and member.__doc__
    )
    return f"### `{name}`\n\n{_text(found)}" + (f"\nMethods:\n\n{methods}" if methods else "")


def _first_sentence(member: Any) -> str:
    paragraph = (inspect.getdoc(member) or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].rstrip(".") + "."


def _signature(name: str, function: Any) -> str:
    """The signature, a parameter a line."""
    signature = inspect.signature(function)
    lines: list[str] = []
    by_name = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not by_name:
            lines, by_name = [*lines, "    *,"], True
        default = parameter.default
        given = "" if default is parameter.empty else f" = {_default(default)}"
        lines.append(f"    {parameter.name}: {parameter.annotation}{given},")
    inner = "\n".join(lines)
    return f"```text\n{name}(\n{inner}\n) -> {signature.return_annotation}\n```\n"


def _default(value: object) -> str:
    return "..." if callable(value) else repr(value)


def _text(found: Any) -> str:
    """A docstring as Markdown: its sections as lists, its examples as blocks."""
    return "\n".join(_lines((inspect.getdoc(found) or "").splitlines())) + "\n"


def _lines(docstring: list[str]) -> Iterator[str]:
    section, in_example = False, False
    for line in docstring:
        starts = line.startswith(">>> ")
        if starts and not in_example:
            yield "```text"
        elif in_example and not line.strip():
            yield "```"
        in_example = (in_example and bool(line.strip())) or starts
        if _SECTION.match(line):
            section = True
            yield f"{line}\n"
        elif section and (entry := _ENTRY.match(line)):
            names = ", ".join(f"`{name.strip(' `')}`" for name in entry["name"].split(","))
            yield f"- {names}: {entry['text']}"
        else:
            inner = "  " if line.startswith("     ") else ""
            yield inner + line.strip() if section else line
    if in_example:
        yield "```"
