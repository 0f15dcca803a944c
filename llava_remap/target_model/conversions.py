"""The conversions of the installed transformers: which parameters its loader makes from which
tensors of a checkpoint, and how. They are plain data. The loader's own code is asked about a model
that is built without weights.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from llava_remap.core.problem import ConfigError, refuse

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a conversion, on the way from the checkpoint to the model.

    Attributes:
        kind: `stack` and `concat` join tensors along an axis, and `split` divides a tensor. `swap`
            exchanges two axes. `interleave` takes an axis as pairs and puts the first elements of
            all pairs before the second elements, or back. `rope` does the same inside each head, on
            the first axis. `other` is any other operation.
        axes: the axis, or both axes of `swap`.
        back: for `interleave` and `rope`, whether halves become pairs.
        key: for `rope`, the config's key for the number of heads. For `split` and `concat`, the
            config's key for the number of parts, if the config determines it.
        parts: for `rope`, the numbers of the new tensors that are reordered; empty for all.
        name: the operation's name in transformers.
    """

    kind: Literal["stack", "concat", "split", "swap", "interleave", "rope", "other"]
    axes: tuple[int, ...] = ()
    back: bool = False
    key: str = ""
    parts: tuple[int, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """Small tensors, and the tensors that transformers makes from them.

    Attributes:
        old: for each pattern of the conversion, one tensor or the first two tensors of a list, as
            nested lists of numbers.
        new: the new tensors.
        sizes: keys of the config → their values in this example.
    """

    old: tuple[tuple[Any, ...], ...]
    new: tuple[Any, ...]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Moved:
    """Tensors that become parameters together.

    Attributes:
        sources: for each pattern of the conversion, one name in the checkpoint or a list of names.
        targets: the name of the parameter, or the names of the parameters into which one tensor is
            divided.
        steps: the operations in order; empty for a rename.
        example: the same conversion of small tensors; None for a rename.
    """

    sources: tuple[tuple[str, ...], ...]
    targets: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    example: Example | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Conversion:
    """The loader's conversion of a model's checkpoint.

    Attributes:
        class_name: the model's class.
        version: the version of transformers.
        moved: all tensors of the checkpoint.
        unused: conversions that took no name of this model's checkpoint, in words.
    """

    class_name: str
    version: str
    moved: tuple[Moved, ...]
    unused: tuple[str, ...]


def conversion_types() -> list[str]:
    """The model types and classes that have an entry in transformers' table."""
    from transformers import conversion_mapping

    return sorted(set(conversion_mapping._build_checkpoint_conversion_mapping()) - {"legacy"})


def read_conversion(model_type: str, config: Mapping[str, Any] | None = None) -> Conversion:
    """The conversion of a model type, or of a class.

    Args:
        config: the model's config; by default the config of the class with default values.

    Raises:
        RemapError: LR211 for a type that transformers doesn't know or has no conversion for; LR112
            if the model can't be built from the config, or if transformers can't load its own saved
            checkpoint.
    """
    return conversion_of(build_for_conversion(model_type, config))


def build_for_conversion(model_type: str, config: Mapping[str, Any] | None = None) -> Any:
    """The model of a type, without weights. Among the type's classes, a class that generates text
    is preferred, then the class with the most parameters.
    """
    import torch

    built, reasons = [], []
    classes = _classes(model_type)
    if not classes:
        near = difflib.get_close_matches(model_type, conversion_types(), 3)
        raise refuse(
            "LR211",
            f"the installed transformers has no model of the type or class `{model_type}`.",
            f"Did you mean {' or '.join(near)}?"
            if near
            else "Give the `model_type` of a config.json, or a class.",
        )
    for kind in classes:
        try:
            with torch.device("meta"):
                made = kind.config_class
                built.append(kind(made() if config is None else made.from_dict(dict(config))))
        except Exception as error:  # a class may raise anything about its config
            reasons.append(f"{kind.__name__}: {' '.join(str(error).split())[:200].rstrip('.')}")
    if not built:
        raise ConfigError.of(
            "LR112",
            f"no model of the type `{model_type}` can be built"
            f"{' from its default config' if config is None else ''}: {reasons[0]}.",
            "Give the config.json of such a model: --config FILE.",
        )
    return max(
        built,
        key=lambda model: (model.can_generate(), len(model.state_dict()), type(model).__name__),
    )


def conversion_of(model: Any) -> Conversion:
    """The loader's conversion for a model that is built without weights.

    The checkpoint has the names that transformers saves, with the prefixes that its conversions
    remove, as far as the loader accepts these prefixes.

    Raises:
        RemapError: LR112 if transformers can't load its own saved checkpoint; LR211 if the loader
            converts nothing.
    """
    import transformers
    from transformers import conversion_mapping
    from transformers import core_model_loading as loading

    parameters = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    failed: Collection[str] = ()
    for with_prefixes in (True, False):
        mapping = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [
            entry
            for entry in mapping
            if with_prefixes or not isinstance(entry, loading.PrefixChange)
        ]
        stored = loading.revert_weight_conversion(model, dict(model.state_dict()))
        moved, unused = _load(model, stored)
        names = [name for one in moved for name in one.targets]
        failed = {*parameters}.symmetric_difference(names)
        if not failed and len(names) == len(parameters):
            break
    else:
        raise ConfigError.of(
            "LR112",
            f"transformers {transformers.__version__} can't load its own saved checkpoint of "
            f"{type(model).__name__}: these parameters are missing after the load.",
            "",
            sorted(failed),
        )
    if all(one.sources == ((*one.targets,),) and not one.steps for one in moved):
        raise refuse(
            "LR211",
            f"transformers {transformers.__version__} converts nothing for "
            f"{type(model).__name__}: its checkpoints have the names of the model's parameters.",
            "It needs no rule file.",
        )
    return Conversion(type(model).__name__, transformers.__version__, moved, unused)


def _load(model: Any, stored: Mapping[str, Any]) -> tuple[tuple[Moved, ...], tuple[str, ...]]:
    """The loader's conversion of each tensor of a checkpoint: the steps of
    `convert_and_load_state_dict_in_model`, without threads and bytes.
    """
    from transformers import conversion_mapping
    from transformers import core_model_loading as loading

    parameters = model.state_dict()
    mapping = conversion_mapping.get_model_conversion_mapping(model, add_legacy=True)
    legacy = len(conversion_mapping.get_checkpoint_conversion_mapping("legacy"))
    renamings = [entry for entry in mapping if isinstance(entry, loading.WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, loading.WeightConverter)]
    by_pattern = {
        pattern: converter for converter in converters for pattern in converter.source_patterns
    }
    prefix = model.base_model_prefix
    renamed: list[Moved] = []
    collected: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for name in sorted(stored, key=loading.dot_natural_key):
        new, pattern = loading.rename_source_key(name, renamings, converters, prefix, parameters)
        if new not in parameters and name in parameters:
            new, pattern = loading.rename_source_key(name, [], [], prefix, parameters)
        if pattern is None:
            renamed.append(Moved(((name,),), (new,)))
        else:
            if new not in collected:
                collected[new] = (deepcopy(by_pattern[pattern]), {})
            converter, names = collected[new]
            converter.add_tensor(new, name, pattern, stored[name])
            names.setdefault(pattern, []).append(name)
    converted = [
        _converted(new, converter, names, model, stored)
        for new, (converter, names) in collected.items()
    ]
    unused = tuple(
        f"{' + '.join(entry.source_patterns)} → {' + '.join(entry.target_patterns)}"
        for entry in mapping[: len(mapping) - legacy]
        if not entry.was_used()
    )
    return (*renamed, *converted), unused


def _converted(
    new: str, converter: Any, names: Mapping[str, list[str]], model: Any, stored: Mapping[str, Any]
) -> Moved:
    made = converter.convert(new, model=model, config=model.config)
    patterns = [pattern for pattern in converter.source_patterns if pattern in names]
    sources = tuple(tuple(names[pattern]) for pattern in patterns)
    shapes = {
        name: tuple((value[0] if isinstance(value, list) else value).shape)
        for name, value in made.items()
    }
    before, after = tuple(stored[sources[0][0]].shape), next(iter(shapes.values()))
    steps = tuple(_steps(converter, before, after, model.config))
    example = _example(converter, patterns, steps, len(before)) if steps else None
    return Moved(sources, tuple(shapes), steps, example)


def _example(
    converter: Any, patterns: Sequence[str], steps: Sequence[Step], rank: int
) -> Example | None:
    """The result of a conversion's operations for small tensors with the numbers from 0; None for
    steps that no rule can express.
    """
    import torch

    if any(step.kind == "other" for step in steps):
        return None
    parts = len(converter.target_patterns)
    shape = [2] + [1] * (rank - 1)
    after = list(shape)
    counted: dict[str, int] = {}
    for step in steps:
        counted |= {step.key: 2} if step.key else {}
        match step.kind:
            case "split":
                each = 8 if any(one.kind == "rope" for one in steps) else 2
                shape[step.axes[0]] = (2 if step.key else parts) * each
                after = [*shape]
                after[step.axes[0]] = each
            case "interleave":
                shape[step.axes[0]] = 4
            case "rope" if parts == 1:
                shape[0] = 8
            case "swap" if len(patterns) == 1 and len(steps) == 1:
                one, other = step.axes
                shape[one], shape[other] = 2, 3
                after = [*shape]
                after[one], after[other] = 3, 2
    config = SimpleNamespace(**{key.rpartition(".")[2]: 2 for key in counted})
    config.get_text_config = lambda: config
    parameter = SimpleNamespace(shape=torch.Size(after))
    lists = any(step.kind == "stack" or (step.key and step.kind == "concat") for step in steps)
    count = 2 if lists else 1
    numbers = iter(range(10_000))
    old = {
        pattern: [
            torch.tensor([next(numbers) for _ in range(prod(shape))]).view(shape)
            for _ in range(count)
        ]
        for pattern in patterns
    }
    new: dict[str, Any] = {pattern: [*tensors] for pattern, tensors in old.items()}
    for operation in converter.operations:
        new = operation.convert(
            new,
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            full_layer_name=converter.target_patterns[0],
            model=SimpleNamespace(get_parameter=lambda name: parameter),
            config=config,
        )
    made = [value[0] if isinstance(value, list) else value for value in new.values()]
    return Example(
        tuple(tuple(tensor.tolist() for tensor in tensors) for tensors in old.values()),
        tuple(tensor.tolist() for tensor in made),
        counted,
    )


def _steps(converter: Any, before: Shape, after: Shape, config: Any) -> Iterator[Step]:
    """
    Args:
        before, after: the shapes of the first old tensor and of the first new tensor.
    """
    for operation in converter.operations:
        name = type(operation).__name__
        match name:
            case "MergeModulelist":
                yield Step("stack", (operation.dim,))
            case "Concatenate":
                yield Step("concat", (operation.dim,), key=_count_key(operation, config))
            case "Chunk":
                yield Step("split", (operation.dim,), key=_count_key(operation, config))
            case "Split":
                yield Step("split", (operation.dim,))
            case "Transpose":
                if not operation.check_dims or before != after:
                    yield Step("swap", (operation.dim0, operation.dim1))
            case "Interleave":
                yield Step("interleave", (operation.dim,), operation.inverse)
            case "PermuteForRope":
                wanted = operation.permute_layer_names
                part = getattr(config, operation.subconfig_key or "", None)
                keys = [operation.subconfig_key] if part is not None else []
                yield Step(
                    "rope",
                    back=operation.inverse,
                    key=".".join([*keys, "num_attention_heads"]),
                    parts=tuple(
                        number
                        for number, pattern in enumerate(converter.target_patterns)
                        if wanted is None or any(one in pattern for one in wanted)
                    ),
                )
            case _:
                yield Step("other", name=name)


def _count_key(operation: Any, config: Any) -> str:
    """The config's key for the number of tensors that an operation joins or makes; empty if the
    patterns of the conversion determine this number.
    """
    if operation.num_shards_attribute is None:
        return ""
    text = config.get_text_config()
    inside = next((key for key, value in vars(config).items() if value is text), "")
    return ".".join(filter(None, (inside, operation.num_shards_attribute)))


def _classes(model_type: str) -> list[Any]:
    """The class of this name, or the classes whose config has this type."""
    import transformers
    from transformers import CONFIG_MAPPING, PreTrainedModel

    folder = Path(transformers.__file__).parent / "models"
    if model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
        package = config_class.__module__.split(".")[2]
        modules = sorted((folder / package).glob("modeling_*.py"))
    else:
        config_class = None
        wanted = re.compile(rf"^class {re.escape(model_type)}\(", re.MULTILINE)
        modules = [
            path for path in sorted(folder.glob("*/modeling_*.py"))
            if wanted.search(path.read_text(encoding="utf-8"))
        ]  # fmt: skip
    found: list[Any] = []
    for path in modules:
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        own: list[Any] = [
            kind
            for kind in vars(module).values()
            if inspect.isclass(kind)
            and issubclass(kind, PreTrainedModel)
            and kind.__module__ == module.__name__
        ]
        found += [
            kind
            for kind in own
            if (
                kind.__name__ == model_type
                if config_class is None
                else kind.config_class is config_class and "PreTrainedModel" not in kind.__name__
            )
        ]
    return found
