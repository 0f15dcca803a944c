"""An inferred rule file to a person: what became of what, how sure that is, what to do next."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.text import Text

from llava_remap.authoring.draft import Draft
from llava_remap.core.escaped import quote
from llava_remap.report.problems import MOST_LINES, print_problems
from llava_remap.report.terminal import line
from llava_remap.rewrite.infer import HOWS, Group, InferredRule, Question

#: Rules that are printed; the file has all.
MOST_RULES = 40


def print_draft(console: Console, draft: Draft) -> None:
    """The rules with how each was found, what is a guess or open, and the next commands."""
    found, given = draft.found, draft.given
    line(
        console,
        Text(f"{given.location} → {draft.wanted.class_name or draft.wanted.location}", "bold"),
    )
    cleaned = f", {given.buffers} buffers dropped by the shared parts" if given.buffers else ""
    line(
        console,
        f"  {len(given.tensors) + given.buffers} names{cleaned}; {len(draft.wanted.shapes)} "
        "parameters wanted",
    )
    if draft.text_model:
        line(console, f"  language model: {draft.text_model}")
    line(console, Text("\nRules", "bold"))
    shown = found.rules[:MOST_RULES]
    width = max(len(rule.match) for rule in shown)
    for rule in shown:
        outcome = f"→ {rule.to}" if rule.to is not None else "dropped"
        count = len(found.names_of(rule))
        hows = ", ".join(_hows(draft, rule))
        unsure = found.unsure(rule)
        line(
            console,
            Text.assemble(
                f"  {rule.match:<{width}}  {outcome}",
                (f"  {count}{f': {hows}' if hows else ''}", "dim"),
                ("  unsure" if unsure else "", "yellow"),
            ),
        )
    _more(console, len(found.rules) - MOST_RULES, f"in {draft.output}")
    line(console, Text("\nHow sure", "bold"))
    counts: dict[str, int] = defaultdict(int)
    for pair in found.matches:
        counts[pair.how] += len(pair.source.members)
    for how in HOWS:
        if counts[how]:
            line(console, f"  {counts[how]:>5} {how}")
    if found.dropped:
        line(
            console,
            Text(
                f"  {sum(len(g.members) for g in found.dropped):>5} dropped, since nothing in the "
                "target takes them",
                "yellow",
            ),
        )
    for note in draft.notes[:MOST_RULES]:
        line(console, Text.assemble(("  unsure", "yellow"), f" {note}"))
    _more(console, len(draft.notes) - MOST_RULES, f"in {draft.output}")
    for question in found.questions[:MOST_LINES]:
        line(
            console,
            Text.assemble(
                ("  asked", "yellow"),
                f" {question.source.folded} {list(question.source.shape)} is one of",
            ),
        )
        for other in question.candidates:
            line(console, f"      {other.folded}")
    _more(console, len(found.questions) - MOST_LINES, f"in {draft.output}")
    print_problems(console, draft.problems)
    verdict = ("Complete", "bold green") if not draft.problems else ("Not complete", "bold yellow")
    line(console, Text.assemble("\n", verdict, f": {len(found.rules)} rules in {draft.output}"))
    for said in _next(draft):
        line(console, said)


def _next(draft: Draft) -> list[str]:
    """What to do next; the last line is the next command."""
    output = quote(str(draft.output))
    lint, test = f"llava-remap rules lint {output}", f"llava-remap rules test {output}"
    if draft.problems:
        return [
            "  Next: do what stands behind the arrows, and look at what is marked `unsure` in "
            f"{output}. Then:",
            f"  {lint}",
        ]
    marked = f", when you have looked at what is marked `unsure` in {output}" * bool(draft.notes)
    if not draft.wanted.class_name:
        return [f"  Next{marked}:", f"  {lint}", f"  {test}"]
    given = " ".join(
        f"--source {quote(f'{name}={one.location}')}"
        for name, one in draft.given.checkpoints.items()
    )
    return [
        f"  Next{marked}:",
        f"  {lint}",
        f"  {test}",
        f"  llava-remap apply {output} {given} --dry-run",
    ]


def _more(console: Console, count: int, where: str) -> None:
    if count > 0:
        line(console, Text(f"  … and {count} more {where}", "dim"))


def ask_on_terminal(console: Console, question: Question) -> Group | None:
    """Put a question with its candidates numbered; None for an empty answer."""
    line(console, f"\n{question.source.folded} {list(question.source.shape)} could be")
    for number, other in enumerate(question.candidates, 1):
        line(console, f"  {number}  {other.folded}")
    while True:
        try:
            answer = console.input("Which? (a number; nothing leaves it open) ").strip()
        except EOFError:
            return None
        if not answer:
            return None
        if answer.isdecimal() and 1 <= int(answer) <= len(question.candidates):
            return question.candidates[int(answer) - 1]


def _hows(draft: Draft, rule: InferredRule) -> list[str]:
    names = {name for name, _ in draft.found.names_of(rule)}
    hows = {pair.how for pair in draft.found.matches if names & set(pair.source.names)}
    return [how for how in HOWS if how in hows]
