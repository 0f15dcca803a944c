"""Operations as `WeightConverter`s: the installed transformers runs the printed Python, and loads
what `apply` writes from a checkpoint with fused and turned matrices.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    core_model_loading,
)
from transformers import conversion_mapping as own_mapping

from llava_remap.authoring.weight_converters import Converter, NoConverterError, converter
from llava_remap.jobs.apply import apply
from llava_remap.rulefile import load_rule_file
from tests.authoring.test_key_mapping import LLAVA, at_original_size
from tests.conftest import CLIP, Run, Tensors
from tests.fused import HEAD

RULES = (
    HEAD
    + """\
  - id: qkv
    from: '{m...}.wqkv.weight'
    to: ['{m}.q_proj.weight', '{m}.k_proj.weight', '{m}.v_proj.weight']
    how: {split: 0}
  - id: gate-up
    from: '{m...}.gate_up.weight'
    to: ['{m}.gate_proj.weight', '{m}.up_proj.weight']
    how: {view: ['*', 2], unstack: 1}
  - id: down
    from: 'language_model.model.layers.{n:int}.mlp.down.weight'
    to: 'language_model.model.layers.{n}.mlp.down_proj.weight'
    how: {axes: [1, 0]}
  - id: output
    from: 'language_model.model.layers.{n:int}.self_attn.wo.weight'
    to: 'language_model.model.layers.{n}.self_attn.o_proj.weight'
    how: {view: [heads, '*', 2], axes: [0, 2, 1]}
    let: {heads: target.text_config.num_attention_heads}
