"""How `convert` came from a checkpoint to a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llava_remap.checkpoint import InMemory


@dataclass(frozen=True, slots=True)
class Choice:
    """How a checkpoint is converted.

    Attributes:
        rules: path of a rule file, or the name of a shipped one.
        sources: the SRC of each source that is given to `plan`, by its name. A source that is
            needed besides has a default, which `plan` opens.
        reason: why this rule file.
        found: how each of `sources` was found that the user didn't give, by its name.
    """

    rules: str
    sources: Mapping[str, str | InMemory]
    reason: str
    found: Mapping[str, str] = field(default_factory=dict)
