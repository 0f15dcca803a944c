"""The rule language as JSON Schema, for editors. It is made from the pydantic models that validate
rule files.
"""

from __future__ import annotations

import json

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from llava_remap.rulefile.schema import SCHEMA_VERSIONS, RuleText


class _Generate(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: object) -> bool:
        """A title would only repeat the field's name."""
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Join the lines of the description, which is a docstring."""
        made = super().model_schema(schema)
        if "description" in made:
            made["description"] = made["description"].replace("\n", " ")
        return made


def schema_json() -> str:
    """The JSON Schema (draft 2020-12) of the newest version of the rule language, with a final
    newline.
    """
    schema = RuleText.model_json_schema(by_alias=True, schema_generator=_Generate)
    schema = {
        "$schema": _Generate.schema_dialect,
        **schema,
        "title": f"llava-remap rules, version {SCHEMA_VERSIONS[-1]}",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
