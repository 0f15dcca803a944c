"""The names that a rule file takes from checkpoints, and what of their config its rules ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_remap.core.problem import refuse
from llava_remap.rewrite import Known, Program, Rewrite
from llava_remap.rulefile import RuleFile


@dataclass(frozen=True, slots=True)
class NameSet:
    """Names by source.

    Attributes:
        sources: of each source the last part of where it is.
        names: of each source the names that are taken of it, as it spells them.
        stored: all names of the first source, as it spells them: what a `when` may ask for.
        config: of the first source; None where it has none.
        names_alone: whether of one of them only the names are known.
        aside: of a source from which not all names are taken: so many of how many, and why, in
            words.
    """

    sources: Mapping[str, str]
    names: Mapping[str, Sequence[str]]
    stored: Sequence[str]
    config: Mapping[str, Any] | None
    aside: Mapping[str, str]
    names_alone: bool = False

    def known(self, rules: RuleFile) -> Known:
        """The same as the program of a rule file sees it: all names behind their prefixes."""
        prefixes = {name: source.prefix for name, source in rules.text.sources.items()}
        taken = [prefixes[source] + name for source, own in self.names.items() for name in own]
        return Known(tuple(self.stored), tuple(taken), self.config)

    def rewrites(self, rules: RuleFile, program: Program) -> Iterator[tuple[str, str, Rewrite]]:
        """Every name: its source, itself, and what becomes of it behind the source's prefix."""
        for source, names in self.names.items():
            prefix = rules.text.sources[source].prefix
            for name in names:
                yield source, name, program.rewrite(prefix + name)


def read_names(rules: RuleFile, given: Sequence[str], *, offline: bool = False) -> NameSet:
    """The names of the checkpoints that `--source` arguments give; defaults of the rule file are
    not taken.

    Raises:
        RemapError: as `name_sources` and `open_source`; LR211 where the first source isn't given,
            or the rule file is a part.
    """
    from llava_remap.authoring.names_alone import NAMES_ALONE, open_names
    from llava_remap.jobs.derive import source_configs
    from llava_remap.rewrite import compile_rules
    from llava_remap.routing import main_names, route
    from llava_remap.source.sources import name_sources, short_name
    from llava_remap.target_model import text_config

    if not rules.text.sources:
        raise refuse(
            "LR211",
            f"`{rules.name}` names no sources: it is a part of other rule files.",
            "Leave --source out, or give a rule file that extends it.",
        )
    named = name_sources(list(rules.text.sources), given)
    first = rules.first_source
    if first not in named:
        raise refuse(
            "LR211",
            f"no checkpoint is given for source `{first}`.",
            f"Give it too: --source {first}=SRC.",
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
    for name, checkpoint in checkpoints.items():
        source, total = rules.text.sources[name], len(checkpoint.catalog)
        if "tensors" not in source.use:
            aside[name] = f"none of {total} names: only its {', '.join(source.use)} would be used"
        elif any(routed.source == name for routed in routes.beside):
            aside[name] = f"none of {total} names: `{first}` has its own, `{source.used_if_absent}`"
        elif len(names[name]) < total:
            select = " or ".join(f"`{template}`" for template in source.selected)
            which = (
                f"those that are {select}"
                if select
                else "the others are an adapter's pairs, or replaced"
            )
            aside[name] = f"{len(names[name])} of {total} names: {which}"
    alone = any(checkpoint.form == NAMES_ALONE for checkpoint in checkpoints.values())
    return NameSet(
        {name: short_name(named[name]) for name in checkpoints}, names, stored, config, aside, alone
    )
