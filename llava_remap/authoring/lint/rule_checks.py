"""What can be wrong with one rule, looked at alone: its pattern runs away, or takes more than it
seems to; its fields differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llava_remap.authoring.lint.model import Finding
from llava_remap.authoring.lint.tree import Tree
from llava_remap.authoring.lint.trial import Trial
from llava_remap.authoring.lint.witnesses import around, tree_of
from llava_remap.core.problem import Problem, RemapError
from llava_remap.rewrite import CompiledRule
from llava_remap.rulefile import Regex, RunawayError, Template

#: A letter put where a match begins or ends.
_LETTER = "x"


def runaway(rule: CompiledRule, tree: Tree | None) -> Finding | None:
    """LR206: an attack on the rule's regex, or on that of its way back, that hit the time limit.
    Nothing less is a finding.
    """
    back = tree_of(rule.rule.reverse.match) if rule.rule.reverse else None
    for run, attacked in ((rule, tree), (rule.lead_back, back)):
        for text in attacked.attacks() if attacked else ():
            try:
                run(text)
            except RemapError as error:
                return Finding.of(error.problems[0])
    return None


def lost_fields(trial: Trial) -> Iterator[Finding]:
    """LR214: a field of `from` that `to` leaves out."""
    for rule in trial.rules:
        if rule.rule.to is not None and not rule.rule.one_way:
            yield from _lost_fields(rule, rule.rule.to)


def loose(trial: Trial) -> Iterator[Finding]:
    """LR208: a regex, or that of a way back, that takes more than it seems to."""
    for rule in trial.rules:
        names = trial.witnesses[rule.label]
        if rule.rule.match is not None:
            yield from _loose(
                rule, f"`{rule.label}`", rule.rule.match, trial.trees[rule.label], names
            )
        if rule.rule.reverse is not None:
            targets = [target for name in names if (target := rule(name)) is not None]
            pattern = rule.rule.reverse.match
            yield from _loose(
                rule, f"the `reverse` of `{rule.label}`", pattern, tree_of(pattern), targets
            )


def _lost_fields(rule: CompiledRule, to: str) -> Iterator[Finding]:
    kept = Template(to).fields
    if lost := [name for name in Template(str(rule.rule.from_)).fields if name not in kept]:
        fields = " and ".join(f"`{{{name}}}`" for name in lost)
        cause = (
            f"`to` of `{rule.label}` leaves out {fields}: two names can become one, and none "
            "comes back."
        )
        yield Finding(
            rule.mark, Problem("LR214", cause, "Take it up into `to`, or say `one_way: true`.")
        )


def _loose(
    rule: CompiledRule, what: str, pattern: str, tree: Tree | None, names: Sequence[str]
) -> Iterator[Finding]:
    try:
        yield from _takes_more(rule, what, pattern, tree, names)
    except RunawayError as error:
        cause = f"the regex `{pattern}` of {what} {error.why}."
        yield Finding(rule.mark, Problem("LR206", cause, "Make it simpler.", (str(error),)))


def _takes_more(
    rule: CompiledRule, what: str, pattern: str, tree: Tree | None, names: Sequence[str]
) -> Iterator[Finding]:
    regex = Regex(pattern, None, rule.spent)
    if tree is not None and tree.has_loose_dot:
        meant = set(around(tree.texts()))
        if also := next(
            (
                n
                for n in around(tree.texts(_LETTER))
                if n not in meant and regex.search(n) is not None
            ),
            None,
        ):
            cause = f"`{pattern}` of {what} has a dot that takes any character: `{also}` too."
            yield Finding(
                rule.mark, Problem("LR208", cause, r"Write `\.` for a dot that is meant.")
            )
    made = around(tree.texts()) if tree else []
    tried = [*made, *names]
    before = next(filter(None, (_before(regex, name) for name in tried)), None)
    behind = next(filter(None, (_behind(regex, name) for name in tried)), None)
    if before is not None or behind is not None:
        where = " and ".join(["begins"] * (before is not None) + ["ends"] * (behind is not None))
        also = " and ".join(f"`{name}`" for name in (before, behind) if name is not None)
        cause = f"`{pattern}` of {what} {where} inside a segment of a name: it also takes {also}."
        fix = (
            r"Let it begin with `^` or `\.` and end with `\.` or `$`, or write a template, "
            r"which "
            r"takes whole names."
        )
        yield Finding(rule.mark, Problem("LR208", cause, fix))


def _before(regex: Regex, name: str) -> str | None:
    """The name with a letter where the match begins, if the match still begins there, behind the
    letter.
    """
    span = regex.span(name)
    if span is None or span[0] == span[1] or name[span[0]] == ".":
        return None
    start, end = span
    longer = name[:start] + _LETTER + name[start:]
    return longer if regex.span(longer) == (start + 1, end + 1) else None


def _behind(regex: Regex, name: str) -> str | None:
    """The name with a letter where the match ends, if the match still ends there, before the
    letter.
    """
    span = regex.span(name)
    if span is None or span[0] == span[1] or name[span[1] - 1] == ".":
        return None
    longer = name[: span[1]] + _LETTER + name[span[1] :]
    return longer if regex.span(longer) == span else None
