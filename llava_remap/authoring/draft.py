"""A new rule file for a checkpoint, from its names and those that are wanted: the order of that
job.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.authoring.carried import carried
from llava_remap.authoring.draft_sources import (
    CLEAN,
    FIRST,
    Given,
    open_sources,
    selected,
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
from llava_remap.checkpoint import Checkpoint
from llava_remap.core.problem import Problem, refuse
from llava_remap.core.wording import counted
from llava_remap.rewrite.infer import (
    Group,
    Inference,
    Question,
    Segments,
    Shape,
    fold,
    grows,
    infer,
    unfold,
)
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
from llava_remap.target_model import TEXT_KIND, unknown_target

#: Keys of a LLaVA's config that tell families of the same names apart. Those after the bar are told
#: only where they are there.
_FAMILY, _FAMILY_IF_THERE = (
    ("image_aspect_ratio", "mm_patch_merge_type"),
    ("mm_projector_type", "mm_newline_position"),
)
#: Modules around the whole model that are looked through for a family.
_MOST_WRAPPED = 3
#: Where the language model is in the classic layout.
_LANGUAGE = "language_model"


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule file that was written.

    Attributes:
        output: where.
        given, wanted: what it was made from.
        found: what was inferred.
        text_model: the `model_type` of the language model, as far as it is known.
        notes: what else is a guess, in words.
        config_problems: what of the target's config the file can't say.
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
        """What keeps the file from being complete."""
        problems = []
        if self.found.questions:
            names = tuple(
                name for question in self.found.questions for name in question.source.names
            )
            cause = (
                f"{len(self.found.questions)} groups of names could become several things; "
                "neither names nor shapes tell which."
            )
            problems.append(
                Problem(
                    "LR301",
                    cause,
                    "Answer with --map FROM=TO and another --output, or write the rules.",
                    names,
                )
            )
        if names := tuple(name for group in self.found.inside for name in group.names):
            kind = f", a {self.text_model}," if self.text_model else ""
            cause = (
                f"{counted(len(names), 'tensor')} in the language model{kind} that nothing in "
                "the target takes."
            )
            fix = (
                "The model computes with them, so they are not dropped. If its language model is "
                "another one, give a config.json "
                "with the text_config of that one: --to config.json."
            )
            problems.append(Problem("LR301", cause, fix, names))
        if names := tuple(
            name
            for group in self.found.unplaced
            if group not in self.found.inside
            for name in group.names
        ):
            cause = f"{counted(len(names), 'tensor')} that nothing in the target takes."
            fix = (
                "Map them. If the model doesn't compute with them, drop them with a reason; "
                "--drop-rest writes such rules."
            )
            problems.append(Problem("LR301", cause, fix, names))
        if self.found.missing:
            names = tuple(name for group in self.found.missing for name in group.names)
            cause = (
                f"{counted(len(names), 'parameter')} of the target that nothing in the "
                "checkpoint is found for."
            )
            problems.append(
                Problem(
                    "LR302",
                    cause,
                    "If another checkpoint has them, give it too: --from NAME=SRC.",
                    names,
                )
            )
        if self.wanted.unsaid:
            fix = (
                f"Write its type into {self.output}: `{TEXT_KIND}: {{const: TYPE}}`, as "
                "config.json of that model has it."
            )
            problems.append(Problem("LR112", self.wanted.unsaid, fix))
        return [*problems, *self.config_problems]


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
        sources: `[NAME=]SRC` each, the main one as `model` or without a name. Of each the names may
            be all that there is: an index without its shards, or a list of names.
        target: the name of a class, a config.json, a manifest or a converted checkpoint.
        output: the file; it must not be there yet.
        answers: `FROM=TO` each, names or folded names.
        drop_rest: whether what nothing in the target takes is dropped, if the target misses
            nothing. What lies in the language model is never dropped.
        ask: answers a question that neither names nor shapes do; None leaves it open.

    Raises:
        RemapError: LR305 where nothing matches; LR211 for a target or an answer that can't be;
            LR508 for the output; as `open_names` and `derive_config`.
    """
    refuse_existing(output)
    given = open_sources(sources, load_rule_file(shipped_folder() / CONFIG).text.sources, offline)
    wanted = read_wanted(target, given, offline)
    if given.names_alone:
        wanted = replace(wanted, shapes=unknown_shapes(wanted.shapes))
    told = _answers(answers, given.shapes, wanted)
    found = _infer(given, wanted, told, drop_rest, ask)
    given, modules = _selected(given, found)
    if modules:
        found = _infer(given, wanted, told, drop_rest, ask)
    if not any(rule.to is not None for rule in found.rules):
        raise refuse(
            "LR305",
            f"no name in {given.location} could be matched with one of {wanted.location} by "
            "name and shape.",
            "Is it the right target, and of the same size?",
        )
    frame, text_model, problems = _frame(given, wanted, found, modules, output)
    text = rule_file(frame, found)
    loaded(text)  # before it stands where a user would take it for one that works
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise refuse(
            "LR508", f"{output}: {error.strerror or error}.", "Give another --output."
        ) from None
    problems += unknown_target(load_rule_file(output))
    return Draft(output, given, wanted, found, text_model, tuple(frame.unsure), tuple(problems))


