"""Names given one by one, or all of a checkpoint, each explained by a rule file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_remap.core.problem import refuse
from llava_remap.rewrite.explain import Explainer, Explanation, LeftOut
from llava_remap.rulefile import RuleFile


@dataclass(frozen=True, slots=True)
class ExplainedName:
    """A name, as its source spells it; `source` is empty for one that is in none that was given."""

    source: str
    name: str
    explanation: Explanation

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source or None, "name": self.name, **self.explanation.to_json()}


@dataclass(frozen=True, slots=True)
class ExplainedNames:
    """What becomes of names.

    Attributes:
        left_out: rules that don't count, as their `when` doesn't hold for these names and their
            config.
        aside: of a source from which not all names are taken: how many are, and why, in words.
    """

    rules: RuleFile
    names: tuple[ExplainedName, ...]
    left_out: tuple[LeftOut, ...]
    aside: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": {
                "name": self.rules.name,
                "version": self.rules.text.version,
                "sha256": self.rules.sha256,
            },
            "left_out": [{"rule": left.rule, "why": list(left.why)} for left in self.left_out],
            "aside": dict(self.aside),
            "names": [name.to_json() for name in self.names],
        }


def explainer_for(rules: RuleFile, given: Sequence[str], *, offline: bool = False) -> Explainer:
    """The rules for the checkpoints that `--source` arguments give; without any, for one of
    which nothing is known.
    """
    if not given:
        return Explainer(rules, (), None)
    from llava_remap.authoring.name_set import read_names

    known = read_names(rules, given, offline=offline)
    return Explainer(rules, known.stored, known.config)


def explain_names(
    rules: RuleFile, names: Sequence[str], given: Sequence[str], *, offline: bool = False
) -> ExplainedNames:
    """Explain names, or all that are taken of checkpoints.

    Args:
        names: as their source spells them, or, where no source is given or none has them, as they
            are behind its prefix.
        given: `--source` arguments.

    Raises:
        RemapError: LR211 where neither is given or a name is empty, LR206, and as `read_names`.
    """
    if not names and not given:
        raise refuse(
            "LR211",
            "there is no name to explain.",
            "Give names of tensors, or --source SRC for all of a checkpoint.",
        )
    if "" in names:
        raise refuse(
            "LR211",
            "a name to explain is empty.",
            "Give the name of a tensor, as the checkpoint has it.",
        )
    wanted = list(dict.fromkeys(names))
    if not given:
        explainer = Explainer(rules, wanted, None)
        alone = tuple(
            ExplainedName("", name, explainer.explain(explainer.program.rewrite(name)))
            for name in wanted
        )
        return ExplainedNames(rules, alone, explainer.left_out, {})
    from llava_remap.authoring.name_set import read_names

    known = read_names(rules, given, offline=offline)
    explainer = Explainer(rules, known.stored, known.config)
    found = list(known.rewrites(rules, explainer.program))
    if wanted:
        there = {name for _, name, _ in found}
        found = [entry for entry in found if entry[1] in wanted]
        found += [
            ("", name, explainer.program.rewrite(name)) for name in wanted if name not in there
        ]
    entries = tuple(
        ExplainedName(source, name, explainer.explain(rewrite)) for source, name, rewrite in found
    )
    return ExplainedNames(rules, entries, explainer.left_out, known.aside)
