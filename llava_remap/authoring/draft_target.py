"""The target of an inference: names and shapes of a class, a config.json, a manifest or a converted
checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from llava_remap.authoring.draft_sources import CLEAN, Given, cleaned, unknown_shapes
from llava_remap.authoring.name_set import open_names
from llava_remap.checkpoint import Tensor, has_file, read_object
from llava_remap.core.problem import ConfigError, RemapError, refuse
from llava_remap.folder.scratch import scratch_folder
from llava_remap.rewrite import compile_rules
from llava_remap.rewrite.infer import Shape, infer
from llava_remap.rewrite.infer.text import Frame, rule_file
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_class_part, shipped_folder
from llava_remap.source.sources import is_there
from llava_remap.target_model import (
    TEXT_KIND,
    TextModel,
    derive_config,
    embedding_rows,
    keys_without_use,
    place_tokens,
    require_text_config,
    shapes_config,
    text_model_of,
    wanted_parameters,
)

#: The shared parts that an inferred file extends. They have everything that LLaVA families have in
#: common, except names.
CONFIG = "parts/llava-config.yaml"
LOOK_ALIKES = "parts/look-alikes.yaml"
#: The part that pads pictures if the config asks for padding, by class.
PADS = {
    "LlavaForConditionalGeneration": "parts/pad.yaml",
    "VipLlavaForConditionalGeneration": "parts/pad-named.yaml",
}
#: The part with a notice for models that were trained on tiles, for classes without tiles.
ONE_SQUARE = "parts/one-square.yaml"
#: Shapes of a very small model that show its tower's sizes and the rows of its vocabulary, by the
#: end of the name.
_SMALL: Mapping[str, Shape] = {
    "embeddings.patch_embedding.weight": (8, 3, 2, 2),
    "embeddings.position_embedding.weight": (5, 8),
    ".mlp.fc1.weight": (8, 8),
    "embed_tokens.weight": (8, 8),
}
#: The end of a name that every tower has.
_TOWER_MARK = "embeddings.patch_embedding.weight"
#: The prefix under which the shapes of a tower are read.
_TOWER = "vision_tower.vision_model."
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
_FORMS = (
    "TARGET is a class of transformers (if SRC has a config.json), a config.json that names a "
    "class in `architectures`, a manifest, or a converted checkpoint."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parameters that are wanted.

    Attributes:
        location: where the parameters were read from, in words.
        shapes: name → shape; names are in the classic layout if the target's layout is known.
        tied: names that need no source.
        class_name, config: the target's class and config, if they are known.
        text_model: the language model's `model_type`, if the source's config gives it.
        unsaid: why the `model_type` is unknown, in words; empty if it is known.
    """

    location: str
    shapes: Mapping[str, Shape]
    tied: frozenset[str]
    class_name: str | None
    config: Mapping[str, Any]
    text_model: str = ""
    unsaid: str = ""


def read_wanted(target: str, given: Given, offline: bool) -> Wanted:
    """The parameters of a TARGET.

    Args:
        target: as the user gave it.
        given: the sources; their configs are needed for a class.

    Raises:
        RemapError: LR211 for an argument that is no TARGET; as `open_source`, `derive_config` and
            `wanted_parameters`.
    """
    path = Path(target)
    if path.suffix == ".json" and has_file(path):
        content = read_object(path, "LR102", "Download or copy it again.", unique=False)
        if "format" not in content and "weight_map" not in content:
            return _of_config(target, content)
    weights = chain(path.glob("*.safetensors*"), path.glob("*.bin*"))
    if path.is_dir() and has_file(path / "config.json") and not any(weights):
        content = read_object(path / "config.json", "LR113", "Download it again.", unique=False)
        return _of_config(target, content)
    if _CLASS.fullmatch(target) and not is_there(path):
        return _of_class(target, given)
    if "/" not in target and not is_there(path):
        raise refuse("LR211", f"--to {target}: there is no such file or class.", _FORMS)
    other = open_names("target", target, ("tensors", "config"), first=True, offline=offline)
    config = other.config or {}
    named = config.get("architectures")
    class_name = str(named[0]) if isinstance(named, list) and named else None
    shapes = {name: tensor.shape for name, tensor in other.catalog.items()}
    clean, _ = cleaned(_classic(shapes))
    ties = any(
        c.get("tie_word_embeddings") is True
        for c in (config, inner(config, "text_config"), *given.configs)
    )
    tied = frozenset(name for name in clean if ties and name.endswith("lm_head.weight"))
    return Wanted(other.location, clean, tied, class_name, config)


