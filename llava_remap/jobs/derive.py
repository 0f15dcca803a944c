"""Derive the target from the sources: tokens, config, parameters, and post-load changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llava_remap.checkpoint import Checkpoint
from llava_remap.core.dtypes import FLOATS
from llava_remap.core.problem import Problem, RemapError, refuse
from llava_remap.folder.make import kept_notes
from llava_remap.folder.processor import (
    find_image_processor,
    image_processor_problems,
    stock_notes,
    video_processor_notes,
)
from llava_remap.jobs.derived_problems import (
    activation_problems,
    config_problems,
    no_tokenizer_note,
    notices,
    text_notes,
    text_problems,
)
from llava_remap.jobs.source_configs import overriding
from llava_remap.planning import PostLoadChange, written_dtype
from llava_remap.post_load import Before
from llava_remap.post_load.run import plan_changes, takes
from llava_remap.routing import Routes, is_one_tensor
from llava_remap.routing.trained_with import rows_problems
from llava_remap.rulefile import RuleFile
from llava_remap.target_model import (
    CLASSIC,
    PlacedToken,
    Target,
    TargetConfig,
    TextModel,
    Vocabulary,
    bad_constants,
    config_as_source,
    config_size,
    derive_config,
    embedding_rows,
    norms_about_one,
    place_tokens,
    read_vocabulary,
    text_config,
    text_model_of,
    translate_config,
    unknown_target,
    unread_keys,
    unread_of_towers,
    vocabulary_problems,
    wanted_parameters,
    word_problems,
)


@dataclass(frozen=True, slots=True)
class Derived:
    """The target, derived from rule file and sources.

    Attributes:
        image_processor: the folder with the image processor; for a source that keeps its class and
            config, the folder whose tokenizer and processor are kept.
        routes: the sources' tensors, moved as post-load rules say.
        norms_about_one: whether the language model's norms are known to have weights of about 1.
    """

    target: Target
    routes: Routes
    config: TargetConfig
    tokens: tuple[PlacedToken, ...]
    vocabulary: Vocabulary | None
    image_processor: Path | None
    post_load: tuple[PostLoadChange, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    norms_about_one: bool = False


def derive(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    configs: Sequence[Mapping[str, Any]],
    routes: Routes,
    layout: str = CLASSIC,
    dtype: str | None = None,
    vocab: str | int = "pad",
    projector_form: str | None = None,
) -> Derived:
    """Derive tokens, config, parameters and post-load changes from the sources.

    Args:
        layout: the names to write.
        dtype: the dtype of every parameter that is written; None keeps the dtype of each.
        vocab: the rows of the embedding: `pad` follows the rule file; `keep` or a number replaces
            the rule file's option.
        projector_form: the form of a projector of one linear layer; None follows the rule file.
    """
    uses = [rule.use for rule in rules.text.post_load]
    if projector_form and not any(takes(use, "projector_form") for use in uses):
        raise refuse(
            "LR211",
            f"--projector-form {projector_form}: {rules.name} is for checkpoints whose projector "
            "isn't one linear layer.",
            "Leave out the option.",
        )
    if rules.target.as_ is not None:
        return _derive_as_source(rules, checkpoints, routes, layout, dtype, vocab)
    said = text_config(configs) or {}
    text = text_model_of(rules, configs)
    rows = embedding_rows(routes.produced, text.embedding)
    vocabulary = next(
        (
            found
            for folder in _folders(rules, checkpoints, "tokenizer")
            if (found := read_vocabulary(folder)) is not None
        ),
        None,
    )
    tokens = place_tokens(rules.text.tokens, vocabulary, rows, said)
    config = derive_config(
        rules,
        configs,
        routes.produced,
        tokens,
        text,
        words=frozenset([*vocabulary.ids, *(t.text for t in tokens)]) if vocabulary else None,
        tower_apart=_is_tower_apart(rules, routes),
        head_is_embedding=_head_is_embedding(checkpoints, routes, text),
    )
    text = config.text or text
    _refuse_other_classes(rules, text, said)
    if dtype is not None:
        config = config.with_dtype(dtype)
    target = _target(rules, config, layout, routes)
    before = _before(routes, target, vocabulary, tokens, dtype, config)
    given = {"vocab": None if vocab == "pad" else vocab, "projector_form": projector_form}
    post_load = _post_load(rules, before, given)
    changes, routes = post_load.changes, routes.renamed(post_load.moved)
    source_config = config
    target, config = _changed(target, config, post_load)

    images = find_image_processor(_folders(rules, checkpoints, "processor"))
    unread, unread_notes = unread_keys(rules, said, text.unknown)
    problems = [
        *_rows_problems(rules, checkpoints, routes, target, vocabulary, tokens, said, rows, vocab),
        *unread,
        *config_problems(rules, checkpoints),
        *activation_problems(rules, checkpoints, source_config),
        *image_processor_problems(images, config.tower),
    ]
    notes = [
        *config.notes,
        *unread_of_towers(rules, text.kind, configs),
        *post_load.notes,
        *unread_notes,
        *text_notes(text, target),
    ]
    if images is None:
        notes += stock_notes(rules.text.processor, config)
    if vocabulary is not None:
        notes += video_processor_notes(rules.text.processor)
    elif rules.text.processor is not None:
        notes.append(no_tokenizer_note())
    notes += notices(rules, said)
    return Derived(
        target,
        routes,
        config,
        tokens,
        vocabulary,
        images,
        tuple(changes),
        tuple(problems),
        tuple(notes),
        text.norms_about_one,
    )


def _derive_as_source(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    routes: Routes,
    layout: str,
    dtype: str | None,
    vocab: str | int,
) -> Derived:
    """Like `derive`, for a source that is in a layout of transformers already.

    No row is added, so the tokenizer has to fit the rows that are there.
    """
    checkpoint = checkpoints[rules.first_source]
    translated = translate_config(rules, checkpoint)
    config = config_as_source(
        checkpoint, translated.config if translated else None, rules.target.config_file
    )
    if translated is not None:
        config = replace(
            config,
            processor=translated.processor,
            image_processor=translated.image_processor,
            notes=translated.notes,
        )
    if dtype is None and "dtype" not in config.config:  # the loader takes that of the weights
        dtype = next((t.dtype for t in routes.produced.values() if t.dtype in FLOATS), None)
    if dtype is not None:
        config = config.with_dtype(dtype)
    class_name = config.config["architectures"][0]
    target = wanted_parameters(class_name, config.config, layout)
    if (
        target.head in target.tied
        and target.head in routes.produced
        and not _says_tied(checkpoint.config or {})
        and not _head_is_embedding(checkpoints, routes, target)
    ):  # a class may tie by default, whatever was trained: Mistral3ForConditionalGeneration does
        config = config.with_values(tie_word_embeddings=False)
        target = wanted_parameters(class_name, config.config, layout)
    _check_prefixes(rules, target)
    target = replace(target, sizes=_sizes(rules, class_name, config.config, routes))
    embedding = target.embedding
    config = config.with_values(tie_word_embeddings=target.head in target.tied)
    folder = _folder_beside(rules, checkpoints)
    vocabulary = None if folder is None else read_vocabulary(folder)
    rows = embedding_rows(routes.produced, embedding)
    said = config.config["text_config"]
    rows_after = target.shapes.get(embedding, (0,))[0]
    problems = vocabulary_problems(vocabulary, (), said, rows, rows_after, vocab, adds_rows=False)
    problems += word_problems(vocabulary, config)
    notes = [*config.notes, *kept_notes(folder, vocabulary, config)]
    notes += notices(rules, checkpoint.config or (translated.said if translated else {}))
    about_one = norms_about_one(config.config)
    return Derived(
        target,
        routes,
        config,
        (),
        vocabulary,
        folder,
        (),
        tuple(problems),
        tuple(notes),
        about_one,
    )


def _says_tied(config: Mapping[str, Any]) -> bool:
    """Whether a config itself says that head and embedding are one tensor."""
    return any(
        isinstance(part, Mapping) and bool(part.get("tie_word_embeddings"))
        for part in (config, config.get("text_config"))
    )


def _folder_beside(rules: RuleFile, checkpoints: Mapping[str, Checkpoint]) -> Path | None:
    """The folder whose tokenizer and processor are kept: that of a source without tensors that was
    given for them, or else the first source's.
    """
    sources = rules.text.sources
    given = (c for name, c in checkpoints.items() if "tensors" not in sources[name].use)
    return next(given, checkpoints[rules.first_source]).folder


def _folders(
    rules: RuleFile, checkpoints: Mapping[str, Checkpoint], use: Literal["tokenizer", "processor"]
) -> list[Path]:
    """The folders of the sources with this `use`. Overriding sources come first: their training
    may have added tokens.
    """
    over = overriding(rules, checkpoints)
    return [
        folder
        for name in (*over, *(name for name in checkpoints if name not in over))
        if use in rules.text.sources[name].use and (folder := checkpoints[name].folder) is not None
    ]


def _is_tower_apart(rules: RuleFile, routes: Routes) -> bool:
    """Whether a source that overrides nothing, and isn't the first, has the tower's tensors."""
    beside = {
        name
        for name, source in rules.text.sources.items()
        if name != rules.first_source and not source.overrides
    }
    towers = tuple(rules.target.towers)
    return any(
        (r.rewrite.target or "").startswith(towers) for r in routes.taken if r.source in beside
    )


def _refuse_other_classes(rules: RuleFile, text: TextModel, said: Mapping[str, Any]) -> None:
    """Refuse a target whose class isn't known, or computes other logits than the language model's
    own class.
    """
    if unknown := unknown_target(rules, text.kind):
        raise RemapError(unknown)
    if differing := text_problems(text):
        raise RemapError([*differing, *unread_keys(rules, said, text.unknown)[0]])


def _target(rules: RuleFile, config: TargetConfig, layout: str, routes: Routes) -> Target:
    class_name = str(rules.target.class_)
    try:
        with rules.placed("target", "class"):
            target = wanted_parameters(class_name, config.config, layout)
        _check_prefixes(rules, target, rules.target.towers)
    except RemapError as error:
        raise RemapError(bad_constants(rules, config.config) or error.problems) from error
    return replace(target, sizes=_sizes(rules, class_name, config.config, routes))


def _check_prefixes(rules: RuleFile, target: Target, towers: Collection[str] = ()) -> None:
    """LR201 for a part's prefix in the rule file with which no parameter's name begins."""
    said = rules.target
    wanted = {
        **{f"towers: {prefix}": prefix for prefix in towers},
        f"projector: {said.projector}": said.projector,
        f"language_model: {said.language_model}": said.language_model,
    }
    for key, prefix in wanted.items():
        if not any(name.startswith(prefix) for name in target.shapes):
            raise refuse(
                "LR201",
                f"`target.{key}`: no parameter of {target.class_name} has a name that begins so.",
                "Write the start of the names that this part has in the target.",
            )


def _sizes(
    rules: RuleFile, class_name: str, config: Mapping[str, Any], routes: Routes
) -> dict[str, int]:
    """The values of the target's config that operations on the sources' tensors need."""
    sizes = {}
    ids = [rule.id for rule in rules.text.tensors]
    for compiled in {applied.rule.label: applied.rule for applied in routes.operations}.values():
        with rules.placed("tensors", ids.index(compiled.id), "let"):
            for key in compiled.operation.sizes.values():
                sizes[key] = config_size(class_name, config, key)
    return sizes


def _before(
    routes: Routes,
    target: Target,
    vocabulary: Vocabulary | None,
    tokens: Sequence[PlacedToken],
    dtype: str | None,
    config: TargetConfig,
) -> Before:
    """What post-load rules are asked about: the tensors after the rename."""
    tensors = {
        name: (written_dtype(tensor.dtype, dtype), tensor.shape)
        for name, tensor in routes.produced.items()
        if name in target.shapes and name not in target.tied
    }
    for applied in routes.operations:
        dtype_stored = next(applied.tensors).tensor.dtype
        for name in applied.made_of(target.shapes).values():
            if name in target.shapes:
                tensors[name] = (written_dtype(dtype_stored, dtype), target.shapes[name])
    missing = {
        name: shape
        for name, shape in target.shapes.items()
        if name not in tensors and name not in target.tied
    }
    ids = {**vocabulary.ids, **{token.text: token.id for token in tokens}} if vocabulary else None
    needed = max((token.id + 1 for token in tokens), default=0)
    return Before(tensors, needed, missing, ids, target.embedding, target.head, dict(config.config))


class _PostLoad(NamedTuple):
    """The effects of all post-load rules of the rule file together; as in `Effect`."""

    changes: list[PostLoadChange]
    notes: list[Problem]
    moved: dict[str, str]
    config: dict[str, Any]


def _post_load(rules: RuleFile, before: Before, given: Mapping[str, Any]) -> _PostLoad:
    """Ask the rule file's post-load rules.

    Args:
        given: options that the user gave, for the plug-ins that have them; None if not given.

    Raises:
        RemapError: as `plan_changes`; LR212 if two rules change one tensor.
    """
    done = _PostLoad([], [], {}, {})
    for number, rule in enumerate(rules.text.post_load):
        with rules.placed("post_load", number):
            own = {k: v for k, v in given.items() if v is not None and takes(rule.use, k)}
            options = {**rule.with_, **own}
            effect = plan_changes(rule.use, options, before)
            used = {n for e in done.changes for n in (e.change.target, *e.change.reads)}
            changed = {entry.change.target for entry in done.changes}
            twice = changed & {change.target for change in effect.changes}
            twice |= used & {*effect.moved, *effect.moved.values()}
            twice |= done.config.keys() & effect.config.keys()
            if twice:
                raise refuse(
                    "LR212",
                    f"two rules of `post_load` change `{min(twice)}`.",
                    "Remove one of them.",
                )
            before = before.after(effect.moved)
        done.changes.extend(PostLoadChange(rule.use, options, one) for one in effect.changes)
        done.notes.extend(effect.notes)
        done.moved.update(effect.moved)
        done.config.update(effect.config)
    return done


def _rows_problems(
    rules: RuleFile,
    checkpoints: Mapping[str, Checkpoint],
    routes: Routes,
    target: Target,
    vocabulary: Vocabulary | None,
    tokens: Sequence[PlacedToken],
    said: Mapping[str, Any],
    rows: int,
    vocab: str | int,
) -> list[Problem]:
    """Tokens and rows of the embedding that don't fit each other."""
    return rows_problems(rules, checkpoints, routes, target.embedding, said) or vocabulary_problems(
        vocabulary,
        tokens,
        said,
        rows,
        target.shapes.get(target.embedding, (0,))[0],
        vocab,
        adds_rows=any(takes(rule.use, "vocab") for rule in rules.text.post_load),
        rows_of_base=_rows_of_base(rules, routes, target.embedding),
    )


