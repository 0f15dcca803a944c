"""transformers' own engine beside ours: the same checkpoint, the same parameters, byte for byte,
in both directions.

The engine saves a small model with random values (`revert_weight_conversion`), and loads that into
an empty one (`convert_and_load_state_dict_in_model`). Rules that were imported from a model of
another size take the same tensors through the whole plan and the executor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import core_model_loading as loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig

from llava_remap.authoring.import_rules import Imported, imported
from llava_remap.checkpoint import InMemory, open_in_memory
from llava_remap.core.dtypes import TORCH_DTYPES
from llava_remap.core.problem import RemapError
from llava_remap.execute.pieces import Recipe, gathered
from llava_remap.planning import build_plan
from llava_remap.rewrite import compile_rules
from llava_remap.routing import route
from llava_remap.rulefile import load_rule_file
from llava_remap.target_model import Conversion, Target, read_conversion
from llava_remap.target_model.conversions import build_for_conversion, conversion_of
from tests.conversions.small import CONFIGS, MOST, elements, fill, small_config

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """What was found for an entry.

    Attributes:
        rules, operations: of the imported file; 0 without one.
        tensors: tensors of the small model that were compared, each in both directions.
        refused: why there is no rule file.
        untried: why nothing was compared.
        different: what differs; has to be empty.
    """

    class_name: str = ""
    rules: int = 0
    operations: int = 0
    tensors: int = 0
    refused: str = ""
    untried: str = ""
    different: tuple[str, ...] = ()


def compare(kind: str) -> Outcome:
    """An entry of the table: its rules, and whether both engines agree."""
    try:
        conversion = read_conversion(kind, CONFIGS.get(kind))
        load, save = (imported(conversion, kind, way) for way in ("load", "save"))
    except RemapError as error:
        return Outcome(refused=" ".join(problem.cause for problem in error.problems))
    made = Outcome(conversion.class_name, load.rules, load.operations)
    try:
        model = _small(conversion, kind)
    except _TooLargeError as error:
        return _with(made, untried=str(error))
    stored, lost = _by_transformers(model)
    if lost:
        return _with(made, untried=f"transformers doesn't load what it saved: {lost[0]}")
    different: list[str] = []
    parameters = dict(model.state_dict())
    for file, old, new in ((load, stored, parameters), (save, parameters, stored)):
        different += _differences(_by_rules(file, old, new, model), new)
    return _with(made, tensors=len(parameters), different=tuple(different))


def _with(outcome: Outcome, **changes: Any) -> Outcome:
    return Outcome(**{**vars(outcome), **changes})


class _TooLargeError(Exception):
    pass


def _small(conversion: Conversion, kind: str) -> Any:
    """A small model with random values, in which every operation of the conversion occurs."""
    operations = {one.steps for one in conversion.moved}

    def fits(model: Any) -> bool:
        try:
            return {one.steps for one in conversion_of(model).moved} >= operations
        except (RemapError, RuntimeError):  # no experts are left, or heads don't divide the rows
            return False

    empty = build_for_conversion(conversion.class_name, small_config(kind, fits))
    if (count := elements(empty)) > MOST:
        raise _TooLargeError(f"its smallest config has {count:,} numbers")
    torch.manual_seed(0)
    model = type(empty)(empty.config)
    fill(model)
    return model


def _by_transformers(model: Any) -> tuple[Tensors, list[str]]:
    """The checkpoint that transformers saves, and what its loader doesn't give back."""
    conversion_of(model)  # chooses the prefixes that the checkpoint has
    parameters = dict(model.state_dict())
    stored = {
        name: value.contiguous()
        for name, value in loading.revert_weight_conversion(model, dict(parameters)).items()
    }
    with torch.device("meta"):
        empty = type(model)(model.config)
    mapping = get_model_conversion_mapping(empty)
    config = LoadStateDictConfig(weight_mapping=mapping, device_map={"": "cpu"})
    info, _ = loading.convert_and_load_state_dict_in_model(empty, dict(stored), config, None)
    wrong = [f"{what}: {list(found)[:3]}" for what, found in (
        ("missing", info.missing_keys), ("unexpected", info.unexpected_keys),
        ("mismatched", info.mismatched_keys), ("errors", info.conversion_errors),
    ) if found]  # fmt: skip
    return stored, [*wrong, *_differences(dict(empty.state_dict()), parameters)]


def _by_rules(file: Imported, old: Tensors, new: Tensors, model: Any) -> Tensors | str:
    """What our plan and executor make of tensors, or why they refuse them."""
    with tempfile.TemporaryDirectory() as work:
        Path(work, "imported.yaml").write_text(file.text)
        own = Path(work, "own.yaml")
        own.write_text(
            "schema: 1\nname: own\nversion: 1.0.0\nsummary: x\nextends: [imported.yaml]\n"
            f"detect: {{present: []}}\nsources: {{model: {{}}}}\n"
            f"target: {{class: {type(model).__name__}}}\n"
        )
        rules = load_rule_file(own)
    checkpoints = {"model": open_in_memory("model", InMemory(old, config={}))}
    program = compile_rules(rules, list(old), {})
    keys = {key for one in program.tensors for key in one.operation.sizes.values()}
    target = Target(
        type(model).__name__,
        {name: tuple(value.shape) for name, value in new.items()},
        {},
        sizes={key: _value(model.config, key) for key in keys},
    )
    routes = route(rules, program, checkpoints)
    plan = build_plan(rules, program, checkpoints, routes, target)
    # LR409 is about dtypes: a count of batches is a whole number, and no parameter of a LLaVA is.
    if problems := [problem for problem in plan.problems if problem.code != "LR409"]:
        return "; ".join(f"{p.code} {p.cause} {p.names[:2]}" for p in problems)
    recipe = Recipe.of(plan.mapped, (), checkpoints)
    made = {}
    for entry in plan.mapped:
        data = gathered(recipe.pieces(entry.target), entry.nbytes)
        dtype = getattr(torch, TORCH_DTYPES[entry.dtype])
        empty = torch.empty(entry.shape, dtype=dtype)
        made[entry.target] = (
            torch.frombuffer(data, dtype=dtype).view(entry.shape) if data else empty
        )
    return made


def _value(config: Any, key: str) -> int:
    for name in key.split("."):
        config = getattr(config, name)
    assert isinstance(config, int)
    return config


def _differences(made: Tensors | str, wanted: Mapping[str, torch.Tensor]) -> list[str]:
    if isinstance(made, str):
        return [made]
    found = [f"{name} is on one side alone" for name in {*made} ^ {*wanted}]
    for name in {*made} & {*wanted}:
        one, other = made[name], wanted[name]
        if one.dtype != other.dtype or one.shape != other.shape:
            found.append(f"{name}: {one.dtype} {[*one.shape]}, {other.dtype} {[*other.shape]}")
        elif not torch.equal(one, other):
            found.append(f"{name} has other values")
    return sorted(found)
