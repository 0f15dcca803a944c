"""What a checkpoint is, as text for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core import counted, fold_names, printable, quote, size
from llava_remap.report.terminal import more, print_problems, shown, write, write_section

if TYPE_CHECKING:  # all reports are imported together
    from llava_remap.jobs.facts import Facts
    from llava_remap.jobs.inspection import Inspection, Needed
    from llava_remap.routing.fits import Fit
    from llava_remap.target_model import Component

#: If no rule file fits, this many are shown with every reason, the others with their first reason.
_NEAREST = 3
#: The most folded names that are shown for something unusual.
_NAMES = 2
#: If this many rule files or more take a part, one command stands for all.
_MANY = 4


def print_inspection(console: Console, inspection: Inspection) -> None:
    """What a checkpoint is, which rule files fit it, why the nearest don't, and what to do."""
    layout = ""
    if inspection.layout:
        names = f"{inspection.named} of {len(inspection.checkpoint.catalog)} names"
        layout = f"  saved by transformers: {names} are in layout {inspection.layout}"
    for facts in inspection.facts:
        _print_facts(console, facts, layout)
    write_section(console, "Rule files", _rule_files(inspection))
    commands = [] if inspection.converted else list(map(inspection.command, inspection.fitting))
    if not commands:
        print_problems(console, inspection.problems)
    if commands and _is_many(inspection):
        short = inspection.short_command(inspection.fitting[0])
        ways = filter(None, (short, ["llava-remap", "apply", "RULES", *commands[0][3:]]))
        write(console, "\nGive it beside the model:", *(" ".join(map(quote, way)) for way in ways))
        return
    for fit, command in zip(inspection.fitting, commands, strict=False):
        both = filter(None, (inspection.short_command(fit), command))
        first, *others = (" ".join(map(quote, words)) for words in both)
        write(console, f"\n{first}", *others)
    if inspection.advice and not inspection.problems:
        write(console, f"\n{inspection.advice}")


def _print_facts(console: Console, facts: Facts, layout: str) -> None:
    checkpoint = facts.checkpoint
    architectures = ", ".join(facts.architectures)
    base = f"  trained from {printable(checkpoint.base)}" if checkpoint.base else ""
    write(
        console,
        Text(shown(checkpoint.location), "bold"),
        f"  {checkpoint.form}; {counted(len(checkpoint.catalog), 'tensor')}; {size(facts.nbytes)}",
        f"  {architectures or 'no config.json that names an architecture'}",
        layout,
        base,
    )
    write_section(console, "Components", _components(facts))
    write_section(console, "Vocabulary", _vocabulary(facts))
    write_section(
        console,
        "Unusual",
        (line for odd in facts.oddities for line in _unusual(odd.text, odd.names)),
    )


def _components(facts: Facts) -> Iterator[str | Text]:
    from llava_remap.jobs.facts import CALLED

    width = max(len(CALLED[part.kind]) for part in facts.components)
    for part in facts.components:
        dtypes = " and ".join(part.dtypes)
        yield Text.assemble("  ", (CALLED[part.kind].ljust(width), "bold"), f"  {_what(part)}")
        yield (
            f"  {' ' * width}  {_amount(part.parameters)} parameters in "
            f"{counted(part.tensors, 'tensor')}, {size(part.nbytes)}, {dtypes}"
        )
    kinds = {part.kind for part in facts.components}
    if facts.said_tower and "vision_tower" not in kinds:
        yield f"  no vision tower inside; the config names {facts.said_tower}"


