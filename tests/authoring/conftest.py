"""The fixture that loads a rule file written for a test."""

from __future__ import annotations

from tests.rewrite.conftest import load

__all__ = ["load"]
