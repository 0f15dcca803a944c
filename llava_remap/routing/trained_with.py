"""What a part was trained with: the model that it was trained from, and the projector that was
trained beside an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, has_file, tensor_names
from llava_remap.core.escaped import quote
from llava_remap.core.problem import Problem, RemapError
from llava_remap.core.wording import quoted
from llava_remap.rewrite import Program
from llava_remap.routing.route import Routes
from llava_remap.rulefile import NamedDefault, RuleFile
from llava_remap.source.sources import last_part, named_by_config, other_than_default
from llava_remap.target_model import has_stock_sizes

#: What the names of a projector begin with in the classic layout.
PROJECTOR = "multi_modal_projector."
#: Where DeepSpeed's ZeRO-2 puts what was trained, in a step's folder beside the pairs of that step.
_STATES, _NUMBER = "mp_rank_00_model_states.pt", re.compile(r"global_step([0-9]{1,12})")


def naming_notes(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    given: Collection[str],
    routes: Routes,
    config: Mapping[str, Any] | None,
) -> list[Problem]:
    """LR316 where the sources' own files name another one than a source that was given by hand.

    They name the model that an adapter or a projector was trained from, and the tower of a language
    model. Two are one where their hub ids or paths end in the same name. A tower of other sizes
    than the stock one that is named is told as LR309. Of a tower whose tensors aren't taken, since
    the checkpoint has its own, the config is: it tells heads and activation.

    Args:
        given: the sources that were given.
        config: the one that describes the language model.
    """
    first = rules.first_source
    named = [
        (first, part.base, f"`{name}` was trained from")
        for name, part in checkpoints.items()
        if rules.text.sources[name].overrides and part.base
    ]
    for name in (name for name in checkpoints if name in given):
        tower = named_by_config(rules, name, config)
        if tower is not None and all(
            has_stock_sizes(tower, prefix, routes.produced) for prefix in rules.target.towers
        ):
            named.append((name, tower, "the config names"))
    notes = []
    for name, text, who in named:
        there = checkpoints[name]
        path = there.path.with_suffix("") if there.is_manifest else there.folder or there.path
        if last_part(text) != last_part(there.origin or str(path.resolve())):
            notes.append(
                Problem(
                    "LR316",
                    f"{who} {quoted(text)}, and {there.location} is given as `{name}`.",
                    f"If that is another one, give the one that is named: --source {name}=DIR.",
                )
            )
    return notes


def tower_problems(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], config: Mapping[str, Any] | None
) -> list[Problem]:
    """LR112 for a second tower, inside the checkpoint, that is by the config another one than the
    rule file's default.

    The first tower's config counts for both, and tensors show neither attention heads nor
    activation.
    """
    keys, problems = [value.from_ for value in rules.target.towers.values()][1:], []
    for name, source in rules.text.sources.items():
        named, default = other_than_default(source, config), source.default
        if (
            name not in checkpoints
            and named is not None
            and isinstance(default, NamedDefault)
            and default.from_ in keys
        ):
            problems.append(
                Problem(
                    "LR112",
                    f"the config says {default.from_}: {quoted(named)}, and only of "
                    f"{default.default} "
                    "it is known that it has the "
                    "attention heads and the activation of the other tower; tensors show neither.",
                    f"Give it, with its own config.json: --source {name}=DIR.",
                )
            )
    return problems


def rows_problems(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    routes: Routes,
    embedding: str,
    config: Mapping[str, Any],
) -> list[Problem]:
    """LR402 where the table of token embeddings isn't of the training whose config is believed.

    Args:
        config: the one that describes the language model.
    """
    first, origin, wanted = rules.first_source, routes.origin(embedding), config.get("vocab_size")
    if origin is None or not isinstance(wanted, int):
        return []
    parts = [name for name in checkpoints if rules.text.sources[name].overrides]
    said_by = next((name for name in parts if checkpoints[name].config is config), first)
    rows = checkpoints[origin.source].catalog[origin.name].shape[0]
    if (
        origin.source == first != said_by
        and rows != wanted
        and (checkpoints[first].config or {}).get("vocab_size") == rows
    ):
        return [
            Problem(
                "LR402",
                f"by its config.json `{said_by}` was trained from a model of {wanted} tokens, and "
                f"`{first}` has {rows}.",
                f"Give the model that it was trained from: --source {first}=DIR.",
            )
        ]
    if origin.source != first and rows < wanted:
        return [
            Problem(
                "LR402",
                f"`{origin.source}` brings an embed_tokens of {rows} rows, and the config of "
                f"`{said_by}` says vocab_size: {wanted}.",
                "Give the whole table, as the training's end has it: --source "
                f"{origin.source}=DIR.",
            )
        ]
    return []


def projector_findings(
    rules: RuleFile, program: Program, checkpoints: Mapping[str, Checkpoint], routes: Routes
) -> tuple[list[Problem], list[Problem]]:
    """LR317 for an adapter beside which no projector is given, so that the base's own one would
    count.

    A problem where the adapter's files show that one was trained with it; a note where they don't
    tell.
    """
    sources = rules.text.sources
    brought = {
        r.source
        for r in routes.taken
        if sources[r.source].overrides and _of_projector(r.rewrite.target)
    }
    brought |= {pair.source for pair in routes.pairs if _of_projector(pair.rewrite.target)}
    problems: list[Problem] = []
    notes: list[Problem] = []
    for name, adapter in checkpoints.items():
        config = adapter.config or {}
        if (
            not adapter.pairs
            or not sources[name].overrides
            or name in brought
            or _is_frozen(config)
        ):
            continue
        shown = _shown(config)
        lies = projector_place(rules, program, name, adapter)
        if brought:
            if shown or lies:
                told = (
                    f"`{name}` was trained with a projector of its own, and that of "
                    f"{', '.join(map(quoted, brought))} is taken."
                )
                notes.append(Problem("LR317", told, lies))
        elif shown or lies:
            why = f"Its config.json says {shown}." if shown else "Its own training has one."
            problems.append(
                Problem(
                    "LR317",
                    f"`{name}` brings no projector, and one was trained with it. {why}",
                    (
                        lies
                        or "Give the folder of the training's end, with its "
                        "non_lora_trainables.bin: "
                        f"--source {name}=DIR."
                    ),
                )
            )
        else:
            told = (
                f"`{name}` brings no projector, so that of `{rules.first_source}` is taken. "
                "Whether one was trained isn't known."
            )
            notes.append(Problem("LR317", told))
    return problems, notes


def _of_projector(target: str | None) -> bool:
    return target is not None and target.startswith(PROJECTOR)


def _is_frozen(config: Mapping[str, Any]) -> bool:
    """Whether LLaVA's config says that the projector wasn't trained."""
    parts = config.get("mm_tunable_parts")
    return bool(config.get("freeze_mm_mlp_adapter")) or (
        isinstance(parts, str) and parts != "" and "mm_mlp_adapter" not in parts
    )


def _shown(config: Mapping[str, Any]) -> str:
    """What LLaVA's config says by which a projector was trained; empty where nothing does."""
    if config.get("tune_mm_mlp_adapter"):
        return "tune_mm_mlp_adapter: true"
    if (rate := config.get("mm_projector_lr")) is not None:
        return f"mm_projector_lr: {rate}"
    # Beside LoRA, LLaVA's training trains the projector unless it is told not to.
    own = next((key for key in config if key.startswith("mm_")), None)
    return (
        f"{own}: {quoted(str(config[own]))}, so LLaVA's training wrote it"
        if own is not None
        else ""
    )


