"""Finds the target's parameters: names and shapes of a transformers class, in the classic layout,
and their names in the layout to write.

The class is built on the meta device, so no weights exist. A layout's rule file translates its
module names to the classic layout. The installed transformers is asked whether it leads each
written name back to its parameter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

from llava_remap.core.arguments import not_one_of
from llava_remap.core.cache import cached_value
from llava_remap.core.problem import ConfigError, refuse
from llava_remap.rewrite import Program, compile_rules
from llava_remap.rulefile import RuleFile, load_rule_file, shipped_layouts

#: The layout of all plans, and of the output unless the user asks for another one.
CLASSIC = "classic"
#: The layouts that can be written. `classic-5.6` and `mixed-5.4` can only be read, since they come
#: from faults in some versions' `save_pretrained`.
WRITTEN = (CLASSIC, "module-4.52", "module-5.6")
#: The layout in which the installed transformers (5.6 or later) saves a model that was built from
#: scratch.
DISK_LAYOUT = "classic-5.6"
#: The names of parameters in the installed transformers.
MODULES = "module-5.6"
#: The most layers to build. The deepest published language model has 126.
_MOST_LAYERS = 1000
#: Held while formatting of configs is switched off.
_UNSHOWN = Lock()
#: The command in transformers' message on a missing library.
_INSTALL = re.compile(r"pip install [\w.-]+")
#: A list of more than six words. transformers' messages list all known names.
_LIST = re.compile(r"((?:[^\s,]+, ){6})(?:[^\s,]+, )*[^\s,]+")


@cache
def layout_rules(layout: str) -> RuleFile:
    """The rule file of a shipped layout."""
    return load_rule_file(shipped_layouts()[layout])


@cache
def layout_program(layout: str) -> Program:
    """The program that translates names of a shipped layout to classic names."""
    return compile_rules(layout_rules(layout))


def nearest_layout(names: Collection[str]) -> tuple[str, dict[str, str]]:
    """The layout of transformers that takes most of these names, and name → classic name."""
    classic = {}
    for layout in shipped_layouts():
        rewrites = map(layout_program(layout).rewrite, names)
        classic[layout] = {r.source: r.target for r in rewrites if r.target is not None}
    return max(classic.items(), key=lambda entry: len(entry[1]))


def check_layout(layout: str) -> None:
    """LR211 for a layout that can't be written."""
    if layout not in WRITTEN:
        raise not_one_of("layout", layout, WRITTEN)


def names_in(layout: str, classic: Collection[str]) -> dict[str, str]:
    """Classic name → name in a layout. Each name leads back to its classic name only.

    Raises:
        RemapError: LR601 for parameters without a name in the layout.
    """
    back = layout_program(layout).inverse
    found = {name: other for name in classic if (other := back(name)) is not None}
    if lost := [name for name in classic if name not in found]:
        raise refuse(
            "LR601",
            f"--layout {layout}: these parameters have no name in that layout.",
            "Leave out --layout: every version of transformers loads the classic names.",
            lost,
        )
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """The parameters of the target.

    Attributes:
        class_name: the transformers class.
        shapes: classic name → shape, tied parameters included.
        tied: name → the name whose tensor it shares.
        names: classic name → name in the layout; empty for the classic one.
        layout: the layout of `names`: the one that was asked for, or the only one that the
            installed transformers reads for this class.
        embedding: classic name of the table of token embeddings.
        head: classic name of the matrix that turns hidden states into logits.
        layers: prefix of the classic names of the language model's layers, up to their numbers.
        joined: number of tensors that the installed loader joins into larger parameters.
        transposed: names of matrices that are stored as [inputs, outputs]; linear layers store
            [outputs, inputs].
        integers: names of tensors that hold whole numbers in the class, such as counters of
            batches.
        sizes: key of the config → its value, for the tensor operations of a rule file.
    """

    class_name: str
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    layout: str = CLASSIC
    embedding: str = ""
    head: str = ""
    layers: str = ""
    joined: int = 0
    transposed: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


