"""Strict load of what was written."""

from llava_remap.verify.strict import strict_load

__all__ = ["strict_load"]
