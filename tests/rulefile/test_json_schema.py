"""The rule language as JSON Schema: it is shipped, explains everything, and agrees with what
loading a file says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from llava_remap.rulefile import shipped_folder
from llava_remap.rulefile.json_schema import schema_json
from tests.conftest import Run

from .test_shipped import FILES
from .written import COMPLETE, put, refused

SCHEMA = json.loads(schema_json())


def valid(content: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(content))


@pytest.mark.torch
def test_it_is_shipped_and_printed(run: Run) -> None:
    """After a change of the language: `llava-remap rules schema > rules/schema/rules-v1.json`."""
    assert (
        (shipped_folder() / "schema" / "rules-v1.json").read_text()
        == schema_json()
        == run("rules", "schema").out
    )


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", FILES)
def test_shipped_files_name_it_and_follow_it(file: str) -> None:
    text = FILES[file].read_text()
    named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (FILES[file].parent / named).resolve() == (
        FILES[file].parents[file.count("/")] / "schema/rules-v1.json"
    ).resolve()
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


def described(schema: dict[str, Any], path: str) -> Iterator[tuple[str, bool]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", len(field.get("description", "")) > 10
    for name, part in schema.get("$defs", {}).items():
        yield name, len(part.get("description", "")) > 20
        yield from described(part, name)


def test_everything_is_described() -> None:
    fields = dict(described(SCHEMA, "file"))
    assert {"file.names", "Rule.when", "Rule.reverse", "NameTest.given", "Condition"} <= set(fields)
    assert [field for field, said in fields.items() if not said] == []


RULE = "names:\n  - "
OPERATION = "tensors:\n  - "


def test_operations_and_their_tests_follow_it() -> None:
    text = """
schema: 1
tensors:
  - id: parts
    from: '{m...}.fused'
    to: [{name: '{m}.q', view: [heads, '*', 2], axes: [0, 2, 1]}, '{m}.k', {drop: padding, size: 3}]
    how: {view: ['*', size], axis: 1, split: 0}
    let: {heads: target.text_config.num_attention_heads, size: target.text_config.head_dim}
  - {id: all, from: '{m...}.{e:each}.w', to: '{m}.w', how: {stack: 0}, optional: true}
tests:
  - {from: [a.0.w, a.1.w], to: a.w, values: {from: [[1], [2]], to: [[1], [2]]}}
  - from: a.fused
    to: [a.q, a.k]
    shapes: {from: [9, 4], to: [[4, 4], [2, 4]]}
    given: {target: {text_config.head_dim: 2}}
"""
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize(
    "mistake",
    [
        "schema: 2\n",
        "schema: 1\nnam: x\n",
        f"schema: 1\n{RULE}{{id: a, from: x}}\n",
        f"schema: 1\n{RULE}{{id: a, from: x, replace: y}}\n",
        f"schema: 1\n{RULE}{{id: a, from: x, to: y, drop: z}}\n",
        f"schema: 1\n{RULE}{{id: A b, from: x, to: y}}\n",
        f"schema: 1\n{RULE}{{id: a, from: x, to: y, when: {{presnt: [z]}}}}\n",
        f"schema: 1\n{OPERATION}{{id: a, from: x, to: [y, z], how: {{split: 0, stack: 1}}}}\n",
        f"schema: 1\n{OPERATION}{{id: a, from: x, to: {{drop: z, name: z}}, how: {{split: 0}}}}\n",
        f"schema: 1\n{OPERATION}{{id: a, from: x, to: [y, {{view: [2, 3]}}], how: {{split: 0}}}}\n",
        f"schema: 1\n{OPERATION}{{id: a, from: x, to: y, how: {{}}, let: {{h: source.a}}}}\n",
        f"schema: 1\n{RULE}{{id: a, from: x, to: y, one_way: false}}\n",
        f"schema: 1\n{RULE}{{id: a, match: x, replace: y, reverse: {{match: z}}}}\n",
        "schema: 1\ntests:\n  - {from: x, to: y, dropped: true}\n",
        "schema: 1\ntokens: [{text: x, role: sound}]\n",
        COMPLETE.replace("1.0.0", "one"),
    ],
)
def test_what_loading_refuses_an_editor_marks(mistake: str, tmp_path: Path) -> None:
    assert refused(put(tmp_path, "r.yaml", mistake)).problems[0].code in ("LR201", "LR202")
    assert not valid(yaml.safe_load(mistake))