def _rows_of_base(rules: RuleFile, routes: Routes, embedding: str) -> int | None:
    """Rows of the embedding that an overriding source replaces; None if none is replaced."""
    origin = routes.origin(embedding)
    if origin is None or not rules.text.sources[origin.source].overrides:
        return None
    return next(
        (r.tensor.shape[0] for r, _ in routes.replaced if r.rewrite.target == embedding), None
    )


def _head_is_embedding(
    checkpoints: Mapping[str, Checkpoint], routes: Routes, text: TextModel | Target
) -> bool:
    """Whether a source stores `lm_head` and `embed_tokens` as one tensor.

    Both were then trained as one tensor, whatever the config says.
    """
    head, embedding = routes.origin(text.head), routes.origin(text.embedding)
    return (
        head is not None and embedding is not None and is_one_tensor(checkpoints, head, embedding)
    )


def _changed(
    target: Target, config: TargetConfig, post_load: _PostLoad
) -> tuple[Target, TargetConfig]:
    """Target and config after the changes of post-load rules."""
    shapes = dict(target.shapes)
    config = replace(config, config={**config.config, **post_load.config})
    for change in (
        entry.change for entry in post_load.changes if entry.change.shape_before is not None
    ):
        if shapes.get(change.target) == change.shape_before:
            shapes[change.target] = change.shape_after
    for name, other in target.tied.items():
        shapes[name] = shapes[other]
    if target.embedding in shapes:
        config = config.with_vocab_size(shapes[target.embedding][0])
    return replace(target, shapes=shapes), config
