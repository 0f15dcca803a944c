"""YAML text to a validated, versioned rule file. Knows no tensors."""

from llava_remap.rulefile.load import (
    Listed,
    RuleFile,
    load_rule_file,
    shipped_chat_parts,
    shipped_class_part,
    shipped_folder,
    shipped_layouts,
    shipped_list,
    shipped_rule_files,
)  # fmt: skip
from llava_remap.rulefile.pattern import (
    PatternError,
    Regex,
    RunawayError,
    Template,
    TimeSpent,
    Wrapper,
    reversed_template,
)
from llava_remap.rulefile.schema import (
    Condition,
    ConfigValue,
    Given,
    NamedDefault,
    NameTest,
    PixelProcessor,
    Processor,
    Requirement,
    Rule,
    Source,
    Token,
)  # fmt: skip

__all__ = [
    "Condition", "ConfigValue", "Given", "Listed", "NameTest", "NamedDefault",
    "PatternError",
    "PixelProcessor", "Processor", "Regex", "Requirement", "Rule", "RuleFile",
    "RunawayError", "Source",
    "Template", "TimeSpent", "Token", "Wrapper", "load_rule_file", "reversed_template",
    "shipped_chat_parts",
    "shipped_class_part", "shipped_folder", "shipped_layouts", "shipped_list", "shipped_rule_files",
]  # fmt: skip