"""
)


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    yield
    own_mapping._checkpoint_conversion_mapping_cache = None
    own_mapping.USER_REGISTERED_MAPPINGS.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """LLaVA-1.5 with its tower, and fused matrices."""
    folder = tmp_path / "fused"
    shutil.copytree(LLAVA / "full_state_dict", folder)
    state = torch.load(folder / "model_state_dict.bin", weights_only=True)
    (folder / "model_state_dict.bin").unlink()
    save_file(_fused(state), folder / "model.safetensors", {"format": "pt"})
    return folder


def _fused(tensors: Tensors) -> Tensors:
    made: Tensors = {}
    for name, value in tensors.items():
        if not name.startswith("model.layers.") or "inv_freq" in name:
            made[name] = value
        elif "q_proj" in name:
            kinds = [tensors[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            made[name.replace("q_proj", "wqkv")] = torch.cat(kinds)
        elif "gate_proj" in name:
            up = tensors[name.replace("gate", "up")]
            made[name.replace("gate_proj", "gate_up")] = torch.stack([value, up], 1).flatten(0, 1)
        elif "down_proj" in name:
            made[name.replace("down_proj", "down")] = value.T.contiguous()
        elif "o_proj" in name:
            halves = value.view(4, 2, -1, value.shape[1]).transpose(1, 2)
            made[name.replace("o_proj", "wo")] = halves.reshape(value.shape).contiguous()
        elif not any(kind in name for kind in ("k_proj", "v_proj", "up_proj")):
            made[name] = value
    return made


def test_transformers_loads_what_apply_writes(source: Path, run: Run) -> None:
    Path("fused.yaml").write_text(RULES)
    apply("fused.yaml", [str(source), f"vision_tower={CLIP}"], "out")
    wanted = AutoModelForImageTextToText.from_pretrained("out", dtype="auto").state_dict()
    config = at_original_size(Path("out"))
    assert config.text_config.num_attention_heads == 4
    text = run("rules", "explain", "fused.yaml", "--as", "key-mapping").out
    exec(text, {})
    model, info = LlavaForConditionalGeneration.from_pretrained(
        source, config=config, dtype="auto", output_loading_info=True
    )
    assert not {key: found for key, found in info.items() if found}
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name][: len(tensor)]), name


def operation(text: str) -> Any:
    path = Path("one.yaml")
    path.write_text(f"schema: 1\nname: one\ntensors:\n  - {{id: a, {text}}}\n")
    [rule] = load_rule_file(path).text.tensors
    return rule.operation


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "from: ['{m...}.e.{x:each}.w1.weight', '{m...}.e.{x:each}.w3.weight'], "
            "to: '{m}.e.gate_up', how: {stack: 0, concat: 1}",
            Converter(
                (".e.*.w1.weight", ".e.*.w3.weight"),
                (".e.gate_up",),
                ("MergeModulelist(dim=0)", "Concatenate(dim=1)"),
            ),
        ),
        (
            "from: '{m...}.qkv.{p}', to: [{name: '{m}.q.{p}', view: [h, 2, '*'], axes: [0, 2, 1]}, "
            "'{m}.v.{p}'], how: {split: 0}, let: {h: target.vision_config.num_attention_heads}",
            Converter(
                (r"\.qkv\.",),
                (".q.", ".v."),
                (
                    "Chunk(dim=0)",
                    'PermuteForRope(subconfig_key="vision_config", permute_layer_names=["q"])',
                ),
            ),
        ),
        (
            "from: '{m...}.a', to: {name: '{m}.b', view: ['*', 2], axis: 1, axes: [0, 2, 1]}, "
            "how: {}",
            Converter((r"\.a",), (".b",), ("Interleave(dim=1, inverse=True)",)),
        ),
    ],
)
def test_what_transformers_has(text: str, wanted: Converter) -> None:
    assert converter(operation(text)) == wanted


class Config:
    num_attention_heads = 3


@pytest.mark.parametrize(
    ("text", "view", "swapped"),
    [
        ("from: ['{m...}.a', '{m...}.b'], how: {concat: 0, axes: [1, 0]", (12, 4), (0, 1)),
        (
            "from: ['{m...}.a', '{m...}.b'], how: {concat: 0, view: ['*', 2], axes: [1, 0]",
            (6, 2, 4),
            (0, 1),
        ),
        (
            "from: ['{m...}.a', '{m...}.b'], "
            "how: {concat: 0, view: [2, '*'], axis: 1, axes: [0, 2, 1]",
            (12, 2, 2),
            (1, 2),
        ),
        (
            "from: '{m...}.{e:each}', how: {stack: 0, view: ['*', 2], axis: 1, axes: [0, 2, 1]",
            (12, 2, 2),
            (1, 2),
        ),
        (
            "from: ['{m...}.a', '{m...}.b'], "
            "let: {h: target.num_attention_heads}, how: {concat: 0, view: [h, 2, '*'], "
            "axes: [0, 2, 1]",
            (3, 2, 2, 4),
            (1, 2),
        ),
    ],
)
def test_transformers_joins_what_a_view_divides(
    text: str, view: tuple[int, ...], swapped: tuple[int, int]
) -> None:
    """torch takes the parts out of the whole, and transformers makes the whole of them."""
    found = converter(operation(f"{text}}}, to: '{{m}}.whole'"))
    whole = torch.arange(48).view(12, 4)
    seen = whole.view(view).transpose(*swapped)
    seen = seen if len(view) == 2 else seen.reshape(12, 4)
    made: Any = (
        {found.sources[0]: [*seen]}
        if "each" in text
        else dict(zip(found.sources, seen.chunk(2), strict=True))
    )
    for call in found.operations:
        kind, _, arguments = call.partition("(")
        step = eval(f"kind({arguments}", {"kind": getattr(core_model_loading, kind)})
        made = step.convert(
            made, [*found.sources], [*found.targets], config=Config(), full_layer_name="x"
        )
    [result] = made.values()
    assert torch.equal(result, whole)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("from: '{m...}.a', to: ['{m}.b', {drop: unused}], how: {split: 0}", "is dropped"),
        (
            "from: '{m...}.a', to: ['{m}.b', '{m}.c'], how: {view: [g, '*'], split: 1}, "
            "let: {g: target.text_config.num_key_value_heads}",
            "has no operations",
        ),
        ("from: '{m...}.a', to: '{m}.b', how: {axes: [1, 2, 0]}", "for this order of axes"),
        (  # transformers would count the axis in the tensor without the view
            "from: ['{m...}.a', '{m...}.b'], to: '{m}.c', "
            "how: {view: ['*', 2], axes: [1, 0, 2], concat: 2}",
            "has no operations",
        ),
        (
            "from: '{m...}.{e:each}.a', to: '{m}.c', how: {view: ['*', 2], axes: [1, 0], stack: 1}",
            "has no operations",
        ),
        ("from: 'x.{n:int}.a.{p}.c', to: 'x.{n}.b.{p}.d', how: {axes: [1, 0]}", "fields between"),
    ],
)
def test_what_it_has_not_is_said(text: str, why: str, run: Run) -> None:
    with pytest.raises(NoConverterError, match=why):
        converter(operation(text))
    said = run("rules", "explain", "one.yaml", "--as", "key-mapping")
    assert said.code == 0
    assert "`tensors/a` is left out" in said.err
