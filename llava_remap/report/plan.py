"""A plan as text for a person. Names are folded; lists are complete."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core import Problem, counted, fold_names, size
from llava_remap.planning.problems import component
from llava_remap.planning.regions import in_words
from llava_remap.report.terminal import (
    DETAIL,
    folded_above,
    more,
    names_by_fact,
    print_problems,
    shown,
    write,
    write_command,
    write_section,
)

if TYPE_CHECKING:  # a refused rule file is shown without importing the rooms of a job
    from llava_remap.jobs.job import Job
    from llava_remap.planning import AddLora, Dropped, Mapped, Plan

#: Folded names in a sentence.
_SHOWN = 4


def print_plan(console: Console, job: Job) -> None:
    """The whole plan: problems, sources, components, drops, vocabulary and notes; last, whether it
    is complete and what it will need.
    """
    plan = job.plan
    if DETAIL.get() == "quiet":
        print_problems(console, plan.problems, plan)
        write(console, *map(note_line, plan.notes))
        if not plan.complete:
            _print_refusal(console, plan)
        return
    print_title(console, job)
    print_problems(console, plan.problems, plan)
    merged = names_by_fact(
        (entry.target, how)
        for entry in plan.mapped
        for how in dict.fromkeys(map(_merge, entry.loras))
    )
    shapes = {
        (part.source, part.taken.name): part.shape for entry in plan.mapped for part in entry.parts
    }
    dropped = names_by_fact((entry.name, _why_dropped(entry, shapes)) for entry in plan.dropped)
    sections: dict[str, Iterable[str | Text]] = {
        "Sources": sources(console, job),
        "Parameters": _components(plan),
        "Merged": (text for fact, names in merged.items() for text in folded_above(fact, names)),
        "Divided, joined or reordered": _operations(plan),
        "Dropped": (text for fact, names in dropped.items() for text in folded_above(fact, names)),
        **facts(job),
        "Notes": map(note_line, plan.notes),
    }
    for heading, texts in sections.items():
        write_section(console, heading, texts)
    write(console, value_checks(job))
    print_verdict(console, job)


def print_title(console: Console, job: Job) -> None:
    """The rule file and the target; for `convert` also why this rule file was chosen."""
    plan = job.plan
    title = f"{plan.rules_name} {plan.rules_version} → {plan.target_class}, {plan.layout} layout"
    why = "" if job.choice is None else f"  {plan.rules_name} {job.choice.reason}"
    write(console, Text(title, "bold"), why)


def print_verdict(console: Console, job: Job) -> None:
    """Whether a plan is complete, and what it will need."""
    plan, predicted = job.plan, job.predicted
    if not plan.complete:
        _print_refusal(console, plan)
        return
    provided = len(plan.mapped) + len(plan.aliases) + len(plan.tied_absent)
    write(
        console,
        Text.assemble(
            ("\nPlan complete", "bold green"),
            f": {provided} of {plan.target_tensors} parameters, {_dropped(plan)}, "
            f"nothing unmapped, missing or mismatched. {size(plan.nbytes_write)} to write.",
        ),
    )
    if predicted is not None:
        memory, disk = size(predicted.memory), size(predicted.disk)
        write(console, f"  needs at most {memory} of memory and {disk} of disk")


def _dropped(plan: Plan) -> str:
    """How many tensors are dropped, and of how many a part."""
    in_part = len({(entry.source, entry.name) for entry in plan.dropped if entry.box is not None})
    whole = sum(entry.box is None for entry in plan.dropped)
    return f"{whole} dropped" + (f" and {in_part} in part" if in_part else "")


def print_next(console: Console, job: Job, command: str = "") -> None:
    """What follows a complete plan.

    Args:
        command: for a dry run, the command that carries out the plan.
    """
    if command:
        instead = " with the checkpoint in place of the manifest" if job.from_manifest else ""
        what = f": nothing was written. To convert{instead}:"
        write(console, Text.assemble(("\nDry run", "bold"), what))
        write_command(console, command)
    elif DETAIL.get() != "quiet" and not job.is_done:
        write(console, f"\nWriting {shown(job.output)}")


def facts(job: Job) -> dict[str, list[str]]:
    """Sections with the facts of a plan beside its names: dtypes, model, vocabulary, prompt."""
    plan = job.plan
    return {
        "Dtypes": _casts(plan),
        "Model": _model(job),
        **_new_values(job),
        "Prompt": _prompt(plan),
    }


def _print_refusal(console: Console, plan: Plan) -> None:
    kinds = dict.fromkeys(f"{problem.code} {problem.title}" for problem in plan.problems)
    refusal = f": {', '.join(kinds)}. Nothing was written."
    write(console, Text.assemble(("\nRefused", "bold red"), refusal))


def sources(console: Console, job: Job) -> Iterator[str | Text]:
    """Each source on one line, if the terminal is wide enough; for `convert` also how it was found,
    and with `-v` the files that are read from it.
    """
    sources = job.plan.sources
    width = max(map(len, sources))
    chosen: Mapping[str, str] = {} if job.choice is None else job.choice.found
    files = job.source_files if DETAIL.get() == "verbose" else {}
    for name, source in sources.items():
        taken = f"{source.taken} of " if source.taken != source.tensors else ""
        tensors = f"; {taken}{counted(source.tensors, 'tensor')} taken; {size(source.nbytes)}"
        place, form = shown(source.location), f"{source.form}{tensors if source.tensors else ''}"
        together = not console.soft_wrap and width + len(place) + len(form) + 6 <= console.width
        yield Text.assemble(
            "  ", (name.ljust(width), "bold"), f"  {place}", f"  {form}" if together else ""
        )
        passed_over = f"not read: {', '.join(source.passed_over)}" if source.passed_over else ""
        read = f"read: {', '.join(sorted(files[name]))}" if name in files else ""
        for text in ("" if together else form, chosen.get(name, ""), read, passed_over):
            yield f"{' ' * (width + 4)}{text}" if text else ""


def _components(plan: Plan) -> Iterator[Text]:
    """Each component of the target with the origin of its parameters:
    `vision_tower 391/391 from model`.
    """
    wanted = Counter(component(name) for name in plan.target_names)
    origins: dict[str, Counter[str]] = defaultdict(Counter)
    for target, origin in (
        *((entry.target, _origin(entry)) for entry in plan.mapped),
        *((alias.target, alias.source.source) for alias in plan.aliases),
        *((name, "ties") for name in plan.tied_absent),
    ):
        origins[component(target)][origin] += 1
    width = max(map(len, wanted), default=0)
    digits = len(str(max(wanted.values(), default=0)))
    for name, count in sorted(wanted.items()):
        provided = origins[name].total()
        from_ = ", ".join(
            f"{origin} ({n})" if len(origins[name]) > 1 else origin
            for origin, n in sorted(origins[name].items())
        )
        yield Text.assemble(
            f"  {name.ljust(width)}  ",
            (f"{provided:>{digits}}/{count:<{digits}}", "" if provided == count else "red"),
            f"  from {from_ or 'nowhere'}",
        )


def _origin(entry: Mapped) -> str:
    """The source of a tensor, or the post-load rule that makes it."""
    made_by = entry.post_load.use if entry.is_made and entry.post_load else ""
    return made_by or entry.parts[0].source


def _operations(plan: Plan) -> Iterator[str | Text]:
    """Each operation with how many parameters it makes, and where the numbers of the first ones
    come from.
    """
    made: dict[str, list[Mapped]] = defaultdict(list)
    for entry in plan.mapped:
        if not (entry.is_made or entry.is_renamed):
            made[entry.rules[-1]].append(entry)
    for label, entries in made.items():
        taken = {(part.source, part.taken.name) for entry in entries for part in entry.parts}
        yield Text.assemble(
            "  ",
            (label, "bold"),
            f"  {counted(len(entries), 'parameter')} from {counted(len(taken), 'tensor')}",
        )
        first = entries[0].parts[0].taken.name
        parts = [
            (part, entry.shape_before)
            for entry in entries
            for part in entry.parts
            if part.taken.name == first or entry is entries[0]
        ]
        parts.sort(key=lambda found: (found[0].taken.start, found[0].placed.start))
        moves = [
            f"{in_words(part.taken, part.shape)} → {in_words(part.placed, shape)}"
            for part, shape in parts
        ]
        verbose = DETAIL.get() == "verbose"
        yield from (Text(f"    {move}", "dim") for move in moves[: None if verbose else _SHOWN])
        yield more(0 if verbose else len(moves) - _SHOWN, "parts; -v shows them", "    ")


def _why_dropped(entry: Dropped, shapes: Mapping[tuple[str, str], tuple[int, ...]]) -> str:
    """The reason, and which part of the tensor is left out.

    Args:
        shapes: source and name → shape, of tensors of which parts are mapped.
    """
    why = f"{entry.reason} ({entry.rule})"
    if entry.box is None:
        return why
    shape = shapes.get((entry.source, entry.name), entry.box.view)
    return f"{in_words(entry.box, shape, 'it')}: {why}"


def _merge(lora: AddLora) -> str:
    """How an adapter changes a tensor."""
    scale = "a scale that isn't in a manifest" if lora.scale is None else f"scale {lora.scale:g}"
    return f"with pairs of {lora.a.source}, rank {lora.rank}, {scale}"


def _casts(plan: Plan) -> list[str]:
    """How many tensors change from which dtype to which; empty if none changes."""
    casts = Counter(
        (" + ".join(entry.stored_dtypes), entry.dtype, entry.is_rounded)
        for entry in plan.mapped
        if entry.casts
    )
    how = {False: "exactly", True: "rounded to nearest, so revert can't restore them"}
    kept = sum(not entry.is_made for entry in plan.mapped) - casts.total()
    return [
        *(
            f"  {stored} → {dtype}: {counted(count, 'tensor')}, {how[rounded]}"
            for (stored, dtype, rounded), count in sorted(casts.items())
        ),
        f"  unchanged: {counted(kept, 'tensor')}" if casts and kept else "",
    ]


def _model(job: Job) -> list[str]:
    """The values of the config that decide what the model computes, on two lines."""
    if job.derived is None:
        return []
    config = job.derived.config.config
    text, tower = config["text_config"], config["vision_config"]
    facts = [config["dtype"]]
    if isinstance(text.get("rope_theta"), (int, float)):  # some have none, or one per layer kind
        facts.insert(0, f"rope theta {text['rope_theta']:g}")
    if "hidden_size" in text and "num_attention_heads" in text:  # some use other keys
        heads = f"{text['num_attention_heads']} heads"
        facts.insert(0, f"{text['num_hidden_layers']} layers of {text['hidden_size']}, {heads}")
    sizes = tower.get("architecture", "")  # the name of a tower that another library makes
    if "num_hidden_layers" in tower:
        sizes = (
            f"{tower['num_hidden_layers']} layers of {tower['hidden_size']}, "
            f"{tower['num_attention_heads']} heads, {tower['image_size']} px in patches of "
            f"{tower['patch_size']}, {tower['hidden_act']}"
        )
    return [
        f"  {text['model_type']}: {', '.join(facts)}",
        f"  {tower['model_type']}: {sizes}; "
        f"features of layer {config.get('vision_feature_layer')}, "
        f"{config.get('vision_feature_select_strategy')}",
    ]


def _new_values(job: Job) -> dict[str, list[str]]:
    """Sections for new tokens and rows, for tensors with other values, and for made tensors."""
    tokens = job.derived.tokens if job.derived is not None else ()
    sections: dict[str, list[str]] = {
        "Vocabulary": [
            f"  {token.text} = {token.id}{' (new)' if token.added else ''}, {token.role} token"
            for token in tokens
        ],
        "Other values": [],
        "Made": [],
    }
    for entry in job.plan.post_load:
        before, after = entry.change.shape_before, entry.change.shape_after
        title, rows = "Other values", ""
        if before is None:
            title = "Made"
        elif before[1:] == after[1:] and before != after:
            title, rows = "Vocabulary", f": {before[0]} → {after[0]} rows"
        elif before != after:
            rows = f": {list(before)} → {list(after)}"
        sections[title].append(f"  {entry.change.target}{rows} ({entry.use})")
    return sections


def _prompt(plan: Plan) -> list[str]:
    """The chat template that is written, why it was chosen, and the system prompt."""
    chosen = plan.chat_template
    if chosen is None:
        return []
    reasons = ", ".join(
        f"the tokenizer has {value}" if key == "token" else f"{key} is {value}"
        for key, value in chosen.because.items()
    )
    why = f"the first that fits ({reasons})" if reasons else "the rule file's, for every tokenizer"
    unless = "none, unless a conversation has a system message; the model was trained with: "
    system = f"  system prompt: {'' if chosen.always else unless}{chosen.system}"
    return [f"  {chosen.name}: {why}", system if chosen.system else ""]


def value_checks(job: Job) -> str:
    """How many value checks there are of each kind, and whether they were run; empty for none."""
    plan = job.plan
    if not plan.value_checks:
        return ""
    kinds = sorted(Counter(check.check for check in plan.value_checks).items())
    if plan.values_checked:
        state = "passed" if plan.complete else "run"
    elif job.from_manifest:
        state = "not run, a manifest has no values"
    else:  # an incomplete plan's checks aren't run by any option
        state = "not run (in a dry run, --check-values does)" if plan.complete else "not run"
    return f"\nValue checks: {', '.join(f'{n} {kind}' for kind, n in kinds)}: {state}"


def note_line(note: Problem) -> Text:
    """A note in one sentence, with the first of its names."""
    verbose = DETAIL.get() == "verbose"
    folded = note.names if verbose else fold_names(note.names)
    most = len(folded) if verbose else _SHOWN
    more = f" and {len(folded) - most} more" if len(folded) > most else ""
    names = f" ({', '.join(folded[:most])}{more})" if folded else ""
    sentence = f"{note.placed_cause}{names} {note.fix}".rstrip()
    return Text.assemble("  ", (note.code, "cyan"), f" {note.title}: {sentence}")
