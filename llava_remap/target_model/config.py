"""Derives the target's config: text sizes from the source's config, the tower from its tensors, and
all else from the rule file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import FLOATS, TORCH_DTYPES
from llava_remap.core.problem import ConfigError, Problem, RemapError, refuse
from llava_remap.rulefile import PixelProcessor, Processor, RuleFile
from llava_remap.target_model.assumed import assumed_note
from llava_remap.target_model.config_parts import (
    TEXT_KIND,
    TOWER_KIND,
    own_vision_configs,
    require_text_config,
    text_model_of,
)
from llava_remap.target_model.text_model import TextModel
from llava_remap.target_model.tower import Tower, read_tower, shapes_config, told_tower
from llava_remap.target_model.values import Values, put
from llava_remap.target_model.vocabulary import PlacedToken

#: Kinds of projectors whose computation is known, by their number of matrices.
_PROJECTORS = {1: "linear", 2: "mlp2x_gelu"}

#: What keys of a tower's config begin with in a rule file.
_TOWERS = "vision_config."

_RULE = "Correct the rule file there."
_MEND = "Correct the source's config.json."
#: A token that may separate the turns of a conversation; the most such tokens in a message.
_TURN, _SHOWN_WORDS = re.compile(r"</?s>|<\|[^|<>\s]+\|>|<(start|end)_of_turn>|\[/?INST\]"), 8


def embedding_rows(tensors: Mapping[str, Tensor], embedding: str) -> int:
    """Rows of the table of token embeddings with the classic name `embedding`; 0 without it."""
    return tensors[embedding].shape[0] if embedding in tensors and tensors[embedding].shape else 0


@dataclass(frozen=True, slots=True)
class ChosenTemplate:
    """The chat template that a rule file chooses for a model.

    Attributes:
        name: its name in the rule file.
        because: its `when`, which holds; empty for a template for every tokenizer.
        text: Jinja, with the values of its variables in front.
        system: the system prompt of the training, or None.
        always: whether the system prompt begins every conversation without a system message.
    """

    name: str
    because: Mapping[str, Any]
    text: str
    system: str | None
    always: bool

    def to_json(self) -> dict[str, Any]:
        """The entry in the plan's JSON, without the text."""
        return {
            "name": self.name,
            "because": dict(self.because),
            "system_prompt": self.system,
            "system_prompt_used": "always" if self.always else "on request",
        }


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """The configs of the output, before a class is built from them.

    Attributes:
        config: the whole `config.json` of the output, with the keys of 4.x and of 5.x.
        processor: the processor's own config.
        image_processor, video_processor: values that replace or complete those of the tower's own
            image processor, including the name of the class; None removes a key.
        chat_template: the template for this model; None if the rule file has none, or if no source
            has a tokenizer.
        tower: the vision tower.
        notes: the configs that the tensors contradict.
        text: the language model, with the rule file's own values; None if the source's own config
            is used.
    """

    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    image_processor: Mapping[str, Any]
    video_processor: Mapping[str, Any]
    chat_template: ChosenTemplate | None
    tower: Tower
    notes: tuple[Problem, ...]
    text: TextModel | None = None

    def with_vocab_size(self, rows: int) -> TargetConfig:
        """The same configs, for another number of rows in the vocabulary."""
        text = {**self.config["text_config"], "vocab_size": rows}
        return replace(self, config={**self.config, "text_config": text})

    def with_values(self, **values: Any) -> TargetConfig:
        """The same configs with other values, both at the top and in `text_config`: transformers
        5.x reads them at the top, 4.x reads some in `text_config`.
        """
        text = {**self.config["text_config"], **values}
        return replace(self, config={**self.config, **values, "text_config": text})

    def with_dtype(self, dtype: str) -> TargetConfig:
        """The same configs, for weights of a single dtype."""
        return self.with_values(torch_dtype=TORCH_DTYPES[dtype], dtype=TORCH_DTYPES[dtype])


