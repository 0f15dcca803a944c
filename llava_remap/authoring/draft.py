"""A new rule file for a checkpoint, from its names and those that are wanted: the order of that job."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.authoring.draft_target import (
    CLEAN,
    CONFIG,
    LOOK_ALIKES,
    PADS,
    Wanted,
    cleaned,
    knows_architecture,
    loaded,
    model_type_of,
    read_wanted,
)
from llava_remap.checkpoint import Checkpoint
from llava_remap.errors import Problem, refuse
from llava_remap.identify import HF_LAYOUTS, fits
from llava_remap.infer import Group, Inference, Question, Segments, Shape, fold, grows, infer, unfold
from llava_remap.infer.text import Frame, rule_file
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_folder, shipped_rule_files
from llava_remap.sources import open_source
from llava_remap.target import EMBEDDING

#: Keys of a LLaVA's config that tell families of the same names apart. Those after the bar are told only where they are there.
_FAMILY, _FAMILY_IF_THERE = ("image_aspect_ratio", "mm_patch_merge_type"), ("mm_projector_type", "mm_newline_position")
#: What of a target's config says nothing of how features are taken, or is made anew for each checkpoint.
_OWN_CONFIG = {
    "architectures", "model_type", "text_config", "vision_config", "torch_dtype", "dtype", "tie_word_embeddings",
    "transformers_version", "_name_or_path", "image_token_index", "image_token_id", "video_token_index", "video_token_id",
    "pad_token_id", "bos_token_id", "eos_token_id", "vocab_size", "hidden_size", "initializer_range", "use_cache",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule file that was written.

    Attributes:
        output: where.
        source, wanted: what it was made from.
        buffers: names that the shared parts drop before anything is inferred.
        found: what was inferred.
        notes: what else is a guess, in words.
    """

    output: Path
    source: Checkpoint
    wanted: Wanted
    buffers: int
    found: Inference
    notes: tuple[str, ...]

    @property
    def problems(self) -> list[Problem]:
        """What keeps the file from being complete."""
        problems = []
        if self.found.questions:
            names = tuple(name for question in self.found.questions for name in question.source.names)
            cause = (
                f"{len(self.found.questions)} groups of names could become several things; neither names nor shapes tell which."
            )
            problems.append(Problem("LR301", cause, "Answer with --map FROM=TO and another --output, or write the rules.", names))
        if self.found.unplaced:
            names = tuple(name for group in self.found.unplaced for name in group.names)
            cause = f"{len(names)} tensors that nothing in the target takes."
            fix = "Map them. If the model doesn't compute with them, drop them with a reason; --drop-rest writes such rules."
            problems.append(Problem("LR301", cause, fix, names))
        if self.found.missing:
            names = tuple(name for group in self.found.missing for name in group.names)
            cause = f"{len(names)} parameters of the target that nothing in the checkpoint is found for."
            problems.append(Problem("LR302", cause, "If another checkpoint has them, add it to `sources`.", names))
        return problems


def draft_rules(
    source: str,
    target: str,
    output: Path,
    answers: Sequence[str] = (),
    *,
    ask: Callable[[Question], Group | None] = lambda question: None,
    drop_rest: bool = False,
    offline: bool = False,
) -> Draft:
    """Infer a rule file and write it.

    Args:
        source: SRC as for `apply`.
        target: the name of a class, a config.json, a manifest or a converted checkpoint.
        output: the file; it must not be there yet.
        answers: `FROM=TO` each, names or folded names.
        drop_rest: whether what nothing in the target takes is dropped, if the target misses nothing.
        ask: answers a question that neither names nor shapes do; None leaves it open.

    Raises:
        RemapError: LR305 where nothing matches; LR211 for a target or an answer that can't be; LR508 for the output; as
            `open_source` and `derive_config`.
    """
    refuse_existing(output)
    checkpoint = open_source("model", source, ("tensors", "config"), first=True, offline=offline)
    shapes, buffers = cleaned({name: tensor.shape for name, tensor in checkpoint.catalog.items()})
    wanted = read_wanted(target, checkpoint, shapes, offline)
    given = _answers(answers, shapes, wanted)
    left_open: list[Segments] = []
    found = infer(shapes, wanted.shapes, tied=wanted.tied, answers=given, drop=drop_rest)
    while question := next((q for q in found.questions if q.source.pattern not in left_open), None):
        chosen = ask(question)
        if chosen is None:
            left_open.append(question.source.pattern)
        else:
            given[question.source.pattern] = chosen.pattern
            found = infer(shapes, wanted.shapes, tied=wanted.tied, answers=given, drop=drop_rest)
    if not any(rule.to is not None for rule in found.rules):
        cause = f"no name in {checkpoint.location} could be matched with one of {wanted.location} by name and shape."
        raise refuse("LR305", cause, "Is it the right target, and of the same size?")
    frame, notes = _frame(checkpoint, wanted, output)
    text = rule_file(frame, found)
    loaded(text)  # before it stands where a user would take it for one that works
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise refuse("LR508", f"{output}: {error.strerror or error}.", "Give another --output.") from None
    return Draft(output, checkpoint, wanted, buffers, found, notes)


def refuse_existing(output: Path) -> None:
    """LR508 for an output that is there: a rule file may have been worked on for days."""
    try:
        there = output.exists() or output.is_symlink()
    except (OSError, ValueError) as error:
        raise refuse("LR508", f"{output}: {error}.", "Give another --output.") from None
    if there:
        raise refuse("LR508", f"{output} is there, and nothing is overwritten.", "Give another --output.")


