"""Checks that the target's class computes the same logits as the language model's own class.

A class for text and pictures has the same language model inside, but puts a plain matrix on top of
it, and gives it embeddings in place of ids. Anything else in the language model's own class (a bias
of the head, a soft cap, a scale of logits, tables that are read by id) would be lost silently. So
both classes are run here, at their real widths and with made-up numbers. The layers are the same
modules in both. They aren't run; only their inputs are compared. So the comparison takes little
memory.

This module imports torch and transformers, so it is imported only to compare classes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import transformers

from llava_remap.core.problem import ConfigError
from llava_remap.target_model.wanted import names_on_disk, places

#: Rows of the vocabulary and ids for running both classes.
_ROWS, _IDS = 64, (5, 9, 3, 3, 40, 7, 63)
#: The most numbers outside the layers. A model with more (tables for every layer) isn't run.
_MOST = 300_000_000
#: The table that the classes for text and pictures tie their head to.
_TABLE = "embed_tokens.weight"
#: A tower that is not run.
_TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1, "image_size": 28, "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """A language model's own class, compared with the class that it becomes a part of.

    Attributes:
        embedding, head: classic names of the table of token embeddings and of the matrix that
            turns hidden states into logits; empty if no model can be built.
        differs: why the two compute different logits, in words; empty if they compute the same.
        renamed: which versions of transformers look for the language model under other names, in
            words; empty for none.
        norms_about_one: whether its norms multiply by their weights, which are then about 1, and
            not by 1 + the weights.
    """

    embedding: str
    head: str
    differs: str
    renamed: str = ""
    norms_about_one: bool = True


def compare_classes(config: Any, target_class: str) -> Compared:
    """Compare a language model's own class with the class that it becomes a part of.

    Args:
        config: the language model's config.
        target_class: name of the class for text and pictures.

    Raises:
        RemapError: LR112 if the language model's own class can't be built from the config.
    """
    config = deepcopy(config)
    config.vocab_size = _ROWS
    config.pad_token_id = None if getattr(config, "pad_token_id", None) is None else 0
    kind = getattr(transformers, target_class)
    found = Compared("", "", "")
    try:
        with torch.device("meta"):
            own = transformers.AutoModelForCausalLM.from_config(
                deepcopy(config), dtype=torch.float32
            ).eval()
    except Exception as error:  # whatever the class raises: the config is the user's
        raise ConfigError.of(
            "LR112",
            "transformers can't build the language model that the config describes "
            f"({_describe(error)}).",
            "Correct the source's config.json.",
        ) from error
    try:
        with torch.device("meta"):
            table, renamed = own.get_input_embeddings().weight, ""
            embedding = next(
                name
                for name, value in own.base_model.named_parameters(remove_duplicate=False)
                if value is table
            )
            if getattr(config, "tie_word_embeddings", False) and embedding != _TABLE:
                return Compared(
                    "",
                    "",
                    f"it ties its head to `{embedding}`, and {target_class} can tie it to "
                    f"`{_TABLE}` alone",
                )
            head = next(
                name
                for name, module in own.named_modules()
                if module is own.get_output_embeddings()
            )
            if (own.base_model_prefix, head) != ("model", "lm_head"):
                renamed = (
                    "versions of transformers before 4.52 look for it under "
                    f"`{own.base_model_prefix}.` and `{head}.`: use 4.52 or later"
                )
            found = Compared("", "", "", renamed, _norms_multiply(own))
            whole = kind(
                kind.config_class(
                    text_config=config,
                    vision_config=dict(_TOWER),
                    image_token_id=_ROWS - 2,
                    tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
                )
            ).eval()
            place = places(whole, names_on_disk(whole))
        return replace(
            found,
            embedding=place["embedding"],
            head=place["head"],
            differs=_compare(own, whole),
        )
    except Exception as error:  # the class may never have been meant as a part of another one
        return replace(
            found,
            differs=f"no test can show whether {target_class} computes the same "
            f"({_describe(error)})",
        )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')[:200]}"


def _norms_multiply(model: Any) -> bool:
    """Whether every kind of norm in a model gives zeros if its weights are zeros. A norm that adds
    one to its weights doesn't.
    """
    norms = {
        type(module): module
        for module in model.base_model.modules()
        if "Norm" in type(module).__name__
    }
    for norm in map(deepcopy, norms.values()):
        if (weight := getattr(norm, "weight", None)) is None:
            continue
        norm.to_empty(device="cpu")
        for parameter in norm.parameters():
            parameter.data.zero_()
        with (
            contextlib.suppress(Exception),
            torch.device("cpu"),
            torch.no_grad(),
        ):  # a norm with a gate needs more than one tensor
            if norm(torch.arange(1.0, weight.numel() + 1).view(1, 1, -1)).any():
                return False
    return True


def _compare(own: Any, whole: Any) -> str:
    """Why two models compute different logits, in words; empty if they compute the same.

    Raises:
        ValueError: if the comparison would prove nothing.
    """
    base, inside = own.base_model, whole.base_model.language_model
    own_class, base_class, target, part = (
        type(model).__name__ for model in (own, base, whole, inside)
    )
    if base_class != part:
        return f"{target} makes a {part} of it, and {own_class} has a {base_class}"
    if [*base.state_dict()] != [*inside.state_dict()]:
        return f"{target} has other parameters in its {part} than {own_class}"
    layers = _layers(base), _layers(inside)
    for model, stack in zip((own, inside), layers, strict=True):
        model.set_attn_implementation("eager")  # the masks of others have another form
        _fill(model, stack)
    head = own.get_output_embeddings().weight
    whole.get_output_embeddings().weight = head
    for returns_tuple in (False, True):  # the layers of some models return a tuple
        given = [_stub(stack, returns_tuple) for stack in layers]
        try:
            with _read_outside(own, base) as read:
                mine, its = _logits(own), _logits(whole)
            break
        except Exception:
            if returns_tuple:
                raise
    if not given[0] or not _same(given[0], given[1]):
        return f"the layers of the {part} get other inputs in {target} than in {own_class}"
    if not (mine.isfinite().all() and mine.any()):
        raise ValueError("its logits are all zero or not finite")
    if torch.equal(mine, its):
        return ""
    inner = {id(value) for value in base.parameters()}
    extra = [
        name
        for name, value in own.named_parameters()
        if value is not head and id(value) not in inner
    ]
    causes = [
        f"{key} {getattr(own.config, key)!r}" for key in sorted(read) if _matters(own, key, mine)
    ] + extra
    return (
        f"{own_class} computes logits with {', '.join(causes) or 'more than a matrix'}, and "
        f"{target} doesn't"
    )


def _logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([_IDS]), use_cache=False).logits


def _matters(model: Any, key: str, logits: Any) -> bool:
    """Whether the logits change with the value of a key. The model may have a copy of the value as
    an attribute.
    """
    value = getattr(model.config, key)
    if not isinstance(value, (int, float)):
        return True
    places = [place for place in (model, model.config) if key in vars(place)]
    for place in places:
        setattr(place, key, not value if isinstance(value, bool) else value * 2 + 1)
    try:
        return not torch.equal(_logits(model), logits)
    finally:
        for place in places:
            setattr(place, key, value)


def _layers(model: Any) -> Any:
    """The stack of a language model's layers."""
    number = model.config.num_hidden_layers
    stacks = (
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == number
    )
    if (found := next(stacks, None)) is None:
        raise ValueError(f"it has no stack of {number} layers")
    return found