def _infer(
    given: Given,
    wanted: Wanted,
    told: dict[Segments, Segments],
    drop_rest: bool,
    ask: Callable[[Question], Group | None],
) -> Inference:
    """The inference, with every question put once; what is answered is added to what is told."""
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


def _selected(given: Given, found: Inference) -> tuple[Given, dict[str, str]]:
    """Of each further source the module that is taken, where one holds all that is and nothing
    else; the rest is left out.

    Of CLIP's own checkpoint, for one, the half for text is nothing that the target misses.
    """
    taken = [name for pair in found.matches for name in pair.source.names]
    left = [name for group in (*found.unplaced, *found.dropped) for name in group.names]
    modules: dict[str, str] = {}
    for source in list(given.checkpoints)[1:]:
        own, rest = (
            [name for name in names if given.owners[name] == source] for names in (taken, left)
        )
        module = selected(given, source, own, rest) if own and rest else None
        if module is not None:
            modules[source] = ".".join(module)
            given = given.without(rest)
    return given, modules


def refuse_existing(output: Path) -> None:
    """LR508 for an output that is there: a rule file may have been worked on for days."""
    try:
        there = output.exists() or output.is_symlink()
    except (OSError, ValueError) as error:
        raise refuse("LR508", f"{output}: {error}.", "Give another --output.") from None
    if there:
        raise refuse(
            "LR508", f"{output} is there, and nothing is overwritten.", "Give another --output."
        )


def _answers(
    given: Sequence[str], shapes: Mapping[str, Shape], wanted: Wanted
) -> dict[Segments, Segments]:
    """`FROM=TO` arguments as patterns of groups."""
    sources, targets = fold(shapes), fold(wanted.shapes)
    found: dict[Segments, Segments] = {}
    for text in given:
        one, equals, other = text.partition("=")
        if not equals:
            raise refuse(
                "LR211",
                f"--map {text}: it is FROM=TO.",
                "Write names, or folded names: layers.{0..31}.up.weight.",
            )
        source, target = (
            _group(text, one, sources, "source"),
            _group(text, other, targets, "target"),
        )
        if (
            set(source.members) != set(target.members)
            and one in source.names
            and other in target.names
        ):
            source, target = _single(source, one), _single(target, other)
        if (
            set(source.members) != set(target.members)
            or source.pattern in found
            or target.pattern in found.values()
        ):
            twice = source.pattern in found or target.pattern in found.values()
            why = (
                "one of them is told twice"
                if twice
                else f"{source.folded} and {target.folded} have other layers"
            )
            raise refuse(
                "LR211",
                f"--map {text}: {why}.",
                "Map a group to one with the same layers, each once.",
            )
        pairs = [(shape, target.members[numbers]) for numbers, shape in source.members.items()]
        if any(
            shape != wanted_shape and not grows(shape, wanted_shape)
            for shape, wanted_shape in pairs
        ):
            raise refuse(
                "LR211",
                f"--map {text}: the shapes are {source.shape} and {target.shape}.",
                "Map what has one shape.",
            )
        found[source.pattern] = target.pattern
    return found


def _group(text: str, name: str, groups: Sequence[Group], side: str) -> Group:
    def bare(folded: str) -> str:
        return re.sub(r"\{[^}]*\}", "#", folded)

    for group in groups:
        if name in group.names or bare(name) == bare(group.folded):
            return group
    near = difflib.get_close_matches(bare(name), [bare(group.folded) for group in groups], 1, 0.3)
    raise refuse(
        "LR211",
        f"--map {text}: the {side} has no `{name}`.",
        f"Did you mean `{near[0]}`?" if near else "",
    )


def _single(group: Group, name: str) -> Group:
    return next(single for single in unfold(group) if single.names == [name])


