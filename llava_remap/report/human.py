"""Plan, problems and result as text for a person. Names are folded; every list is whole but for
that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llava_remap.core.escaped import quote
from llava_remap.core.fold import fold_names
from llava_remap.core.problem import Problem
from llava_remap.core.wording import counted, size
from llava_remap.plan.problems import component
from llava_remap.report.problems import print_problems
from llava_remap.report.terminal import heading, line, shown

if TYPE_CHECKING:  # a refusal of a rule file is shown without the rooms that it doesn't come to
    from llava_remap.jobs.inspection import Inspection
    from llava_remap.jobs.job import Job
    from llava_remap.jobs.resources import Predicted
    from llava_remap.jobs.run import Result
    from llava_remap.plan import Plan
    from llava_remap.routing.fits import Fit
    from llava_remap.verify import Verification

#: Rule files that are told with all that contradicts them, where none fits; the rest with the first
#: reason.
_NEAREST = 3
#: Folded names in a sentence.
_SHOWN = 4
_STRICT = "strict load by transformers: nothing missing, unexpected or mismatched"
#: What was checked after writing, by `--verify`.
_CHECKED = {
    "meta": _STRICT,
    "full": f"{_STRICT}; every tensor read back, and as the sources give it",
    "none": "not checked after writing (--verify none)",
}
_FORWARD = "names and shapes read back: the rule file takes them where they came from"
_CHECKED_BACK = {
    **_CHECKED,
    "meta": _FORWARD,
    "full": f"{_FORWARD}; every tensor as the source gives it",
}


def print_plan(console: Console, job: Job, predicted: Predicted | None = None) -> None:
    """The whole plan: sources, components, drops, vocabulary, notes, problems, and last whether it
    is complete, and what it will need.
    """
    plan = job.plan
    line(
        console,
        Text(
            f"{plan.rules_name} {plan.rules_version} → {plan.target_class}, {plan.layout} layout",
            "bold",
        ),
    )
    _sources(console, plan)
    _components(console, plan)
    _merged(console, plan)
    _dropped(console, plan)
    _casts(console, plan)
    _model(console, job)
    _vocabulary(console, job)
    _prompt(console, plan)
    if plan.notes:
        heading(console, "Notes")
        for note in plan.notes:
            line(
                console,
                Text.assemble("  ", (note.code, "cyan"), f" {note.title}: {_sentence(note)}"),
            )
    if plan.value_checks:
        counted = Counter(check.check for check in plan.value_checks)
        if plan.values_checked:
            state = "passed" if plan.complete else "run"
        elif job.from_manifest:
            state = "not run, a manifest has no values"
        else:  # those of a plan that isn't complete are run in no way
            state = "not run (in a dry run, --check-values does)" if plan.complete else "not run"
        line(
            console,
            f"\nValue checks: {', '.join(f'{n} {kind}' for kind, n in sorted(counted.items()))}: "
            f"{state}",
        )
    print_problems(console, plan.problems, plan)
    console.print()
    if plan.complete:
        line(
            console,
            Text.assemble(
                ("Complete", "bold green"),
                f": {_provided(plan)} of {plan.target_tensors} parameters, {len(plan.dropped)} "
                "dropped, "
                f"nothing unmapped, missing or mismatched. {size(plan.nbytes_write)} to write.",
            ),
        )
        if predicted is not None:
            line(
                console,
                f"  needs at most {size(predicted.memory)} of memory and {size(predicted.disk)} of "
                "disk",
            )
    else:
        line(
            console,
            Text.assemble(
                ("Refused", "bold red"), f": {_kinds(plan.problems)}. Nothing was written."
            ),
        )


def print_result(console: Console, result: Result, plan: Plan) -> None:
    """What was written, and how it can be loaded."""
    line(
        console,
        Text.assemble(
            ("Done", "bold green"),
            f": {shown(str(result.output))} written in {result.seconds:.1f} s",
        ),
    )
    checked = _CHECKED_BACK if plan.layout == "original" else _CHECKED
    line(
        console,
        f"  {size(result.nbytes)} of weights in {counted(len(plan.shards), 'file')}; "
        f"{checked[result.verified]}",
    )
    if result.reused:
        line(console, f"  {result.reused} of them finished before, as their digests say")
    line(
        console,
        f"  took {size(result.used.memory)} of memory at most, {size(result.used.disk)} of disk",
    )
    for note in result.notes:
        if note not in plan.notes or note.lacks:
            line(
                console,
                Text.assemble("  ", (note.code, "cyan"), f" {note.title}: {_sentence(note)}"),
            )
    line(
        console,
        f"  {', '.join(name for name in result.files if not name.endswith('.safetensors'))}",
    )


def print_verification(console: Console, found: Verification) -> None:
    """What was checked of a folder, and what is wrong with it."""
    line(console, Text(shown(str(found.folder)), "bold"))
    line(
        console,
        f"  {counted(found.files, 'file')}, {size(found.nbytes)}: "
        f"{'' if found.as_written else 'not '}as they were written",
    )
    load = {
        True: _STRICT,
        False: "strict load by transformers: failed",
        None: "strict load by transformers: not tried",
    }
    line(console, f"  {load[found.strict]}")
    if found.tensors is not None:
        same = (
            f"tensors held against what the sources give, {found.differing} differ"
            if found.differing
            else ("tensors equal, bit by bit, to what the sources give")
        )
        line(console, f"  {found.tensors} {same}")
    print_problems(console, found.problems)
    if not found.problems:
        line(console, Text("Verified", "bold green"))


def _sources(console: Console, plan: Plan) -> None:
    heading(console, "Sources")
    width = max(map(len, plan.sources))
    for name, source in plan.sources.items():
        taken = f"{source.taken} of " if source.taken != source.tensors else ""
        line(
            console, Text.assemble("  ", (name.ljust(width), "bold"), f"  {shown(source.location)}")
        )
        tensors = (
            f"; {taken}{counted(source.tensors, 'tensor')} taken; {size(source.nbytes)}"
            if source.tensors
            else ""
        )
        line(console, f"  {' ' * width}  {source.form}{tensors}")
        if source.passed_over:
            line(console, f"  {' ' * width}  not read: {', '.join(source.passed_over)}")


def _components(console: Console, plan: Plan) -> None:
    """Per component of the target where its parameters come from: `vision_tower 391/391 from
    model`.
    """
    if not plan.target_tensors:
        return
    wanted: Counter[str] = Counter(component(name) for name in plan.target_names)
    got: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in plan.mapped:
        made_by = entry.post_load.use if entry.is_made and entry.post_load else None
        got[component(entry.target)][made_by or entry.parts[0].source] += 1
    for alias in plan.aliases:
        got[component(alias.target)][alias.source.source] += 1
    for name in plan.tied_absent:
        got[component(name)]["ties"] += 1
    heading(console, "Parameters")
    width, digits = max(map(len, wanted)), len(str(max(wanted.values())))
    for name, count in sorted(wanted.items()):
        found = sum(got[name].values())
        origins = ", ".join(
            f"{source}" if len(got[name]) == 1 else f"{source} ({n})"
            for source, n in sorted(got[name].items())
        )
        style = "" if found == count else "red"
        line(
            console,
            Text.assemble(
                f"  {name.ljust(width)}  ",
                (f"{found:>{digits}}/{count:<{digits}}", style),
                f"  from {origins or 'nowhere'}",
            ),
        )


def _merged(console: Console, plan: Plan) -> None:
    """Which tensors an adapter changes, those of one rank and scale together."""
    groups: dict[tuple[str, int, float | None], list[str]] = defaultdict(list)
    for entry in plan.mapped:
        if (lora := entry.lora) is not None:
            groups[lora.a.source, lora.rank, lora.scale].append(entry.target)
    if groups:
        heading(console, "Merged")
    for (source, rank, scale), names in groups.items():
        for folded in fold_names(names):
            line(console, f"  {folded}")
        times = "a scale that a manifest doesn't tell" if scale is None else f"scale {scale:g}"
        line(console, Text(f"    with pairs of {source}, rank {rank}, {times}", "dim"))


def _dropped(console: Console, plan: Plan) -> None:
    if not plan.dropped:
        return
    heading(console, "Dropped")
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for dropped in plan.dropped:
        groups[(dropped.rule, dropped.reason)].append(dropped.name)
    for (rule, reason), names in groups.items():
        for folded in fold_names(names):
            line(console, f"  {folded}")
        line(console, Text(f"    {reason} ({rule})", "dim"))


def _casts(console: Console, plan: Plan) -> None:
    """Which dtypes become which, where not all stay as they are."""
    cast = [entry for entry in plan.mapped if entry.stored_dtype != entry.dtype]
    if not cast:
        return
    heading(console, "Dtypes")
    for (stored, dtype, rounded), count in sorted(
        Counter((e.stored_dtype, e.dtype, e.is_rounded) for e in cast).items()
    ):
        how = "rounded to nearest, so revert can't give them back" if rounded else "exactly"
        line(console, f"  {stored} → {dtype}: {counted(count, 'tensor')}, {how}")
    if kept := sum(not entry.is_made for entry in plan.mapped) - len(cast):
        line(console, f"  as they are: {counted(kept, 'tensor')}")


def _model(console: Console, job: Job) -> None:
    """What of the config decides what the model computes, in two lines."""
    if job.derived is None:
        return
    config = job.derived.config.config
    text, tower = config["text_config"], config["vision_config"]
    heading(console, "Model")
    facts = [config["dtype"]]
    if isinstance(
        text.get("rope_theta"), (int, float)
    ):  # some have no rope, or one for each kind of layer
        facts.insert(0, f"rope theta {text['rope_theta']:g}")
    if "hidden_size" in text and "num_attention_heads" in text:  # some call them otherwise
        facts.insert(
            0,
            f"{text['num_hidden_layers']} layers of {text['hidden_size']}, "
            f"{text['num_attention_heads']} heads",
        )
    line(console, f"  {text['model_type']}: {', '.join(facts)}")
    size_and_patch = f"{tower['image_size']} px in patches of {tower['patch_size']}"
    features = (
        f"features of layer {config.get('vision_feature_layer')}, "
        f"{config.get('vision_feature_select_strategy')}"
    )
    line(
        console,
        f"  {tower['model_type']}: {tower['num_hidden_layers']} layers of {tower['hidden_size']}, "
        f"{tower['num_attention_heads']} heads, {size_and_patch}, {tower['hidden_act']}; "
        f"{features}",
    )


def _prompt(console: Console, plan: Plan) -> None:
    """The chat template that is written, why it is this one, and the system prompt."""
    chosen = plan.chat_template
    if chosen is None:
        return
    heading(console, "Prompt")
    facts = chosen.because.items()
    why = ", ".join(
        f"the tokenizer has {value}" if key == "token" else f"{key} is {value}"
        for key, value in facts
    )
    line(
        console,
        f"  {chosen.name}: "
        + (f"the first that fits ({why})" if why else "the rule file's, for every tokenizer"),
    )
    if chosen.system:
        none = "none, unless a conversation has a system message; the model was trained with"
        line(console, f"  system prompt: {'' if chosen.always else none + ': '}{chosen.system}")


def _vocabulary(console: Console, job: Job) -> None:
    if job.derived is None:
        return
    changed = [entry for entry in job.plan.post_load if entry.change.shape_before is not None]
    resized = [entry for entry in changed if entry.change.shape_before != entry.change.shape_after]
    if job.derived.tokens or resized:
        heading(console, "Vocabulary")
    for token in job.derived.tokens:
        line(
            console,
            f"  {token.text} = {token.id}{' (new)' if token.added else ''}, {token.role} token",
        )
    for entry in resized:
        change = entry.change
        assert change.shape_before is not None
        line(
            console,
            f"  {change.target}: {change.shape_before[0]} → {change.shape_after[0]} rows "
            f"({entry.use})",
        )
    made = [entry for entry in job.plan.post_load if entry not in changed]
    for title, entries in (
        ("Other values", [entry for entry in changed if entry not in resized]),
        ("Made", made),
    ):
        if entries:
            heading(console, title)
        for entry in entries:
            line(console, f"  {entry.change.target} ({entry.use})")


def _provided(plan: Plan) -> int:
    return len(plan.mapped) + len(plan.aliases) + len(plan.tied_absent)


def _kinds(problems: Iterable[Problem]) -> str:
    return ", ".join(dict.fromkeys(f"{problem.code} {problem.title}" for problem in problems))


def _sentence(problem: Problem) -> str:
    folded = fold_names(problem.names)
    more = f" and {len(folded) - _SHOWN} more" if len(folded) > _SHOWN else ""
    names = f" ({', '.join(folded[:_SHOWN])}{more})" if folded else ""
    return f"{problem.placed_cause}{names}" + (f" {problem.fix}" if problem.fix else "")


def print_inspection(console: Console, found: Inspection) -> None:
    """What a checkpoint is, which rule files fit it, why the nearest don't, and what to do."""
    checkpoint = found.checkpoint
    for part in found.parts or [checkpoint]:
        line(console, Text(shown(part.location), "bold"))
        line(console, f"  {part.form}; {counted(len(part.catalog), 'tensor')}; {size(part.nbytes)}")
        if part.pairs:
            line(
                console,
                f"  an adapter: {counted(len(part.pairs), 'LoRA pair')}, which change a model",
            )
        if part.passed_over:
            line(console, f"  not read: {', '.join(part.passed_over)}")
        named = (part.config or {}).get("architectures")
        names = [
            name
            for name in (named if isinstance(named, list) else [named])
            if isinstance(name, str) and name
        ]
        line(console, f"  {', '.join(names) or 'no config.json that names an architecture'}")
    if found.layout:
        named = f"{found.named} of {len(checkpoint.catalog)} names"
        line(console, f"  saved by transformers: {named} are in layout {found.layout}")
    heading(console, "Rule files")
    fitting = [fit for fit in found.fits if fit.fits]
    near = fitting or [fit for fit in found.fits if fit.is_near]
    for number, fit in enumerate(near):
        verdict = (
            ("fits" if found.planned else "takes it", "green")
            if fit.fits
            else ("doesn't fit", "red")
        )
        first = "" if fit.fits or number < _NEAREST else f": {fit.reasons[0]}"
        line(
            console,
            Text.assemble(
                "  ",
                (fit.rules, "bold"),
                ": ",
                verdict,
                f", maps {fit.mapped} of {fit.total} names{first}",
            ),
        )
        if fit.fits:
            line(console, f"    {fit.summary}")
            if not found.planned:
                line(
                    console,
                    "    whether the model belongs to it is checked with the model, which isn't "
                    "here",
                )
        for reason in () if first else fit.reasons:
            line(console, f"    {reason}")
        for problem in fit.needs:
            line(console, f"    with {_sources_to_give(fit)}: {problem.placed_cause}")
        if fit.fits and fit.also and not fit.needs:
            unchecked = (
                "the checkpoint has no tower inside, so what depends on the tower's sizes "
                "isn't checked yet"
            )
            line(console, f"    with {_sources_to_give(fit)}: {unchecked}")
    others = ", ".join(
        f"{fit.rules} ({fit.mapped} of {fit.total})" for fit in found.fits if fit not in near
    )
    if others:
        what = "don't fit" if fitting else "know less than a tenth of the names"
        line(console, f"  {what}: {others}")
    for fit in fitting:
        if found.sources:
            line(console, f"\nllava-remap apply {fit.rules} {found.sources}")
        else:
            also = f" {_sources_to_give(fit)}" if fit.also else ""
            dry = " --dry-run" if checkpoint.is_manifest else ""
            # With the source's name, a path with `=` in it isn't taken for one.
            name = f"{fit.source}=" if "=" in checkpoint.location else ""
            line(
                console,
                f"\nllava-remap apply {fit.rules} --source "
                f"{quote(name + checkpoint.location)}{also}{dry}",
            )
    if found.advice:
        line(console, f"\n{found.advice}")


def _sources_to_give(fit: Fit) -> str:
    return " ".join(f"--source {name}=DIR" for name in fit.also)
