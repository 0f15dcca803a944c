"""Checks what a part was trained with: an adapter's base model, and the projector beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, has_file, tensor_names
from llava_remap.core import Problem, RemapError, quote, quoted
from llava_remap.rewrite import Program, Rewrite
from llava_remap.routing.route import Routes
from llava_remap.rulefile import NamedDefault, RuleFile
from llava_remap.source.defaults import named_by_config, other_than_default
from llava_remap.source.sources import last_part
from llava_remap.target_model import has_stock_sizes

#: A layer's number in a name.
_LAYER = re.compile(r"\.[0-9]{1,9}\.")
#: The sources of what a LoRA training and a projector's training write.
_ADAPTER, _PRETRAINED = "adapter", "projector"
#: DeepSpeed's ZeRO-2 writes the trained weights into this file, in a step's folder beside the pairs
#: of that step.
_STATES, _NUMBER = "mp_rank_00_model_states.pt", re.compile(r"global_step([0-9]{1,12})")


def naming_notes(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    given: Collection[str],
    routes: Routes,
    config: Mapping[str, Any] | None,
) -> list[Problem]:
    """LR316 for each source that the user gave, if the sources' own files name another one.

    The files name the model that an adapter or a projector was trained from, and the tower of a
    language model. Two names are the same if their hub ids or paths end in the same part. A tower
    whose sizes differ from those of the named stock tower is LR309 instead. Even if the tower's
    tensors aren't used, since the checkpoint has its own, its config counts for heads and
    activation.

    Args:
        given: the sources that the user gave.
        config: the config that describes the language model.
    """
    named = [
        (rules.first_source, part.base, f"`{name}` was trained from")
        for name, part in checkpoints.items()
        if rules.text.sources[name].overrides and part.base
    ]
    for name in (name for name in checkpoints if name in given):
        tower = named_by_config(rules, name, config)
        if tower is not None and all(
            has_stock_sizes(tower, prefix, routes.produced) for prefix in rules.target.towers
        ):
            named.append((name, tower, "the config names"))
    return [
        Problem(
            "LR316",
            f"{who} {quoted(text)}, but {checkpoints[name].location} is given as `{name}`.",
            f"If these are different checkpoints, give the named one: --source {name}=DIR.",
        )
        for name, text, who in named
        if last_part(text) != _last_part(checkpoints[name])
    ]


def _last_part(checkpoint: Checkpoint) -> str:
    """The last part of a checkpoint's hub id or path."""
    path = checkpoint.folder or checkpoint.path.with_suffix("")  # a manifest has no folder
    here = checkpoint.in_memory or not checkpoint.origin
    return last_part(str(path.resolve()) if here else checkpoint.origin)


def misplaced_parts(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], routes: Routes
) -> list[Problem]:
    """LR211 for a source that is another part than the one that it is given as.

    A whole model given as a part would take the place of every tensor of the language model of the
    first source, which nobody means. An adapter given as a projector would change layers.
    """
    first, problems = rules.first_source, []
    kept = any(r.source == first and _of_layers(rules, r.rewrite) for r in routes.taken)
    covered = dict.fromkeys(
        source
        for r, source in routes.replaced
        if r.source == first and not kept and _of_layers(rules, r.rewrite)
    )
    for name, part in checkpoints.items():
        where = quote(part.location)
        if name in covered and not part.pairs:
            problems.append(
                Problem(
                    "LR211",
                    f"{part.location} is given as `{name}`, but it isn't a part: it has every "
                    f"tensor of the language model, so nothing of `{first}` would be left.",
                    f"If it is the model, give only it, as `{first}`: --source {first}={where}.",
                )
            )
        elif name == _PRETRAINED and part.pairs and _ADAPTER in rules.text.sources:
            problems.append(
                Problem(
                    "LR211",
                    f"{part.location} is given as `{name}`, but it is an adapter: it has "
                    f"{len(part.pairs)} LoRA pairs.",
                    f"Give it as an adapter: --source {_ADAPTER}={where}.",
                )
            )
    return problems


def _of_layers(rules: RuleFile, rewrite: Rewrite) -> bool:
    """Whether a tensor is of the language model's layers. Tables of a row for each token are
    trained with projectors, too.
    """
    target, prefix = rewrite.target or "", rules.target.language_model
    return target.startswith(prefix) and _LAYER.search(target) is not None


def tower_problems(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], config: Mapping[str, Any] | None
) -> list[Problem]:
    """LR112 for a second tower inside the checkpoint, if the config names another tower than the
    rule file's default.

    The first tower's config is used for both, and tensors show neither attention heads nor
    activation.
    """
    keys = [value.from_ for value in rules.target.towers.values()][1:]
    return [
        Problem(
            "LR112",
            f"the config says {default.from_}: {quoted(named)}, but only {default.default} is "
            "known to have the attention heads and the activation of the other tower, which "
            "tensors don't show.",
            f"Give the named tower, with its own config.json: --source {name}=DIR.",
        )
        for name, source in rules.text.sources.items()
        if name not in checkpoints
        and isinstance(default := source.default, NamedDefault)
        and default.from_ in keys
        and (named := other_than_default(source, config)) is not None
    ]


