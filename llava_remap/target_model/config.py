"""The target's config: text sizes from the source's config, the tower from its tensors, the rest
as the rule file says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import FLOATS, TORCH_DTYPES
from llava_remap.core.problem import ConfigError, Problem, RemapError, refuse
from llava_remap.rulefile import ConfigValue, PixelProcessor, Processor, RuleFile
from llava_remap.target_model.pinpoints import grid_pinpoints
from llava_remap.target_model.presets import TOWER_DEFAULTS
from llava_remap.target_model.text_model import IDLE, OLD_ROPE, TextModel, read_text_model
from llava_remap.target_model.tower import Tower, read_tower
from llava_remap.target_model.vocabulary import PlacedToken

#: What most language models call their table of token embeddings.
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
#: Where a rule file says which kind of language model it is for, if it does.
TEXT_KIND = "text_config.model_type"
#: Kinds of projectors whose computation is known.
_PROJECTORS = ("linear", "mlp2x_gelu")
#: There is none where the projector is one linear layer.
_SECOND_LAYER = "multi_modal_projector.linear_2.weight"

_RULE = "Mend the rule file there."
_MEND = "Mend the source's config.json."
_GIVE = "Give the language model's config and tokenizer: --source language_model=DIR."
#: A token that may part the turns of a conversation, and how many of them a message shows.
_TURN, _SHOWN_WORDS = re.compile(r"</?s>|<\|[^|<>\s]+\|>|<(start|end)_of_turn>|\[/?INST\]"), 8


def embedding_rows(tensors: Mapping[str, Tensor], embedding: str = EMBEDDING) -> int:
    """Rows of the table of token embeddings; 0 without one. `embedding`: its classic name."""
    return tensors[embedding].shape[0] if embedding in tensors and tensors[embedding].shape else 0


@dataclass(frozen=True, slots=True)
class ChosenTemplate:
    """The chat template that a rule file has for a model.

    Attributes:
        name: its name in the rule file.
        because: what held for it to be taken: its `when`; empty for the one that is for every
            tokenizer.
        text: Jinja, with the values of its variables in front.
        system: the system prompt of the training, or None.
        always: whether that begins every conversation that has no system message.
    """

    name: str
    because: Mapping[str, Any]
    text: str
    system: str | None
    always: bool

    def to_json(self) -> dict[str, Any]:
        """As the plan tells it, without the text."""
        used = "always" if self.always else "on request"
        return {
            "name": self.name,
            "because": dict(self.because),
            "system_prompt": self.system,
            "system_prompt_used": used,
        }


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """Derived, before anything was built from it.

    Attributes:
        config: the whole `config.json` of the output, in both generations of keys.
        processor: what the processor is made with.
        image_processor, video_processor: what they have beside what the tower's own image processor
            says, the name of their class included; None there stands for a key that is left out.
        chat_template: the one for this model; None where the rule file has none, or no source has a
            tokenizer.
        tower: the vision tower.
        notes: where configs were not believed.
        text: the language model, with what the rule file itself says of it; None where the source's
            own config is taken.
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
        """The same with an embedding of another number of rows."""
        return replace(
            self,
            config={
                **self.config,
                "text_config": {**self.config["text_config"], "vocab_size": rows},
            },
        )

    def with_tie(self, tied: bool) -> TargetConfig:
        """The same with head and embedding tied or not: 4.x asks the language model's part, 5.x
        the whole.
        """
        said = {"tie_word_embeddings": tied}
        return replace(
            self,
            config={**self.config, **said, "text_config": {**self.config["text_config"], **said}},
        )

    def with_dtype(self, dtype: str) -> TargetConfig:
        """The same for weights that are all of one dtype."""
        said = {"torch_dtype": TORCH_DTYPES[dtype], "dtype": TORCH_DTYPES[dtype]}
        return replace(
            self,
            config={**self.config, **said, "text_config": {**self.config["text_config"], **said}},
        )


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
        tensors: what the sources hold for the target, by classic name.
        tokens: the rule file's tokens with their ids.
        text: the language model, as `text_model_of` found it.
        words: those of the source's tokenizer; None without one, and then no chat template is
            chosen.
        tower_apart: whether the tower comes from another source than the language model.
        head_is_embedding: whether a source stores `lm_head` and `embed_tokens` as one tensor; then
            they are tied.

    Raises:
        RemapError: LR112 where neither configs nor tensors say what is needed; LR302 without a
            tower.
    """
    text_source = said_of_text(configs)
    own = next(iter(own_vision_configs(configs)), None)
    prefix, name = next(iter(rules.target.towers.items()))
    named = _Values(text_source, {}, tokens, words or (), {}).of(f"target.towers.{prefix}", name)
    tower = read_tower(
        prefix, tensors, own, named if isinstance(named, str) else None, apart=tower_apart
    )
    if len(rules.target.towers) > 1:
        _hold_towers_together(rules, configs, tower)
    rows = embedding_rows(tensors, text.embedding) or text_source.get("vocab_size")
    tied = bool(text.config["tie_word_embeddings"])
    notes = [*tower.notes, *_projector_notes(text_source, tensors)]
    if head_is_embedding and not tied:
        tied = True
        notes.append(
            Problem(
                "LR506",
                "the checkpoint stores lm_head and embed_tokens as one tensor, its config doesn't "
                "tie them.",
                "The tensors are believed: the new config says tie_word_embeddings: true.",
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
            "vocab_size": rows,
            "tie_word_embeddings": tied,
            "torch_dtype": dtype,
            "dtype": dtype,
        },
        "vision_config": dict(tower.config),
    }
    values = _Values(text_source, tower.facts, tokens, words or (), config)
    for key, value in rules.target.config.items():
        with rules.placed("target", "config", key):
            _put(config, key, values.of(f"target.config.{key}", value))
    own_values = {
        key.split(".")[1]
        for key in rules.target.config
        if key.startswith("text_config.") and key != TEXT_KIND
    }
    if over := {
        key: config["text_config"][key] for key in own_values if key in config["text_config"]
    }:
        first = next(
            key
            for key in rules.target.config
            if key.startswith("text_config.") and key != TEXT_KIND
        )
        with rules.placed("target", "config", first):
            try:
                text = text_model_of(rules, configs, over)
            except RemapError as error:  # without these values there was nothing wrong
                raise refuse(
                    "LR201", f"with {_listed(over)}, {error.problems[0].placed_cause}", _RULE
                ) from error
        config["text_config"] |= {
            key: value for key, value in text.config.items() if key != "tie_word_embeddings"
        }
    _check_feature_layer(config.get("vision_feature_layer"), tower)
    if "pad_token_id" in config:
        config["text_config"]["pad_token_id"] = config["pad_token_id"]
    made = rules.text.processor or Processor()
    processor = {
        key: values.of(f"processor.config.{key}", value) for key, value in made.config.items()
    }
    images, videos = (
        _pixel_processor(values, f"processor.{kind}_processor", f"{kind}_processor_type", part)
        for kind, part in (("image", made.image_processor), ("video", made.video_processor))
    )
    template = _chat_template(values, rules, made) if words is not None else None
    return TargetConfig(config, processor, images, videos, template, tower, tuple(notes), text)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`text_config.{key}`: {value!r}" for key, value in values.items())


def _pixel_processor(
    values: _Values, where: str, class_key: str, part: PixelProcessor | None
) -> dict[str, Any]:
    if part is None or not values.hold(f"{where}.when", part.when):
        return {}
    return {class_key: part.class_} | {
        key: values.of(f"{where}.config.{key}", value) for key, value in part.config.items()
    }


def _chat_template(values: _Values, rules: RuleFile, made: Processor) -> ChosenTemplate | None:
    """The one template for every tokenizer, or the first whose `when` holds.

    Raises:
        RemapError: LR413 where the rule file has templates, and none is for this tokenizer.
    """
    if made.chat_template is not None:
        return ChosenTemplate("chat_template", {}, made.chat_template, None, False)
    always = made.system_prompt == "always"
    for name, template in made.chat_templates.items():
        with rules.placed("processor", "chat_templates", name, "when"):
            holds = values.hold(f"processor.chat_templates.{name}.when", template.when)
        if holds:
            own = {
                key: values.of(f"processor.chat_values.{key}", value)
                for key, value in made.chat_values.items()
            }
            own |= template.values
            # JSON's literals are Jinja's, too.
            sets = "".join(
                f"{{%- set {key} = {json.dumps(value, ensure_ascii=False)} -%}}\n"
                for key, value in own.items()
            )
            if always and template.system:
                said = json.dumps(template.system, ensure_ascii=False)
                sets += (
                    "{%- set system_prompt = system_prompt if system_prompt is defined else "
                    f"{said} -%}}\n"
                )
            return ChosenTemplate(
                name,
                template.when,
                sets + template.text,
                template.system,
                always and bool(template.system),
            )
    if not made.chat_templates:
        return None
    wanted = "; ".join(
        f"{name} is for {' and '.join(f'{key}: {value}' for key, value in template.when.items())}"
        for name, template in made.chat_templates.items()
    )
    turns = [word for word in sorted(values.words) if _TURN.fullmatch(word)][:_SHOWN_WORDS]
    raise refuse(
        "LR413",
        f"none of the chat templates of {rules.name} is for this tokenizer ({wanted}). Of tokens "
        "that may part turns it has "
        f"{', '.join(turns) or 'none'}.",
        "Write the template that the model was trained with, as text, into a rule file that has "
        f"`extends: [{rules.name}.yaml]`: "
        "`processor: {chat_template: …}`. docs/research-code.md shows how.",
    )


@dataclass(frozen=True, slots=True)
class _Values:
    """Looks up the values that a rule file asks for. `target` is the config that is being made:
    what stands before is in it.
    """

    source: Mapping[str, Any]
    facts: Mapping[str, Any]
    tokens: Sequence[PlacedToken]
    words: Collection[str]
    target: Mapping[str, Any]

    def of(self, where: str, value: ConfigValue) -> Any:
        if value.cases:
            for case in value.cases:
                if self.hold(where, case.when):
                    return self.of(where, case)
            raise ConfigError.of(
                "LR112", f"no case of `{where}` holds for this tower ({dict(self.facts)})."
            )
        if value.tower is not None:
            fact = self._fact(where, value.tower)
            return fact if value.times == 1 else int(fact * value.times)
        if value.token is not None:
            found = next((token.id for token in self.tokens if token.role == value.token), None)
            if found is None and value.token != "pad":
                raise refuse(
                    "LR201",
                    f"`{where}` is the id of the {value.token} token, and `tokens` has none with "
                    "this role.",
                    _RULE,
                )
            return self.source.get("pad_token_id") if found is None else found
        if value.target is not None:
            return self.target.get(value.target)
        const = list(value.const) if isinstance(value.const, tuple) else value.const
        given = const if value.from_ is None else self._from(where, value.from_, value)
        return (
            given
            if value.as_ is None
            else grid_pinpoints(where, given, int(self._fact(where, "image_size")))
        )

    def hold(self, where: str, when: Mapping[str, Any]) -> bool:
        """Whether all of a `when` holds."""
        return all(self._holds(where, key, wanted) for key, wanted in when.items())

    def _holds(self, where: str, key: str, wanted: Any) -> bool:
        if key == "token":
            return wanted in self.words
        if key.startswith("source."):
            return bool(self.source.get(key.removeprefix("source.")) == wanted)
        found: Any = self.target
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return bool(self._fact(where, key) == wanted)
            found = found[part]
        return bool(found == wanted)

    def _from(self, where: str, key: str, value: ConfigValue) -> Any:
        found = self.source.get(key)
        if isinstance(found, list) and value.map is not None:
            found = found[0] if found else None
        if isinstance(found, (list, dict)) and value.as_ is None:
            kind = "list" if isinstance(found, list) else "mapping"
            raise ConfigError.of(
                "LR112",
                f"the source's config has a {kind} for `{key}`; `{where}` is one value.",
                "Give one value.",
            )
        if found is None:
            if "default" in value.model_fields_set:
                return value.default
            raise ConfigError.of(
                "LR112",
                f"`{where}` is read from `{key}`, which the source's config doesn't have.",
                "Add it to the source's config.json.",
            )
        if value.map is None:
            return found
        if found not in value.map:
            raise ConfigError.of(
                "LR112",
                f"the source's config says {key}: {found!r}; `{where}` knows "
                f"{', '.join(value.map)}.",
                f"Add it to the `map` of `{where}` in a rule file that extends this one.",
            )
        return value.map[found]

    def _fact(self, where: str, fact: str) -> Any:
        if fact not in self.facts:
            known = ", ".join(self.facts)
            raise refuse(
                "LR201",
                f"`{where}` asks for `{fact}`, which is no fact of the tower ({known}).",
                _RULE,
            )
        return self.facts[fact]


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    """Put a value, unless it is None, under a key with dots for nested ones."""
    place: Any = config
    *parents, last = key.split(".")
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict) or isinstance(place.get(last), dict):
        raise refuse(
            "LR201",
            f"`target.config.{key}`: a value and a group of values can't have one name.",
            _RULE,
        )
    if value is not None:
        place[last] = value


def _check_feature_layer(layers: Any, tower: Tower) -> None:
    """The layers that features are taken from have to be there; 0, the embeddings alone, no
    version of transformers takes.
    """
    count = int(tower.facts["num_hidden_layers"])
    for layer in layers if isinstance(layers, list) else [layers]:
        if layer is not None and (
            not isinstance(layer, int) or layer == 0 or not -count - 1 <= layer <= count
        ):
            raise ConfigError.of(
                "LR112",
                f"`vision_feature_layer` is {layer!r}, and the tower has {count} layers.",
                _MEND,
            )


def text_config(configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of the sources' configs the one that describes the language model: the first that has sizes
    and isn't a tower's.

    What stands in a `text_config` of its own is put on top of what stands around it: rules ask for
    the one and the other.
    """
    found = _describing(configs)
    if found is None or not isinstance(inner := found.get("text_config"), Mapping):
        return found
    return {**_around(found), **inner}


