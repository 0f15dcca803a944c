"""What is wrong with a rule file, found by trying it: on names made from its templates, on those of
its tests and on real ones. Pure.

Every finding is seen, not inferred: a rule is shadowed if none of the names that were made from it
reaches it, a regex runs away if it hit the time limit on a name that was tried. Nothing is made
from the text of a regex, so a regex is tried on the names that there are.
"""

from __future__ import annotations

from llava_remap.authoring.lint.checks import CHECKS
from llava_remap.authoring.lint.model import Finding, Linted, Names
from llava_remap.authoring.lint.trial import Trial
from llava_remap.core.problem import RemapError
from llava_remap.rewrite import compile_all
from llava_remap.rulefile import RuleFile

__all__ = ["Finding", "Linted", "Names", "lint"]


def lint(rules: RuleFile, names: Names | None = None) -> Linted:
    """Look for everything that can be wrong with a valid rule file. A time limit that is hit is a
    finding as well.

    Args:
        names: real names that it is to be held against.
    """
    program = compile_all(rules)
    found: list[Finding] = []
    trial = None
    try:
        trial = Trial.of(rules, program, names)
        found += trial.runaways
        for check in CHECKS:
            found += check(trial)
    except RemapError as error:  # a regex ran away on a name that other rules had changed
        found += [
            finding for problem in error.problems if (finding := Finding.of(problem)) not in found
        ]
    lost = {name for finding in found for name in finding.lost}
    own = rules.tree.mark.file
    return Linted(
        file=own,
        findings=tuple(sorted(found, key=lambda finding: finding.place(own))),
        rules=len(program.rules),
        tests=len(rules.text.tests),
        witnesses=len({name for some in trial.witnesses.values() for name in some}) if trial else 0,
        names=None if names is None else len(names.taken),
        targets=len(trial.led_back - lost) if trial else 0,
        one_way=tuple((rule.label, why) for rule in program.names if (why := rule.kind.one_way)),
        untried=(
            ()
            if trial is None
            else tuple(rule.label for rule in trial.rules if not trial.taken[rule.label])
        ),
        unknown=names.unknown if names is not None else "",
    )
