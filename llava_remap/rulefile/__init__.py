"""YAML text to a validated, versioned rule file. Knows no tensors."""

from llava_remap.rulefile.kinds import Drop, Rename, RuleKind, Substitute, Unwrap
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
from llava_remap.rulefile.operation import AS_STORED, REST, End, Join, Operation, Seen, Size, Taken
from llava_remap.rulefile.pattern import Regex, RunawayError, TimeSpent, Wrapper
from llava_remap.rulefile.schema import (
    Condition,
    ConfigValue,
    Given,
    NamedDefault,
    NameTest,
    Numbers,
    PixelProcessor,
    Processor,
    Requirement,
    Rule,
    Source,
    Token,
)  # fmt: skip
from llava_remap.rulefile.template import PatternError, Template, reversed_template

__all__ = [
    "AS_STORED", "REST", "Condition", "ConfigValue", "Drop", "End", "Given", "Join", "Listed",
    "NameTest", "NamedDefault", "Numbers", "Operation", "PatternError", "PixelProcessor",
    "Processor", "Regex", "Rename", "Requirement", "Rule", "RuleFile", "RuleKind",
    "RunawayError", "Seen", "Size", "Source", "Substitute", "Taken", "Template", "TimeSpent",
    "Token", "Unwrap", "Wrapper", "load_rule_file", "reversed_template", "shipped_chat_parts",
    "shipped_class_part",
    "shipped_folder", "shipped_layouts", "shipped_list", "shipped_rule_files",
]  # fmt: skip
