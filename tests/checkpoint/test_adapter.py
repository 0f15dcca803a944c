"""PEFT's adapters: their pairs, the scale that their config gives, and all that isn't plain
LoRA.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llava_remap.checkpoint import LoraPair, Tensor, open_checkpoint
from llava_remap.checkpoint.adapter import lora_pairs
from llava_remap.core.problem import Problem, RemapError
from tests.conftest import run_away

from .stored import DATA, TINY

LORA = TINY / "llava-v1.5-lora"
PLAIN = json.loads((LORA / "adapter_config.json").read_text())
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.just("q_proj"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.just("q_proj"), inner, max_size=3)
    ),
    max_leaves=6,
)
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"


def pair(module: str, rank: int = 4, wrapper: str = "base_model.model.") -> dict[str, torch.Tensor]:
    return {
        f"{wrapper}{module}.lora_A.weight": torch.ones(rank, 6),
        f"{wrapper}{module}.lora_B.weight": torch.ones(5, rank),
    }


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **config}))
    return folder


def scales(folder: Path) -> dict[str, float | None]:
    return {pair.base: pair.scale for pair in open_checkpoint(folder, part=True).pairs}


def refusal(path: Path) -> Problem:
    with pytest.raises(RemapError) as caught:
        open_checkpoint(path, part=True)
    [problem] = caught.value.problems
    return problem


def test_a_genuine_folder_is_one_catalog() -> None:
    found = open_checkpoint(LORA, part=True)
    assert len(found.catalog) == 28 + 4
    assert found.form == "torch .bin (adapter_model.bin and non_lora_trainables.bin)"
    assert found.passed_over == ()
    assert len(found.pairs) == 14
    base = "base_model.model.model.layers.1.mlp.down_proj"
    assert (
        LoraPair(f"{base}.weight", f"{base}.lora_A.weight", f"{base}.lora_B.weight", 2.0)
        in found.pairs
    )
    assert "adapter_config.json" in found.read(("tensors",))
    assert found.changed() == []


@pytest.mark.parametrize("file", ["adapter_model.bin", "non_lora_trainables.bin"])
def test_half_of_a_training_is_not_read(file: str) -> None:
    with pytest.raises(RemapError, match=r"LR115.*Give the (whole )?folder"):
        open_checkpoint(LORA / file, part=True)


def test_a_projector_is_a_part() -> None:
    found = open_checkpoint(TINY / "llava-v1.5" / "pretrain_projector_only", part=True)
    assert len(found.catalog) == 4
    assert found.pairs == ()


def test_a_manifest_does_not_tell_the_scale() -> None:
    found = open_checkpoint(
        DATA / "manifests" / "parts" / "llava-v1.5-7b-lora.adapter_model.json", part=True
    )
    assert len(found.pairs) == 224
    assert {pair.scale for pair in found.pairs} == {None}


def test_names_with_the_adapters_own(tmp_path: Path) -> None:
    tensors = {
        name.replace(".weight", ".default.weight"): tensor for name, tensor in pair(Q).items()
    }
    assert scales(adapter(tmp_path, tensors)) == {f"base_model.model.{Q}.weight": 2.0}


def test_scale(tmp_path: Path) -> None:
    assert set(scales(adapter(tmp_path, pair(Q), lora_alpha=3)).values()) == {0.75}
    assert set(scales(adapter(tmp_path, pair(Q), lora_alpha=3, use_rslora=True)).values()) == {1.5}
    assert set(scales(adapter(tmp_path, pair(Q), lora_alpha=0.5)).values()) == {0.125}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("q_proj", Q), ("self_attn.q_proj", Q), ("^model.layers.0.self_attn.q_proj", Q),
        (r"layers\.\d+\.self_attn\.q_proj", Q),
        ("proj", None), ("layers.1.self_attn.q_proj", None), ("^layers.0.self_attn.q_proj", None),
        ("[qv]_proj", "both"),
    ],
)  # fmt: skip
def test_patterns(tmp_path: Path, pattern: str, found: str | None) -> None:
    """A pattern is of the whole name, or of what stands behind a dot, to the name's end."""
    taken = {Q: found in (Q, "both"), V: found == "both"}
    tensors = {
        name: t
        for module, own in taken.items()
        for name, t in pair(module, 2 if own else 4).items()
    }
    wanted = {
        f"base_model.model.{module}.weight": 5.0 if own else 2.0 for module, own in taken.items()
    }
    assert (
        scales(adapter(tmp_path, tensors, rank_pattern={pattern: 2}, alpha_pattern={pattern: 10}))
        == wanted
    )


