"""Tests added to the text of a rule file: something is inserted, and every other byte stays as
it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from llava_remap.core.problem import Mark, refuse
from llava_remap.rulefile.schema import NameTest
from llava_remap.rulefile.yaml_text import LOADER
from llava_remap.rulefile.yaml_write import PLAIN_NAME, flow

#: Columns of a line; what is longer is written over several.
_WIDTH = 130
_BOM = "\ufeff"
_LINE_END = re.compile(r"\r\n|\n|\r|\Z")


def with_tests(text: str, tests: Sequence[NameTest], shown: str) -> str:
    """The text of a valid rule file with tests behind those that it has.

    Args:
        text: with its line ends as they are in the file.
        shown: the file's name in messages.

    Raises:
        RemapError: LR201 for a file that is one flow mapping, `{schema: 1, …}`, which has no lines
            to put tests between.
    """
    if text.startswith(_BOM):  # which a reader doesn't count
        return _BOM + with_tests(text.removeprefix(_BOM), tests, shown)
    root = yaml.compose(text, Loader=LOADER)
    assert isinstance(root, yaml.MappingNode)
    if root.flow_style:
        raise refuse(
            "LR201",
            "the file is written in braces, {…}, so there is no line to put tests behind.",
            "Write its fields one below the other.",
            place=Mark(shown, 1, 1),
        )
    newline = "\r\n" if "\r\n" in text else "\n"
    found = next((value for key, value in root.value if key.value == "tests"), None)
    if found is None:
        indent = " " * root.start_mark.column
        before = "" if text.endswith(("\n", "\r")) else newline
        return (
            text
            + before
            + newline
            + indent
            + "tests:"
            + newline
            + _block(tests, indent + "  ", newline)
        )
    assert isinstance(found, yaml.SequenceNode)
    if found.flow_style:
        return _in_flow(text, found, tests, newline)
    last = _last(found)
    at, column = last.end_mark.index, last.end_mark.column
    if column:  # the end of a block of text is the beginning of a line already
        line_end = _LINE_END.search(text, at)
        assert line_end is not None
        at = line_end.end()
    before = "" if text[:at].endswith(("\n", "\r")) else newline
    return text[:at] + before + _block(tests, " " * found.start_mark.column, newline) + text[at:]


def _last(node: yaml.Node) -> yaml.Node:
    """What stands last in a node. A node in block style ends, to the reader, only where the next
    one begins.
    """
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _in_flow(text: str, node: yaml.SequenceNode, tests: Sequence[NameTest], newline: str) -> str:
    """Behind the last item, in its line, or each in a line of its own where the items have lines
    of their own.
    """
    items = [flow(_fields(test), PLAIN_NAME) for test in tests]
    if not node.value:
        at = node.start_mark.index + 1
        return text[:at] + ", ".join(items) + text[at:]
    last = node.value[-1]
    own_line = last.start_mark.line > node.start_mark.line
    between = "," + (newline + " " * last.start_mark.column if own_line else " ")
    at = last.end_mark.index
    return text[:at] + "".join(between + item for item in items) + text[at:]


def _block(tests: Sequence[NameTest], indent: str, newline: str) -> str:
    lines = []
    for test in tests:
        fields = _fields(test)
        line = f"{indent}- {flow(fields, PLAIN_NAME)}"
        if len(line) > _WIDTH:
            entries = [f"{key}: {flow(value, PLAIN_NAME)}" for key, value in fields.items()]
            line = f"{indent}- " + f"{newline}{indent}  ".join(entries)
        lines.append(line + newline)
    return "".join(lines)


def _fields(test: NameTest) -> dict[str, Any]:
    return test.model_dump(by_alias=True, exclude_defaults=True)
