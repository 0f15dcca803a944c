"""The names that a rule file takes from checkpoints, even where only names are at hand."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.authoring.in_file_tests import Known
from llava_remap.checkpoint import (
    Checkpoint,
    Tensor,
    has_file,
    read_file,
    read_object,
    read_weight_map,
)
from llava_remap.core.problem import refuse
from llava_remap.rewrite import Program, Rewrite, compile_rules
from llava_remap.rulefile import RuleFile
from llava_remap.source.sources import name_sources, open_source, short_name

#: `Checkpoint.form` where only the names are known.
NAMES_ALONE = "names alone"
_INDEX = "*.index.json"
_LIST = (".txt", ".names")
#: Bytes. 300,000 names of 100 characters.
_LARGEST_LIST = 30_000_000
_GIVE_LIST = "Give a list of names, one a line."


@dataclass(frozen=True, slots=True)
class NameSet:
    """Names by source.

    Attributes:
        sources: the last part of each source's location.
        names: the names that are taken from each source, as the source spells them.
        stored: all names of the first source, as it spells them; a `when` may ask for them.
        config: the config of the first source; None where it has none.
        names_alone: whether only the names are known of some source.
        aside: for a source from which not all names are taken: how many of how many, and why, in
            words.
    """

    sources: Mapping[str, str]
    names: Mapping[str, Sequence[str]]
    stored: Sequence[str]
    config: Mapping[str, Any] | None
    aside: Mapping[str, str]
    names_alone: bool = False

    def known(self, rules: RuleFile) -> Known:
        """Names and config as the program of a rule file sees them: names with their prefixes."""
        taken = [
            source.prefix + name
            for key, source in rules.text.sources.items()
            for name in self.names.get(key, ())
        ]
        return Known(tuple(self.stored), tuple(taken), self.config)

    def rewrites(self, rules: RuleFile, program: Program) -> Iterator[tuple[str, str, Rewrite]]:
        """Each source, each of its names, and the rewrite of the name with the source's prefix."""
        for key, source in rules.text.sources.items():
            for name in self.names.get(key, ()):
                yield key, name, program.rewrite(source.prefix + name)


def read_names(rules: RuleFile, given: Sequence[str], *, offline: bool = False) -> NameSet:
    """The names of the checkpoints that `--source` arguments give. The rule file's defaults for
    sources don't count.

    Raises:
        RemapError: as `name_sources` and `open_source`; LR211 where the first source isn't given,
            or the rule file is a part.
    """
    from llava_remap.jobs.source_configs import source_configs
    from llava_remap.routing import main_names, route
    from llava_remap.target_model import text_config

    if not rules.text.sources:
        raise refuse(
            "LR211",
            f"`{rules.name}` names no sources: it is a part of other rule files.",
            "Leave out --source, or give a rule file that extends this part.",
        )
    named = name_sources(list(rules.text.sources), given)
    first = rules.first_source
    if first not in named:
        raise refuse(
            "LR211",
            f"no checkpoint is given for source `{first}`.",
            f"Give one: --source {first}=SRC.",
        )
    checkpoints = {
        name: open_names(
            name,
            named[name],
            source.use,
            first=name == first,
            part=source.overrides,
            offline=offline,
        )
        for name, source in rules.text.sources.items()
        if name in named
    }
    config = text_config(source_configs(rules, checkpoints))
    stored = main_names(rules, checkpoints)
    routes = route(rules, compile_rules(rules, stored, config), checkpoints)
    names: dict[str, list[str]] = {name: [] for name in checkpoints}
    for routed in routes.taken:
        names[routed.source].append(routed.tensor.name)
    aside = {}
    beside = {routed.source for routed in routes.beside}
    for name, checkpoint in checkpoints.items():
        source, total = rules.text.sources[name], len(checkpoint.catalog)
        if "tensors" not in source.use:
            aside[name] = (
                f"none of {total} names: only the source's {', '.join(source.use)} would be used"
            )
        elif name in beside:
            aside[name] = (
                f"none of {total} names: `{first}` has these tensors itself, "
                f"`{source.used_if_absent}`"
            )
        elif len(names[name]) < total:
            which = "the others are an adapter's pairs, or are replaced"
            if source.selected:
                which = (
                    f"only names that match {' or '.join(f'`{one}`' for one in source.selected)}"
                )
            aside[name] = f"{len(names[name])} of {total} names: {which}"
    alone = any(checkpoint.form == NAMES_ALONE for checkpoint in checkpoints.values())
    return NameSet(
        {name: short_name(named[name]) for name in checkpoints}, names, stored, config, aside, alone
    )


def open_names(
    name: str,
    text: str,
    use: Collection[str],
    *,
    first: bool,
    part: bool = False,
    offline: bool = False,
) -> Checkpoint:
    """Like `open_source`, but names are enough: an index without its shards, or a list of names.

    The tensors of such a checkpoint have no dtype and the shape ().

    Raises:
        RemapError: as `open_source`; LR103 for an index and LR102 for a list that can't be
            read.
    """
    path = Path(text).expanduser()
    if path.suffix in _LIST and has_file(path):
        return _checkpoint(path, path.parent, _listed(path))
    indexes = [path] if path.name.endswith(_INDEX[1:]) and has_file(path) else []
    if path.is_dir():
        indexes = sorted(path.glob(_INDEX))
    if len(indexes) == 1:
        files = read_weight_map(indexes[0])
        if not any(os.path.lexists(indexes[0].parent / file) for file in set(files.values())):
            return _checkpoint(path, indexes[0].parent, list(files))
    return open_source(name, text, use, first=first, part=part, offline=offline)


def _listed(path: Path) -> list[str]:
    try:
        too_long = path.stat().st_size > _LARGEST_LIST
        lines = [] if too_long else read_file(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise refuse("LR102", f"{path}: {error}.", _GIVE_LIST) from None
    names = [line.strip() for line in lines if line.strip()]
    odd = next((name for name in names if any(letter.isspace() for letter in name)), "")
    if too_long or odd or not names:
        cause = f"has more than {_LARGEST_LIST} bytes" if too_long else "has no names"
        if odd:
            cause = f"isn't a list of names: one line is `{odd[:60]}`"
        raise refuse("LR102", f"{path} {cause}.", _GIVE_LIST)
    return names


def _checkpoint(path: Path, folder: Path, names: Collection[str]) -> Checkpoint:
    config = folder / "config.json"
    content = (
        read_object(config, "LR113", "Download or copy it again.", unique=False)
        if has_file(config)
        else None
    )
    return Checkpoint(
        path, NAMES_ALONE, {name: Tensor.of(name, "", (), None) for name in names}, content, folder
    )