def model_class(class_name: str, config: Mapping[str, Any]) -> Any:
    """A class of the installed transformers, for a config of its kind.

    Raises:
        RemapError: LR201 for an unknown class, or a config of another class.
    """
    import transformers

    found: Any = getattr(transformers, class_name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not is_model:
        raise refuse(
            "LR201",
            f"transformers {transformers.__version__} has no model class `{class_name}`.",
            "See `target.class`.",
        )
    if config.get("model_type") != found.config_class.model_type:
        raise refuse(
            "LR201",
            f"`target.config.model_type` is {config.get('model_type')!r}; {class_name} has "
            f"{found.config_class.model_type!r}.",
            "Write that type, or another `target.class`.",
        )
    return found


def build_on_meta(class_name: str, config: Mapping[str, Any]) -> Any:
    """An instance of a transformers class without weights.

    Raises:
        RemapError: as `model_class`; LR112 for a config that the class refuses; LR601 if the class
            needs a library that isn't installed.
    """
    import torch
    import transformers

    kind = model_class(class_name, config)
    refuse_endless(config)
    try:
        with torch.device("meta"):
            return kind(make_config(kind.config_class, config))
    except ImportError as error:  # transformers names the library, and how to install it
        said = " ".join(str(error).split())
        command = _INSTALL.search(said)
        raise refuse(
            "LR601",
            f"transformers can't build {class_name}: {said.partition('. ')[0]}.",
            f"Install the library: {command.group()}" if command else "Install the library.",
        ) from error
    except Exception as error:  # whatever the class raises: the config is the user's
        said = _LIST.sub(r"\1…", " ".join(str(error).split())).rstrip(".")
        reason = f"it knows no {said}" if isinstance(error, KeyError) else said
        raise ConfigError.of(
            "LR112",
            f"transformers {transformers.__version__} can't build {class_name} from the config: "
            f"{reason}.",
            "Mend the source's config.json.",
        ) from error


def config_size(class_name: str, config: Mapping[str, Any], key: str) -> int:
    """A whole number of a class's config, such as `text_config.num_attention_heads`.

    Raises:
        RemapError: as `model_class`; LR201 if the config has no such number.
    """
    return cached_value(
        "size",
        {"class": class_name, "config": config, "key": key},
        lambda: _ask_size(class_name, config, key),
        int,
    )


def _ask_size(class_name: str, config: Mapping[str, Any], key: str) -> int:
    value: Any = model_class(class_name, config).config_class.from_dict(from_json(config))
    for name in key.split("."):
        value = getattr(value, name, None)
    if type(value) is not int or value < 1:
        raise refuse(
            "LR201",
            f"the config of {class_name} has no whole number `{key}`"
            + (f"; it says {value!r}." if value is not None else "."),
            "Write a key of the target's config that has a whole number.",
        )
    return value


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config.json for a class. Infinity, which has a special form in JSON, is decoded.

    The result is a copy, since 5.x writes `rope_theta` and `rope_type` into the given
    `rope_scaling`.
    """

    def read(value: dict[str, Any]) -> Any:
        return float(value["__float__"]) if value.keys() == {"__float__"} else value

    found: dict[str, Any] = json.loads(json.dumps(values), object_hook=read)
    return found


def make_config(config_class: Any, values: Mapping[str, Any]) -> Any:
    """A class's config, made from the values of a config.json.

    `from_dict` formats every config for a log, which takes most of its time. This is switched off.
    """
    from transformers import PreTrainedConfig

    with _UNSHOWN:
        shown = PreTrainedConfig.__repr__
        PreTrainedConfig.__repr__ = object.__repr__
        try:
            return config_class.from_dict(from_json(values))
        finally:
            PreTrainedConfig.__repr__ = shown


def refuse_endless(config: Mapping[str, Any]) -> None:
    """LR112 for too many layers: building them would take all memory, even without weights."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            refuse_endless(value)
        elif (
            str(key).endswith(("layers", "layer", "depth"))
            and isinstance(value, (int, float))
            and value > _MOST_LAYERS
        ):
            raise ConfigError.of(
                "LR112",
                f"the model's config says {key}: {value}; more than {_MOST_LAYERS} are not built.",
                "Mend the source's config.json, or the names of layers in the checkpoint.",
            )


def wanted_parameters(class_name: str, config: Mapping[str, Any], layout: str = CLASSIC) -> Target:
    """Names and shapes of a class with a config; from the cache if it has them.

    Args:
        layout: the layout to write. The names in `shapes` are always classic.

    Raises:
        RemapError: as `build_on_meta` and `names_in`; LR601 if the installed transformers doesn't
            lead the layout's names to its own.
    """
    # A pad token changes no shape. torch would refuse a new one, which has no row yet.
    text = {**config["text_config"], "pad_token_id": None}
    config = {**config, "pad_token_id": None, "text_config": text}
    return cached_value(
        "target",
        {
            "class": class_name,
            "config": config,
            "layouts": [layout_rules(name).sha256 for name in (DISK_LAYOUT, layout)],
        },
        lambda: _ask(class_name, config, layout),
        Target,
    )


def _ask(class_name: str, config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Names, shapes and ties as the installed transformers saves them. On disk each expert is a
    tensor; in memory transformers stacks them.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    model = build_on_meta(class_name, config)
    state = model.state_dict()
    stored, named, disk = stored_names(model, state)
    if disk != DISK_LAYOUT:  # the loader knows no classic names for this class
        layout = MODULES
    names = names_in(layout, named.values()) if layout != CLASSIC else {}
    made_of = _made_of(state, stored, named)
    _ask_loader(
        model,
        state,
        {names.get(name, name): parameter for name, parameter in made_of.items()},
        layout,
    )
    on_disk = {parameter: name for name, parameter in made_of.items() if parameter is not None}
    return {
        "class_name": class_name,
        "shapes": {named[name]: list(value.shape) for name, value in stored.items()},
        "tied": {
            on_disk[name]: on_disk[other]
            for name, other in model.all_tied_weights_keys.items()
            if name in on_disk and other in on_disk
        },
        "names": names,
        "layout": layout,
        **places(model, on_disk),
        "joined": sum(parameter is None for parameter in made_of.values()),
        "integers": [named[name] for name, value in stored.items() if value.dtype == torch.int64],
        "transposed": [
            on_disk[f"{name}.weight"]
            for name, module in model.named_modules()
            if isinstance(module, Conv1D) and f"{name}.weight" in on_disk
        ],
    }


def names_on_disk(model: Any) -> dict[str, str]:
    """Name of a parameter → classic name; without parameters that the loader makes of several
    tensors.
    """
    state = model.state_dict()
    stored, named, _ = stored_names(model, state)
    found = _made_of(state, stored, named)
    return {parameter: name for name, parameter in found.items() if parameter is not None}


def _made_of(
    state: Mapping[str, Any], stored: Mapping[str, Any], named: Mapping[str, str]
) -> dict[str, str | None]:
    """Classic name → the parameter that loading only renames. A stacked or split tensor has
    none.
    """
    module = {id(value): name for name, value in state.items()}
    return {named[name]: module.get(id(value)) for name, value in stored.items()}


def stored_names(
    model: Any, state: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str], str]:
    """The tensors that the installed transformers saves for a model that was built from scratch.

    Returns:
        Name on disk → tensor, name on disk → classic name, and the layout of the names on disk.

    Raises:
        RemapError: LR601 for names of no layout.
    """
    from transformers.core_model_loading import revert_weight_conversion

    stored = revert_weight_conversion(model, dict(state))
    lost: list[str] = []
    for layout in (DISK_LAYOUT, MODULES):
        program = layout_program(layout)
        classic = {name: program.rewrite(name).target for name in stored}
        if all(classic.values()):
            return stored, {name: str(target) for name, target in classic.items()}, layout
        lost = lost or [name for name, target in classic.items() if target is None]
    raise refuse(
        "LR601",
        f"{type(model).__name__} has parameters with names of no layout that llava-remap knows.",
        "Give `target.class` a class with a language model, a vision tower and a projector between "
        "them, LlavaForConditionalGeneration for one.",
        lost,
    )


def places(model: Any, on_disk: Mapping[str, str]) -> dict[str, str]:
    """The fields `embedding`, `head` and `layers` of `Target`.

    Args:
        on_disk: name of a parameter → classic name.
    """
    import torch

    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = list(model.named_modules(remove_duplicate=False))
    # The part around the table is the language model. A tower may have as many layers.
    text = next(part for part in model.base_model.children() if table in list(part.modules()))
    number, inside = model.config.get_text_config().num_hidden_layers, set(text.modules())
    stacks = (
        name
        for name, module in modules
        if isinstance(module, torch.nn.ModuleList) and len(module) == number and module in inside
    )
    stack, layers = next(stacks, None), ""
    if stack is not None:
        first = next(name for name in on_disk if name.startswith(f"{stack}."))
        layers = on_disk[first].removesuffix(first.removeprefix(f"{stack}."))
    named = {module: name for name, module in reversed(modules) if module in (table, head)}
    return {
        "embedding": on_disk[f"{named[table]}.weight"],
        "head": on_disk.get(f"{named[head]}.weight", ""),
        "layers": layers,
    }


def _ask_loader(
    model: Any, state: Mapping[str, Any], written: Mapping[str, str | None], layout: str
) -> None:
    """LR601 unless the installed loader leads every written name to its parameter, and reaches all
    parameters.

    Args:
        written: name in the layout → module name; None for a tensor that the loader joins into a
            parameter. `strict_load` tests with the real loader that such parameters are complete.
    """
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    wrong, hit = [], set()
    for name, parameter in written.items():
        taken_to, by = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        found = taken_to if taken_to in state else name
        hit.add(found)
        if found != parameter and not (parameter is None and by is not None and found in state):
            wrong.append(name)
    if wrong or hit != set(state):
        raise refuse(
            "LR601",
            f"transformers {transformers.__version__} takes {layout} names of "
            f"{type(model).__name__} elsewhere.",
            "Install a version that the table in docs/versions.md lists.",
            wrong or sorted(set(state) - hit),
        )
