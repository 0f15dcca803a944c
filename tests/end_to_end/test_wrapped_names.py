"""Whatever a framework put around modules, and wherever: the same bytes as from the names
without it.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.jobs.apply import apply, plan
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import load_rule_file, shipped_folder
from tests.conftest import CLIP, TINY, Run, Tensors

FULL = TINY / "llava-v1.5" / "full_state_dict"
WRAPPERS = [
    rule.unwrap
    for rule in load_rule_file(shipped_folder() / "parts" / "wrappers.yaml").text.prepare
    if rule.unwrap
]
#: Modules that FSDP and torch.compile are told to wrap: layers, a layer's parts, the tower.
INNER = re.compile(r"\.(layers\.\d+|self_attn|mlp|vision_model|mm_projector\.\d)\.")

Wrap = Callable[[str], str]


def fsdp(name: str) -> str:
    return "_fsdp_wrapped_module." + INNER.sub(r".\1._fsdp_wrapped_module.", name)


def compiled_inside_fsdp(name: str) -> str:
    return "_fsdp_wrapped_module." + INNER.sub(
        r".\1._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.", name
    )


def anywhere(name: str) -> str:
    """Every module in a random nest of wrappers; the same for the same name."""
    choice = random.Random(name)
    segments = [
        [*(str(choice.choice(WRAPPERS)) for _ in range(choice.randrange(3))), segment]
        for segment in name.split(".")
    ]
    return ".".join(part for wrapped in segments for part in wrapped)


def stored(tensors: Tensors) -> Tensors:
    """With what old versions stored: `inv_freq` is there already."""
    ids = torch.arange(5).expand(1, -1).contiguous()
    return {"model.vision_tower.vision_tower.vision_model.embeddings.position_ids": ids, **tensors}


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file but the record, which tells of the source."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "llava_remap.json"
    }


def checkpoint(folder: Path, wrap: Wrap, keys: tuple[str, ...] = ()) -> Path:
    shutil.copytree(FULL, folder)
    file = folder / "model_state_dict.bin"
    value: object = {
        wrap(name): tensor for name, tensor in stored(torch.load(file, weights_only=True)).items()
    }
    for key in reversed(keys):
        value = {"epoch": 3, key: value}
    torch.save(value, file)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("bare")
    apply("llava-v1.5", [FULL, f"vision_tower={CLIP}"], folder / "out")
    return outputs(folder / "out")


@pytest.mark.parametrize(
    "wrap",
    [
        *(pytest.param(f"{wrapper}.{{}}".format, id=f"{wrapper}") for wrapper in WRAPPERS),
        *(
            pytest.param(f"{wrapper}.{wrapper}.{{}}".format, id=f"{wrapper} twice")
            for wrapper in WRAPPERS
        ),
        pytest.param(f"{'.'.join(map(str, WRAPPERS))}.{{}}".format, id="all"),
        pytest.param(
            f"{'.'.join(map(str, reversed(WRAPPERS)))}.{{}}".format, id="all, the other way round"
        ),
        fsdp,
        compiled_inside_fsdp,
        anywhere,
    ],
)
def test_wrapped_names_give_the_same_bytes(
    wrap: Wrap, bare: dict[str, bytes], tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "source", wrap)
    assert "inv_freq" in "".join(torch.load(source / "model_state_dict.bin", weights_only=True))
    apply("llava-v1.5", [source, f"vision_tower={CLIP}"], "out", verify="full")
    assert outputs(Path("out")) == bare


@pytest.mark.parametrize(
    "keys",
    [("state_dict",), ("model",), ("module",), ("model", "state_dict"), ("state_dict", "module")],
)
def test_wrapper_dicts_around_wrapped_names(
    keys: tuple[str, ...], bare: dict[str, bytes], tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "source", compiled_inside_fsdp, keys)
    apply("llava-v1.5", [source, f"vision_tower={CLIP}"], "out")
    assert outputs(Path("out")) == bare


def test_a_tower_given_apart(run: Run, tmp_path: Path) -> None:
    """`select` sees the names without their wrappers."""
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    (tower / "pytorch_model.bin").unlink()
    tensors = load_file(tower / "model.safetensors")
    save_file(
        {fsdp(f"module.{name}"): tensor for name, tensor in tensors.items()},
        tower / "model.safetensors",
        {"format": "pt"},
    )
    released = TINY / "llava-v1.5" / "released" / "bin"
    apply("llava-v1.5", [released, f"vision_tower={CLIP}"], "plain")
    apply("llava-v1.5", [released, f"vision_tower={tower}"], "wrapped")

    def weights(folder: str) -> Tensors:
        return {
            name: tensor
            for file in Path(folder).glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }

    plain, wrapped = weights("plain"), weights("wrapped")
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


def test_wrapped_stubs_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", fsdp)
    state = torch.load(source / "model_state_dict.bin", weights_only=True)
    torch.save(
        {name: tensor[:0] for name, tensor in state.items()}, source / "model_state_dict.bin"
    )
    [problem] = plan("llava-v1.5", [source], "out").plan.problems
    assert problem.code == "LR104"


@pytest.mark.parametrize(
    "suffix",
    ["absmax", "quant_state.bitsandbytes__nf4", "SCB", "qweight", "weight_packed", "weight_scale"],
)
def test_wrapped_quantised_tensors_are_refused(suffix: str, run: Run, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", fsdp)
    state = torch.load(source / "model_state_dict.bin", weights_only=True)
    name = fsdp("model.layers.0.mlp.up_proj.weight")
    torch.save(
        {**state, f"{name.removesuffix('weight')}{suffix}": torch.ones(4)},
        source / "model_state_dict.bin",
    )
    ran = run("apply", "llava-v1.5", "--source", source, "--output", "out")
    assert (ran.code, "LR106" in ran.err) == (3, True)


RULES = """\
schema: 1
name: no-wrappers
version: 1.0.0
summary: LLaVA without parts/wrappers.yaml
extends: [parts/buffers.yaml, parts/llava.yaml]
sources: {model: {}}
target: {class: LlavaForConditionalGeneration, config: {model_type: {const: llava}}}
"""


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        ("module.{}".format, "contain `module.`"),
        (fsdp, "contain `_fsdp_wrapped_module.`"),
        (
            compiled_inside_fsdp,
            "contain `_orig_mod.`, `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.`",
        ),
        (lambda name: name.replace(".mlp.", ".mlp._orig_mod."), "contain `_orig_mod.`"),
    ],
)
def test_a_rule_file_that_leaves_them_on(wrap: Wrap, said: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    source = checkpoint(tmp_path / "source", wrap)
    [problem] = plan(rules, [source], "out").plan.problems
    assert problem.code == "LR110"
    assert said in problem.cause
    assert "which no-wrappers doesn't remove" in problem.cause


def test_none_is_left_by_its_neighbours() -> None:
    """A wrapper that comes off may bring the two halves of another one together: the order of
    the rules sees to it.
    """
    program = compile_rules(load_rule_file("llava-v1.5"))
    for inner in map(str, WRAPPERS):
        name = f"base_model.{inner}.model.lm_head.weight"
        assert program.rewrite(name).target == "language_model.lm_head.weight", name
