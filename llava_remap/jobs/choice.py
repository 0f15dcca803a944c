"""How `convert` chose the rule file and the sources for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llava_remap.checkpoint import InMemory


@dataclass(frozen=True, slots=True)
class Choice:
    """How a checkpoint is converted.

    Attributes:
        rules: path of a rule file, or the name of a shipped one.
        sources: the SRC of each source that is given to `plan`, by its name. For any other needed
            source, `plan` opens the default.
        reason: why this rule file was chosen.
        found: for each of `sources` that the user didn't give, how it was found.
    """

    rules: str
    sources: Mapping[str, str | InMemory]
    reason: str
    found: Mapping[str, str] = field(default_factory=dict)