def _fill(model: Any, layers: Any) -> None:
    """Fill all empty tensors outside the layers with made-up numbers, the same every time."""
    inside = set(layers.modules())
    empty = [
        (names, name)
        for module in model.modules()
        if module not in inside
        for names in (module._parameters, module._buffers)
        for name, value in names.items()
        if value is not None and value.is_meta
    ]
    if (total := sum(names[name].numel() for names, name in empty)) > _MOST:
        raise ValueError(f"{total} numbers outside its layers")
    numbers, made = torch.Generator().manual_seed(0), {}
    for names, name in empty:
        value = names[name]
        if id(value) not in made:
            # Never zero, since a product with zero would hide the other factor.
            real = (
                torch.rand(value.shape, generator=numbers) + 0.1
                if value.is_floating_point()
                else torch.ones_like(value, device="cpu")
            )
            made[id(value)] = (
                torch.nn.Parameter(real, requires_grad=False)
                if isinstance(value, torch.nn.Parameter)
                else real
            )
        names[name] = made[id(value)]


def _stub(layers: Any, returns_tuple: bool) -> list[Any]:
    """Let layers return their hidden states unchanged. Each call's arguments go into the list."""
    calls: list[Any] = []
    known = {name for layer in layers for name in inspect.signature(layer.forward).parameters}

    def forward(*args: Any, **kwargs: Any) -> Any:
        # Arguments that request further outputs change no number, nor does an empty one of another
        # part, which the class hands to all its parts.
        kept = {
            key: value
            for key, value in kwargs.items()
            if not key.startswith(("output_", "logits_to_keep"))
            and (value is not None or key in known)
        }
        calls.append((args, kept))
        states = args[0] if args else kwargs["hidden_states"]
        return (states,) if returns_tuple else states

    for layer in layers:
        layer.forward = forward
    return calls


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (one == other or not isinstance(one, (int, float, str)))


@contextlib.contextmanager
def _read_outside(model: Any, base: Any) -> Iterator[set[str]]:
    """The config keys that a model reads outside its base or has as attributes. Its head may
    compute with them.
    """
    kind = type(model.config)
    keys = (
        {field.name for field in fields(kind)}
        - {field.name for field in fields(transformers.PreTrainedConfig)}
        - _EVERYWHERE
    )
    read = {key for key in keys if key in vars(model)}
    running: list[Any] = []  # the base, while it runs

    def spy(self: Any, key: str) -> Any:
        if key in keys and not running:
            read.add(key)
        return object.__getattribute__(self, key)

    hooks = (
        base.register_forward_pre_hook(lambda *_: running.append(base)),
        base.register_forward_hook(lambda *_: running.clear()),
    )
    model.config.__class__ = type(kind.__name__, (kind,), {"__getattribute__": spy})
    try:
        yield read
    finally:
        model.config.__class__ = kind
        for hook in hooks:
            hook.remove()


#: Keys that every class reads, or that change no logits.
_EVERYWHERE = {
    "vocab_size",
    "tie_word_embeddings",
    "use_cache",
    "output_attentions",
    "output_router_logits",
}
