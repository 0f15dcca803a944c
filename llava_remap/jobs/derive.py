"""Derive the target from the sources: tokens, config, parameters, and post-load changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.folder import (
    find_image_processor,
    image_processor_problems,
    kept_notes,
    stock_notes,
    video_processor_notes,
)
from llava_remap.plan import PostLoadChange, written_dtype
from llava_remap.post_load import Before
from llava_remap.post_load.run import plan_changes, takes
from llava_remap.rewrite import contradictions
from llava_remap.routing import Routes
from llava_remap.routing.trained_with import rows_problems
from llava_remap.rulefile import Condition, RuleFile
from llava_remap.target_model import (
    CLASSIC,
    HEAD,
    SCALED_PICTURES,
    PlacedToken,
    Target,
    TargetConfig,
    TextModel,
    Vocabulary,
    bad_constants,
    config_as_source,
    derive_config,
    embedding_rows,
    norms_about_one,
    place_tokens,
    read_vocabulary,
    text_config,
    text_differences,
    text_model_of,
    unknown_target,
    unread_keys,
    unread_of_towers,
    vocabulary_problems,
    wanted_parameters,
)


@dataclass(frozen=True, slots=True)
class Derived:
    """The target, derived from rule file and sources.

    Attributes:
        norms_about_one: whether the language model's norms are known to have weights of about 1.
    """

    target: Target
    config: TargetConfig
    tokens: tuple[PlacedToken, ...]
    vocabulary: Vocabulary | None
    image_processor: Path | None
    post_load: tuple[PostLoadChange, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    norms_about_one: bool = False


def configs_by_source(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint]
) -> dict[str, Mapping[str, Any]]:
    """The configs of the sources with `config` in their `use`, by the source's name."""
    return {
        name: c.config
        for name, c in checkpoints.items()
        if "config" in rules.text.sources[name].use and c.config is not None
    }


def source_configs(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint]
) -> list[Mapping[str, Any]]:
    """The configs of the sources with `config` in their `use`, in order of precedence.

    Configs of overriding sources come first, the last source's first, if they have LLaVA's own
    keys: the language model below a projector or an adapter has none of these. The other configs
    follow in the rule file's order.
    """
    found = configs_by_source(rules, checkpoints)
    own = _believed(rules, checkpoints)
    return [found[name] for name in (*own, *(name for name in found if name not in own))]


