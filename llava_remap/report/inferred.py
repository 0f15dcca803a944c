"""An inferred rule file as text for a person: its rules, how sure they are, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llava_remap.authoring.draft import Draft
from llava_remap.authoring.import_rules import Imported
from llava_remap.core import counted, quote
from llava_remap.report.machine import document
from llava_remap.report.terminal import MOST_LINES, more, print_problems, write, write_section
from llava_remap.rewrite.infer import HOWS, Group, Question

#: Rules that are printed. The file has all of them.
MOST_RULES = 40


def print_draft(console: Console, draft: Draft) -> None:
    """The rules and how each was found, guesses, open questions, and the next commands."""
    given, wanted = draft.given, draft.wanted
    cleaned = f", {given.buffers} buffers dropped by the shared parts" if given.buffers else ""
    write(
        console,
        Text(f"{given.location} → {wanted.class_name or wanted.location}", "bold"),
        f"  {len(given.tensors) + given.buffers} names{cleaned}; {len(wanted.shapes)} "
        "parameters wanted",
        f"  language model: {draft.text_model}" if draft.text_model else "",
    )
    write_section(console, "Rules", _rules(draft))
    write_section(console, "How sure", _certainty(draft))
    print_problems(console, draft.problems)
    verdict = ("Complete", "bold green") if not draft.problems else ("Not complete", "bold yellow")
    count = len(draft.found.rules) + len(draft.found.operation_lines)
    rules = f": {count} rules in {draft.output}"
    write(console, Text.assemble("\n", verdict, rules), *_next(draft))


def print_imported(console: Console, made: Imported, output: Path | None) -> None:
    """What a rule file was made from, what it leaves out, and what to do next."""
    unused = len(made.conversion.unused)
    write(
        console,
        f"{made.conversion.class_name} of transformers {made.conversion.version}: "
        f"{counted(made.rules, 'rule')} of names and {counted(made.operations, 'operation')}, "
        f"tried on {counted(made.tensors, 'tensor')}",
        f"  {counted(unused, 'conversion')} of the type took no name of this model: see the "
        "comment in the file"
        if unused
        else "",
    )
    if output is not None:
        write(console, f"{output} is written", f"  llava-remap rules test {quote(str(output))}")


def imported_json(made: Imported) -> dict[str, Any]:
    """A rule file that was made from a conversion (`llava-remap/imported`, version 1)."""
    content = {
        "class": made.conversion.class_name,
        "transformers": made.conversion.version,
        "rules": made.rules,
        "operations": made.operations,
        "tensors": made.tensors,
        "unused": list(made.conversion.unused),
        "rule_file": made.text,
    }
    return document("imported", {**content, "problems": []})


def _rules(draft: Draft) -> Iterator[Text]:
    inference = draft.found
    width = max(len(rule.match) for rule in inference.rules[:MOST_RULES])
    for rule in inference.rules[:MOST_RULES]:
        outcome = f"→ {rule.to}" if rule.to is not None else "dropped"
        names = {name for name, _ in inference.names_of(rule)}
        ways = {pair.how for pair in inference.matches if not names.isdisjoint(pair.source.names)}
        hows = ", ".join(how for how in HOWS if how in ways)
        yield Text.assemble(
            f"  {rule.match:<{width}}  {outcome}",
            (f"  {len(inference.names_of(rule))}{f': {hows}' if hows else ''}", "dim"),
            ("  unsure" if inference.unsure(rule) else "", "yellow"),
        )
    yield more(len(inference.rules) - MOST_RULES, f"in {draft.output}", "  ")
    for line, one in inference.operation_lines[:MOST_RULES]:
        count = counted(sum(len(source.members) for source in one.sources), "tensor")
        yield Text.assemble(f"  {line}", (f"  {count}", "dim"), ("  unsure", "yellow"))


def _certainty(draft: Draft) -> Iterator[str | Text]:
    """How many names were matched in which way, and what is unsure or open."""
    inference, where = draft.found, f"in {draft.output}"
    counts = Counter(pair.how for pair in inference.matches for _ in pair.source.members)
    yield from (f"  {counts[how]:>5} {how}" for how in HOWS if counts[how])
    if inference.dropped:
        dropped = sum(len(group.members) for group in inference.dropped)
        yield Text(f"  {dropped:>5} dropped, since nothing in the target takes them", "yellow")
    for note in draft.notes[:MOST_RULES]:
        yield Text.assemble(("  unsure", "yellow"), f" {note}")
    yield more(len(draft.notes) - MOST_RULES, where, "  ")
    for question in inference.questions[:MOST_LINES]:
        asked = f" {question.source.folded} {list(question.source.shape)} is one of"
        yield Text.assemble(("  asked", "yellow"), asked)
        yield from (f"      {other.folded}" for other in question.candidates)
    yield more(len(inference.questions) - MOST_LINES, where, "  ")
    for sum_ in inference.adding_up[:MOST_LINES]:
        yield Text.assemble(("  asked", "yellow"), f" {sum_}")


def _next(draft: Draft) -> list[str]:
    """What to do next; the last line is the next command."""
    output = quote(str(draft.output))
    lint, test = f"  llava-remap rules lint {output}", f"  llava-remap rules test {output}"
    if draft.problems:
        return [
            f"  Next: follow the arrows above, and check everything marked `unsure` in {output}. "
            "Then:",
            lint,
        ]
    marked = f", after you have checked everything marked `unsure` in {output}" * bool(draft.notes)
    commands = [f"  Next{marked}:", lint, test]
    if not draft.wanted.class_name:
        return commands
    given = " ".join(
        f"--source {quote(f'{name}={one.location}')}"
        for name, one in draft.given.checkpoints.items()
    )
    return [*commands, f"  llava-remap apply {output} {given} --dry-run"]


def ask_on_terminal(console: Console, question: Question) -> Group | None:
    """Ask a question with numbered candidates; None for an empty answer."""
    write(
        console,
        f"\n{question.source.folded} {list(question.source.shape)} could be",
        *(f"  {number}  {other.folded}" for number, other in enumerate(question.candidates, 1)),
    )
    while True:
        try:
            answer = console.input("Which? (a number; Enter leaves it open) ").strip()
        except EOFError:
            return None
        if not answer:
            return None
        if answer.isdecimal() and 1 <= int(answer) <= len(question.candidates):
            return question.candidates[int(answer) - 1]
