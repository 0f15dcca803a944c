"""`make reference`: the pages and tables that are made from the code.

`python -m tools.docs.reference` writes those that changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from llava_remap.cli.commands import app
from llava_remap.core.codes import CODES
from llava_remap.post_load.plugins.expand_embeddings import USED_BY, ExpandEmbeddings
from tools.docs.pages import DOCS, ROOT, name_of
from tools.docs.python_page import python_page
from tools.docs.rooms_picture import room_table, rooms_svg

MADE = "<!-- This page is written by `make reference`. Change the code, not the page. -->\n"
_GROUPS = {
    "1": "Input",
    "2": "Rule files and the command line",
    "3": "Names and parts",
    "4": "Values, vocabulary and tokenizer",
    "5": "Machine, disk and output",
    "6": "The written folder",
}
#: 130 is what shells say of a process that Ctrl-C ended.
EXITS = {
    0: "done",
    1: "the mapping or a verification found problems, or `diff` a difference",
    2: "wrong usage or rule file",
    3: "an input can't be read",
    4: "refused for want of disk, memory or an empty output folder",
    5: "a library that is needed doesn't work",
    70: "a fault of llava-remap itself; the message says how to report it",
    130: "interrupted",
}


def made() -> dict[Path, str]:
    """Every file that is made from the code, whole or in part, with the content it should have."""
    return {
        DOCS / "reference" / "messages.md": messages_page(),
        DOCS / "reference" / "command-line.md": command_line_page(),
        DOCS / "reference" / "rule-file.md": rule_file_page(),
        DOCS / "reference" / "python.md": python_page(MADE),
        DOCS / "rooms.svg": rooms_svg(),
        DOCS / "guide" / "vocabulary.md": _with_section(
            DOCS / "guide" / "vocabulary.md", "options", option_table()
        ),
        DOCS / "architecture.md": _with_section(DOCS / "architecture.md", "rooms", room_table()),
    }


def _with_section(page: Path, name: str, content: str) -> str:
    """The page with the lines between `<!-- NAME: … -->` and `<!-- end of NAME -->` replaced."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name}: ")
    comment, _, rest = rest.partition("-->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not end:
        raise ValueError(f"{name_of(page)} has no section {name}")
    return f"{before}{begin}{comment}-->\n\n{content}\n{end}{after}"


def messages_page() -> str:
    """Every code with title, exit code and explanation."""
    parts = [
        "# Messages\n",
        MADE,
        "Every message about a checkpoint, a rule file or a folder has a code, and a code keeps\n"
        "its meaning. A message says what was found, and behind an arrow what to do. Messages\n"
        "that begin with *Note* or *A note* in these tables don't end the job. LR309 and LR317\n"
        "are notes in some cases; their entries say which.\n",
        "## Exit codes\n",
        exit_table(),
    ]
    for digit, group in _GROUPS.items():
        parts += [f"## {group}\n", code_table(f"LR{digit}")]
    return "\n".join(parts)


def exit_table() -> str:
    """The exit codes of the process."""
    return _table(("exit code", "meaning"), ([str(code), text] for code, text in EXITS.items()))


def code_table(prefix: str) -> str:
    """The codes that begin with the prefix."""
    rows = (
        [f'<a id="{code.lower()}"></a>`{code}`', entry.title, str(entry.exit.value), entry.about]
        for code, entry in CODES.items()
        if code.startswith(prefix)
    )
    return _table(("code", "title", "exit", "what it means, and what to do"), rows)


def option_table() -> str:
    """Options of `expand_embeddings`."""
    rows = []
    for name, field in ExpandEmbeddings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        used = ", ".join(USED_BY.get(name, ["any"]))
        rows.append([f"`{name}`", default, used, field.description or ""])
    return _table(("option", "default", "with `init`", "meaning"), rows)


def command_line_page() -> str:
    """Every command with its help, arguments and options, as `--help` has them."""
    parts = [
        "# Command line\n",
        MADE,
        "`llava-remap COMMAND --help` prints the same.\n",
    ]
    for name, command in _commands(typer.main.get_command(app), "llava-remap"):
        with command.make_context(name, [], resilient_parsing=True) as context:
            usage = " ".join([name, *command.collect_usage_pieces(context)])
            records = [
                (parameter.param_type_name, parameter.get_help_record(context))
                for parameter in command.get_params(context)
            ]
        parts += [f"## {name.removeprefix('llava-remap ')}\n", f"```text\n{usage}\n```\n"]
        parts += [f"{' '.join(text.split())}\n" for text in command.help.split("\n\n")]
        for kind in ("argument", "option"):
            rows = [
                [f"`{record[0]}`", _sentence(record[1])]
                for of, record in records
                if of == kind and record is not None and record[0] != "--help"
            ]
            if rows:
                parts.append(_table((kind, "meaning"), rows))
    return "\n".join(parts)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, in the order of `--help`, with its whole name."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for word, sub in below.items():
        yield from _commands(sub, f"{name} {word}")


def _sentence(text: str) -> str:
    return " ".join(text.split()).replace("  [", " [")


def rule_file_page() -> str:
    """Every field of the rule language, from its JSON Schema."""
    schema = json.loads((ROOT / "rules" / "schema" / "rules-v1.json").read_text(encoding="utf-8"))
    parts = [
        "# Every field of a rule file\n",
        MADE,
        "[The rule language](../rules/language.md) explains how these fields work together.\n"
        "`llava-remap rules schema` prints the same as JSON Schema, for editors.\n",
        "## A rule file\n",
        _fields(schema),
    ]
    for name, part in schema["$defs"].items():
        if "properties" in part:
            parts.append(f"## {_words(name)}\n")
            if part.get("description"):
                parts.append(f"{part['description']}\n")
            parts.append(_fields(part))
    return "\n".join(parts)


def _fields(part: dict[str, Any]) -> str:
    required = part.get("required", [])
    rows = [
        [
            f"`{name}`" + (" (required)" if name in required else ""),
            _kind(field),
            field.get("description", ""),
        ]
        for name, field in part["properties"].items()
    ]
    return _table(("field", "value", "meaning"), rows)


def _kind(field: dict[str, Any]) -> str:
    """What a value is, in a few words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        words = _words(name).lower()
        return f"[{words}](#{words.replace(' ', '-')})"
    if "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        return " or ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in values)
    for key in ("anyOf", "oneOf"):
        if key in field:
            kinds = dict.fromkeys(_kind(one) for one in field[key] if one != {"type": "null"})
            return " or ".join(kinds)
    if field.get("type") == "array":
        items = field.get("items")
        return f"list of {_kind(items)}" if items else "list"
    if field.get("type") == "object":
        more = field.get("additionalProperties")
        return f"mapping to {_kind(more)}" if isinstance(more, dict) else "mapping"
    names = {"string": "text", "boolean": "true or false", "integer": "whole number"}
    kind: str = field.get("type", "any value")
    return names.get(kind, kind)


def _words(name: str) -> str:
    """`ConfigValue` as `Config value`."""
    return (
        "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)
        .strip()
        .capitalize()
    )


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(_cell(cell) for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _cell(text: str) -> str:
    return (
        text.replace("|", "\\|").replace("<", "&lt;")
        if "`" not in text
        else text.replace("|", "\\|")
    )


def main() -> None:
    for path, content in made().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
            print(f"{name_of(path)}: written anew")


if __name__ == "__main__":
    main()
