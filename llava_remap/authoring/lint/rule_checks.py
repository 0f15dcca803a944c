"""Checks of single rules: regexes that take more than they seem to, new names without a field."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from llava_remap.authoring.lint.trial import Finding, Trial
from llava_remap.core.problem import Problem
from llava_remap.rewrite import CompiledRule
from llava_remap.rulefile import Drop, Regex, Rename, RunawayError, Substitute

#: A letter inserted where a match begins or ends.
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
                    "neither leads back.",
                    "Use the field in `to`, or say `one_way: true`.",
                ),
            )


def loose(trial: Trial) -> Iterator[Finding]:
    """LR208: the regex of a rule or of its way back takes more than it seems to."""
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
        before, behind = (_longer(rule, regex, names, end) for end in (0, 1))
    except RunawayError as error:
        cause = f"the regex `{regex.text}` of {what} {error.why}."
        yield Finding(rule.mark, Problem("LR206", cause, "Simplify the regex.", (str(error),)))
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
                "which takes whole names.",
            ),
        )


def _longer(rule: CompiledRule, regex: Regex, names: Collection[str], end: int) -> str | None:
    """The first name that the regex also matches with a letter inserted where the match begins (end
    0) or ends (end 1), so that the letter stays outside the match.
    """
    for name in names:
        span = regex.span(name, rule.spent)
        if span is None or span[0] == span[1] or name[span[end] - end] == ".":
            continue
        longer = name[: span[end]] + _LETTER + name[span[end] :]
        moved = 1 - end  # the letter before the match moves it
        if regex.span(longer, rule.spent) == (span[0] + moved, span[1] + moved):
            return longer
    return None