def derive(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    configs: Sequence[Mapping[str, Any]],
    routes: Routes,
    layout: str = CLASSIC,
    dtype: str | None = None,
    vocab: str | int = "pad",
) -> Derived:
    """Derive tokens, config, parameters and post-load changes from the sources.

    Args:
        layout: the names to write.
        dtype: the dtype of every parameter that is written; None keeps the dtype of each.
        vocab: the rows of the embedding: `pad` follows the rule file; `keep` or a number takes the
            place of the rule file's option.
    """
    if rules.target.as_ is not None:
        return _derive_as_source(checkpoints[rules.first_source], routes, layout, dtype, vocab)
    # Overriding sources come first: their training may have added tokens.
    over = _overriding(rules, checkpoints)
    order = [*over, *(name for name in checkpoints if name not in over)]
    folders = {
        kind: [
            folder
            for name in order
            if kind in rules.text.sources[name].use
            and (folder := checkpoints[name].folder) is not None
        ]
        for kind in ("tokenizer", "processor")
    }
    produced = routes.produced
    text = text_model_of(rules, configs)
    rows = embedding_rows(produced, text.embedding)
    vocabulary = next(
        (v for folder in folders["tokenizer"] if (v := read_vocabulary(folder)) is not None), None
    )
    said = text_config(configs) or {}
    tokens = place_tokens(rules.text.tokens, vocabulary, rows, said)
    towers = tuple(rules.target.towers)
    others = {
        name
        for name, source in rules.text.sources.items()
        if name != rules.first_source and not source.overrides
    }
    apart = any(
        (r.rewrite.target or "").startswith(towers) for r in routes.taken if r.source in others
    )
    one_tensor = _head_is_embedding(checkpoints, routes, text.embedding)
    words = (
        frozenset([*vocabulary.ids, *(token.text for token in tokens)])
        if vocabulary is not None
        else None
    )
    config = derive_config(
        rules,
        configs,
        produced,
        tokens,
        text,
        words=words,
        tower_apart=apart,
        head_is_embedding=one_tensor,
    )
    if unknown := unknown_target(rules, text.kind):
        raise RemapError(unknown)
    text = config.text or text
    if differing := _text_problems(text):
        raise RemapError([*differing, *unread_keys(rules, said, text.unknown)[0]])
    if dtype is not None:
        config = config.with_dtype(dtype)
    try:
        with rules.placed("target", "class"):
            target = wanted_parameters(str(rules.target.class_), config.config, layout)
    except RemapError as error:
        raise RemapError(bad_constants(rules, config.config) or error.problems) from error
    needed = max((token.id + 1 for token in tokens), default=0)
    tensors = {
        name: (written_dtype(tensor.dtype, dtype), tensor.shape)
        for name, tensor in produced.items()
        if name in target.shapes and name not in target.tied
    }
    token_ids = (
        None
        if vocabulary is None
        else {**vocabulary.ids, **{token.text: token.id for token in tokens}}
    )
    missing = {
        name: shape
        for name, shape in target.shapes.items()
        if name not in tensors and name not in target.tied
    }
    before = Before(tensors, needed, missing, token_ids, target.embedding)
    changes: list[PostLoadChange] = []
    notes = [*config.notes, *unread_of_towers(rules, text.kind, configs)]
    for number, post_load in enumerate(rules.text.post_load):
        with rules.placed("post_load", number):
            options = post_load.with_
            if vocab != "pad" and takes(post_load.use, "vocab"):
                options = {**options, "vocab": vocab}
            effect = plan_changes(post_load.use, options, before)
            new = [PostLoadChange(post_load.use, options, change) for change in effect.changes]
            if twice := {entry.change.target for entry in changes} & {
                entry.change.target for entry in new
            }:
                raise refuse(
                    "LR212",
                    f"two rules of `post_load` change `{min(twice)}`.",
                    "Take one of them out.",
                )
        changes += new
        notes += effect.notes
    target, config = _changed(target, config, changes)
    rows_after = target.shapes.get(target.embedding, (0,))[0]
    adds_rows = any(takes(post_load.use, "vocab") for post_load in rules.text.post_load)
    base = _rows_of_base(rules, routes, target.embedding)
    problems = rows_problems(
        rules, checkpoints, routes, target.embedding, said
    ) or vocabulary_problems(
        vocabulary, tokens, said, rows, rows_after, vocab, adds_rows=adds_rows, rows_of_base=base
    )
    unread, told = unread_keys(rules, said, text.unknown)
    problems += unread
    problems += _config_problems(rules, checkpoints) + _activation_problems(
        rules, checkpoints, config
    )
    notes += told + _text_notes(text, target)
    images = find_image_processor(folders["processor"])
    problems += image_processor_problems(images, config.tower)
    if images is None:
        notes += stock_notes(rules.text.processor, config)
    if vocabulary is not None:
        notes += video_processor_notes(rules.text.processor)
    elif rules.text.processor is not None:
        notes.append(
            Problem(
                "LR408",
                "no source has a tokenizer. The folder goes without the tokenizer (tokenizer.json, "
                "tokenizer_config.json), the "
                "processor (processor_config.json) and the chat template (chat_template.jinja, "
                "chat_template.json): the model "
                "opens, AutoProcessor doesn't. The ids of new tokens are those behind the last row "
                "of embed_tokens.",
                "To have them, convert with --source language_model=DIR, the folder with the "
                "language model's tokenizer files.",
                lacks=True,
            )
        )
    notes += _notices(rules, said)
    about_one = text.norms_about_one
    return Derived(
        target,
        config,
        tokens,
        vocabulary,
        images,
        tuple(changes),
        tuple(problems),
        tuple(notes),
        about_one,
    )


def _text_problems(text: TextModel) -> list[Problem]:
    """LR314 if the target's class computes other logits than the language model's own class."""
    if not text.differs:
        return []
    fix = "No rule file can change that: the class for text and pictures can't compute it."
    if text.known_by:
        fix = (
            f"The language model is taken for {text.kind}, since `{text.known_by}` ends so. "
            f"{_another(text)}"
        )
    return [Problem("LR314", f"the language model, of type {text.kind}: {text.differs}.", fix)]


def _another(text: TextModel) -> str:
    line = f"target: {{text_models: {{{text.known_by}: TYPE}}}}"
    return f"If its type is another one, name it in a rule file that extends this one: `{line}`."


def _text_notes(text: TextModel, target: Target) -> list[Problem]:
    """LR319 for a language model that was recognised by the end of a name, or that some versions
    of transformers don't open or compute differently.
    """
    notes = []
    if text.known_by:
        cause = (
            f"the language model is taken for {text.kind} of transformers, since the config's "
            f"`{text.known_by}` ends so."
        )
        notes.append(
            Problem(
                "LR319",
                cause,
                f"If its code computes something of its own, this folder doesn't. {_another(text)}",
            )
        )
    if text.newer:
        notes.append(Problem("LR319", f"the language model, of type {text.kind}: {text.newer}."))
    if text.kind in SCALED_PICTURES:
        cause = (
            f"the language model, of type {text.kind}: transformers up to 5.0 multiplies the "
            "features of pictures, like the "
            "embeddings of words, by the root of hidden_size. A newer one, 5.23 at the latest, "
            "multiplies those of words alone, "
            "so with pictures the two compute different logits."
        )
        notes.append(
            Problem(
                "LR319",
                cause,
                "Load the folder with a version that computes as the version did with which the "
                "model was trained.",
            )
        )
    if target.joined:
        cause = (
            f"{target.joined} tensors (experts, mostly) are made parts of larger parameters by the "
            "loader of transformers 5. Version 5.0 doesn't do so inside this class, and makes up "
            "numbers. Use 4.x, which loads the tensors as they are, or a version after 5.0."
        )
        notes.append(Problem("LR319", cause))
    return notes


