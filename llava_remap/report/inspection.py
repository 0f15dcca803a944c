"""What a checkpoint is, as text for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core import counted, quote, size
from llava_remap.report.terminal import shown, write, write_section

if TYPE_CHECKING:  # all reports are imported together
    from llava_remap.checkpoint import Checkpoint
    from llava_remap.jobs.inspection import Inspection
    from llava_remap.routing.fits import Fit

#: Where no rule file fits, so many are shown with every reason; the others with the first one.
_NEAREST = 3


def print_inspection(console: Console, inspection: Inspection) -> None:
    """What a checkpoint is, which rule files fit it, why the nearest don't, and what to do."""
    for part in inspection.parts or [inspection.checkpoint]:
        write(console, Text(shown(part.location), "bold"), *_part(part))
    if inspection.layout:
        names = f"{inspection.named} of {len(inspection.checkpoint.catalog)} names"
        write(console, f"  saved by transformers: {names} are in layout {inspection.layout}")
    write_section(console, "Rule files", _rule_files(inspection))
    write(console, *(f"\n{_command(inspection, fit)}" for fit in inspection.fits if fit.fits))
    if inspection.advice:
        write(console, f"\n{inspection.advice}")


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


def _rule_files(inspection: Inspection) -> list[str | Text]:
    """The rule files that fit, or else the near ones, each with its reasons; last the others."""
    fitting = [fit for fit in inspection.fits if fit.fits]
    near = fitting or [fit for fit in inspection.fits if fit.is_near]
    others = [
        f"{fit.rules} ({fit.mapped} of {fit.total})" for fit in inspection.fits if fit not in near
    ]
    what = "don't fit" if fitting else "know less than a tenth of the names"
    return [
        *(
            line
            for number, fit in enumerate(near)
            for line in _fit(fit, inspection.planned, in_full=fit.fits or number < _NEAREST)
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


def _command(inspection: Inspection, fit: Fit) -> str:
    """The command that converts the checkpoint by a rule file."""
    if inspection.sources:
        return f"llava-remap apply {fit.rules} {inspection.sources}"
    also = f" {_sources_to_give(fit)}" if fit.also else ""
    dry = " --dry-run" if inspection.checkpoint.is_manifest else ""
    location = inspection.checkpoint.location
    # With the source's name, a path with `=` in it isn't taken for one.
    source = quote(f"{fit.source}={location}" if "=" in location else location)
    return f"llava-remap apply {fit.rules} --source {source}{also}{dry}"


def _sources_to_give(fit: Fit) -> str:
    return " ".join(f"--source {name}=DIR" for name in fit.also)