def _answers(given: Sequence[str], shapes: Mapping[str, Shape], wanted: Wanted) -> dict[Segments, Segments]:
    """`FROM=TO` arguments as patterns of groups."""
    sources, targets = fold(shapes), fold(wanted.shapes)
    found: dict[Segments, Segments] = {}
    for text in given:
        one, equals, other = text.partition("=")
        if not equals:
            raise refuse("LR211", f"--map {text}: it is FROM=TO.", "Write names, or folded names: layers.{0..31}.up.weight.")
        source, target = _group(text, one, sources, "source"), _group(text, other, targets, "target")
        if set(source.members) != set(target.members) and one in source.names and other in target.names:
            source, target = _single(source, one), _single(target, other)
        if set(source.members) != set(target.members) or source.pattern in found or target.pattern in found.values():
            twice = source.pattern in found or target.pattern in found.values()
            why = "one of them is told twice" if twice else f"{source.folded} and {target.folded} have other layers"
            raise refuse("LR211", f"--map {text}: {why}.", "Map a group to one with the same layers, each once.")
        pairs = [(shape, target.members[numbers]) for numbers, shape in source.members.items()]
        if any(shape != wanted_shape and not grows(shape, wanted_shape) for shape, wanted_shape in pairs):
            raise refuse("LR211", f"--map {text}: the shapes are {source.shape} and {target.shape}.", "Map what has one shape.")
        found[source.pattern] = target.pattern
    return found


def _group(text: str, name: str, groups: Sequence[Group], side: str) -> Group:
    def bare(folded: str) -> str:
        return re.sub(r"\{[^}]*\}", "#", folded)

    for group in groups:
        if name in group.names or bare(name) == bare(group.folded):
            return group
    near = difflib.get_close_matches(bare(name), [bare(group.folded) for group in groups], 1, 0.3)
    raise refuse("LR211", f"--map {text}: the {side} has no `{name}`.", f"Did you mean `{near[0]}`?" if near else "")


def _single(group: Group, name: str) -> Group:
    return next(single for single in unfold(group) if single.names == [name])


def _frame(checkpoint: Checkpoint, wanted: Wanted, output: Path) -> tuple[Frame, tuple[str, ...]]:
    """What the file says beside the names, and what of it is a guess."""
    source_name = checkpoint.path.stem if checkpoint.is_manifest else checkpoint.path.name
    notes: list[str] = []
    extends = [*CLEAN]
    detect: dict[str, Any] = {}
    constants: dict[str, tuple[Any, str]] = {}
    processor = None
    sources = ["model: {}"]
    if wanted.class_name and EMBEDDING in wanted.shapes:
        part = load_rule_file(shipped_folder() / CONFIG)
        extends += [CONFIG, LOOK_ALIKES]
        if (checkpoint.config or {}).get("image_aspect_ratio") == "pad" and wanted.class_name in PADS:
            extends.append(PADS[wanted.class_name])
        sources += ["vision_tower: {optional: true, use: [config, processor]}      # for a tower of other sizes than a stock one"]
        chat = _chat(checkpoint)
        if chat:
            extends += chat
            notes.append(f"{', '.join(chat)}: tensors don't show how a model was trained to chat")
        else:
            notes.append(
                "no chat template: no shipped family is near. Extend a parts/chat-*.yaml, or write processor.chat_template"
            )
        constants = _target_config(wanted, part, checkpoint.config or {}, notes)
        shipped = (load_rule_file(path).target.class_ for path in shipped_rule_files().values())
        if wanted.class_name not in shipped:
            notes.append(
                f"no shipped file is for {wanted.class_name}: what {CONFIG} doesn't say of its config is the class's default"
            )
        expected = wanted.class_name.removesuffix("ForConditionalGeneration") + "Processor"
        if part.text.processor and expected != part.text.processor.class_:
            processor = expected
            notes.append(f"the processor {expected}: taken from the name of the class")
    config = checkpoint.config or {}
    if any(key.startswith("mm_") for key in config):
        detect = {key: config.get(key) for key in _FAMILY}
        detect |= {key: config[key] for key in _FAMILY_IF_THERE if key in config}
        detect = {key: value for key, value in detect.items() if isinstance(value, (str, int, float, bool, type(None)))}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).strip("-.") or "mine"
    summary = f"{source_name} to {wanted.class_name or Path(wanted.location).stem}"
    made_from = f"{source_name} to {Path(wanted.location).name}"
    frame = Frame(name, summary, made_from, extends, notes, detect, sources, wanted.class_name, constants, processor)
    return frame, tuple(notes)


def _chat(checkpoint: Checkpoint) -> list[str]:
    """The parts with chat templates of the shipped rule file that takes the most of the names."""
    best = next(fit for fit in fits(checkpoint) if fit.rules != HF_LAYOUTS)  # that is for no family
    return [name for name, _ in load_rule_file(best.rules).texts if name.startswith("parts/chat")] if best.mapped else []


def _target_config(wanted: Wanted, part: RuleFile, source: Mapping[str, Any], notes: list[str]) -> dict[str, tuple[Any, str]]:
    """What the shared part doesn't say of the target's config, as constants from the target's own."""
    assert wanted.class_name is not None
    said = wanted.config.get("model_type")
    constants: dict[str, tuple[Any, str]] = {
        "model_type": (said if isinstance(said, str) else model_type_of(wanted.class_name), "")
    }
    known = part.target_config
    if wanted.text_type is not None and not knows_architecture(part, source):
        constants["text_config.model_type"] = wanted.text_type
        notes.append(f"target.config.text_config.model_type: {wanted.text_type[0]} ({wanted.text_type[1]})")
    for key, value in wanted.config.items():
        if key not in _OWN_CONFIG and (key not in known or isinstance(value, list)):
            constants[key] = (value, f"from {Path(wanted.location).name}")
            notes.append(f"target.config.{key}: {value!r}, from the target's config")
    return constants