def _describing(configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The config that describes the language model, as it is."""
    for config in configs:
        if isinstance(config.get("text_config"), Mapping):
            if not _is_tower(config):
                return config
        elif "vocab_size" in config or ("hidden_size" in config and _vision_config(config) is None):
            return config
    return None


def _around(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in config.items() if key not in ("text_config", "vision_config")
    }


def said_of_text(configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """`text_config`, which has to be there.

    Raises:
        RemapError: LR112 where no config describes the language model.
    """
    if (found := text_config(configs)) is None:
        raise ConfigError.of(
            "LR112", "no source has a config.json that describes the language model.", _GIVE
        )
    return found


def text_model_of(
    rules: RuleFile, configs: Sequence[Mapping[str, Any]], over: Mapping[str, Any] | None = None
) -> TextModel:
    """The language model, as its class in transformers has what the sources' configs say of it.

    Args:
        over: values of the rule file's own, which count more.

    Raises:
        RemapError: as `read_text_model`; LR112 where no config describes it.
    """
    merged, target = said_of_text(configs), rules.target
    value = target.config.get(TEXT_KIND)
    said = (
        _Values(merged, {}, (), (), {}).of(f"target.config.{TEXT_KIND}", value)
        if value is not None
        else None
    )
    inner = (_describing(configs) or {}).get("text_config")
    around = None
    if isinstance(inner, Mapping) and (inner.get("model_type") or inner.get("architectures")):
        merged, around = inner, _around(_describing(configs) or {})
    if over:
        merged = _laid_over(merged, over)
        around = (
            None
            if around is None
            else {key: value for key, value in around.items() if key not in over}
        )
    with (
        rules.placed("target", "config", TEXT_KIND)
        if value is not None
        else rules.placed("target", "text_models")
    ):
        return read_text_model(merged, str(target.class_), target.text_models, said, around)


def _laid_over(source: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values. Of rope, which has two spellings, the one that isn't written
    gives way.
    """
    gone: set[str] = set()
    if "rope_parameters" in over:
        gone = OLD_ROPE - over.keys()
    elif not OLD_ROPE.isdisjoint(over):
        gone = {"rope_parameters"}
    return {key: value for key, value in source.items() if key not in gone} | dict(over)


def text_differences(
    rules: RuleFile, one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[str]:
    """In what two configs would have the language model's class compute differently.

    Of a key that one leaves out nothing is said, but for rope: without a word of it, it is the
    class's default.

    Raises:
        RemapError: as `text_model_of`.
    """
    first, second = text_model_of(rules, [one]).config, text_model_of(rules, [other]).config
    said = (one.keys() & other.keys()) | {"model_type", "rope_parameters"}
    return [
        f"{key} {first.get(key)!r} and {second.get(key)!r}"
        for key in first
        if key in said and first[key] != second.get(key) and not IDLE.search(key)
    ]


def _is_tower(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a two-part model (CLIP), whose text half is no language model."""
    kinds = (config.get("model_type"), config["text_config"].get("model_type"))
    return (
        f"{kinds[0]}_vision_model" in TOWER_DEFAULTS
        or str(kinds[1]).endswith("_text_model")
        or "projection_dim" in config
    )


def _vision_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The tower's config, inside that of a two-part model (CLIP) or as a checkpoint's whole
    config.
    """
    if isinstance(inner := config.get("vision_config"), Mapping):
        return inner if "hidden_size" in inner or "model_type" in inner else None
    return config if str(config.get("model_type", "")).endswith("_vision_model") else None


def own_vision_configs(configs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The towers' own configs: those of sources of their own before one inside the language
    model's.
    """
    found = [
        (isinstance(config.get("text_config"), Mapping) and not _is_tower(config), own)
        for config in configs
        if (own := _vision_config(config)) is not None
    ]
    return [own for _, own in sorted(found, key=lambda entry: entry[0])]


def _hold_towers_together(
    rules: RuleFile, configs: Sequence[Mapping[str, Any]], tower: Tower
) -> None:
    """The target's config describes one tower, so a second one has to be computed like the first.

    Raises:
        RemapError: LR309 where the own config of one says otherwise.
    """
    if differing := next(
        (found for own in own_vision_configs(configs)[1:] if (found := tower.unlike(own))), None
    ):
        raise ConfigError.of(
            "LR309",
            f"two towers are not computed alike, and {rules.target.class_} has one config for "
            f"both: {', '.join(differing)}.",
            "Give the towers that the checkpoint was trained with, each with its own config.json.",
        )


def _projector_notes(source: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Problem]:
    kind, words = (
        ("mlp2x_gelu", "a two-layer MLP")
        if _SECOND_LAYER in tensors
        else ("linear", "one linear layer")
    )
    said = source.get("mm_projector_type")
    if said in (kind, None):
        return []
    if said not in _PROJECTORS:
        known = ", ".join(_PROJECTORS)
        raise ConfigError.of(
            "LR112",
            f"the config says mm_projector_type: {said!r}, and tensors don't show an "
            f"activation; known are {known}.",
            "If it is one of these, say so in the source's config.json; transformers has no other.",
        )
    return [
        Problem(
            "LR308",
            f"the config says mm_projector_type: {said}, the tensors are {words}.",
            "The tensors are believed.",
        )
    ]
