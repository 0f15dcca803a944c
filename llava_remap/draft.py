"""A new rule file for a checkpoint, from its names and those that are wanted: the order of that job."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, Tensor, read_object
from llava_remap.errors import Problem, RemapError, refuse
from llava_remap.identify import fits
from llava_remap.infer import Group, Inference, Question, Segments, Shape, fold, infer, unfold
from llava_remap.infer.text import Frame, rule_file
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_folder, shipped_rule_files
from llava_remap.sources import open_source
from llava_remap.target import EMBEDDING, TOWER, derive_config, embedding_rows, place_tokens, wanted_parameters

_CLEAN = ("parts/wrappers.yaml", "parts/buffers.yaml")
_CONFIG = "parts/llava-config.yaml"
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
_FORMS = (
    "TARGET is a class of transformers (with a SRC that has its config.json), a config.json that names one in `architectures`, "
    "a manifest, or a converted checkpoint."
)
#: Keys of a LLaVA's config that tell families of the same names apart. Those after the bar are told only where they are there.
_FAMILY, _FAMILY_IF_THERE = ("image_aspect_ratio", "mm_patch_merge_type"), ("mm_projector_type", "mm_newline_position")
#: What of a target's config says nothing of how features are taken, or is made anew for each checkpoint.
_OWN_CONFIG = {
    "architectures", "model_type", "text_config", "vision_config", "torch_dtype", "dtype", "tie_word_embeddings",
    "transformers_version", "_name_or_path", "image_token_index", "image_token_id", "video_token_index", "video_token_id",
    "pad_token_id", "bos_token_id", "eos_token_id", "vocab_size", "hidden_size", "initializer_range", "use_cache",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted.

    Attributes:
        location: where it was read from, in words.
        shapes: name → shape, in the classic layout where the layout is known.
        tied: names that need no source.
        class_name, config: as far as the target says.
    """

    location: str
    shapes: Mapping[str, Shape]
    tied: frozenset[str]
    class_name: str | None
    config: Mapping[str, Any]


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
            cause = f"{len(names)} tensors that nothing which the target misses could take."
            problems.append(
                Problem("LR301", cause, "Map them, or drop them with a reason, if the model doesn't need them.", names)
            )
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
    offline: bool = False,
) -> Draft:
    """Infer a rule file and write it.

    Args:
        source: SRC as for `apply`.
        target: the name of a class, a config.json, a manifest or a converted checkpoint.
        output: the file; it must not be there yet.
        answers: `FROM=TO` each, names or folded names.
        ask: answers a question that neither names nor shapes do; None leaves it open.

    Raises:
        RemapError: LR305 where nothing matches; LR211 for a target or an answer that can't be; LR508 for the output; as
            `open_source` and `derive_config`.
    """
    refuse_existing(output)
    checkpoint = open_source("model", source, ("tensors", "config"), first=True, offline=offline)
    shapes, buffers = cleaned({name: tensor.shape for name, tensor in checkpoint.catalog.items()})
    wanted = _wanted(target, checkpoint, shapes, offline)
    given = _answers(answers, shapes, wanted)
    left_open: list[Segments] = []
    found = infer(shapes, wanted.shapes, tied=wanted.tied, answers=given)
    while question := next((q for q in found.questions if q.source.pattern not in left_open), None):
        chosen = ask(question)
        if chosen is None:
            left_open.append(question.source.pattern)
        else:
            given[question.source.pattern] = chosen.pattern
            found = infer(shapes, wanted.shapes, tied=wanted.tied, answers=given)
    if not any(rule.to is not None for rule in found.rules):
        cause = f"no name in {checkpoint.location} could be matched with one of {wanted.location} by name and shape."
        raise refuse("LR305", cause, "Is it the right target, and of the same size?")
    frame, notes = _frame(checkpoint, wanted, output)
    text = rule_file(frame, found)
    _loaded(text)  # before it stands where a user would take it for one that works
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


