"""Writes a new rule file for a checkpoint, from its names and the names of the target."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.authoring.carried import carried
from llava_remap.authoring.draft_sources import (
    CLEAN,
    FIRST,
    Given,
    open_sources,
    read_answers,
    select_modules,
    unknown_shapes,
)
from llava_remap.authoring.draft_target import (
    CONFIG,
    LOOK_ALIKES,
    ONE_SQUARE,
    PADS,
    Wanted,
    config_part,
    cuts_tiles,
    first_constants,
    inner,
    loaded,
    read_wanted,
)
from llava_remap.authoring.new_file import refuse_existing, write_new
from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import Problem, refuse
from llava_remap.core.wording import counted
from llava_remap.rewrite.infer import Group, Inference, Question, Segments, infer
from llava_remap.rewrite.infer.text import Frame, rule_file
from llava_remap.routing.fits import fits
from llava_remap.routing.identify import HF_LAYOUTS
from llava_remap.rulefile import (
    load_rule_file,
    shipped_chat_parts,
    shipped_folder,
    shipped_rule_files,
)
from llava_remap.rulefile.yaml_write import quoted
from llava_remap.target_model import TEXT_KIND, read_vocabulary, unknown_target

#: Keys of a LLaVA config that distinguish families with the same names. The keys of the second
#: tuple count only if the config has them.
_FAMILY, _FAMILY_IF_THERE = (
    ("image_aspect_ratio", "mm_patch_merge_type"),
    ("mm_projector_type", "mm_newline_position"),
)
#: The most wrapping modules that are removed to find a family.
_MOST_WRAPPED = 3
#: The language model in the classic layout.
_LANGUAGE = "language_model"


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule file that was written.

    Attributes:
        output: its path.
        given, wanted: the sources and the target from which the file was made.
        found: the inference.
        text_model: the `model_type` of the language model; empty if it is unknown.
        notes: further guesses, in words.
        config_problems: differences from the target's config that the file can't express.
    """

    output: Path
    given: Given
    wanted: Wanted
    found: Inference
    text_model: str
    notes: tuple[str, ...]
    config_problems: tuple[Problem, ...]

    @property
    def problems(self) -> list[Problem]:
        """Why the file isn't complete."""
        inside, missing = _names(self.found.inside), _names(self.found.missing)
        questions = _names(question.source for question in self.found.questions)
        beside = _names(group for group in self.found.unplaced if group not in self.found.inside)
        kind = f", a {self.text_model}," if self.text_model else ""
        kinds = (
            (
                "LR301",
                questions,
                f"{len(self.found.questions)} groups of names could each become several groups of "
                "the target; neither names nor shapes tell which.",
                "Answer with --map FROM=TO and another --output, or write the rules.",
            ),
            (
                "LR301",
                inside,
                f"{counted(len(inside), 'tensor')} in the language model{kind} have no "
                "counterpart in the target.",
                "The model computes with them, so they are not dropped. If the checkpoint has "
                "another language model, give a config.json with the text_config of that language "
                "model: --to config.json.",
            ),
            (
                "LR301",
                beside,
                f"{counted(len(beside), 'tensor')} have no counterpart in the target.",
                "Map them. If the model doesn't compute with them, drop them with a reason; "
                "--drop-rest writes such rules.",
            ),
            (
                "LR302",
                missing,
                f"{counted(len(missing), 'parameter')} of the target have no counterpart in the "
                "checkpoint.",
                "If another checkpoint has them, give that checkpoint too: --from NAME=SRC.",
            ),
        )
        problems = [Problem(code, cause, fix, names) for code, names, cause, fix in kinds if names]
        if self.wanted.unsaid:
            fix = (
                f"Write the language model's type into {self.output}: `{TEXT_KIND}: "
                "{const: TYPE}`, as that model's own config.json has it."
            )
            problems.append(Problem("LR112", self.wanted.unsaid, fix))
        return [*problems, *self.config_problems]


def _names(groups: Iterable[Group]) -> tuple[str, ...]:
    return tuple(name for group in groups for name in group.names)


