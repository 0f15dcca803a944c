"""An inspected checkpoint as text for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core.escaped import quote
from llava_remap.core.wording import counted, size
from llava_remap.report.terminal import shown, write, write_section

if TYPE_CHECKING:  # all reports are imported together
    from llava_remap.checkpoint import Checkpoint
    from llava_remap.jobs.inspection import Inspection
    from llava_remap.routing.fits import Fit

#: Where no rule file fits, so many are shown with every reason; the others with the first one.
_NEAREST = 3


def print_inspection(console: Console, found: Inspection) -> None:
    """What a checkpoint is, which rule files fit it, why the nearest don't, and what to do."""
    for part in found.parts or [found.checkpoint]:
        write(console, Text(shown(part.location), "bold"), *_part(part))
    if found.layout:
        names = f"{found.named} of {len(found.checkpoint.catalog)} names"
        write(console, f"  saved by transformers: {names} are in layout {found.layout}")
    write_section(console, "Rule files", _rule_files(found))
    write(console, *(f"\n{_command(found, fit)}" for fit in found.fits if fit.fits))
    if found.advice:
        write(console, f"\n{found.advice}")


def _part(part: Checkpoint) -> list[str]:
    pairs = f"  an adapter: {counted(len(part.pairs), 'LoRA pair')}, which change a model"
    named = (part.config or {}).get("architectures")
    names = [
        name
        for name in (named if isinstance(named, list) else [named])
        if isinstance(name, str) and name
    ]
    return [
        f"  {part.form}; {counted(len(part.catalog), 'tensor')}; {size(part.nbytes)}",
        pairs if part.pairs else "",
        f"  not read: {', '.join(part.passed_over)}" if part.passed_over else "",
        f"  {', '.join(names) or 'no config.json that names an architecture'}",
    ]


def _rule_files(found: Inspection) -> list[str | Text]:
    """The rule files that fit, or else the near ones, each with its reasons; last the others."""
    fitting = [fit for fit in found.fits if fit.fits]
    near = fitting or [fit for fit in found.fits if fit.is_near]
    others = [f"{fit.rules} ({fit.mapped} of {fit.total})" for fit in found.fits if fit not in near]
    what = "don't fit" if fitting else "know less than a tenth of the names"
    return [
        *(
            line
            for number, fit in enumerate(near)
            for line in _fit(fit, found.planned, in_full=fit.fits or number < _NEAREST)
        ),
        f"  {what}: {', '.join(others)}" if others else "",
    ]


def _fit(fit: Fit, planned: bool, in_full: bool) -> list[str | Text]:
    """A rule file: whether it fits, and why not, or what is still to be checked.

    Args:
        planned: whether the rule file was planned, not only compared.
        in_full: whether all reasons are shown, not only the first.
    """
    verdict = ("doesn't fit", "red")
    if fit.fits:
        verdict = ("fits" if planned else "takes it", "green")
    maps = f", maps {fit.mapped} of {fit.total} names"
    needs = [problem.placed_cause for problem in fit.needs]
    if fit.fits and fit.also and not needs:
        needs = [
            "the checkpoint has no tower inside, so what depends on the tower's sizes isn't "
            "checked yet"
        ]
    unplanned = "    whether the model belongs to it is checked with the model, which isn't here"
    return [
        Text.assemble(
            "  ",
            (fit.rules, "bold"),
            ": ",
            verdict,
            maps,
            "" if in_full else f": {fit.reasons[0]}",
        ),
        f"    {fit.summary}" if fit.fits else "",
        unplanned if fit.fits and not planned else "",
        *(f"    {reason}" for reason in fit.reasons if in_full),
        *(f"    with {_sources_to_give(fit)}: {need}" for need in needs),
    ]


def _command(found: Inspection, fit: Fit) -> str:
    """The command that converts the checkpoint by a rule file."""
    if found.sources:
        return f"llava-remap apply {fit.rules} {found.sources}"
    also = f" {_sources_to_give(fit)}" if fit.also else ""
    dry = " --dry-run" if found.checkpoint.is_manifest else ""
    location = found.checkpoint.location
    # With the source's name, a path with `=` in it isn't taken for one.
    source = quote(f"{fit.source}={location}" if "=" in location else location)
    return f"llava-remap apply {fit.rules} --source {source}{also}{dry}"


def _sources_to_give(fit: Fit) -> str:
    return " ".join(f"--source {name}=DIR" for name in fit.also)