def derive_config(
    rules: RuleFile,
    configs: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    tokens: Sequence[PlacedToken],
    text: TextModel,
    *,
    words: Collection[str] | None = None,
    tower_apart: bool = False,
    head_is_embedding: bool = False,
) -> TargetConfig:
    """Work out the config of the target.

    Args:
        rules: the rule file.
        configs: the sources' own configs, in the order of the rule file's sources.
        tensors: the sources' tensors by their new classic names.
        tokens: the rule file's tokens with their ids.
        text: the language model that `text_model_of` found.
        words: the words of the source's tokenizer. None without a tokenizer: no chat template is
            chosen then.
        tower_apart: whether the tower comes from another source than the language model.
        head_is_embedding: whether a source stores `lm_head` and `embed_tokens` as one tensor, so
            that they are tied.

    Raises:
        RemapError: LR112 if a necessary value is in neither configs nor tensors; LR302 without a
            tower.
    """
    text_source = require_text_config(configs)
    prefix, name = next(iter(rules.target.towers.items()))
    named = Values(text_source, {}, tokens, words or (), {}).of(f"target.towers.{prefix}", name)
    own = next(iter(own_vision_configs(configs)), None)
    source = {**text_source, "vision_config": own}
    if TOWER_KIND in rules.target.config:
        tower = told_tower(_said_of_tower(rules, source, {}), apart=tower_apart)
    else:
        tower = read_tower(
            prefix,
            tensors,
            own,
            named if isinstance(named, str) else None,
            apart=tower_apart,
            said=_said_of_tower(rules, source, shapes_config(prefix, tensors)),
        )
    if len(rules.target.towers) > 1:
        _hold_towers_together(rules, configs, tower)
    tied = bool(text.config["tie_word_embeddings"])
    kind = _PROJECTORS.get(_matrices(rules.target.projector, tensors))
    notes = [*tower.notes, *_projector_notes(text_source, kind)]
    if head_is_embedding and not tied:
        tied = True
        notes.append(
            Problem(
                "LR506",
                "the checkpoint stores lm_head and embed_tokens as one tensor, but its config "
                "doesn't tie them.",
                "The tensors count: the new config says tie_word_embeddings: true.",
            )
        )
    table = tensors.get(text.embedding)
    dtype = TORCH_DTYPES[table.dtype] if table is not None and table.dtype in FLOATS else "float32"
    config: dict[str, Any] = {
        "architectures": [rules.target.class_],
        "torch_dtype": dtype,
        "dtype": dtype,
        "tie_word_embeddings": tied,
        "text_config": {
            **text.config,
            "vocab_size": embedding_rows(tensors, text.embedding) or text_source.get("vocab_size"),
            "tie_word_embeddings": tied,
            "torch_dtype": dtype,
            "dtype": dtype,
        },
        "vision_config": dict(tower.config),
    }
    values = Values(source, tower.facts, tokens, words or (), config)
    for key, value in rules.target.config.items():
        with rules.placed("target", "config", key):
            put(config, key, values.of(f"target.config.{key}", value))
    own_keys = [
        key for key in rules.target.config if key.startswith("text_config.") and key != TEXT_KIND
    ]
    if over := {
        key: config["text_config"][key]
        for key in (key.split(".")[1] for key in own_keys)
        if key in config["text_config"]
    }:
        with rules.placed("target", "config", own_keys[0]):
            try:
                text = text_model_of(rules, configs, over)
            except RemapError as error:  # without these values, there was no error
                said = ", ".join(f"`text_config.{key}`: {value!r}" for key, value in over.items())
                raise refuse(
                    "LR201", f"with {said}, {error.problems[0].placed_cause}", _RULE
                ) from error
        config["text_config"] |= {
            key: value for key, value in text.config.items() if key != "tie_word_embeddings"
        }
    _check_feature_layer(config.get("vision_feature_layer"), tower)
    if "pad_token_id" in config:
        config["text_config"]["pad_token_id"] = config["pad_token_id"]
    shown = {"mm_projector_type": kind} if kind == _PROJECTORS[2] else {}
    notes += assumed_note(rules, values, shown)
    made = rules.text.processor or Processor()
    return TargetConfig(
        config,
        values.of_all("processor.config", made.config),
        _pixel_processor(values, "image_processor", made.image_processor),
        _pixel_processor(values, "video_processor", made.video_processor),
        _chat_template(values, rules, made) if words is not None else None,
        tower,
        tuple(notes),
        text,
    )


