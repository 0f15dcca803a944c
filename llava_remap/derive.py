"""From what the sources hold to what is wanted: tokens, config, parameters, and what post-load rules will change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.errors import Problem, refuse
from llava_remap.folder import find_image_processor, image_processor_problems
from llava_remap.plan import PostLoadChange, Routes, written_dtype
from llava_remap.post_load import Before, plan_changes, takes
from llava_remap.rulefile import RuleFile
from llava_remap.target import (
    EMBEDDING,
    HEAD,
    TOWER,
    PlacedToken,
    Target,
    TargetConfig,
    Vocabulary,
    derive_config,
    embedding_rows,
    place_tokens,
    read_vocabulary,
    text_config,
    vocabulary_problems,
    wanted_parameters,
)


@dataclass(frozen=True, slots=True)
class Derived:
    """What the target is, worked out from rule file and sources."""

    target: Target
    config: TargetConfig
    tokens: tuple[PlacedToken, ...]
    vocabulary: Vocabulary | None
    image_processor: Path | None
    post_load: tuple[PostLoadChange, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]


def source_configs(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[Mapping[str, Any]]:
    """The configs of the sources whose config counts, in the rule file's order."""
    return [c.config for name, c in checkpoints.items() if "config" in rules.text.sources[name].use and c.config is not None]


def derive(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    configs: Sequence[Mapping[str, Any]],
    routes: Routes,
    dtype: str | None = None,
    vocab: str | int = "pad",
) -> Derived:
    """From what the sources hold to what is wanted: tokens, config, parameters, and what post-load rules will change.

    Args:
        dtype: the dtype that every parameter is written in; None: each in its own.
        vocab: `pad`: as many rows of the vocabulary as the rule file says; else what it is to say, `keep` or a number.
    """
    folders = {
        kind: [c.folder for name, c in checkpoints.items() if kind in rules.text.sources[name].use and c.folder is not None]
        for kind in ("tokenizer", "processor")
    }
    produced = routes.produced
    rows = embedding_rows(produced)
    vocabulary = next((v for folder in folders["tokenizer"] if (v := read_vocabulary(folder)) is not None), None)
    said = text_config(configs) or {}
    tokens = place_tokens(rules.text.tokens, vocabulary, rows, said)
    apart = any((r.rewrite.target or "").startswith(TOWER) for r in routes.taken if r.source != rules.first_source)
    one_tensor = _head_is_embedding(checkpoints, routes)
    config = derive_config(rules, configs, produced, tokens, tower_apart=apart, head_is_embedding=one_tensor)
    if dtype is not None:
        config = config.with_dtype(dtype)
    with rules.placed("target", "class"):
        target = wanted_parameters(str(rules.target.class_), config.config)
    needed = max((token.id + 1 for token in tokens), default=0)
    tensors = {
        name: (written_dtype(tensor.dtype, dtype), tensor.shape)
        for name, tensor in produced.items()
        if name in target.shapes and name not in target.tied
    }
    token_ids = None if vocabulary is None else {**vocabulary.ids, **{token.text: token.id for token in tokens}}
    before = Before(tensors, needed, token_ids)
    changes: list[PostLoadChange] = []
    notes = [*config.notes]
    for number, post_load in enumerate(rules.text.post_load):
        with rules.placed("post_load", number):
            options = post_load.with_
            if vocab != "pad" and takes(post_load.use, "vocab"):
                options = {**options, "vocab": vocab}
            effect = plan_changes(post_load.use, options, before)
            new = [PostLoadChange(post_load.use, options, change) for change in effect.changes]
            if twice := {entry.change.target for entry in changes} & {entry.change.target for entry in new}:
                raise refuse("LR212", f"two rules of `post_load` change `{min(twice)}`.", "Take one of them out.")
        changes += new
        notes += effect.notes
    target, config = _changed(target, config, changes)
    rows_after = target.shapes.get(EMBEDDING, (0,))[0]
    problems = vocabulary_problems(vocabulary, tokens, said, rows, rows_after)
    if isinstance(vocab, int) and vocab != rows_after:
        how = "rows are added, never taken away" if vocab < rows else f"no rule of `post_load` in {rules.name} adds rows"
        cause = f"--vocab {vocab}: embed_tokens has {rows} rows, and {how}."
        problems.append(Problem("LR402", cause, f"Give a number that isn't below {rows}, or --vocab pad or keep."))
    images = find_image_processor(folders["processor"])
    problems += image_processor_problems(images, config.tower)
    if vocabulary is None and rules.text.processor is not None:
        notes.append(
            Problem(
                "LR408",
                "no source has a tokenizer. The folder goes without the tokenizer (tokenizer.json, tokenizer_config.json), the "
                "processor (processor_config.json) and the chat template (chat_template.jinja, chat_template.json): the model "
                "opens, AutoProcessor doesn't. The ids of new tokens are those behind the last row of embed_tokens.",
                "To have them, convert with --source language_model=DIR, the folder with the language model's tokenizer files.",
            )
        )
    return Derived(target, config, tokens, vocabulary, images, tuple(changes), tuple(problems), tuple(notes))


def _head_is_embedding(checkpoints: Mapping[str, Checkpoint], routes: Routes) -> bool:
    """Whether a source stores `lm_head` and `embed_tokens` as one tensor: so they were trained, whatever its config says."""
    head, embedding = routes.origin(HEAD), routes.origin(EMBEDDING)
    if head is None or embedding is None or head.source != embedding.source:
        return False
    return checkpoints[head.source].same_tensor(head.name, embedding.name)


def _changed(target: Target, config: TargetConfig, changes: Sequence[PostLoadChange]) -> tuple[Target, TargetConfig]:
    """Target and config as they are after the post-load rules."""
    shapes = dict(target.shapes)
    for post_load in changes:
        if shapes.get(post_load.change.target) == post_load.change.shape_before:
            shapes[post_load.change.target] = post_load.change.shape_after
    for name, other in target.tied.items():
        shapes[name] = shapes[other]
    if EMBEDDING in shapes:
        config = config.with_vocab_size(shapes[EMBEDDING][0])
    return replace(target, shapes=shapes), config
