"""What is wrong with a rule file, found by trying it: on names made from its own rules, on its
tests' and on real ones. Pure.

Every finding is seen, not inferred: a rule is shadowed if none of the names that were made from it
reaches it, a regex runs away if it did.
"""

from __future__ import annotations

from functools import reduce

from llava_remap.authoring.lint.checks import CHECKS
from llava_remap.authoring.lint.model import Finding, Linted, Names
from llava_remap.authoring.lint.rule_checks import runaway
from llava_remap.authoring.lint.trial import Trial, trees_of
from llava_remap.core.problem import RemapError
from llava_remap.rewrite import Program, compile_all, one_way
from llava_remap.rulefile import RuleFile

__all__ = ["Finding", "Linted", "Names", "lint"]


def lint(rules: RuleFile, names: Names | None = None) -> Linted:
    """Look for everything that can be wrong with a valid rule file. A time limit that is hit is a
    finding as well.

    Args:
        names: real names that it is to be held against.
    """
    program = compile_all(rules)
    every = (*program.prepare, *program.names)
    trees = trees_of(rules)
    runaways = {
        rule.label: finding for rule in every if (finding := runaway(rule, trees.get(rule.label)))
    }
    found = list(runaways.values())
    trial = None
    try:
        trial = Trial.of(rules, reduce(Program.without, runaways, program), trees, names)
        for check in CHECKS:
            found += check(trial)
    except RemapError as error:  # a regex that no attack made run away, and another name did
        found += [
            finding for problem in error.problems if (finding := Finding.of(problem)) not in found
        ]
    lost = {name for finding in found for name in finding.lost}
    own = rules.tree.mark.file
    return Linted(
        file=own,
        findings=tuple(sorted(found, key=lambda finding: finding.place(own))),
        rules=len(every),
        tests=len(rules.text.tests),
        witnesses=len({name for some in trial.witnesses.values() for name in some}) if trial else 0,
        names=None if names is None else len(names.taken),
        targets=len(trial.led_back - lost) if trial else 0,
        one_way=tuple((rule.label, why) for rule in program.names if (why := one_way(rule.rule))),
        unparsed=tuple(label for label, tree in trees.items() if tree is None),
        unknown=names.unknown if names is not None else "",
    )