def test_the_first_pattern_counts(tmp_path: Path) -> None:
    folder = adapter(tmp_path, pair(Q), alpha_pattern={"v_proj": 1, "q_proj": 12, Q: 100})
    assert set(scales(folder).values()) == {3.0}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"peft_type": "LOHA"}, "peft_type: 'LOHA'"),
        ({"peft_type": None}, "peft_type: None"),
        ({"init_lora_weights": "pissa"}, "which changed the base before the training"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "loftq"),
        ({"init_lora_weights": ["x"]}, "['x']"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens: [1, 2]"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_variant_of_next_year": {"x": 1}}, "a_variant_of_next_year"),
        ({"r": 8}, "has rank 4, the config says `8`"),
        ({"rank_pattern": {"q_proj": 2}}, "the config says `2`"),
        ({"r": None}, "the config says `None`"),
        ({"lora_alpha": None}, "alpha `None`"),
        ({"lora_alpha": True}, "alpha `True`"),
        ({"lora_alpha": 10**40}, "alpha"),
        ({"alpha_pattern": ["q_proj"]}, "a mapping is needed"),
        ({"alpha_pattern": {"(": 1}}, "is not a regex"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    problem = refusal(adapter(tmp_path, pair(Q), **config))
    assert problem.code == "LR115"
    assert said in problem.cause
    assert problem.fix


@given(
    st.dictionaries(st.sampled_from(sorted({*PLAIN, "use_rslora", "alpha_pattern", "other"})), JSON)
)
def test_whatever_a_config_says(config: dict[str, Any]) -> None:
    """Pairs with a finite scale, or a refusal."""
    shapes = {f"{Q}.lora_A.weight": (4, 6), f"{Q}.lora_B.weight": (5, 4)}
    catalog = {name: Tensor.of(name, "F32", shape, None) for name, shape in shapes.items()}
    refused: tuple[Problem, ...] = ()
    found: tuple[LoraPair, ...] = ()
    try:
        found = lora_pairs("file", catalog, {**PLAIN, **config})
    except RemapError as error:
        refused = error.problems
    assert [problem.code for problem in refused] == ["LR115"] * (not found)
    assert all("\n" not in problem.message for problem in refused)
    assert all(pair.scale is not None and math.isfinite(pair.scale) for pair in found)


def test_a_pattern_that_runs_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_away(monkeypatch, "(a|a|aa)", 100)
    problem = refusal(adapter(tmp_path, pair("a" * 200), alpha_pattern={"(a|a|aa)+$b": 1}))
    assert problem.code == "LR115"
    assert "it takes too long on a name" in problem.cause


def test_a_pattern_of_two_lines_is_told_on_one(tmp_path: Path) -> None:
    problem = refusal(adapter(tmp_path, pair("a"), alpha_pattern={"?\n": 1}))
    assert problem.code == "LR115"
    assert problem.message.isprintable()


@pytest.mark.parametrize("begin", [True, False, "gaussian", "eva", "orthogonal"])
def test_beginnings_that_keep_the_base(tmp_path: Path, begin: bool | str) -> None:
    assert set(scales(adapter(tmp_path, pair(Q), init_lora_weights=begin)).values()) == {2.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.pop(f"base_model.model.{Q}.lora_A.weight"),
            "1 of 2 modules in `adapter_model.safetensors` don't have one",
        ),
        (
            lambda t: t.pop(f"base_model.model.{Q}.lora_B.weight"),
            "don't have one lora_A and one lora_B",
        ),
        (
            lambda t: t.update({f"base_model.model.{Q}.lora_A.second.weight": torch.ones(4, 6)}),
            "don't have one lora_A",
        ),
        (
            lambda t: t.update({f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(5)}),
            "DoRA's magnitudes",
        ),
        (
            lambda t: t.update(
                {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}
            ),
            "of an embedding",
        ),
        (
            lambda t: t.update({f"base_model.model.{Q}.lora_B.bias": torch.ones(5)}),
            "biases of lora_B",
        ),
        (
            lambda t: t.update({f"base_model.model.{Q}.lora_A.weight": torch.ones(4, 6, 1, 1)}),
            "F32 [4, 6, 1, 1]",
        ),
        (
            lambda t: t.update({f"base_model.model.{Q}.lora_A.weight": torch.ones(3, 6)}),
            "lora_A is F32 [3, 6], lora_B F32 [5, 4]",
        ),
        (
            lambda t: t.update({f"base_model.model.{Q}.lora_A.weight": torch.ones(4, 6).int()}),
            "lora_A is I32",
        ),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    tensors = pair(Q) | pair(V)
    change(tensors)
    problem = refusal(adapter(tmp_path, tensors))
    assert problem.code == "LR115"
    assert said in problem.cause


def test_stubs(tmp_path: Path) -> None:
    problem = refusal(
        adapter(tmp_path, {**pair(V), f"base_model.model.{Q}.lora_A.weight": torch.empty(0)})
    )
    assert problem.code == "LR104"
    assert problem.names == (f"base_model.model.{Q}.lora_A.weight",)


def test_without_its_config(tmp_path: Path) -> None:
    shutil.copy(LORA / "adapter_model.bin", tmp_path)
    problem = refusal(tmp_path)
    assert problem.code == "LR115"
    assert "no adapter_config.json beside it" in problem.cause


def test_a_name_in_both_files(tmp_path: Path) -> None:
    shutil.copytree(LORA, tmp_path / "lora")
    torch.save(
        {f"base_model.model.{Q}.lora_A.weight": torch.ones(4, 64)},
        tmp_path / "lora" / "non_lora_trainables.bin",
    )
    problem = refusal(tmp_path / "lora")
    assert problem.code == "LR103"
    assert "in `adapter_model.bin`, `non_lora_trainables.bin`" in problem.cause