def _frame(
    given: Given, wanted: Wanted, found: Inference, modules: Mapping[str, str], output: Path
) -> tuple[Frame, str, list[Problem]]:
    """What the file says beside the names, the kind of the language model, and what the file
    can't say.
    """
    main = given.main
    source_name = main.path.stem if main.is_manifest else main.path.name
    notes: list[str] = []
    extends = [*CLEAN]
    constants: dict[str, tuple[Any, str]] = {}
    problems: list[Problem] = []
    processor, text_model = None, wanted.text_model
    sources = ["model: {}", *_source_lines(given, found, modules, notes)]
    if given.names_alone:
        notes.append(
            "shapes: only names are known, so nothing was held against them; `apply --dry-run` on "
            "the weights does that"
        )
    if wanted.class_name and _LANGUAGE in {name.split(".")[0] for name in wanted.shapes}:
        config = config_part(wanted.class_name)
        part = load_rule_file(shipped_folder() / config)
        extends += [config, LOOK_ALIKES]
        if (main.config or {}).get("image_aspect_ratio") == "pad" and wanted.class_name in PADS:
            extends.append(PADS[wanted.class_name])
        shape = (main.config or {}).get("image_aspect_ratio")
        if shape not in ("pad", "square", None) and not cuts_tiles(wanted.class_name):
            extends.append(ONE_SQUARE)
            notes.append(
                f"image_aspect_ratio: {shape} cuts pictures into tiles, and to {wanted.class_name} "
                "a picture is one square. "
                "Classes with tiles are LlavaNextForConditionalGeneration and "
                "LlavaOnevisionForConditionalGeneration"
            )
        if "vision_tower" not in given.checkpoints:
            sources.append(
                "vision_tower: {optional: true, use: [config, processor]}      # for a tower of "
                "other sizes than a stock one"
            )
        extends += _chat(main, notes)
        location = Path(wanted.location).name
        if inner(wanted.config, "text_config") and given.configs and not given.names_alone:
            text_model, constants, problems = carried(given, wanted, found, location)
        else:
            constants = first_constants(wanted.class_name)
            if wanted.unsaid:
                constants[TEXT_KIND] = (None, f"unsure: {wanted.unsaid} Write its type here.")
                notes.append(f"target.config.{TEXT_KIND}: {wanted.unsaid}")
            elif not wanted.text_model:
                notes.append(
                    f"target.config: {location} has no whole config whose values could be taken "
                    "over"
                )
        shipped = (load_rule_file(path).target.class_ for path in shipped_rule_files().values())
        if wanted.class_name not in shipped:
            notes.append(
                f"no shipped file is for {wanted.class_name}: what {config} doesn't say of its "
                "config is the class's default"
            )
        expected = wanted.class_name.removesuffix("ForConditionalGeneration") + "Processor"
        if part.text.processor and expected != part.text.processor.class_:
            processor = expected
            notes.append(f"the processor {expected}: taken from the name of the class")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).strip("-.") or "mine"
    summary = f"{source_name} to {wanted.class_name or Path(wanted.location).stem}"
    made_from = f"{source_name} to {Path(wanted.location).name}"
    first = {name for name, source in given.owners.items() if source == FIRST}
    frame = Frame(
        name,
        summary,
        made_from,
        extends,
        notes,
        _detect(main),
        sources,
        wanted.class_name,
        constants,
        processor,
        first,
    )
    return frame, text_model, problems


def _detect(checkpoint: Checkpoint) -> dict[str, Any]:
    """Values of the config that tell the family apart; empty where it is no LLaVA's."""
    config = checkpoint.config or {}
    if not any(key.startswith("mm_") for key in config):
        return {}
    detect = {key: config.get(key) for key in _FAMILY}
    detect |= {key: config[key] for key in _FAMILY_IF_THERE if key in config}
    return {
        key: value
        for key, value in detect.items()
        if isinstance(value, (str, int, float, bool, type(None)))
    }


def _source_lines(
    given: Given, found: Inference, modules: Mapping[str, str], notes: list[str]
) -> list[str]:
    """The lines of `sources` for those beside the main one."""
    lines = []
    taken = {given.owners[name] for pair in found.matches for name in pair.source.names}
    for source, checkpoint in list(given.checkpoints.items())[1:]:
        if checkpoint.pairs and source not in taken:
            continue  # an adapter: its pairs go where the names of their base go
        beside = "processor" if source == "vision_tower" else "tokenizer"
        said = {"use": f"[tensors, config, {beside}]" if source in taken else f"[config, {beside}]"}
        if source in modules:
            said["select"] = quoted(f"{modules[source]}.{{rest...}}")
            notes.append(
                f"sources.{source}: only `{modules[source]}` is taken of it; the target misses "
                "nothing else"
            )
        if given.prefixes[source] and source in taken:
            said["prefix"] = quoted(given.prefixes[source])
        if source not in taken and checkpoint.catalog:
            notes.append(
                f"sources.{source}: nothing that the target misses is in it, so none of its "
                "tensors is taken"
            )
        lines.append(
            f"{source}: {{optional: false, "
            f"{', '.join(f'{key}: {value}' for key, value in said.items())}}}"
        )
    return lines


def _chat(checkpoint: Checkpoint, notes: list[str]) -> list[str]:
    """The parts with chat templates of the shipped rule file that takes the most of the names,
    whatever stands before all.
    """
    bare = checkpoint
    for _ in range(_MOST_WRAPPED):
        best = next(fit for fit in fits(bare) if fit.rules != HF_LAYOUTS)  # that is for no family
        heads = {name.partition(".")[0] for name in bare.catalog}
        near = best.mapped * 2 > best.total
        if near or len(heads) > 1:
            break
        inside = [
            replace(tensor, name=name.partition(".")[2]) for name, tensor in bare.catalog.items()
        ]
        bare = replace(bare, catalog={tensor.name: tensor for tensor in inside})
    chat = (
        [name for name, _ in load_rule_file(best.rules).texts if name in shipped_chat_parts()]
        if near
        else []
    )
    if chat:
        notes.append(
            f"{', '.join(chat)}: as {best.rules} has them; tensors don't show how a model was "
            "trained to chat"
        )
    else:
        notes.append(
            "no chat template: no shipped family is near. Add the part for how the model was "
            "trained to `extends` "
            f"({', '.join(shipped_chat_parts())}), or write processor.chat_template"
        )
    return chat