def cleaned(shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], int]:
    """The names without wrappers and stored buffers, and how many were dropped."""
    programs = [compile_rules(load_rule_file(shipped_folder() / part)) for part in _CLEAN]
    found = {}
    for name, shape in shapes.items():
        prepared: str | None = name
        for program in programs:
            if prepared is not None:
                rewrite = program.rewrite(prepared)
                prepared = None if rewrite.reason is not None else rewrite.prepared
        if prepared is not None:
            found[prepared] = shape
    return found, len(shapes) - len(found)


def _wanted(target: str, checkpoint: Checkpoint, shapes: Mapping[str, Shape], offline: bool) -> Wanted:
    path = Path(target)
    if path.is_file() and path.suffix == ".json":
        content = read_object(path, "LR102", "Download or copy it again.", unique=False)
        if "format" not in content and "weight_map" not in content:
            return _of_config(target, content)
    if (
        path.is_dir()
        and (path / "config.json").is_file()
        and not any(path.glob("*.safetensors*"))
        and not any(path.glob("*.bin*"))
    ):
        return _of_config(target, read_object(path / "config.json", "LR113", "Download it again.", unique=False))
    if _CLASS.fullmatch(target) and not path.exists():
        return _of_class(target, checkpoint, shapes)
    if "/" not in target and not path.exists():
        raise refuse("LR211", f"--to {target}: there is no such file or class.", _FORMS)
    other = open_source("target", target, ("tensors", "config"), first=True, offline=offline)
    config = other.config or {}
    named = config.get("architectures")
    class_name = str(named[0]) if isinstance(named, list) and named else None
    classic = _classic({name: tensor.shape for name, tensor in other.catalog.items()})
    clean, _ = cleaned(classic)
    ties = any(c.get("tie_word_embeddings") is True for c in (config, _mapping(config, "text_config"), checkpoint.config or {}))
    tied = frozenset(name for name in clean if ties and name.endswith("lm_head.weight"))
    return Wanted(other.location, clean, tied, class_name, config)


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _classic(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """Names of another layout as they are in the classic one. A layout is one that takes every name."""
    for path in sorted((shipped_folder() / "layouts").glob("*.yaml")):
        program = compile_rules(load_rule_file(path))
        taken = {name: program.rewrite(name).target for name in shapes}
        if all(taken.values()):
            return {str(taken[name]): shape for name, shape in shapes.items()}
    return shapes


def _of_config(location: str, config: Mapping[str, Any]) -> Wanted:
    """The parameters of the class that a config.json names."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise refuse("LR211", f"--to {location}: it names no class in `architectures`.", _FORMS)
    if not _mapping(config, "text_config") or not _mapping(config, "vision_config"):
        raise refuse("LR211", f"--to {location}: the config has no text_config and vision_config.", _FORMS)
    asked = wanted_parameters(named[0], config)
    return Wanted(location, asked.shapes, frozenset(asked.tied), named[0], config)


def _of_class(class_name: str, checkpoint: Checkpoint, shapes: Mapping[str, Shape]) -> Wanted:
    """The parameters of a class, with the config that the source's own config and its tower's tensors give.

    Tower and embedding are found by how their names end, wherever they are, which is what the config needs of the names.
    """
    if checkpoint.config is None:
        raise refuse(
            "LR211", f"--to {class_name}: {checkpoint.location} has no config, so that of the target isn't known.", _FORMS
        )
    found: dict[str, Tensor] = {}
    mark = "embeddings.patch_embedding.weight"
    towers = sorted(name.removesuffix(mark) for name in shapes if name.endswith(mark))
    embeddings = [name for name in shapes if name.endswith("embed_tokens.weight")]
    if not towers or not embeddings:
        what = "vision tower" if not towers else "table of embeddings"
        cause = (
            f"--to {class_name}: no {what} is recognised in {checkpoint.location}, so the target's config can't be worked out."
        )
        raise refuse("LR211", cause, _FORMS)
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.catalog.items()}
    for name, shape in shapes.items():
        if name.startswith(towers[0]):
            classic = TOWER + name.removeprefix(towers[0])
            found[classic] = Tensor(classic, dtypes.get(name, "F32"), shape, None)
    found[EMBEDDING] = Tensor(EMBEDDING, dtypes.get(embeddings[0], "F32"), shapes[embeddings[0]], None)
    model_type = _model_type(class_name)
    constants = {"model_type": (model_type, "")}
    frame = Frame("draft", "draft", "", (*_CLEAN, _CONFIG), (), None, (), class_name, constants)
    rules = _loaded(rule_file(frame, infer({}, {})))
    tokens = place_tokens(rules.text.tokens, None, embedding_rows(found))
    try:
        asked = wanted_parameters(class_name, derive_config(rules, [checkpoint.config], found, tokens).config)
    except RemapError as error:  # what helps `apply`, another source, is nothing that can be given here
        fix = f"Give another TARGET. {_FORMS}"
        raise RemapError([replace(problem, fix=fix) for problem in error.problems]) from error
    return Wanted(class_name, asked.shapes, frozenset(asked.tied), class_name, {"model_type": model_type})


def _model_type(class_name: str) -> str:
    """The `model_type` of a class of the installed transformers."""
    import transformers

    model_class: Any = getattr(transformers, class_name, None)
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:
        raise refuse("LR211", f"--to {class_name}: transformers {transformers.__version__} has no such model class.", _FORMS)
    return str(config_class.model_type)


def _loaded(text: str) -> RuleFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draft.yaml"
        path.write_text(text, encoding="utf-8")
        return load_rule_file(path)


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
        if any(len(shape) != len(wanted_shape) or shape[1:] != wanted_shape[1:] for shape, wanted_shape in pairs):
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
    extends = [*_CLEAN]
    detect: dict[str, Any] = {}
    constants: dict[str, tuple[Any, str]] = {}
    processor = None
    sources = ["model: {}"]
    if wanted.class_name and EMBEDDING in wanted.shapes:
        part = load_rule_file(shipped_folder() / _CONFIG)
        extends.append(_CONFIG)
        sources += ["vision_tower: {optional: true, use: [config, processor]}      # for a tower of other sizes than a stock one"]
        chat = _chat(checkpoint)
        if chat:
            extends.append(chat)
            notes.append(f"{chat}: tensors don't show how a model was trained to chat")
        constants = _target_config(wanted, part, checkpoint.config or {}, notes)
        shipped = (load_rule_file(path).target.class_ for path in shipped_rule_files().values())
        if wanted.class_name not in shipped:
            notes.append(
                f"no shipped file is for {wanted.class_name}: what {_CONFIG} doesn't say of its config is the class's default"
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


def _chat(checkpoint: Checkpoint) -> str | None:
    """The chat part of the shipped rule file that takes the most of the names."""
    best = fits(checkpoint)[0]
    if not best.mapped:
        return None
    parts = load_rule_file(best.rules).text.extends
    return next((part for part in parts if part.startswith("parts/chat")), None)


def _target_config(wanted: Wanted, part: RuleFile, source: Mapping[str, Any], notes: list[str]) -> dict[str, tuple[Any, str]]:
    """What the shared part doesn't say of the target's config, as constants from the target's own."""
    assert wanted.class_name is not None
    said = wanted.config.get("model_type")
    constants: dict[str, tuple[Any, str]] = {
        "model_type": (said if isinstance(said, str) else _model_type(wanted.class_name), "")
    }
    known = part.text.target.config if part.text.target else {}
    text_type = _mapping(wanted.config, "text_config").get("model_type")
    named = source.get("architectures")
    table = known["text_config.model_type"].map or {}
    if isinstance(text_type, str) and not (isinstance(named, list) and named and named[0] in table):
        constants["text_config.model_type"] = (
            text_type,
            f"from {Path(wanted.location).name}; the source's architecture isn't known",
        )
    for key, value in wanted.config.items():
        if key not in _OWN_CONFIG and (key not in known or isinstance(value, list)):
            constants[key] = (value, f"from {Path(wanted.location).name}")
            notes.append(f"target.config.{key}: {value!r}, from the target's config")
    return constants