def _what(part: Component) -> str:
    """Kind and sizes of a component."""
    from llava_remap.target_model import STOCK, Adapter, LanguageModel, Projector, VisionTower

    if isinstance(part, LanguageModel):
        hidden = f", hidden size {part.hidden_size}" if part.hidden_size is not None else ""
        return f"{part.model_type or 'unknown kind'}, {counted(part.layers, 'layer')}{hidden}"
    if isinstance(part, VisionTower) and part.model_type is None:
        return f"unknown kind, {counted(part.layers, 'layer')}"
    if isinstance(part, VisionTower):
        kind = {"clip_vision_model": "CLIP", "siglip_vision_model": "SigLIP"}[str(part.model_type)]
        sizes = (
            f"{counted(part.layers, 'layer')}, hidden size {part.hidden_size}, "
            f"{part.image_size} px, patches of {part.patch_size} px"
        )
        if part.stock is None:
            return f"{kind}, {sizes}"
        whole = STOCK[part.stock.rpartition("/")[2]]["num_hidden_layers"]
        less = "" if whole == part.layers else f" without the last of {whole} layers"
        return f"{kind} with the sizes of {part.stock}{less}: {sizes}"
    if isinstance(part, Projector):
        form = {"linear": "linear layer", "mlp": f"MLP of {len(part.widths) - 1} layers"}
        widths = f", {' → '.join(map(str, part.widths))}" if part.widths else ""
        normed = ", with a norm" if part.normed else ""
        return f"{form.get(part.form, 'another form')}{widths}{normed}"
    if isinstance(part, Adapter):
        ranks = " and ".join(map(str, part.ranks))
        scales = f", scaled by {' and '.join(f'{s:g}' for s in part.scales)}" if part.scales else ""
        return (
            f"{counted(part.pairs, 'LoRA pair')} of rank {ranks}{scales}, which change "
            f"{', '.join(part.modules)}"
        )
    if part.kind == "text_encoder":
        return "the other half of the tower's model, which isn't converted"
    folded = fold_names(part.names)
    return ", ".join(folded[:_NAMES]) + (", …" if len(folded) > _NAMES else "")


def _amount(number: int) -> str:
    """A number of parameters in the usual short form.

    >>> _amount(6738415616), _amount(20979712), _amount(640)
    ('6.74 B', '21 M', '640')
    """
    for power, unit in ((9, "B"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:
            return f"{number / 10**power:.3g} {unit}"
    return str(number)


def _vocabulary(facts: Facts) -> Iterator[str]:
    words = facts.vocabulary
    if words is None:
        return
    if words.rows is not None:
        head = {
            "own": "an lm_head of its own",
            "shared": "lm_head is the same tensor (tied)",
            "absent": "no lm_head" + (", which the config ties" if words.said_tied else ""),
        }[words.head]
        yield f"  {words.rows} rows of embeddings, {head}"
    tokens = f", {words.tokens} tokens" if words.tokens is not None else ""
    if words.tokenizer:
        yield f"  tokenizer: {', '.join(words.tokenizer)}{tokens}"
    elif not facts.checkpoint.is_manifest:
        yield "  no tokenizer beside the weights"


def _unusual(text: str, names: tuple[str, ...]) -> Iterator[str | Text]:
    yield f"  {text}"
    folded = fold_names(names) if "`" not in text or len(names) > _NAMES else []
    yield from (f"    {line}" for line in folded[:_NAMES])
    yield more(len(folded) - _NAMES, "lines; --format json has every name")


def _is_many(inspection: Inspection) -> bool:
    """Whether so many rule files take a part that the model has to decide."""
    return len(inspection.fitting) >= _MANY and not inspection.planned


def _rule_files(inspection: Inspection) -> list[str | Text]:
    """The rule files that fit, or else the near ones, each with its reasons; last the others."""
    fitting = inspection.fitting
    if _is_many(inspection):
        names = ", ".join(fit.rules for fit in fitting)
        return [
            f"  take it: {names}",
            "    to see which of them fits the model: llava-remap inspect MODEL",
        ]
    near = fitting or [fit for fit in inspection.fits if fit.is_near]
    others = [
        f"{fit.rules} ({fit.mapped} of {fit.total})" for fit in inspection.fits if fit not in near
    ]
    what = "don't fit" if fitting else "know less than a tenth of the names"
    return [
        *(
            line
            for number, fit in enumerate(near)
            for line in _fit(inspection, fit, in_full=fit.fits or number < _NEAREST)
        ),
        f"  {what}: {', '.join(others)}" if others else "",
    ]


def _fit(inspection: Inspection, fit: Fit, in_full: bool) -> list[str | Text]:
    """A rule file: whether it fits, and why not, or which sources are still needed.

    Args:
        in_full: whether all reasons are shown, not only the first.
    """
    verdict = ("doesn't fit", "red")
    if fit.fits:
        verdict = ("fits" if inspection.planned else "takes it", "green")
    maps = f", maps {fit.mapped} of {fit.total} names"
    unplanned = "    not checked: whether it fits the model, which isn't here"
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
        unplanned if fit.fits and not inspection.planned else "",
        *(f"    {reason}" for reason in fit.reasons if in_full),
        *(line for one in inspection.needed(fit) if fit.fits for line in _needed(one)),
    ]


def _needed(one: Needed) -> Iterator[str]:
    yield f"    with --source {one.source}={one.place or 'DIR'}: {one.why}"
    if one.download:
        yield f"    which is downloaded; a copy on this disk: --source {one.source}=DIR"