def inner(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The section of a config under a key; empty if the config has no such section."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _classic(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """Names in the classic layout. The present layout is recognised as the layout whose rules take
    every name.
    """
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
        raise refuse(
            "LR211", f"--to {location}: the config names no class in `architectures`.", _FORMS
        )
    if not inner(config, "text_config") or not inner(config, "vision_config"):
        raise refuse(
            "LR211", f"--to {location}: the config has no text_config and vision_config.", _FORMS
        )
    asked = wanted_parameters(named[0], config)
    return Wanted(location, asked.shapes, frozenset(asked.tied), named[0], config)


def _of_class(class_name: str, given: Given) -> Wanted:
    """The parameters of a class, with a config derived from the sources' configs and the tower's
    tensors.

    Tower and embedding are found by the ends of their names, under any prefix. If only names are
    known, the shapes are stand-ins.
    """
    if not given.configs:
        raise refuse(
            "LR211",
            f"--to {class_name}: {given.location} has no config, so the target's config is "
            "unknown.",
            _FORMS,
        )
    towers = sorted(
        name.removesuffix(_TOWER_MARK) for name in given.shapes if name.endswith(_TOWER_MARK)
    )
    biased = any(
        name.endswith(".q_proj.bias") and not name.startswith(tuple(towers))
        for name in given.shapes
    )
    # If the kind is unknown, another kind with the same names stands in. Attention biases show
    # which.
    rules, text, unsaid = language_model(class_name, given.configs, "qwen2" if biased else "llama")
    if not text.embedding:
        raise refuse(
            "LR601",
            f"--to {class_name}: no language model can be built into it: {text.differs}.",
            f"Give another TARGET. {_FORMS}",
        )
    table = ".".join(text.embedding.split(".")[-2:])
    embeddings = [name for name in given.shapes if name.endswith(table)]
    if not towers or not embeddings:
        what = "vision tower" if not towers else "table of token embeddings"
        fix = (
            ("If another checkpoint has the tower, give that too: --from vision_tower=DIR. ")
            if not towers
            else ""
        )
        raise refuse(
            "LR211",
            f"--to {class_name}: no {what} is recognised in {given.location}, so the target's "
            "config can't be derived.",
            fix + _FORMS,
        )
    shapes = given.shapes
    if given.names_alone:  # shapes of a very small model
        shapes = {
            name: next((shape for end, shape in _SMALL.items() if name.endswith(end)), (8,))
            for name in shapes
        }
    tower = [name for name in shapes if name.startswith(towers[0])]
    classic = {name: _TOWER + name.removeprefix(towers[0]) for name in tower}
    found = {
        new: Tensor.of(new, given.tensors[name].dtype or "F32", shapes[name], None)
        for name, new in {**classic, embeddings[0]: text.embedding}.items()
    }
    rows = embedding_rows(found, text.embedding)
    tokens = place_tokens(rules.text.tokens, None, rows, require_text_config(given.configs))
    try:
        configs = [*given.configs, {"vision_config": shapes_config(_TOWER, found)}]
        asked = wanted_parameters(
            class_name, derive_config(rules, configs, found, tokens, text).config
        )
    except RemapError as error:  # the fix is for `apply`: here no other source can be given
        fix = f"Give another TARGET. {_FORMS}"
        raise RemapError([replace(problem, fix=fix) for problem in error.problems]) from error
    return Wanted(
        class_name,
        unknown_shapes(asked.shapes) if given.names_alone else asked.shapes,
        frozenset(asked.tied),
        class_name,
        {"model_type": model_type_of(class_name)},
        "" if unsaid else text.kind,
        unsaid,
    )


def language_model(
    class_name: str, configs: Sequence[Mapping[str, Any]], stand_in: str
) -> tuple[RuleFile, TextModel, str]:
    """The language model of the sources' configs, and the rule file without names that determined
    it.

    If the configs don't give its kind, a language model with the same names stands in, so that
    names can be compared. The returned text then says why the kind is unknown.

    Args:
        stand_in: the `model_type` of that language model.

    Raises:
        RemapError: as `text_model_of`, except for an unknown kind.
    """
    rules = bare_rules(class_name)
    try:
        return rules, text_model_of(rules, configs), ""
    except ConfigError as error:
        other = bare_rules(class_name, {TEXT_KIND: (stand_in, "")})
        try:
            return other, text_model_of(other, configs), error.problems[0].placed_cause
        except RemapError:
            raise error from None


def bare_rules(class_name: str, constants: Mapping[str, tuple[Any, str]] | None = None) -> RuleFile:
    """The rule file of a draft for a class, without `names`."""
    frame = Frame(
        "draft",
        "draft",
        "",
        extends=(*CLEAN, config_part(class_name)),
        class_name=class_name,
        config={**first_constants(class_name), **(constants or {})},
    )
    return loaded(rule_file(frame, infer({}, {})))


def config_part(class_name: str) -> str:
    """The shared part with most of a class's config and processors."""
    return shipped_class_part(model_type_of(class_name)) or CONFIG


def first_constants(class_name: str) -> dict[str, tuple[Any, str]]:
    """The config values of every draft for a class: the type, and null for each inherited key that
    the class doesn't have.
    """
    part = load_rule_file(shipped_folder() / config_part(class_name))
    lacking = keys_without_use(part, class_name)
    return {
        "model_type": (model_type_of(class_name), ""),
        **dict.fromkeys(lacking, (None, f"{class_name} has no such key")),
    }


def model_type_of(class_name: str) -> str:
    """The `model_type` of a class of the installed transformers."""
    import transformers

    model_class: Any = getattr(transformers, class_name, None)
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:
        raise refuse(
            "LR211",
            f"--to {class_name}: transformers {transformers.__version__} has no such model class.",
            _FORMS,
        )
    return str(config_class.model_type)


def cuts_tiles(class_name: str) -> bool:
    """Whether a class of the installed transformers cuts pictures into tiles, by the keys of its
    config.
    """
    import transformers

    return "image_grid_pinpoints" in {
        field.name for field in fields(getattr(transformers, class_name).config_class)
    }


def loaded(text: str) -> RuleFile:
    """The rule file of this text.

    Raises:
        RemapError: as `load_rule_file`.
    """
    with scratch_folder() as scratch:
        path = scratch / "draft.yaml"
        path.write_text(text, encoding="utf-8")
        return load_rule_file(path)
