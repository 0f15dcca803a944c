"""Parses YAML into a tree of nodes that know their file, line and column.

Only the part of YAML that a rule file needs is read, by the core schema of YAML 1.2. Other parts
are errors: duplicate keys, anchors and aliases (and with them alias bombs), tags, plain
`yes`/`no`/`on`/`off` (booleans to a YAML-1.1 reader, strings to a person), and several documents in
one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml

from llava_remap.core.problem import Mark, refuse
from llava_remap.rulefile.yaml_hints import MEND, hint, place

#: Bytes. The largest shipped rule file has under 10 kB; parsing takes about a second per MB.
MAX_NBYTES = 1_000_000
#: Levels of nesting; the rule language needs seven.
MAX_DEPTH = 50
#: Values, lists and mappings included. The largest shipped rule file has 500, a file of 3,000 rules
#: with tests about 20,000.
MAX_NODES = 20_000

#: libyaml if it is installed: ten times as fast as the loader in Python.
LOADER = cast(Any, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
_CONSTANTS = {"": None, "null": None, "~": None, "true": True, "false": False}
_YAML_1_1_BOOLEANS = {"yes", "no", "on", "off", "y", "n"}
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


Value = None | bool | int | float | str | tuple["Node", ...] | dict[str, "Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place; inside a mapping, also the place of its key."""

    value: Value
    mark: Mark
    key_mark: Mark | None = None

    @property
    def plain(self) -> Any:
        """The value without its marks; lists become tuples."""
        if isinstance(self.value, tuple):
            return tuple(item.plain for item in self.value)
        if isinstance(self.value, dict):
            return {key: item.plain for key, item in self.value.items()}
        return self.value

    @property
    def entries(self) -> dict[str, Node]:
        """The entries of a mapping; none for anything else, which validation reports."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> tuple[Node, ...]:
        """The items of a list; none for anything else, which validation reports."""
        return self.value if isinstance(self.value, tuple) else ()

    def list_at(self, key: str) -> tuple[Node, ...]:
        """The items of the list under a key of a mapping."""
        return self.entries[key].items if key in self.entries else ()

    def locate(self, path: tuple[str | int, ...]) -> Node:
        """The deepest existing node on `path`, so that even a missing field has a place."""
        node = self
        for step in path:
            inside = node.entries.get(str(step))
            if isinstance(step, int) and step < len(node.items):
                inside = node.items[step]
            if inside is None:
                break
            node = inside
        return node


def read_yaml(path: Path, shown: str) -> Node:
    """Parse a file whose top level is a mapping. `shown` is the file's name in messages.

    Raises:
        RemapError: LR200 if the file can't be read, LR201 with file, line and column if it isn't
            valid YAML of this part.
    """
    try:
        if path.stat().st_size > MAX_NBYTES:
            raise refuse(
                "LR201",
                f"the file has {path.stat().st_size} bytes; at most {MAX_NBYTES} are read.",
                MEND,
                place=Mark(shown, 1, 1),
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise refuse(
            "LR200",
            f"{shown}: {error.strerror}.",
            "Give a path or the name of a shipped rule file.",
        ) from None
    except UnicodeDecodeError as error:
        raise refuse(
            "LR201", f"not UTF-8 at byte {error.start}.", MEND, place=Mark(shown, 1, 1)
        ) from None
    return parse_yaml(text, shown)


@lru_cache(maxsize=64)
def parse_yaml(text: str, shown: str) -> Node:
    """Like `read_yaml`, from text. Trees are cached: many rule files extend the same parts."""
    try:
        root = _document(_counted(yaml.parse(text, Loader=LOADER), shown), shown)
    except yaml.MarkedYAMLError as error:
        raise refuse(
            "LR201",
            f"not valid YAML: {error.problem or error.context}.",
            hint(text, error),
            place=_mark(place(error), shown),
        ) from None
    except yaml.reader.ReaderError as error:
        before = text[
            : max(text.find(chr(error.character)), 0)
        ]  # error.position counts bytes or characters, depending on the loader
        at = Mark(shown, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise refuse(
            "LR201",
            f"not valid YAML: the character U+{error.character:04X} isn't allowed.",
            "Remove it. A text in double quotes can have it as an escape with a \\.",
            place=at,
        ) from None
    except yaml.YAMLError as error:
        raise refuse(
            "LR201",
            f"not valid YAML: {' '.join(str(error).split())}.",
            MEND,
            place=Mark(shown, 1, 1),
        ) from None
    if not isinstance(root.value, dict):
        raise refuse(
            "LR201",
            "a rule file is a mapping of fields.",
            "Start with `schema: 1`.",
            place=root.mark,
        )
    return root


def _mark(mark: Any, shown: str) -> Mark:
    return Mark(shown, mark.line + 1, mark.column + 1) if mark else Mark(shown, 1, 1)


def _counted(events: Iterator[Any], shown: str) -> Iterator[Any]:
    """The events, with a limit on their number. A value has one event, a list or mapping two."""
    for number, event in enumerate(events):
        if number > 2 * MAX_NODES:
            raise refuse(
                "LR201",
                f"the file has more than {MAX_NODES} values.",
                MEND,
                place=Mark(shown, 1, 1),
            )
        yield event


def _document(events: Iterator[Any], shown: str) -> Node:
    root: Node | None = None
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if root is not None:
                raise refuse(
                    "LR201",
                    "a rule file is one YAML document.",
                    "Remove the `---`.",
                    place=_mark(event.start_mark, shown),
                )
            root = _node(next(events), events, shown, 0)
    return root or Node({}, Mark(shown, 1, 1))


def _node(event: Any, events: Iterator[Any], shown: str, depth: int, *, key: bool = False) -> Node:
    mark = _mark(event.start_mark, shown)
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise refuse(
            "LR201",
            "anchors and aliases are not part of the rule language.",
            "Write the value itself.",
            place=mark,
        )
    if event.tag:
        raise refuse(
            "LR201",
            f"tags (`{event.tag}`) are not part of the rule language.",
            "Remove the tag.",
            place=mark,
        )
    if depth > MAX_DEPTH:
        raise refuse(
            "LR201", f"the values are nested more than {MAX_DEPTH} levels deep.", MEND, place=mark
        )
    if isinstance(event, yaml.ScalarEvent):
        return Node(
            _scalar(event.value, mark) if event.implicit[0] and not key else event.value, mark
        )
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(event, events, shown, depth + 1))
        return Node(tuple(items), mark)
    entries: dict[str, Node] = {}
    flow = event.flow_style  # a key between braces may be the field of a template without quotes
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        named = _node(event, events, shown, depth + 1, key=bool(flow))
        if isinstance(named.value, (dict, tuple)):
            raise refuse(
                "LR201",
                "a key must be a word, not a list or mapping.",
                "Put a text that begins with { or [ in quotes, even if it is a value: '{x}'.",
                place=named.mark,
            )
        name = event.value
        if name in entries:
            raise refuse(
                "LR201",
                f"`{name}` occurs twice, first at line "
                f"{(entries[name].key_mark or named.mark).line}.",
                "Remove one of them.",
                place=named.mark,
            )
        value = _node(next(events), events, shown, depth + 1)
        entries[name] = Node(value.value, value.mark, named.mark)
    return Node(entries, mark)


def _scalar(text: str, mark: Mark) -> bool | int | float | str | None:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text.lower() in _YAML_1_1_BOOLEANS or (text.lower() in _CONSTANTS and text.lower() != text):
        raise refuse(
            "LR201",
            f"`{text}` is a boolean or null for some YAML readers and a word for others.",
            f"Write true, false or null, or put the word in quotes: '{text}'.",
            place=mark,
        )
    if _INT.fullmatch(text):
        return int(text) if len(text) < 20 else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
