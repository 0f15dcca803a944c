"""An inferred rule file to a person: what became of what, how sure that is, what to do next."""

from __future__ import annotations

from collections import defaultdict
from shlex import quote

from rich.console import Console
from rich.text import Text

from llava_remap.authoring.draft import Draft
from llava_remap.infer import HOWS, Group, InferredRule, Question
from llava_remap.report.problems import print_problems


def print_draft(console: Console, draft: Draft) -> None:
    """The rules with how each was found, what is a guess or open, and the next commands."""
    found = draft.found
    _line(console, Text(f"{draft.source.location} → {draft.wanted.class_name or draft.wanted.location}", "bold"))
    cleaned = f", {draft.buffers} buffers dropped by the shared parts" if draft.buffers else ""
    _line(console, f"  {len(draft.source.catalog)} names{cleaned}; {len(draft.wanted.shapes)} parameters wanted")
    _line(console, Text("\nRules", "bold"))
    width = max(len(rule.match) for rule in found.rules)
    for rule in found.rules:
        outcome = f"→ {rule.to}" if rule.to is not None else "dropped"
        count = len(found.names_of(rule))
        hows = ", ".join(_hows(draft, rule))
        unsure = found.unsure(rule)
        _line(
            console,
            Text.assemble(
                f"  {rule.match:<{width}}  {outcome}",
                (f"  {count}{f': {hows}' if hows else ''}", "dim"),
                ("  unsure" if unsure else "", "yellow"),
            ),
        )
    _line(console, Text("\nHow sure", "bold"))
    counts: dict[str, int] = defaultdict(int)
    for pair in found.matches:
        counts[pair.how] += len(pair.source.members)
    for how in HOWS:
        if counts[how]:
            _line(console, f"  {counts[how]:>5} {how}")
    if found.dropped:
        _line(
            console,
            Text(f"  {sum(len(g.members) for g in found.dropped):>5} dropped, since nothing in the target takes them", "yellow"),
        )
    for note in draft.notes:
        _line(console, Text.assemble(("  unsure", "yellow"), f" {note}"))
    for question in found.questions:
        _line(console, Text.assemble(("  asked", "yellow"), f" {question.source.folded} {list(question.source.shape)} is one of"))
        for other in question.candidates:
            _line(console, f"      {other.folded}")
    print_problems(console, draft.problems)
    verdict = ("Complete", "bold green") if found.complete else ("Not complete", "bold yellow")
    _line(console, Text.assemble("\n", verdict, f": {len(found.rules)} rules in {draft.output}"))
    _line(console, f"  llava-remap rules lint {quote(str(draft.output))}")
    _line(console, f"  llava-remap rules test {quote(str(draft.output))}")
    if draft.wanted.class_name:
        source = quote(("model=" if "=" in draft.source.location else "") + draft.source.location)
        _line(console, f"  llava-remap apply {quote(str(draft.output))} --source {source} --dry-run")


def ask_on_terminal(console: Console, question: Question) -> Group | None:
    """Put a question with its candidates numbered; None for an empty answer."""
    _line(console, f"\n{question.source.folded} {list(question.source.shape)} could be")
    for number, other in enumerate(question.candidates, 1):
        _line(console, f"  {number}  {other.folded}")
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


def _line(console: Console, text: str | Text) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