def rows_problems(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    routes: Routes,
    embedding: str,
    config: Mapping[str, Any],
) -> list[Problem]:
    """LR402 if the table of token embeddings isn't from the training whose config is used.

    Args:
        config: the config that describes the language model.
    """
    first, origin, wanted = rules.first_source, routes.origin(embedding), config.get("vocab_size")
    if origin is None or not isinstance(wanted, int):
        return []
    parts = (name for name in checkpoints if rules.text.sources[name].overrides)
    described_by = next((name for name in parts if checkpoints[name].config is config), first)
    rows = checkpoints[origin.source].catalog[origin.name].shape[0]
    if (
        origin.source == first != described_by
        and rows != wanted
        and (checkpoints[first].config or {}).get("vocab_size") == rows
    ):
        return [
            Problem(
                "LR402",
                f"by its config.json `{described_by}` was trained from a model of {wanted} tokens, "
                f"and `{first}` has {rows}.",
                f"Give the model that it was trained from: --source {first}=DIR.",
            )
        ]
    if origin.source != first and rows < wanted:
        return [
            Problem(
                "LR402",
                f"`{origin.source}` brings an embed_tokens of {rows} rows, and the config of "
                f"`{described_by}` says vocab_size: {wanted}.",
                f"Give the whole table from the end of the training: --source {origin.source}=DIR.",
            )
        ]
    return []


def projector_findings(
    rules: RuleFile, program: Program, checkpoints: Mapping[str, Checkpoint], routes: Routes
) -> tuple[list[Problem], list[Problem]]:
    """LR317 for an adapter that is given without a projector, so that the base's own would be used.

    It is a problem if the adapter's files show that a projector was trained with it, and a note if
    they don't show whether one was.
    """
    sources = rules.text.sources
    projectors = (
        r.source
        for r in routes.taken
        if sources[r.source].overrides and _of_projector(rules, r.rewrite)
    )
    pairs = (pair.source for pair in routes.pairs if _of_projector(rules, pair.rewrite))
    brought = dict.fromkeys((*projectors, *pairs))
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
        shown, lies = _shown(config), projector_place(rules, program, name, adapter)
        if not brought and (shown or lies):
            why = f"Its config.json says {shown}." if shown else "Its own training has a projector."
            problems.append(
                Problem(
                    "LR317",
                    f"`{name}` has no projector, but a projector was trained with it. {why}",
                    lies
                    or "Give the folder from the end of the training, with its "
                    f"non_lora_trainables.bin: --source {name}=DIR.",
                )
            )
        elif shown or lies:
            notes.append(
                Problem(
                    "LR317",
                    f"`{name}` was trained with its own projector, but the projector of "
                    f"{', '.join(map(quoted, brought))} is taken.",
                    lies,
                )
            )
        elif not brought:
            notes.append(
                Problem(
                    "LR317",
                    f"`{name}` has no projector, so the projector of `{rules.first_source}` is "
                    "taken. It is unknown whether a projector was trained.",
                )
            )
    return problems, notes


def _of_projector(rules: RuleFile, rewrite: Rewrite) -> bool:
    return rewrite.target is not None and rewrite.target.startswith(rules.target.projector)


def _is_frozen(config: Mapping[str, Any]) -> bool:
    """Whether LLaVA's config says that the projector wasn't trained."""
    parts = config.get("mm_tunable_parts")
    return bool(config.get("freeze_mm_mlp_adapter")) or (
        isinstance(parts, str) and parts != "" and "mm_mlp_adapter" not in parts
    )


def _shown(config: Mapping[str, Any]) -> str:
    """The entry of LLaVA's config that shows that a projector was trained; empty without one."""
    if config.get("tune_mm_mlp_adapter"):
        return "tune_mm_mlp_adapter: true"
    if (rate := config.get("mm_projector_lr")) is not None:
        return f"mm_projector_lr: {rate}"
    # Beside LoRA, LLaVA's training trains the projector unless it is frozen.
    written = (
        f"{key}: {quoted(str(value))}, so LLaVA's training wrote it"
        for key, value in config.items()
        if key.startswith("mm_")
    )
    return next(written, "")


def projector_place(rules: RuleFile, program: Program, name: str, adapter: Checkpoint) -> str:
    """The place of the projector that was trained with an adapter, and how to give it, in words;
    empty if it isn't found.
    """
    if adapter.folder is None or not adapter.pairs:
        return ""
    prefix = rules.text.sources[name].prefix

    def has_one(file: Path) -> bool:
        if not has_file(file):  # has_file refuses an unreadable file
            return False
        try:
            names = tensor_names(file)
        except RemapError:  # a file of something else
            return False
        return any(_of_projector(rules, program.rewrite(prefix + name)) for name in names)

    folder = adapter.folder.resolve()
    steps = {
        int(number[1]): path / _STATES
        for path in folder.iterdir()
        if (number := _NUMBER.fullmatch(path.name)) and has_file(path / _STATES)
    }
    last = [steps[max(steps)]] if steps else []
    alone = (folder / "mm_projector.bin", folder.parent / "mm_projector" / f"{folder.name}.bin")
    end = folder.parent / "non_lora_trainables.bin"
    advice = {
        **{
            path: f"It is in {path}. Put it beside the pairs: {_extract(path, folder)}"
            for path in last
        },
        **{
            path: f"It is in {path}. Give it: --source projector={quote(str(path))}."
            for path in alone
        },
        end: f"The file from the end of the training is in {end.parent}. Give it: --source "
        f"{name}={quote(str(end.parent))}.",
    }
    return next((text for path, text in advice.items() if has_one(path)), "")


def _extract(states: Path, folder: Path) -> str:
    """A command that writes the other trained weights beside the pairs, as LLaVA's training does at
    its end.
    """
    return (
        f'cd {quote(str(folder))} && python -c "import torch; s = '
        f"torch.load('{states.relative_to(folder)}', 'cpu', "
        "weights_only=False)['module']; torch.save({k: v for k, v in s.items() if 'lora_' not in "
        "k}, 'non_lora_trainables.bin')\""
    )
