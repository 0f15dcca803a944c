"""What a rule file is inferred for: names and shapes of a class, a config.json, a manifest or a converted checkpoint."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, Tensor, read_object
from llava_remap.errors import RemapError, refuse
from llava_remap.infer import Shape, infer
from llava_remap.infer.text import Frame, rule_file
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_folder
from llava_remap.sources import open_source
from llava_remap.target import EMBEDDING, derive_config, embedding_rows, place_tokens, shapes_config, wanted_parameters

#: The shared parts that an inferred file extends: what cleans names up, and what the LLaVA family has in common but for names.
CLEAN = ("parts/wrappers.yaml", "parts/buffers.yaml")
CONFIG = "parts/llava-config.yaml"
LOOK_ALIKES = "parts/look-alikes.yaml"
#: The part that pads pictures where the config says so, by class.
PADS = {
    "LlavaForConditionalGeneration": "parts/pad.yaml",
    "VipLlavaForConditionalGeneration": "parts/pad-named.yaml",
}
#: Where the tower is put to have its shapes read.
_TOWER = "vision_tower.vision_model."
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
_FORMS = (
    "TARGET is a class of transformers (with a SRC that has its config.json), a config.json that names one in `architectures`, "
    "a manifest, or a converted checkpoint."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted.

    Attributes:
        location: where it was read from, in words.
        shapes: name → shape, in the classic layout where the layout is known.
        tied: names that need no source.
        class_name, config: as far as the target says.
        text_type: the language model's `model_type`, and how it is known.
    """

    location: str
    shapes: Mapping[str, Shape]
    tied: frozenset[str]
    class_name: str | None
    config: Mapping[str, Any]
    text_type: tuple[str, str] | None = None


def read_wanted(target: str, checkpoint: Checkpoint, shapes: Mapping[str, Shape], offline: bool) -> Wanted:
    """What a TARGET wants.

    Args:
        target: as the user gave it.
        checkpoint: the source, whose config a class needs; `shapes` are its tensors' by cleaned name.

    Raises:
        RemapError: LR211 for what is no TARGET; as `open_source`, `derive_config` and `wanted_parameters`.
    """
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
    ties = any(c.get("tie_word_embeddings") is True for c in (config, inner(config, "text_config"), checkpoint.config or {}))
    tied = frozenset(name for name in clean if ties and name.endswith("lm_head.weight"))
    return Wanted(other.location, clean, tied, class_name, config, _text_type(other.location, config))


def inner(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The part of a config under a key; empty where there is none."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _text_type(location: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    said = inner(config, "text_config").get("model_type")
    return (said, f"from {Path(location).name}; the source's architecture isn't known") if isinstance(said, str) else None


def knows_architecture(part: RuleFile, config: Mapping[str, Any]) -> bool:
    """Whether the shared part tells the language model's type from a source's `architectures`."""
    named = config.get("architectures")
    table = part.target_config["text_config.model_type"].map or {}
    return isinstance(named, list) and bool(named) and named[0] in table


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
    if not inner(config, "text_config") or not inner(config, "vision_config"):
        raise refuse("LR211", f"--to {location}: the config has no text_config and vision_config.", _FORMS)
    asked = wanted_parameters(named[0], config)
    return Wanted(location, asked.shapes, frozenset(asked.tied), named[0], config, _text_type(location, config))


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
            classic = _TOWER + name.removeprefix(towers[0])
            found[classic] = Tensor(classic, dtypes.get(name, "F32"), shape, None)
    found[EMBEDDING] = Tensor(EMBEDDING, dtypes.get(embeddings[0], "F32"), shapes[embeddings[0]], None)
    model_type = model_type_of(class_name)
    biased = any(name.endswith(".q_proj.bias") and not name.startswith(towers[0]) for name in shapes)
    why = "q, k and v have biases" if biased else "q, k and v have no biases; Mistral has the same tensors"
    text_type = ("qwen2" if biased else "llama", f"{why}, and the source's architecture isn't known")
    constants = {"model_type": (model_type, "")}
    if not knows_architecture(load_rule_file(shipped_folder() / CONFIG), checkpoint.config):
        constants["text_config.model_type"] = text_type
    frame = Frame("draft", "draft", "", (*CLEAN, CONFIG), (), None, (), class_name, constants)
    rules = loaded(rule_file(frame, infer({}, {})))
    tokens = place_tokens(rules.text.tokens, None, embedding_rows(found), checkpoint.config or {})
    try:
        configs = [checkpoint.config, {"vision_config": shapes_config(_TOWER, found)}]
        asked = wanted_parameters(class_name, derive_config(rules, configs, found, tokens).config)
    except RemapError as error:  # what helps `apply`, another source, is nothing that can be given here
        fix = f"Give another TARGET. {_FORMS}"
        raise RemapError([replace(problem, fix=fix) for problem in error.problems]) from error
    return Wanted(class_name, asked.shapes, frozenset(asked.tied), class_name, {"model_type": model_type}, text_type)


def model_type_of(class_name: str) -> str:
    """The `model_type` of a class of the installed transformers."""
    import transformers

    model_class: Any = getattr(transformers, class_name, None)
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:
        raise refuse("LR211", f"--to {class_name}: transformers {transformers.__version__} has no such model class.", _FORMS)
    return str(config_class.model_type)


def loaded(text: str) -> RuleFile:
    """The rule file of this text.

    Raises:
        RemapError: as `load_rule_file`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draft.yaml"
        path.write_text(text, encoding="utf-8")
        return load_rule_file(path)


def cleaned(shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], int]:
    """The names without wrappers and stored buffers, and how many were dropped."""
    programs = [compile_rules(load_rule_file(shipped_folder() / part)) for part in CLEAN]
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
