"""Writes YAML: values on one line, and tests into the text of a rule file. All other bytes of that
text are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llava_remap.core.escaped import printable
from llava_remap.core.problem import Mark, refuse
from llava_remap.rulefile.schema import NameTest
from llava_remap.rulefile.yaml_text import LOADER

#: Texts that need no quotes in YAML, except those in `_WORDS`.
PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
#: Words that some YAML readers don't take as text.
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
#: Columns of a line; a longer entry is written on several lines.
_WIDTH = 130
_BOM = "\ufeff"
_LINE_END = re.compile(r"\r\n|\n|\r|\Z")


def quoted(text: str) -> str:
    """A text in quotes. A lone surrogate, which YAML can't represent, is escaped: `\\udcff`."""
    text = "".join(printable(one) if "\ud800" <= one <= "\udfff" else one for one in text)
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'


def flow(value: Any, plain: re.Pattern[str] = PLAIN_TEXT) -> str:
    """A JSON value in YAML's flow style.

    Args:
        plain: pattern of texts to write without quotes.
    """
    if isinstance(value, Mapping):
        entries = (f"{flow(key, plain)}: {flow(one, plain)}" for key, one in value.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(one, plain) for one in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if plain.fullmatch(value) and value.lower() not in _WORDS else quoted(value)


def with_tests(text: str, tests: Sequence[NameTest], shown: str) -> str:
    """The text of a valid rule file, with further tests after its own.

    Args:
        text: the file's text with its original line ends.
        shown: the file's name in messages.

    Raises:
        RemapError: LR201 for a file that is one flow mapping, `{schema: 1, …}`, which has no line
            to put tests behind.
    """
    if text.startswith(_BOM):  # YAML readers don't count it as a position
        return _BOM + with_tests(text.removeprefix(_BOM), tests, shown)
    root = yaml.compose(text, Loader=LOADER)
    assert isinstance(root, yaml.MappingNode)
    if root.flow_style:
        raise refuse(
            "LR201",
            "the file is written in braces, {…}, so there is no line after which tests can be "
            "added.",
            "Write its fields one below the other.",
            place=Mark(shown, 1, 1),
        )
    newline = "\r\n" if "\r\n" in text else "\n"
    present = next((value for key, value in root.value if key.value == "tests"), None)
    if present is None:
        indent = " " * root.start_mark.column
        at, block = len(text), f"{newline}{indent}tests:{newline}"
        block += _block(tests, indent + "  ", newline)
    else:
        assert isinstance(present, yaml.SequenceNode)
        if present.flow_style:
            return _in_flow(text, present, tests, newline)
        last: yaml.Node = present  # a node in block style ends where the next node begins
        while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
            last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
        at, block = last.end_mark.index, _block(tests, " " * present.start_mark.column, newline)
        if last.end_mark.column:  # a block of text ends at the start of a line
            line_end = _LINE_END.search(text, at)
            assert line_end is not None
            at = line_end.end()
    before = "" if text[:at].endswith(("\n", "\r")) else newline
    return text[:at] + before + block + text[at:]


def _in_flow(text: str, node: yaml.SequenceNode, tests: Sequence[NameTest], newline: str) -> str:
    """The text with tests behind the last item: on its line, or each on a line of its own if the
    present items are.
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
