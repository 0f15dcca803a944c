"""Checks of all rules together: rules that take names from each other, rules that take their own
new names, and new names that don't lead back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from llava_remap.authoring.in_file_tests import outcome, run_tests
from llava_remap.authoring.lint.operation_checks import (
    chained,
    incomplete,
    made_of,
    misfits,
    shadowed_operations,
)
from llava_remap.authoring.lint.rule_checks import loose, lost_fields
from llava_remap.authoring.lint.trial import Finding, Trial
from llava_remap.core.problem import Problem
from llava_remap.rewrite import CompiledRule, Rewrite
from llava_remap.rulefile import Drop, Regex, Substitute

_NARROW = "Let the rule take only names that aren't renamed yet"
#: The fix, by the rule's list or for a way back. A rule of `names` keeps a name from later rules; a
#: rule of `prepare` doesn't.
_SETTLE = {
    "back": "Anchor the `match` of its `reverse`.",
    "prepare": f"{_NARROW}.",
    "names": f"{_NARROW}, or put a rule before it that keeps the new name ({{from: X, to: X}}).",
}


def not_idempotent(trial: Trial) -> Iterator[Finding]:
    """LR203: a new name that the rules would rename once more if they ran again."""
    found: dict[tuple[str, str], tuple[CompiledRule, str, list[tuple[str, str]]]] = {}
    for ground in trial.grounds:
        rules = {rule.label: rule for rule in ground.program.rules}
        for name, rewrite in ground.rewrites.items():
            after = _made(rewrite)
            again = ground.program.rewrite(after)
            if rewrite.reason is None and again.reason is None and _renamed(rewrite, again):
                first, second = _changing(rewrite)[-1], _changing(again)[0]
                cause = f"`{second}` renames the new names of `{first}` if the rules run twice."
                if first == second:
                    cause = (
                        f"`{first}` takes its own new names: if the rules run twice, it renames "
                        "them again."
                    )
                chains = found.setdefault((first, "there"), (rules[first], cause, []))[2]
                chains.append((name, f"→ {after} → {_made(again)}"))
        for target in ground.targets:
            for rule in ground.program.leading_back(target):
                once = rule.lead_back(target) if isinstance(rule.kind, Substitute) else None
                twice = rule.lead_back(once) if once is not None else None
                if twice not in (None, once):
                    cause = f"the way back of `{rule.label}` takes its own names."
                    chains = found.setdefault((rule.label, "back"), (rule, cause, []))[2]
                    chains.append((target, f"→ {once} → {twice}"))
    for (_, way), (rule, cause, chains) in found.items():
        fix = _SETTLE["back" if way == "back" else _list(rule)]
        table = tuple(dict.fromkeys(chains))
        names = tuple(name for name, _ in table)
        yield Finding(rule.mark, Problem("LR203", cause, fix, names, table))


def _made(rewrite: Rewrite) -> str:
    """The new name, or the name after `prepare` if no rule of `names` took it."""
    return rewrite.prepared if rewrite.target is None else rewrite.target


def _renamed(once: Rewrite, twice: Rewrite) -> bool:
    """Whether the second run changes the name again. A new name without a rule is no error."""
    if once.target is None:
        return twice.prepared != once.prepared
    return twice.target is not None and twice.target != once.target


def _changing(rewrite: Rewrite) -> list[str]:
    return [step.rule for step in rewrite.trace if step.after != step.before]


def shadowed(trial: Trial) -> Iterator[Finding]:
    """LR204: rules that none of the names made from their templates reaches. Inherited rules whose
    names one rule of this file takes share a finding. Regexes are left out, since no names can be
    made from them.
    """
    inherited: dict[str, list[tuple[CompiledRule, CompiledRule, str]]] = {}
    for rule, takers in _shadowed(trial):
        by = " and ".join(f"`{taker.label}`" for taker in takers)
        mine = next((taker for taker in takers if taker.mark.file == trial.own), None)
        if rule.mark.file != trial.own and mine is not None:
            inherited.setdefault(mine.label, []).append((mine, rule, by))
            continue
        fix = f"Make {by} narrower, or remove `{rule.label}`."
        if all(_list(taker) == _list(rule) for taker in takers):
            fix = f"Put it before {by}, or remove it."
        cause = f"`{rule.label}` can take no name: {by} takes its names first."
        yield Finding(rule.mark, Problem("LR204", cause, fix, trial.witnesses[rule.label]))
    for taken in inherited.values():
        [(mine, rule, by), *others] = taken
        of = f"`{rule.label}` of {rule.mark.file}"
        fix = f"Make `{mine.label}` narrower."
        if others:
            of, by = ", ".join(f"`{one.label}`" for _, one, _ in taken), f"`{mine.label}`"
            of = f"{len(taken)} inherited rules ({of})"
        elif _list(mine) == _list(rule) and not isinstance(mine.kind, Drop):
            fix = f"Give `{mine.label}` the id `{rule.id}`: then it replaces the inherited rule."
        cause = f"{of} can take no name: {by} takes {'their' if others else 'its'} names first."
        names = [name for _, one, _ in taken for name in trial.witnesses[one.label]]
        yield Finding(mine.mark, Problem("LR204", cause, fix, tuple(names)))


def dropped_renames(trial: Trial) -> Iterator[Finding]:
    """LR306, from the rules alone: a drop that takes every name of a rename.

    A drop that takes some of a rename's names is an exception from the rename, which is the purpose
    of drops. A drop that takes all of them takes the tensors that the rename should give the
    target. If the target's parameters are known, `dropped_parameters` is exact.
    """
    if trial.names.wanted is not None:
        return
    stolen: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for rule, takers in _shadowed(trial):
        ground = trial.assumed[rule.label]
        drops = {taker.label for taker in takers if isinstance(taker.kind, Drop)}
        if _list(rule) != "names" or isinstance(rule.kind, Drop):
            continue
        for name in trial.witnesses[rule.label]:
            taker = ground.rewrites[name].rules[-1]
            if taker in drops and ground.program.rewrite(name, without=taker).target is not None:
                stolen[taker][rule.label].append(name)
    for taker, by_rule in stolen.items():
        rules = " and ".join(f"`{label}`" for label in by_rule)
        cause = f"the drop `{taker}` takes every name that {rules} would give the target."
        lost = tuple(dict.fromkeys(name for names in by_rule.values() for name in names))
        yield Finding(
            trial.file.marks[taker],
            Problem("LR306", cause, "Make the drop narrower, or remove the rename.", lost),
        )


def _shadowed(trial: Trial) -> Iterator[tuple[CompiledRule, list[CompiledRule]]]:
    """Each rule with a template that none of its witnesses and no real name reaches, with the rules
    that take or change these names first.
    """
    places = {rule.label: at for at, rule in enumerate(trial.rules)}
    really_reached = trial.real.reached if trial.real else set()
    for at, rule in enumerate(trial.rules):
        ground = trial.assumed[rule.label]
        rewrites = [ground.rewrites[name] for name in trial.witnesses[rule.label]]
        reached = rule.label in really_reached or any(
            rule.label in rewrite.rules for rewrite in rewrites
        )
        # If `prepare` changes its own result again (LR203), the rule can't be tried here.
        if (
            not isinstance(rule.kind.pattern, Regex)
            and not reached
            and all(
                rewrite.reason is not None
                or ground.program.rewrite(rewrite.prepared).prepared == rewrite.prepared
                for rewrite in rewrites
            )
        ):
            labels = dict.fromkeys(
                label for rewrite in rewrites for label in _takers(rule, rewrite)
            )
            yield rule, [trial.rules[places[label]] for label in labels if places[label] < at]


def _takers(rule: CompiledRule, rewrite: Rewrite) -> list[str]:
    """The rules that kept a name from this rule: they took the name, or changed the name so that
    this rule no longer matches.
    """
    if _list(rule) == "names" and rule(rewrite.prepared) is not None:
        return [rewrite.rules[-1]]
    return _changing(rewrite)


def _list(rule: CompiledRule) -> str:
    """Which list the rule is in: `prepare` or `names`."""
    return rule.label.partition("/")[0]


def matched_nothing(trial: Trial) -> Iterator[Finding]:
    """LR205, a note: a rule that took none of the real names."""
    if trial.real is None:
        return
    reached = trial.real.reached
    for rule in trial.real.whole.everything:
        if rule.label not in reached and not rule.optional:
            yield Finding(
                rule.mark,
                Problem(
                    "LR205",
                    f"`{rule.label}` takes none of the {len(trial.real.rewrites)} names.",
                    "Say `optional: true` if that is expected.",
                ),
                note=True,
            )


def unmapped(trial: Trial) -> Iterator[Finding]:
    """LR301: real names that no rule of a whole rule file takes. `apply` refuses them, too."""
    if trial.real is None or not trial.names.complete:
        return
    names = tuple(
        name
        for name, rewrite in trial.real.rewrites.items()
        if rewrite.target is None and rewrite.reason is None and name not in trial.real.operated
    )
    if names:
        yield Finding(
            trial.file.tree.locate(("names",)).mark,
            Problem(
                "LR301",
                f"{len(names)} of {len(trial.real.rewrites)} names of the sources are neither "
                "mapped nor dropped by a rule.",
                "Add rules that map them. Drop only tensors that the model doesn't compute with.",
                names,
            ),
        )


def dropped_parameters(trial: Trial) -> Iterator[Finding]:
    """LR306: a real name that is dropped, although its tensor would give a parameter of the target
    that no other tensor gives.
    """
    if trial.real is None or trial.names.wanted is None:
        return
    provided = {*trial.real.targets} | made_of(trial.real, trial.names.wanted)
    stolen: dict[str, list[str]] = defaultdict(list)
    for name, rewrite in trial.real.rewrites.items():
        if rewrite.reason is not None:
            target = trial.real.program.rewrite(name, without=rewrite.rules[-1]).target
            if target in trial.names.wanted and target not in provided:
                stolen[rewrite.rules[-1]].append(name)
    for label, names in stolen.items():
        yield Finding(
            trial.file.marks[label],
            Problem(
                "LR306",
                f"the drop `{label}` takes tensors that the target needs.",
                "Make its pattern narrower.",
                tuple(names),
            ),
        )


def not_back(trial: Trial) -> Iterator[Finding]:
    """LR215: a new name that doesn't lead back, although its rule has a way back."""
    found: dict[str, tuple[CompiledRule, dict[str, str]]] = {}
    for ground in trial.grounds:
        rules = {rule.label: rule for rule in ground.program.names}
        for target, label in ground.targets.items():
            rule = rules[label]
            if rule.kind.one_way or ground.program.inverse(target) is not None:
                continue
            back = rule.lead_back(target)
            fact = (
                "is not matched"
                if back is None
                else f"→ {back} → {outcome(ground.program.rewrite(back))}"
            )
            if back is not None and ground.program.rewrite(back).target == target:
                fact = f"→ {back}, and by another rule to another name"
            found.setdefault(label, (rule, {}))[1][target] = fact
    for label, (rule, facts) in found.items():
        yield Finding(
            rule.mark,
            Problem(
                "LR215",
                f"the way back of `{label}` doesn't lead its new names back, or another rule's "
                "way back takes them, too.",
                (
                    "Correct its `reverse`, or say `one_way: true`."
                    if isinstance(rule.kind, Substitute)
                    else "Say `one_way: true`."
                ),
                tuple(facts),
                tuple(facts.items()),
            ),
            lost=tuple(facts),
        )


def untested(trial: Trial) -> Iterator[Finding]:
    """LR213: a rule of the file itself that no test of the file reaches. Inherited rules are tested
    in their own files.
    """
    reached = {label for result in run_tests(trial.file) for label in result.rules}
    for rule in trial.program.everything:
        if rule.mark.file == trial.own and rule.label not in reached:
            yield Finding(
                rule.mark,
                Problem(
                    "LR213",
                    f"none of the {len(trial.file.text.tests)} tests of this file has a name that "
                    f"`{rule.label}` takes.",
                    "Add such a test to `tests`.",
                ),
            )


CHECKS: tuple[Callable[[Trial], Iterator[Finding]], ...] = (
    lost_fields, loose, not_idempotent, shadowed, dropped_renames, dropped_parameters, unmapped,
    matched_nothing, not_back, chained, shadowed_operations, incomplete, misfits, untested,
)  # fmt: skip
