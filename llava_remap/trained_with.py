"""What a part was trained with: the model that it was trained from, and the projector that was trained beside an adapter."""

from __future__ import annotations

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
_STEP = "global_step*/mp_rank_00_model_states.pt"
#: Where LLaVA's training puts a projector, seen from the folder of the adapter; the last ones at the end of the training.
_PROJECTORS = ("mm_projector.bin", "../mm_projector/{step}.bin", "../mm_projector.bin")
_AT_THE_END = "../non_lora_trainables.bin"


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
    """LR317 for an adapter beside which no projector is given, so that the base's own one counts.

    A problem where the adapter's files show that one was trained with it; else a note, as they may not tell.
    """
    sources = rules.text.sources
    brought = [r.rewrite.target for r in routes.taken if sources[r.source].overrides]
    brought += [pair.rewrite.target for pair in routes.pairs]
    if any((target or "").startswith(_PROJECTOR) for target in brought):
        return [], []
    problems, notes = [], []
    for name, adapter in checkpoints.items():
        if not adapter.pairs:
            continue
        shown = _shown(adapter.config or {})
        lies, in_step = _lies(name, adapter.folder, program, sources[name].prefix)
        fix = lies or f"Give the folder of the training's end, with its non_lora_trainables.bin: --source {name}=DIR."
        if shown or in_step:
            why = f"its config.json says {shown}" if shown else "it lies beside the pairs"
            problems.append(Problem("LR317", f"`{name}` brings no projector, and one was trained with it: {why}.", fix))
        else:
            told = (
                f"`{name}` brings no projector, so that of `{rules.first_source}` is taken. Whether one was trained isn't known."
            )
            notes.append(Problem("LR317", told, f"If it was: {lies}" if lies else ""))
    return problems, notes


def _shown(config: Mapping[str, Any]) -> str:
    """What LLaVA's config says by which a projector was trained; empty where nothing does, or where it was frozen."""
    parts = config.get("mm_tunable_parts")
    if config.get("freeze_mm_mlp_adapter") or (isinstance(parts, str) and "mm_mlp_adapter" not in parts):
        return ""
    if config.get("tune_mm_mlp_adapter"):
        return "tune_mm_mlp_adapter: true"
    if (rate := config.get("mm_projector_lr")) is not None:
        return f"mm_projector_lr: {rate}"
    # Beside LoRA, LLaVA's training trains the projector unless it is told not to.
    own = next((key for key in config if key.startswith("mm_")), None)
    return f"{own}: {quoted(str(config[own]))}, so LLaVA's training wrote it" if own is not None else ""


def _lies(name: str, folder: Path | None, program: Program, prefix: str) -> tuple[str, bool]:
    """How to give the projector that lies near an adapter, in words; and whether that is the one of the adapter's own step."""
    if folder is None:
        return "", False
    steps = sorted(folder.glob(_STEP), key=lambda path: (len(path.parent.name), path.parent.name))
    if steps:
        held = _holds_projector(steps[-1], program, prefix)
        if held or held is None:
            return f"It lies in {steps[-1]}. Put it beside the pairs: {_extract(steps[-1], folder)}", bool(held)
    for place in _PROJECTORS:
        path = folder / place.format(step=folder.resolve().name)
        if path.is_file():
            return f"It lies in {path}: --source projector={quote(str(path))}.", True
    if (folder / _AT_THE_END).is_file():
        parent = folder.resolve().parent
        return f"That of the training's end lies in {parent}: --source {name}={quote(str(parent))}.", False
    return "", False


def _holds_projector(file: Path, program: Program, prefix: str) -> bool | None:
    """Whether a file of weights has a projector; None where it can't be read."""
    try:
        names = tensor_names(file)
    except RemapError:
        return None
    return any((program.rewrite(prefix + name).target or "").startswith(_PROJECTOR) for name in names)


def _extract(states: Path, folder: Path) -> str:
    """A command that writes what was trained beside the pairs as LLaVA's training does at its end."""
    code = (
        f"import torch; s = torch.load({str(states)!r}, 'cpu', weights_only=False)['module']; "
        f"torch.save({{k: v for k, v in s.items() if 'lora_' not in k}}, {str(folder / 'non_lora_trainables.bin')!r})"
    )
    return f"python -c {quote(code)}"
