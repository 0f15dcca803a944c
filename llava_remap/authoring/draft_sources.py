"""The checkpoints that a draft is made from: their names side by side, as the draft's rules will
see them; and the user's answers about these names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from llava_remap.authoring.name_set import NAMES_ALONE, open_names
from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.core.problem import refuse
from llava_remap.rewrite import compile_rules
from llava_remap.rewrite.infer import Group, Segments, Shape, fold, grows, unfold
from llava_remap.rulefile import Source, load_rule_file, shipped_folder
from llava_remap.source.sources import is_there

#: The shared parts that clean up names before the inference.
CLEAN = ("parts/wrappers.yaml", "parts/buffers.yaml")
#: The source that a `--from` without a name gives.
FIRST = "model"
T = TypeVar("T")
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_]*)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Given:
    """Checkpoints by source name, the main one first.

    Attributes:
        checkpoints: the opened checkpoints.
        prefixes: the prefix of each checkpoint's names, so that no two checkpoints share a name.
        tensors: the tensors of all checkpoints, by the name that rules see: with the prefix, but
            without wrappers and buffers.
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
        """Whether some checkpoint has only names. Then no shapes are compared."""
        return any(checkpoint.form == NAMES_ALONE for checkpoint in self.checkpoints.values())

    @property
    def shapes(self) -> dict[str, Shape]:
        return (
            unknown_shapes(self.tensors)
            if self.names_alone
            else {name: t.shape for name, t in self.tensors.items()}
        )


def open_sources(given: Sequence[str], known: Mapping[str, Source], offline: bool) -> Given:
    """Open `[NAME=]SRC` arguments.

    Args:
        known: the sources that the draft inherits. A source that overrides others needn't be a
            whole model.

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
                "Give each source another name: --from NAME=SRC.",
            )
        named[name] = location
    if FIRST not in named:
        raise refuse(
            "LR211",
            f"no checkpoint is given for source `{FIRST}`.",
            f"Give one: --from {FIRST}=SRC.",
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
    opened = Given(checkpoints, {}, {}, {}, 0)
    for source, checkpoint in checkpoints.items():
        bare, dropped = cleaned(checkpoint.unpaired)
        prefix = "" if opened.tensors.keys().isdisjoint(bare) else f"{source}."
        opened = Given(
            checkpoints,
            {**opened.prefixes, source: prefix},
            {**opened.tensors, **{prefix + name: tensor for name, tensor in bare.items()}},
            {**opened.owners, **{prefix + name: source for name in bare}},
            opened.buffers + dropped,
        )
    return opened


def unknown_shapes(names: Iterable[str]) -> dict[str, Shape]:
    """Stand-ins for unknown shapes. A bias and a weight get different shapes."""
    return {name: (0,) if name.endswith("bias") else () for name in names}


def select_modules(
    given: Given, taken: Iterable[str], left: Collection[str]
) -> tuple[Given, dict[str, str]]:
    """Leave out the unused tensors of further sources, if one module of the source holds all of its
    used tensors and no others.

    CLIP's own checkpoint, for example, has a text encoder that no target needs.

    Args:
        taken, left: the used and the unused names of all sources, as rules see them.

    Returns:
        The sources without the tensors left out, and the module by source.
    """
    modules: dict[str, str] = {}
    for source in list(given.checkpoints)[1:]:
        prefix = given.prefixes[source]
        own, rest = (
            {
                name: tuple(name.removeprefix(prefix).split("."))
                for name in names
                if given.owners[name] == source
            }
            for names in (taken, left)
        )
        columns = zip(*(segments[:-1] for segments in own.values()), strict=False)
        shared = takewhile(lambda column: len(set(column)) == 1, columns)
        module = tuple(column[0] for column in shared)
        inside = any(segments[: len(module)] == module for segments in rest.values())
        if own and rest and module and not inside:
            modules[source] = ".".join(module)
            kept = {name: tensor for name, tensor in given.tensors.items() if name not in rest}
            given = replace(given, tensors=kept)
    return given, modules


def read_answers(
    given: Sequence[str], shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]
) -> dict[Segments, Segments]:
    """`FROM=TO` arguments as patterns of groups.

    Args:
        shapes, wanted: the names of the sources and of the target.

    Raises:
        RemapError: LR211 for an argument that names nothing, or names and shapes that don't fit.
    """
    sources, targets = fold(shapes), fold(wanted)
    found: dict[Segments, Segments] = {}
    for text in given:
        one, equals, other = text.partition("=")
        if not equals:
            raise refuse(
                "LR211",
                f"--map {text} isn't of the form FROM=TO.",
                "Write names, or folded names: layers.{0..31}.up.weight.",
            )
        source = _group(text, one, sources, "source")
        target = _group(text, other, targets, "target")
        are_names = one in source.names and other in target.names
        if set(source.members) != set(target.members) and are_names:
            source, target = (
                next(single for single in unfold(group) if single.names == [name])
                for group, name in ((source, one), (target, other))
            )
        twice = source.pattern in found or target.pattern in found.values()
        if twice or set(source.members) != set(target.members):
            why = f"{source.folded} and {target.folded} have different layers"
            raise refuse(
                "LR211",
                f"--map {text}: {'one of the two groups is mapped twice' if twice else why}.",
                "Map a group to a group with the same layers, each group once.",
            )
        if any(
            shape != target.members[numbers] and not grows(shape, target.members[numbers])
            for numbers, shape in source.members.items()
        ):
            raise refuse(
                "LR211",
                f"--map {text}: the shapes are {source.shape} and {target.shape}.",
                "Map tensors of the same shape.",
            )
        found[source.pattern] = target.pattern
    return found


def _group(text: str, name: str, groups: Sequence[Group], side: str) -> Group:
    def bare(folded: str) -> str:
        return re.sub(r"\{[^}]*\}", "#", folded)

    for group in groups:
        if name in group.names or bare(name) == bare(group.folded):
            return group
    near = difflib.get_close_matches(bare(name), [bare(group.folded) for group in groups], 1, 0.3)
    raise refuse(
        "LR211",
        f"--map {text}: the {side} has no `{name}`.",
        f"Did you mean `{near[0]}`?" if near else "",
    )


def cleaned(named: Mapping[str, T]) -> tuple[dict[str, T], int]:
    """Values by name, without wrappers and stored buffers, and the number of dropped names."""
    programs = [compile_rules(load_rule_file(shipped_folder() / part)) for part in CLEAN]
    clean = dict(named)
    for program in programs:
        rewrites = [(program.rewrite(name), value) for name, value in clean.items()]
        clean = {to.prepared: value for to, value in rewrites if to.reason is None}
    return clean, len(named) - len(clean)
