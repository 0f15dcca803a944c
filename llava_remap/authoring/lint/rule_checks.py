"""What can be wrong with one rule, looked at alone: its regex takes more than it seems to, or its
new names leave out fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from llava_remap.authoring.lint.model import Finding
from llava_remap.authoring.lint.trial import Trial
from llava_remap.core.problem import Problem
from llava_remap.rewrite import CompiledRule
from llava_remap.rulefile import Drop, Regex, Rename, RunawayError, Substitute

#: A letter put where a match begins or ends.
_LETTER = "x"


def lost_fields(trial: Trial) -> Iterator[Finding]:
    """LR214: a field of `from` that `to` leaves out."""
    for rule in trial.rules:
        if isinstance(rule.kind, Rename) and rule.kind.lost and not rule.kind.declared:
            fields = " and ".join(f"`{{{name}}}`" for name in rule.kind.lost)
            yield Finding(
                rule.mark,
                Problem(
                    "LR214",
                    f"`to` of `{rule.label}` leaves out {fields}: two names can become one, and "
                    f"none "
                    "comes back.",
                    "Take it up into `to`, or say `one_way: true`.",
                ),
            )


def loose(trial: Trial) -> Iterator[Finding]:
    """LR208: a regex, or that of a way back, that takes more than it seems to."""
    for rule in trial.rules:
        names, what = trial.taken[rule.label], f"`{rule.label}`"
        match rule.kind:
            case Drop(pattern=Regex() as regex):
                yield from _loose(rule, what, regex, names)
            case Substitute(pattern=regex, reverse=reverse):
                yield from _loose(rule, what, regex, names)
                if reverse is not None:
                    targets = [new for name in names if (new := rule(name)) is not None]
                    yield from _loose(rule, f"the `reverse` of {what}", reverse, targets)


def _loose(
    rule: CompiledRule, what: str, regex: Regex, names: Collection[str]
) -> Iterator[Finding]:
    try:
        before = next((n for name in names if (n := _before(rule, regex, name))), None)
        behind = next((n for name in names if (n := _behind(rule, regex, name))), None)
    except RunawayError as error:
        cause = f"the regex `{regex.text}` of {what} {error.why}."
        yield Finding(rule.mark, Problem("LR206", cause, "Make it simpler.", (str(error),)))
        return
    if before is not None or behind is not None:
        where = " and ".join(["begins"] * (before is not None) + ["ends"] * (behind is not None))
        also = " and ".join(f"`{name}`" for name in (before, behind) if name is not None)
        cause = (
            f"`{regex.text}` of {what} {where} inside a segment of a name: it also takes {also}."
        )
        yield Finding(
            rule.mark,
            Problem(
                "LR208",
                cause,
                r"Let it begin with `^` or `\.` and end with `\.` or `$`, or write a template, "
                r"which "
                r"takes whole names.",
            ),
        )


def _before(rule: CompiledRule, regex: Regex, name: str) -> str | None:
    """The name with a letter where the match begins, if the match still begins there, behind the
    letter.
    """
    span = regex.span(name, rule.spent)
    if span is None or span[0] == span[1] or name[span[0]] == ".":
        return None
    start, end = span
    longer = name[:start] + _LETTER + name[start:]
    return longer if regex.span(longer, rule.spent) == (start + 1, end + 1) else None


def _behind(rule: CompiledRule, regex: Regex, name: str) -> str | None:
    """The name with a letter where the match ends, if the match still ends there, before the
    letter.
    """
    span = regex.span(name, rule.spent)
    if span is None or span[0] == span[1] or name[span[1] - 1] == ".":
        return None
    longer = name[: span[1]] + _LETTER + name[span[1] :]
    return longer if regex.span(longer, rule.spent) == span else None
