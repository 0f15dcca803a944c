"""The checkpoints that a draft is made from: their names side by side, as the rules of the draft
will see them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llava_remap.authoring.names_alone import NAMES_ALONE, open_names
from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core.problem import refuse
from llava_remap.rewrite import compile_rules
from llava_remap.rewrite.infer import Segments, Shape
from llava_remap.rulefile import Source, load_rule_file, shipped_folder
from llava_remap.source.sources import is_there

#: The shared parts that clean names up before anything is inferred.
CLEAN = ("parts/wrappers.yaml", "parts/buffers.yaml")
#: The source that a bare `--from` names.
FIRST = "model"
T = TypeVar("T")
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_]*)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Given:
    """Checkpoints by source name, the main one first.

    Attributes:
        checkpoints: each as it was opened.
        prefixes: what stands before the names of each, so that none has a name of another.
        tensors: of all of them, by the name that rules see: behind the prefix, without wrappers and
            buffers.
        owners: the source of each of these names.
        buffers: how many names the shared parts drop.
    """

    checkpoints: Mapping[str, Checkpoint]
    prefixes: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    owners: Mapping[str, str]
    buffers: int

    @property
    def main(self) -> Checkpoint:
        return next(iter(self.checkpoints.values()))

    @property
    def location(self) -> str:
        return " with ".join(checkpoint.location for checkpoint in self.checkpoints.values())

    @property
    def configs(self) -> list[Mapping[str, Any]]:
        return [
            checkpoint.config
            for checkpoint in self.checkpoints.values()
            if checkpoint.config is not None
        ]

    @property
    def names_alone(self) -> bool:
        """Whether of one of them only the names are known; then shapes count for nothing."""
        return any(checkpoint.form == NAMES_ALONE for checkpoint in self.checkpoints.values())

    @property
    def shapes(self) -> dict[str, Shape]:
        return (
            unknown_shapes(self.tensors)
            if self.names_alone
            else {name: t.shape for name, t in self.tensors.items()}
        )

    def without(self, names: Sequence[str]) -> Given:
        """The same without tensors that are not to be taken."""
        left = set(names)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in left}
        return Given(self.checkpoints, self.prefixes, tensors, self.owners, self.buffers)


def open_sources(given: Sequence[str], known: Mapping[str, Source], offline: bool) -> Given:
    """Open `[NAME=]SRC` arguments.

    Args:
        known: the sources that the draft inherits; what overrides others there may be less than a
            model.

    Raises:
        RemapError: LR211 for a name that is given twice or without a first source; as `open_names`.
    """
    named: dict[str, str] = {}
    for text in given:
        found = None if is_there(Path(text)) else _NAMED.fullmatch(text)
        name, location = (found[1], found[2]) if found else (FIRST, text)
        if name in named:
            raise refuse(
                "LR211",
                f"source `{name}` is given twice: {named[name]} and {location}.",
                "Write --from NAME=SRC.",
            )
        named[name] = location
    if FIRST not in named:
        raise refuse(
            "LR211",
            f"no checkpoint is given for source `{FIRST}`.",
            f"Give it: --from {FIRST}=SRC.",
        )
    named = {FIRST: named[FIRST], **named}
    checkpoints = {
        name: open_names(
            name,
            location,
            ("tensors", "config"),
            first=name == FIRST,
            part=name in known and known[name].overrides,
            offline=offline,
        )
        for name, location in named.items()
    }
    prefixes: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    buffers = 0
    for source, checkpoint in checkpoints.items():
        bare, dropped = cleaned(checkpoint.unpaired)
        prefixes[source] = "" if tensors.keys().isdisjoint(bare) else f"{source}."
        tensors |= {prefixes[source] + name: tensor for name, tensor in bare.items()}
        owners |= {prefixes[source] + name: source for name in bare}
        buffers += dropped
    return Given(checkpoints, prefixes, tensors, owners, buffers)


def unknown_shapes(names: Iterable[str]) -> dict[str, Shape]:
    """What stands for shapes where only names are known: no bias is a weight."""
    return {name: (0,) if name.endswith("bias") else () for name in names}


def selected(
    given: Given, source: str, taken: Sequence[str], left: Sequence[str]
) -> Segments | None:
    """The module of a source in which all lies that is taken of it, and nothing that is left; None
    where there is none.

    Args:
        taken, left: names as rules see them, all of this source.
    """
    split = [tuple(name.removeprefix(given.prefixes[source]).split(".")) for name in taken]
    depth = 0
    while (
        all(len(segments) > depth + 1 for segments in split)
        and len({segments[depth] for segments in split}) == 1
    ):
        depth += 1
    module = split[0][:depth]
    inside = (
        tuple(name.removeprefix(given.prefixes[source]).split("."))[:depth] == module
        for name in left
    )
    return module if module and not any(inside) else None


def cleaned(named: Mapping[str, T]) -> tuple[dict[str, T], int]:
    """Values by name without wrappers, but for stored buffers, and how many were dropped."""
    programs = [compile_rules(load_rule_file(shipped_folder() / part)) for part in CLEAN]
    found = {}
    for name, value in named.items():
        prepared: str | None = name
        for program in programs:
            if prepared is not None:
                rewrite = program.rewrite(prepared)
                prepared = None if rewrite.reason is not None else rewrite.prepared
        if prepared is not None:
            found[prepared] = value
    return found, len(named) - len(found)