def projector_place(rules: RuleFile, program: Program, name: str, adapter: Checkpoint) -> str:
    """Where the projector that was trained with an adapter lies and how to give it, in words;
    empty where it isn't found.
    """
    if adapter.folder is None or not adapter.pairs:
        return ""
    prefix = rules.text.sources[name].prefix

    def has_one(file: Path) -> bool:
        if not has_file(file):
            return False
        try:
            names = tensor_names(file)
        except RemapError:  # a file of something else: nothing is known of it
            return False
        return any(_of_projector(program.rewrite(prefix + found).target) for found in names)

    folder = adapter.folder.resolve()
    numbers = [found for path in folder.iterdir() if (found := _NUMBER.fullmatch(path.name))]
    steps = {
        int(found[1]): path for found in numbers if has_file(path := folder / found[0] / _STATES)
    }
    if steps and has_one(last := steps[max(steps)]):
        return f"It lies in {last}. Put it beside the pairs: {_extract(last, folder)}"
    for path in (
        folder / "mm_projector.bin",
        folder.parent / "mm_projector" / f"{folder.name}.bin",
    ):
        if has_one(path):
            return f"It lies in {path}. Give it: --source projector={quote(str(path))}."
    if has_one(folder.parent / "non_lora_trainables.bin"):
        return (
            f"That of the training's end lies in {folder.parent}. Give it: --source "
            f"{name}={quote(str(folder.parent))}."
        )
    return ""


def _extract(states: Path, folder: Path) -> str:
    """A command that writes what was trained beside the pairs as LLaVA's training does at its
    end.
    """
    return (
        f'cd {quote(str(folder))} && python -c "import torch; s = '
        f"torch.load('{states.relative_to(folder)}', 'cpu', "
        "weights_only=False)['module']; torch.save({k: v for k, v in s.items() if 'lora_' not in "
        "k}, 'non_lora_trainables.bin')\""
    )
