"""YAML text to a validated, versioned rule file. Knows no tensors."""

from llava_remap.rulefile.load import RuleFile, load_rule_file, shipped_folder, shipped_rule_files
from llava_remap.rulefile.pattern import PatternError, Regex, RunawayError, Template, reversed_template
from llava_remap.rulefile.schema import Condition, ConfigValue, NameTest, Processor, Rule, RuleText, Source, Target, Token
from llava_remap.rulefile.yaml_text import Mark

__all__ = [
    "Condition", "ConfigValue", "Mark", "NameTest", "PatternError", "Processor", "Regex", "Rule", "RuleFile", "RuleText",
    "RunawayError", "Source", "Target", "Template", "Token", "load_rule_file", "reversed_template", "shipped_folder",
    "shipped_rule_files",
]  # fmt: skip