def _said_of_tower(
    rules: RuleFile, source: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of the tower, as far as the rule file has it.

    Args:
        sizes: those that the tower's tensors show.
    """
    found: dict[str, Any] = {}
    values = Values(source, sizes, (), (), found)
    for key, value in rules.target.config.items():
        if key.startswith(_TOWERS):
            with rules.placed("target", "config", key):
                put(found, key.removeprefix(_TOWERS), values.of(f"target.config.{key}", value))
    return found


def _pixel_processor(values: Values, kind: str, part: PixelProcessor | None) -> dict[str, Any]:
    if part is None or not values.hold(f"processor.{kind}.when", part.when):
        return {}
    made: dict[str, Any] = {f"{kind}_type": part.class_}
    for key, value in values.of_all(f"processor.{kind}.config", part.config).items():
        if "." in key:
            put(made, key, value)
        else:
            made[key] = value
    return {key: value for key, value in made.items() if value != {}}


def _chat_template(values: Values, rules: RuleFile, made: Processor) -> ChosenTemplate | None:
    """The template for every tokenizer, or else the first template whose `when` holds.

    Raises:
        RemapError: LR413 if the rule file has templates, but none for this tokenizer.
    """
    if made.chat_template is not None:
        return ChosenTemplate("chat_template", {}, made.chat_template, None, False)
    if not made.chat_templates:
        return None
    for name, template in made.chat_templates.items():
        with rules.placed("processor", "chat_templates", name, "when"):
            holds = values.hold(f"processor.chat_templates.{name}.when", template.when)
        if holds:
            own = values.of_all("processor.chat_values", made.chat_values) | template.values
            # JSON's literals are Jinja's, too.
            sets = [(key, json.dumps(value, ensure_ascii=False)) for key, value in own.items()]
            always = made.system_prompt == "always" and bool(template.system)
            if always:
                default = json.dumps(template.system, ensure_ascii=False)
                sets.append(
                    ("system_prompt", f"system_prompt if system_prompt is defined else {default}")
                )
            lines = "".join(f"{{%- set {key} = {value} -%}}\n" for key, value in sets)
            return ChosenTemplate(
                name, template.when, lines + template.text, template.system, always
            )
    wanted = "; ".join(
        f"{name} is for {' and '.join(f'{key}: {value}' for key, value in template.when.items())}"
        for name, template in made.chat_templates.items()
    )
    turns = [word for word in sorted(values.words) if _TURN.fullmatch(word)][:_SHOWN_WORDS]
    raise refuse(
        "LR413",
        f"none of the chat templates of {rules.name} is for this tokenizer ({wanted}). The "
        f"tokenizer's tokens that may separate turns: {', '.join(turns) or 'none'}.",
        "Write the template that the model was trained with, as text, into a rule file that has "
        f"`extends: [{rules.name}.yaml]`: "
        "`processor: {chat_template: …}`. docs/research-code.md shows how.",
    )


def _check_feature_layer(layers: Any, tower: Tower) -> None:
    """LR112 for layers of features that the tower doesn't have. Also for 0, the embeddings alone,
    which no version of transformers accepts.
    """
    if "num_hidden_layers" not in tower.facts:
        return
    count = int(tower.facts["num_hidden_layers"])
    for layer in layers if isinstance(layers, list) else [layers]:
        if layer is not None and (
            not isinstance(layer, int) or layer == 0 or not -count - 1 <= layer <= count
        ):
            raise ConfigError.of(
                "LR112",
                f"`vision_feature_layer` is {layer!r}, but the tower has {count} layers.",
                _MEND,
            )


def _hold_towers_together(
    rules: RuleFile, configs: Sequence[Mapping[str, Any]], tower: Tower
) -> None:
    """Check that all towers are computed alike, since the target's config describes only one.

    Raises:
        RemapError: LR309 if a tower's own config says otherwise.
    """
    if differing := next(
        (found for own in own_vision_configs(configs)[1:] if (found := tower.unlike(own))), None
    ):
        raise ConfigError.of(
            "LR309",
            f"the two towers compute differently, but {rules.target.class_} has one config for "
            f"both: {', '.join(differing)}.",
            "Give the towers that the checkpoint was trained with, each with its own config.json.",
        )


def _matrices(prefix: str, tensors: Mapping[str, Tensor]) -> int:
    """The number of linear layers below a prefix."""
    return sum(name.startswith(prefix) and len(t.shape) == 2 for name, t in tensors.items())


def _projector_notes(source: Mapping[str, Any], kind: str | None) -> Iterator[Problem]:
    """LR308 if the projector's tensors are of another kind than the config says.

    Args:
        kind: the kind that the tensors show; None if they show none.

    Raises:
        RemapError: LR112 for a kind whose computation isn't known.
    """
    words = {"linear": "one linear layer", "mlp2x_gelu": "a two-layer MLP"}
    said = source.get("mm_projector_type")
    if said not in (*_PROJECTORS.values(), None):
        raise ConfigError.of(
            "LR112",
            f"the config says mm_projector_type: {said!r}, and tensors don't show the activation. "
            f"Known types are {', '.join(_PROJECTORS.values())}.",
            "If the projector is of one of these types, write that type into the source's "
            "config.json. transformers has no other projector.",
        )
    if kind is not None and said not in (kind, None):
        yield Problem(
            "LR308",
            f"the config says mm_projector_type: {said}; the tensors are {words[kind]}.",
            "The tensors count.",
        )