def _notices(rules: RuleFile, config: Mapping[str, Any]) -> list[Problem]:
    """LR315 for each notice of the rule file that concerns a checkpoint with this config."""
    told = (
        n.text
        for n in rules.text.notices.values()
        if not contradictions(Condition(config=n.when), (), config)
    )
    return [Problem("LR315", text) for text in told]


def _derive_as_source(
    checkpoint: Checkpoint, routes: Routes, layout: str, dtype: str | None, vocab: str | int
) -> Derived:
    """Like `derive`, for a source that is in a layout of transformers already.

    No row is added, so the tokenizer has to fit the rows that are there.
    """
    config = config_as_source(checkpoint)
    if dtype is not None:
        config = config.with_dtype(dtype)
    target = wanted_parameters(config.config["architectures"][0], config.config, layout)
    embedding = target.embedding
    config = config.with_values(tie_word_embeddings=HEAD in target.tied)
    vocabulary = None if checkpoint.folder is None else read_vocabulary(checkpoint.folder)
    rows = embedding_rows(routes.produced, embedding)
    said = config.config["text_config"]
    rows_after = target.shapes.get(embedding, (0,))[0]
    problems = vocabulary_problems(vocabulary, (), said, rows, rows_after, vocab, adds_rows=False)
    notes = (*config.notes, *kept_notes(checkpoint.folder, vocabulary))
    about_one = norms_about_one(config.config)
    return Derived(target, config, (), vocabulary, None, (), tuple(problems), notes, about_one)


def _rows_of_base(rules: RuleFile, routes: Routes, embedding: str) -> int | None:
    """Rows of the embedding that an overriding source replaces; None if none is replaced."""
    origin = routes.origin(embedding)
    if origin is None or not rules.text.sources[origin.source].overrides:
        return None
    return next(
        (r.tensor.shape[0] for r, _ in routes.replaced if r.rewrite.target == embedding), None
    )


def _config_problems(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """LR112 if the config of an overriding source changes what the first source's layers
    compute.
    """
    base = checkpoints[rules.first_source].config or {}
    problems = []
    for name in _believed(rules, checkpoints):
        own = checkpoints[name].config or {}
        if (
            "hidden_size" in base
            and "hidden_size" in own
            and (found := text_differences(rules, own, base))
        ):
            problems.append(
                Problem(
                    "LR112",
                    f"the configs of `{name}` and `{rules.first_source}` disagree on the language "
                    f"model: {'; '.join(found)}.",
                    "Find out how the layers were trained, and correct the other config.json.",
                )
            )
    return problems


def _activation_problems(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], config: TargetConfig
) -> list[Problem]:
    """LR112 if a projector's own config names another activation than the target's config.

    A config with the sizes of a language model is not the projector's own.
    """
    wanted = config.config.get("projector_hidden_act")
    problems = []
    for name in _overriding(rules, checkpoints):
        own = checkpoints[name].config or {}
        said = own.get("hidden_act")
        if "hidden_size" not in own and None not in (said, wanted) and said != wanted:
            cause = (
                f"the config of `{name}` says hidden_act: {said!r}, and {rules.name} writes a "
                f"projector with {wanted!r}."
            )
            line = f"target: {{config: {{projector_hidden_act: {{const: {said}}}}}}}"
            problems.append(
                Problem(
                    "LR112",
                    cause,
                    f"Write a rule file with `extends: [{rules.name}.yaml]` and `{line}`.",
                )
            )
    return problems


def _believed(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Names of the overriding sources whose config has LLaVA's own keys."""
    over = [
        name for name in _overriding(rules, checkpoints) if "config" in rules.text.sources[name].use
    ]
    return [
        name
        for name in over
        if any(key.startswith("mm_") for key in checkpoints[name].config or {})
    ]


def _overriding(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Names of the overriding sources that were given, the last first: the last one wins."""
    return [name for name in reversed(list(checkpoints)) if rules.text.sources[name].overrides]


def _head_is_embedding(checkpoints: Mapping[str, Checkpoint], routes: Routes, table: str) -> bool:
    """Whether a source stores `lm_head` and `embed_tokens` as one tensor.

    Then the two were trained as one, whatever the config says.
    """
    head, embedding = routes.origin(HEAD), routes.origin(table)
    if head is None or embedding is None or head.source != embedding.source:
        return False
    return checkpoints[head.source].same_tensor(head.name, embedding.name)


def _changed(
    target: Target, config: TargetConfig, changes: Sequence[PostLoadChange]
) -> tuple[Target, TargetConfig]:
    """Target and config after the changes of post-load rules."""
    shapes = dict(target.shapes)
    for change in (entry.change for entry in changes if entry.change.shape_before is not None):
        if shapes.get(change.target) == change.shape_before:
            shapes[change.target] = change.shape_after
    for name, other in target.tied.items():
        shapes[name] = shapes[other]
    if target.embedding in shapes:
        config = config.with_vocab_size(shapes[target.embedding][0])
    return replace(target, shapes=shapes), config
