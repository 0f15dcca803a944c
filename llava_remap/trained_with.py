"""What a part was trained with: the model that it was trained from, and the projector that was trained beside an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from llava_remap.checkpoint import Checkpoint, quoted, tensor_names
from llava_remap.errors import Problem, RemapError
from llava_remap.plan import Routes
from llava_remap.rewrite import Program
from llava_remap.rulefile import RuleFile
from llava_remap.sources import last_part

#: What the names of a projector begin with in the classic layout.
_PROJECTOR = "multi_modal_projector."
#: Where DeepSpeed's ZeRO-2 puts what was trained, in a step's folder beside the pairs of that step.
_STEP, _NUMBER = "global_step*/mp_rank_00_model_states.pt", re.compile(r"global_step([0-9]{1,12})")


def base_notes(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """LR316 for every part that was trained from another model than the first source, by its own files.

    Two models are one where their hub ids or paths end in the same name.
    """
    first = checkpoints[rules.first_source]
    given = first.origin or str((first.folder or first.path).resolve())
    return [
        Problem(
            "LR316",
            f"`{name}` was trained from {quoted(part.base)}, by its own files; `{rules.first_source}` is {first.location}.",
            f"If that is another model, give the one that is named: --source {rules.first_source}=DIR.",
        )
        for name, part in checkpoints.items()
        if rules.text.sources[name].overrides and part.base and last_part(part.base) != last_part(given)
    ]


def projector_findings(
    rules: RuleFile, program: Program, checkpoints: Mapping[str, Checkpoint], routes: Routes
) -> tuple[list[Problem], list[Problem]]:
    """LR317 for an adapter beside which no projector is given, so that the base's own one would count.

    A problem where the adapter's files show that one was trained with it; a note where they don't tell.
    """
    sources = rules.text.sources
    brought = [r.rewrite.target for r in routes.taken if sources[r.source].overrides]
    brought += [pair.rewrite.target for pair in routes.pairs]
    if any((target or "").startswith(_PROJECTOR) for target in brought):
        return [], []
    problems, notes = [], []
    for name, adapter in checkpoints.items():
        config = adapter.config or {}
        if not adapter.pairs or _is_frozen(config):
            continue
        shown = _shown(config)
        lies = _lies(name, adapter.folder, program, sources[name].prefix) if adapter.folder is not None else ""
        if shown or lies:
            why = f"Its config.json says {shown}." if shown else "Its own training has one."
            fix = lies or f"Give the folder of the training's end, with its non_lora_trainables.bin: --source {name}=DIR."
            problems.append(Problem("LR317", f"`{name}` brings no projector, and one was trained with it. {why}", fix))
        else:
            told = (
                f"`{name}` brings no projector, so that of `{rules.first_source}` is taken. Whether one was trained isn't known."
            )
            notes.append(Problem("LR317", told))
    return problems, notes


def _is_frozen(config: Mapping[str, Any]) -> bool:
    """Whether LLaVA's config says that the projector wasn't trained."""
    parts = config.get("mm_tunable_parts")
    return bool(config.get("freeze_mm_mlp_adapter")) or (isinstance(parts, str) and parts != "" and "mm_mlp_adapter" not in parts)


def _shown(config: Mapping[str, Any]) -> str:
    """What LLaVA's config says by which a projector was trained; empty where nothing does."""
    if config.get("tune_mm_mlp_adapter"):
        return "tune_mm_mlp_adapter: true"
    if (rate := config.get("mm_projector_lr")) is not None:
        return f"mm_projector_lr: {rate}"
    # Beside LoRA, LLaVA's training trains the projector unless it is told not to.
    own = next((key for key in config if key.startswith("mm_")), None)
    return f"{own}: {quoted(str(config[own]))}, so LLaVA's training wrote it" if own is not None else ""


def _lies(name: str, folder: Path, program: Program, prefix: str) -> str:
    """Where the projector that was trained with an adapter lies and how to give it, in words; empty where it isn't found."""

    def has_one(file: Path) -> bool:
        try:
            names = tensor_names(file) if file.is_file() else []
        except RemapError:  # a file of something else, or one that can't be read: nothing is known of it
            return False
        return any((program.rewrite(prefix + found).target or "").startswith(_PROJECTOR) for found in names)

    folder = folder.resolve()
    steps = {int(number[1]): path for path in folder.glob(_STEP) if (number := _NUMBER.fullmatch(path.parent.name))}
    if steps and has_one(last := steps[max(steps)]):
        return f"It lies in {last}. Put it beside the pairs: {_extract(last, folder)}"
    for path in (folder / "mm_projector.bin", folder.parent / "mm_projector" / f"{folder.name}.bin"):
        if has_one(path):
            return f"It lies in {path}. Give it: --source projector={quote(str(path))}."
    if has_one(folder.parent / "non_lora_trainables.bin"):
        return f"That of the training's end lies in {folder.parent}. Give it: --source {name}={quote(str(folder.parent))}."
    return ""


def _extract(states: Path, folder: Path) -> str:
    """A command that writes what was trained beside the pairs as LLaVA's training does at its end."""
    return (
        f"cd {quote(str(folder))} && python -c \"import torch; s = torch.load('{states.relative_to(folder)}', 'cpu', "
        "weights_only=False)['module']; torch.save({k: v for k, v in s.items() if 'lora_' not in k}, 'non_lora_trainables.bin')\""
    )
