"""YAML text to a validated, versioned rule file. Knows no tensors."""

from llava_remap.rulefile.load import RuleFile, load_rule_file, shipped_folder, shipped_rule_files
from llava_remap.rulefile.pattern import Regex, RunawayError, Template
from llava_remap.rulefile.schema import ConfigValue, Detect, Processor, Rule, RuleText, Source, Target, Token
from llava_remap.rulefile.yaml_text import Mark

__all__ = [
    "ConfigValue", "Detect", "Mark", "Processor", "Regex", "Rule", "RuleFile", "RuleText", "RunawayError", "Source", "Target",
    "Template", "Token", "load_rule_file", "shipped_folder", "shipped_rule_files",
]  # fmt: skip
