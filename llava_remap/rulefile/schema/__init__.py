"""The rule language, version 1, as pydantic models. Each field has a description."""

from llava_remap.rulefile.schema.file import (
    NAMED,
    SCHEMA_VERSIONS,
    NamedDefault,
    RuleText,
    Source,
)
from llava_remap.rulefile.schema.operations import LISTED, SEEN, TensorRule
from llava_remap.rulefile.schema.part import Condition, Notice, Requirement
from llava_remap.rulefile.schema.rules import Given, NameTest, Numbers, Rule
from llava_remap.rulefile.schema.target import (
    ORIGINS,
    ConfigValue,
    PixelProcessor,
    Processor,
    Target,
    Token,
)

__all__ = [
    "LISTED", "NAMED", "ORIGINS", "SCHEMA_VERSIONS", "SEEN", "Condition", "ConfigValue", "Given",
    "NameTest", "NamedDefault", "Notice", "Numbers", "PixelProcessor", "Processor", "Requirement",
    "Rule", "RuleText", "Source", "Target", "TensorRule", "Token",
]  # fmt: skip