def draft_rules(
    sources: Sequence[str],
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
        sources: `[NAME=]SRC` each, the main one as `model` or without a name. Names are enough: an
            index without its shards, or a list of names.
        target: the name of a class, a config.json, a manifest or a converted checkpoint.
        output: the file; it must not exist yet.
        answers: `FROM=TO` each, names or folded names.
        drop_rest: whether tensors without a counterpart in the target are dropped, if the target
            misses nothing. Tensors of the language model are never dropped.
        ask: answers a question that neither names nor shapes answer. The answer None leaves the
            question open.

    Raises:
        RemapError: LR305 if nothing matches; LR211 for an impossible target or answer; LR508 for
            the output; as `open_names` and `derive_config`.
    """
    refuse_existing(output)
    given = open_sources(sources, load_rule_file(shipped_folder() / CONFIG).text.sources, offline)
    wanted = read_wanted(target, given, offline)
    if given.names_alone:
        wanted = replace(wanted, shapes=unknown_shapes(wanted.shapes))
    told = read_answers(answers, given.shapes, wanted.shapes)
    found = _infer(given, wanted, told, drop_rest, ask)
    taken = [name for pair in found.matches for name in pair.source.names]
    given, modules = select_modules(given, taken, _names([*found.unplaced, *found.dropped]))
    if modules:
        found = _infer(given, wanted, told, drop_rest, ask)
    if not any(rule.to is not None for rule in found.rules):
        raise refuse(
            "LR305",
            f"no name in {given.location} could be matched with one of {wanted.location} by "
            "name and shape.",
            "Check that the target is the right one and has the same size.",
        )
    frame, text_model, problems = _frame(given, wanted, found, modules, output)
    text = rule_file(frame, found)
    loaded(text)  # before anyone can take the file for a working one
    write_new(output, text)
    problems += unknown_target(load_rule_file(output))
    return Draft(output, given, wanted, found, text_model, tuple(frame.unsure), tuple(problems))


def _infer(
    given: Given,
    wanted: Wanted,
    told: dict[Segments, Segments],
    drop_rest: bool,
    ask: Callable[[Question], Group | None],
) -> Inference:
    """The inference after every question was asked once. Answers are added to `told`."""
    left_open: list[Segments] = []
    while True:
        found = infer(
            given.shapes,
            wanted.shapes,
            tied=wanted.tied,
            answers=told,
            drop=drop_rest,
            whole=_LANGUAGE,
        )
        for question in found.questions:
            if question.source.pattern in left_open:
                continue
            if (chosen := ask(question)) is not None:
                told[question.source.pattern] = chosen.pattern
                break
            left_open.append(question.source.pattern)
        else:
            return found


def _frame(
    given: Given, wanted: Wanted, found: Inference, modules: Mapping[str, str], output: Path
) -> tuple[Frame, str, list[Problem]]:
    """The fields of the file other than `names`, the kind of the language model, and differences
    from the target's config that the file can't express.
    """
    main = given.main
    extends = [*CLEAN]
    constants: dict[str, tuple[Any, str]] = {}
    problems: list[Problem] = []
    processor, text_model = None, wanted.text_model
    location = Path(wanted.location).name
    sources, notes = _source_lines(given, found, modules)
    if given.names_alone:
        notes.append(
            "shapes: only names are known, so no shapes were compared; `apply --dry-run` on the "
            "weights compares them"
        )
    if wanted.class_name and _LANGUAGE in {name.split(".")[0] for name in wanted.shapes}:
        config = config_part(wanted.class_name)
        part = load_rule_file(shipped_folder() / config)
        shape = (main.config or {}).get("image_aspect_ratio")
        pad = [PADS[wanted.class_name]] if shape == "pad" and wanted.class_name in PADS else []
        is_square = shape in ("pad", "square", None) or cuts_tiles(wanted.class_name)
        chat, chat_note = _chat(main)
        extends += [config, LOOK_ALIKES, *pad, *([] if is_square else [ONE_SQUARE]), *chat]
        if "vision_tower" not in given.checkpoints:
            sources.append(
                "vision_tower: {optional: true, use: [config, processor]}      # for a tower with "
                "other sizes than a stock tower"
            )
        is_whole = inner(wanted.config, "text_config") and given.configs and not given.names_alone
        if is_whole:
            text_model, constants, problems = carried(given, wanted, found, location)
        else:
            constants = first_constants(wanted.class_name)
            if wanted.unsaid:
                constants[TEXT_KIND] = (None, f"unsure: {wanted.unsaid} Write its type here.")
        shipped = (load_rule_file(path).target.class_ for path in shipped_rule_files().values())
        expected = wanted.class_name.removesuffix("ForConditionalGeneration") + "Processor"
        if part.text.processor and expected != part.text.processor.class_:
            processor = expected
        remarks = (
            (
                not is_square,
                f"image_aspect_ratio: {shape} cuts pictures into tiles, but {wanted.class_name} "
                "takes a picture as one square. Classes with tiles are "
                "LlavaNextForConditionalGeneration and LlavaOnevisionForConditionalGeneration",
            ),
            (True, chat_note),
            (not is_whole and wanted.unsaid, f"target.config.{TEXT_KIND}: {wanted.unsaid}"),
            (
                not is_whole and not wanted.unsaid and not wanted.text_model,
                f"target.config: {location} has no whole config whose values could be used",
            ),
            (
                wanted.class_name not in shipped,
                f"no shipped file is for {wanted.class_name}: config values that {config} doesn't "
                "give are the class's defaults",
            ),
            (processor, f"the processor {expected}: taken from the name of the class"),
        )
        notes += [remark for is_so, remark in remarks if is_so]
    source_name = main.path.stem if main.is_manifest else main.path.name
    frame = Frame(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).strip("-.") or "mine",
        summary=f"{source_name} to {wanted.class_name or Path(wanted.location).stem}",
        made_from=f"{source_name} to {location}",
        extends=extends,
        unsure=notes,
        detect=_detect(main),
        sources=sources,
        class_name=wanted.class_name,
        config=constants,
        processor=processor,
        first={name for name, source in given.owners.items() if source == FIRST},
    )
    return frame, text_model, problems


def _detect(checkpoint: Checkpoint) -> dict[str, Any]:
    """Values of the config that distinguish the family; empty if the config isn't a LLaVA's."""
    config = checkpoint.config or {}
    if not any(key.startswith("mm_") for key in config):
        return {}
    keys = [*_FAMILY, *(key for key in _FAMILY_IF_THERE if key in config)]
    scalars = (str, int, float, bool, type(None))
    return {key: config.get(key) for key in keys if isinstance(config.get(key), scalars)}


def _source_lines(
    given: Given, found: Inference, modules: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The lines of `sources`, and notes on the guesses in them."""
    lines, notes = ["model: {}"], []
    taken = {given.owners[name] for pair in found.matches for name in pair.source.names}
    for source, checkpoint in list(given.checkpoints.items())[1:]:
        if checkpoint.pairs and source not in taken:
            continue  # an adapter: its pairs follow the names of their base
        beside = "processor" if source == "vision_tower" else "tokenizer"
        said = {"use": f"[tensors, config, {beside}]" if source in taken else f"[config, {beside}]"}
        if source in modules:
            said["select"] = quoted(f"{modules[source]}.{{rest...}}")
            notes.append(
                f"sources.{source}: only its module `{modules[source]}` is taken; the target "
                "needs nothing else from it"
            )
        if given.prefixes[source] and source in taken:
            said["prefix"] = quoted(given.prefixes[source])
        if source not in taken and checkpoint.catalog:
            notes.append(
                f"sources.{source}: the target needs none of its tensors, so none is taken"
            )
        lines.append(
            f"{source}: {{optional: false, "
            f"{', '.join(f'{key}: {value}' for key, value in said.items())}}}"
        )
    return lines, notes


def _chat(checkpoint: Checkpoint) -> tuple[list[str], str]:
    """The parts with chat templates of the shipped rule file that takes the most names, and a note
    on that guess. A prefix that all names share is removed first.
    """
    bare = checkpoint
    for _ in range(_MOST_WRAPPED):
        best = next(fit for fit in fits(bare) if fit.rules != HF_LAYOUTS)  # a file for no family
        near = best.mapped * 2 > best.total
        if near or len({name.partition(".")[0] for name in bare.catalog}) > 1:
            break
        inside = {name.partition(".")[2]: tensor for name, tensor in bare.catalog.items()}
        bare = replace(
            bare, catalog={name: replace(tensor, name=name) for name, tensor in inside.items()}
        )
    texts = load_rule_file(best.rules).texts if near else ()
    chat = [name for name, _ in texts if name in shipped_chat_parts()]
    possible = ", ".join(_possible_chats(checkpoint))
    find_out = (
        "The training's command line has it (`--version`), and each part's first line says what "
        "the part is for" + (f". Tokenizer and config allow {possible}" if possible else "")
    )
    if chat:
        return chat, (
            f"{', '.join(chat)}: taken from {best.rules}; tensors don't show the chat format of "
            f"the training. {find_out}"
        )
    return chat, (
        f"no chat template: no shipped family is similar. {find_out}. Add the part to `extends` "
        f"({', '.join(shipped_chat_parts())}), or write processor.chat_template"
    )


def _possible_chats(checkpoint: Checkpoint) -> list[str]:
    """The shipped parts with a chat template that can be right for the checkpoint's tokenizer and
    kind of language model; empty without a tokenizer.
    """
    folder = checkpoint.folder
    if folder is None or (vocabulary := read_vocabulary(folder)) is None:
        return []
    config = checkpoint.config or {}
    kind = str(config.get("model_type"))

    def may_hold(when: Mapping[str, Any]) -> bool:
        token, model_type = when.get("token"), when.get("text_config.model_type")
        said = {key: wanted for key, wanted in when.items() if key.startswith("source.")}
        return (
            (token is None or token in vocabulary.ids)
            and str(model_type or "") in kind
            and all(config.get(key.removeprefix("source.")) == said[key] for key in said)
        )

    parts = {name: load_rule_file(shipped_folder() / name) for name in shipped_chat_parts()}
    return [
        name
        for name, part in parts.items()
        if part.text.processor is not None
        and any(may_hold(template.when) for template in part.text.processor.chat_templates.values())
    ]
