"""Jobs with several sources: an adapter and its base, a projector and its language model, and the
tensors that each part replaces.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.jobs.apply import apply
from llava_remap.jobs.load import load_model
from tests.conftest import (
    CLIP,
    MANIFESTS,
    RELEASED,
    TINY,
    Changed,
    Ran,
    Run,
    Tensors,
    with_own_digest,
)

LORA = TINY / "llava-v1.5-lora"
PRETRAINED = TINY / "llava-v1.5" / "pretrain_projector_only"
PARTS = MANIFESTS / "parts"
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
PROJECTOR = "multi_modal_projector.linear_1.weight"
Q, UP = "layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"
FC1 = "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1"


def written(folder: Path = Path("out")) -> Tensors:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def config(folder: Path = Path("out")) -> Any:
    return json.loads((folder / "config.json").read_text())


def given(*sources: object) -> list[str]:
    return [argument for source in sources for argument in ("--source", str(source))]


def applied(run: Run, *sources: object, more: tuple[str, ...] = ()) -> Ran:
    return run(
        "apply", "llava-v1.5", *given(f"vision_tower={CLIP}", *sources), "--output", "out", *more
    )


def problems(ran: Ran) -> dict[str, str]:
    return {problem["code"]: problem["message"] for problem in json.loads(ran.out)["problems"]}


def torch_file(folder: Path) -> Tensors:
    found: Tensors = torch.load(folder, weights_only=True)
    return found


@pytest.fixture
def vicuna(changed: Changed) -> Path:
    """A plain language model: a checkpoint without its projector, and a config without LLaVA's
    keys.
    """

    def plain(content: dict[str, Any]) -> None:
        for key in list(content):
            if "mm_" in key or key == "image_aspect_ratio":
                del content[key]
        content.update(architectures=["LlamaForCausalLM"], model_type="llama")

    def bare(tensors: Tensors) -> None:
        for name in [name for name in tensors if "mm_projector" in name]:
            del tensors[name]

    return changed(tensors=bare, config=plain)


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the genuine adapter, with its tensors and its config changed."""

    def make(change: Callable[[Tensors], object] = lambda tensors: None, **config: Any) -> Path:
        folder = tmp_path / "adapter"
        shutil.copytree(LORA, folder)
        tensors = torch_file(folder / "adapter_model.bin")
        change(tensors)
        torch.save(tensors, folder / "adapter_model.bin")
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    return make


def pair(module: str, rows: int, columns: int, rank: int = 4) -> Tensors:
    draw = torch.Generator().manual_seed(5)
    base = f"base_model.model.{module}"
    return {
        f"{base}.lora_A.weight": torch.randn(rank, columns, generator=draw).half() / 16,
        f"{base}.lora_B.weight": torch.randn(rows, rank, generator=draw).half() / 16,
    }


def sum_of(w: torch.Tensor, pairs: Tensors, module: str, scale: float) -> torch.Tensor:
    """W + scale · B A, rounded once to the dtype of W."""
    a, b = (pairs[f"base_model.model.{module}.lora_{letter}.weight"].double() for letter in "AB")
    exact = (w.double() + scale * (b @ a)).numpy()
    return torch.from_numpy(
        exact.astype(w.numpy().dtype)
    )  # torch would round twice: to F32, then to F16


# --- adapters


def test_a_genuine_adapter(run: Run) -> None:
    ran = applied(run, RELEASED / "bin", f"adapter={LORA}", more=("--verify", "full"))
    assert ran.code == 0, ran.err
    found, base = written(), torch_file(RELEASED / "bin" / "pytorch_model.bin")
    pairs, beside = (
        torch_file(LORA / "adapter_model.bin"),
        torch_file(LORA / "non_lora_trainables.bin"),
    )
    merged = 0
    for name, tensor in base.items():
        module = name.removesuffix(".weight")
        if f"base_model.model.{module}.lora_A.weight" in pairs:
            merged += 1
            assert torch.equal(
                found[f"language_model.{name}"], sum_of(tensor, pairs, module, 8 / 4)
            ), name
            assert not torch.equal(found[f"language_model.{name}"], tensor)
        elif "norm" in name:
            assert torch.equal(found[f"language_model.{name}"], tensor), name
    assert merged == 14
    assert torch.equal(found[PROJECTOR], beside["base_model.model.model.mm_projector.0.weight"])
    assert "rank 4, scale 2" in ran.out
    assert (
        "LR312 another source's tensors taken: 4 tensors of `adapter` are taken, not those of "
        "`model`." in ran.out
    )


def test_the_plan_is_plain_data_and_is_verified(run: Run) -> None:
    sources = (RELEASED / "bin", f"adapter={LORA}")
    assert applied(run, *sources).code == 0
    record = json.loads(Path("out/llava_remap.json").read_text())
    [entry] = [
        e for e in record["plan"]["mapped"] if e["target"] == f"language_model.model.{Q}.weight"
    ]
    base = f"base_model.model.model.{Q}"
    assert entry["from"] == [{"source": "model", "name": f"model.{Q}.weight"}]
    a, b = (f"{base}.lora_{matrix}.weight" for matrix in "AB")
    assert entry["then"] == [
        {
            "add_lora": {
                "base": entry["from"][0],
                "a": {"source": "adapter", "name": a},
                "b": {"source": "adapter", "name": b},
                "rank": 4,
                "scale": 2.0,
            }
        }
    ]
    assert {"adapter_config.json", "non_lora_trainables.bin"} <= set(
        record["sources"]["adapter"]["files"]
    )
    against = [f"--against={source}" for source in (*sources, f"vision_tower={CLIP}")]
    ran = run("verify", "out", *against)
    assert ran.code == 0, ran.out
    assert "80 tensors equal, bit by bit" in ran.out


def test_another_adapter_is_told(run: Run, adapter: Callable[..., Path]) -> None:
    assert applied(run, RELEASED / "bin", f"adapter={LORA}").code == 0
    name = f"base_model.model.model.{Q}.lora_B.weight"

    def other(tensors: Tensors) -> None:
        tensors[name] = tensors[name] * 2
        tensors[f"base_model.model.model.{UP}.lora_A.weight"] = torch.ones(3, 64)
        tensors[f"base_model.model.model.{UP}.lora_B.weight"] = torch.ones(112, 3)

    path = adapter(other, rank_pattern={UP: 3})
    arguments = [
        "--against",
        RELEASED / "bin",
        "--against",
        f"adapter={path}",
        "--against",
        f"vision_tower={CLIP}",
    ]
    ran = run("verify", "out", *arguments, "--format", "json")
    [problem] = ran.json["problems"]
    assert (ran.code, problem["code"]) == (1, "LR602")
    assert set(problem["details"]) == {
        f"language_model.model.{module}.weight" for module in (Q, UP)
    }
    assert "is F16 [3, 64]" not in problem["details"][f"language_model.model.{Q}.weight"]
    assert (
        "in source `adapter` it is F32 [3, 64]"
        in problem["details"][f"language_model.model.{UP}.weight"]
    )


def test_what_was_merged_does_not_come_back(run: Run) -> None:
    assert applied(run, RELEASED / "bin", f"adapter={LORA}").code == 0
    ran = run("revert", "out", "--output", "back", "--format", "json")
    [problem] = ran.json["problems"]
    assert (ran.code, problem["code"], len(problem["names"])) == (1, "LR607", 14)
    assert not Path("back").exists()


def test_a_record_that_can_not_be(run: Run) -> None:
    assert applied(run, RELEASED / "bin", f"adapter={LORA}").code == 0
    path = Path("out/llava_remap.json")
    record = json.loads(path.read_text())
    [entry] = [
        e for e in record["plan"]["mapped"] if e["target"] == f"language_model.model.{Q}.weight"
    ]
    [added] = entry["then"]
    pair = added["add_lora"]
    changes: tuple[dict[str, Any], ...] = (
        {"then": [{"add_lora": {key: pair[key] for key in ("base", "a", "b", "rank")}}]},
        {"then": [{"add_lora": {**pair, "rank": 0}}]},
        {"then": [{"add_lora": {**pair, "scale": "2"}}]},
        {"then": [{"add_lora": {**pair, "scale": None}}]},
        {"then": [{"add_lora": []}]},
        {"then": [added, added]},
        {"then": [{"cast": {"stored": "F32"}}, added]},
        {"then": [{**added, "cast": {"stored": "F32"}}]},
        {"then": [{"add_lora": {**pair, "a": {"source": "other", "name": "x"}}}]},
        {"then": [{"add_lora": {**pair, "base": pair["a"]}}]},
        {"from": []},
        {"from": entry["from"] * 2},
        {"shape": [64]},
    )
    for change in changes:
        old = dict(entry)
        entry.update(change)
        path.write_text(with_own_digest(record))
        entry.update(old)
        for command in (("verify", "out"), ("revert", "out", "--output", "back")):
            ran = run(*command)
            assert ran.code == 3, (change, ran.out)
            assert "LR113" in ran.err


def test_onto_a_plain_language_model(run: Run, vicuna: Path) -> None:
    """As LLaVA's own script trains it: the base is Vicuna, the projector lies beside the pairs."""
    assert applied(run, vicuna, f"adapter={LORA}").code == 0
    found = written()
    beside = torch_file(LORA / "non_lora_trainables.bin")
    assert torch.equal(found[PROJECTOR], beside["base_model.model.model.mm_projector.0.weight"])
    assert config()["vision_feature_layer"] == -2
    notes = json.loads(Path("out/llava_remap.json").read_text())["plan"]["notes"]
    # The tower is tiny, pictures are padded, and vLLM leaves out <s>.
    assert [note["code"] for note in notes] == ["LR309", "LR315", "LR315"]


def test_in_memory_as_on_disk(run: Run, vicuna: Path) -> None:
    model = load_model("llava-v1.5", [str(vicuna), f"adapter={LORA}", f"vision_tower={CLIP}"])
    assert applied(run, vicuna, f"adapter={LORA}").code == 0
    [here] = [
        p for name, p in model.named_parameters() if name.endswith(f"language_model.{Q}.weight")
    ]
    assert torch.equal(here, written()[f"language_model.model.{Q}.weight"])


def test_a_head_that_also_grows(run: Run, adapter: Callable[..., Path]) -> None:
    """Its old rows are merged, new ones stand behind them, and both come again when they are
    verified.
    """
    head = pair("lm_head", 320, 64)
    path = adapter(lambda tensors: tensors.update(head))
    ran = applied(run, RELEASED / "safetensors", f"adapter={path}", more=("--verify", "full"))
    assert ran.code == 0, ran.err
    found = written()[HEAD]
    base = load_file(RELEASED / "safetensors" / "model.safetensors")
    assert found.shape == (384, 64)
    assert torch.equal(found[:320], sum_of(base["lm_head.weight"], head, "lm_head", 2.0))
    [entry] = [
        e
        for e in json.loads(Path("out/llava_remap.json").read_text())["plan"]["mapped"]
        if e["target"] == HEAD
    ]
    lora, changed = entry["then"]
    assert (lora["add_lora"]["rank"], lora["add_lora"]["scale"]) == (4, 2.0)
    assert changed == {"post_load": {"use": "expand_embeddings", "before": [320, 64]}}


def test_new_rows_are_made_from_merged_ones(run: Run, adapter: Callable[..., Path]) -> None:
    head = pair("lm_head", 320, 64)
    path = adapter(lambda tensors: tensors.update(head))
    text = "post_load: [{use: expand_embeddings, with: {init: mean, statistics: own}}]"
    Path("own.yaml").write_text(
        "schema: 1\nname: own\nversion: 1.0.0\nsummary: means of their own\n"
        f"extends: [llava-v1.5.yaml]\n{text}\n"
    )
    sources = given(RELEASED / "safetensors", f"adapter={path}", f"vision_tower={CLIP}")
    assert run("apply", "own.yaml", *sources, "--output", "out").code == 0
    found = written()[HEAD].double()
    assert (found[320:] - found[:320].mean(dim=0)).abs().max() < 1e-4


@pytest.mark.parametrize("apart", [True, False])
def test_on_the_tower(run: Run, adapter: Callable[..., Path], apart: bool) -> None:
    """Also where the tower is that of another source, under other names."""
    tower = pair(FC1, 64, 32)
    path = adapter(lambda tensors: tensors.update(tower))
    source = RELEASED / "bin" if apart else TINY / "llava-v1.5" / "full_state_dict"
    ran = applied(run, source, f"adapter={path}")
    assert ran.code == 0, ran.err
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    if apart:
        base = load_file(CLIP / "model.safetensors")[name]
    else:
        base = torch_file(source / "model_state_dict.bin")[
            f"model.vision_tower.vision_tower.{name}"
        ]
    found = written()[f"vision_tower.{name}"]
    assert found.dtype == torch.float32
    assert (
        found - sum_of(base, tower, FC1, 2.0)
    ).abs().max() <= 2**-27  # two ways of rounding a sum in float32


def test_a_tower_that_was_trained_beside_the_pairs(run: Run, adapter: Callable[..., Path]) -> None:
    """It is a whole tower, so none is needed apart, but for the config of such a small one; one
    given apart gives what lacks.
    """
    path = adapter()
    beside = torch_file(path / "non_lora_trainables.bin")
    stored = torch_file(TINY / "llava-v1.5" / "full_state_dict" / "model_state_dict.bin")
    tower = {
        f"base_model.model.{name}": tensor + 1
        for name, tensor in stored.items()
        if "vision_tower" in name
    }
    torch.save({**beside, **tower}, path / "non_lora_trainables.bin")
    alone = run(
        "apply",
        "llava-v1.5",
        *given(RELEASED / "bin", f"adapter={path}"),
        "--output",
        "out",
        "--format",
        "json",
    )
    assert set(problems(alone)) == {"LR112"}
    assert "number of attention heads" in problems(alone)["LR112"]
    first = applied(run, RELEASED / "bin", f"adapter={path}")
    assert first.code == 0, first.err
    assert (
        "59 tensors of `adapter` are taken, not those of `model` and `vision_tower`." in first.out
    )
    name = "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias"
    wanted = tower[f"base_model.model.model.vision_tower.{name}"]
    assert torch.equal(written()[name], wanted)
    del tower[
        "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc2.bias"
    ]
    torch.save({**beside, **tower}, path / "non_lora_trainables.bin")
    shutil.rmtree("out")
    ran = applied(run, RELEASED / "bin", f"adapter={path}")
    assert ran.code == 0, ran.err
    assert torch.equal(written()[name], wanted)
    assert "58 tensors of `adapter` are taken, not those of `model` and `vision_tower`." in ran.out


def test_a_trained_bias(run: Run) -> None:
    """PEFT saves it under the name of the layer that it wraps; it takes the place of the base's."""
    source = TINY / "llava-onevision" / "safetensors"
    base = load_file(source / "model.safetensors")
    module = "model.layers.0.self_attn.q_proj"
    rows, columns = base[f"{module}.weight"].shape
    Path("biased").mkdir()
    bias = torch.full((rows,), 0.25, dtype=torch.bfloat16)
    own = {f"base_model.model.{module}.base_layer.bias": bias, **pair(module, rows, columns)}
    save_file(own, "biased/adapter_model.safetensors")
    content = json.loads((LORA / "adapter_config.json").read_text())
    Path("biased/adapter_config.json").write_text(json.dumps({**content, "bias": "lora_only"}))
    Path("as_interleave").mkdir()
    text = json.loads((source / "config.json").read_text())
    Path("as_interleave/config.json").write_text(
        json.dumps({**text, "image_aspect_ratio": "anyres"})
    )
    shutil.copy(source / "model.safetensors", "as_interleave")
    ran = run(
        "apply",
        "llava-interleave",
        *given("as_interleave", "adapter=biased"),
        "--output",
        "out",
        "--dry-run",
    )
    assert "1 tensor of `adapter` is taken, not that of `model`." in ran.out
    assert f"(language_model.{module}.bias)" in ran.out
    assert "LR301" not in ran.out


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (pair("model.layers.7.mlp.up_proj", 112, 64), "LR313", "1 LoRA pair of 15"),
        (pair("model.mm_projector.1", 64, 64), "LR313", "1 LoRA pair of 15"),
        (pair("lm_head", 64, 320), "LR401", "1 LoRA pair with another shape"),
        (
            {"base_model.model.model.extra.weight": torch.ones(2)},
            "LR301",
            "1 tensor that no rule maps",
        ),
        (
            {"base_model.model.model.layers.9.input_layernorm.weight": torch.ones(64)},
            "LR303",
            "that the model doesn't have",
        ),
    ],
)
def test_leftovers(
    run: Run, adapter: Callable[..., Path], more: Tensors, code: str, said: str
) -> None:
    path = adapter(lambda tensors: tensors.update(more))
    ran = applied(run, RELEASED / "bin", f"adapter={path}", more=("--format", "json"))
    assert ran.code == 1
    assert set(problems(ran)) == {code}
    assert said in problems(ran)[code]
    assert not Path("out").exists()


def test_onto_a_base_whose_elements_lie_apart(run: Run) -> None:
    """A transposed view in a torch file, and an adapter that is one."""
    Path("base").mkdir()
    for file in (RELEASED / "bin").iterdir():
        shutil.copy(file, "base")
    tensors, pairs = (
        torch_file(RELEASED / "bin" / "pytorch_model.bin"),
        torch_file(LORA / "adapter_model.bin"),
    )
    name, matrix = f"model.{Q}.weight", f"base_model.model.model.{Q}.lora_B.weight"
    torch.save({**tensors, name: tensors[name].T.contiguous().T}, "base/pytorch_model.bin")
    shutil.copytree(LORA, "adapter")
    torch.save({**pairs, matrix: pairs[matrix].T.contiguous().T}, "adapter/adapter_model.bin")
    assert applied(run, "base", "adapter=adapter").code == 0
    assert torch.equal(
        written()[f"language_model.{name}"], sum_of(tensors[name], pairs, f"model.{Q}", 2.0)
    )


def test_a_pair_on_what_is_tied(run: Run, changed: Changed, adapter: Callable[..., Path]) -> None:
    def tie(tensors: Tensors) -> None:
        del tensors["lm_head.weight"]

    source = changed(tensors=tie, config=lambda config: config.update(tie_word_embeddings=True))
    path = adapter(lambda tensors: tensors.update(pair("lm_head", 320, 64)))
    (path / "config.json").unlink()
    ran = applied(run, source, f"adapter={path}", more=("--format", "json"))
    assert set(problems(ran)) == {"LR313"}
    assert "is tied" in ran.out


def test_two_adapters_of_one_tensor(run: Run) -> None:
    """Of a rule file that takes a second adapter."""
    Path("two.yaml").write_text(
        "schema: 1\nname: two\nversion: 1.0.0\nsummary: two adapters\nextends: [llava-v1.5.yaml]\n"
        "sources: {second: {optional: true, overrides: true, use: [tensors]}}\n"
    )
    sources = given(RELEASED / "bin", f"vision_tower={CLIP}", f"adapter={LORA}", f"second={LORA}")
    ran = run("apply", "two.yaml", *sources, "--output", "out", "--format", "json")
    assert set(problems(ran)) == {"LR304"}
    assert "both change `language_model.model." in problems(ran)["LR304"]


@pytest.mark.parametrize("letter", ["A", "B"])
def test_values_that_are_no_numbers(run: Run, adapter: Callable[..., Path], letter: str) -> None:
    name = f"base_model.model.model.{Q}.lora_{letter}.weight"
    path = adapter(lambda tensors: tensors[name][2, 3].fill_(float("inf")))
    ran = applied(run, RELEASED / "bin", f"adapter={path}", more=("--format", "json"))
    assert set(problems(ran)) == {"LR406"}
    assert f"1 values of `{name}`" in problems(ran)["LR406"]
    assert not Path("out").exists()


def test_sums_that_do_not_fit(run: Run, adapter: Callable[..., Path]) -> None:
    path = adapter(lora_alpha=1e8)
    ran = applied(run, RELEASED / "bin", f"adapter={path}", more=("--format", "json"))
    assert set(problems(ran)) == {"LR406"}
    assert not Path("out").exists()


def test_stubs_beside_the_pairs(run: Run, adapter: Callable[..., Path]) -> None:
    path = adapter()
    torch.save(
        {"base_model.model.model.mm_projector.0.weight": torch.empty(0)},
        path / "non_lora_trainables.bin",
    )
    ran = applied(run, RELEASED / "bin", f"adapter={path}", more=("--format", "json"))
    assert set(problems(ran)) == {"LR104"}
    assert str(path) in problems(ran)["LR104"]


def test_a_folder_with_a_config_alone_is_no_adapter(run: Run) -> None:
    Path("empty").mkdir()
    shutil.copy(LORA / "config.json", "empty")
    ran = applied(run, RELEASED / "bin", "adapter=empty")
    assert ran.code == 3
    assert "LR100" in ran.err


def test_two_runs_give_the_same_bytes() -> None:
    for output in ("one", "two"):
        apply(
            "llava-v1.5", [str(RELEASED / "bin"), f"adapter={LORA}", f"vision_tower={CLIP}"], output
        )
    for file in Path("one").glob("*.safetensors"):
        assert file.read_bytes() == (Path("two") / file.name).read_bytes()


# --- projectors


@pytest.mark.parametrize("path", [PRETRAINED, PRETRAINED / "mm_projector.bin"])
def test_a_projector_and_its_language_model(run: Run, vicuna: Path, path: Path) -> None:
    ran = applied(run, vicuna, f"projector={path}", more=("--verify", "full"))
    assert ran.code == 0, ran.err
    assert torch.equal(
        written()[PROJECTOR],
        torch_file(PRETRAINED / "mm_projector.bin")["model.mm_projector.0.weight"],
    )
    assert "LR312" not in ran.out
    assert (Path("out/tokenizer.json").is_file(), config()["model_type"]) == (True, "llava")


def test_a_projector_comes_back(run: Run, vicuna: Path) -> None:
    """Nothing was computed, so each source comes back."""
    assert applied(run, vicuna, f"projector={PRETRAINED}").code == 0
    assert run("revert", "out", "--output", "back").code == 0
    original = torch_file(PRETRAINED / "mm_projector.bin")
    [file] = Path("back/projector").glob("*.safetensors")
    found = load_file(file)
    assert found.keys() == original.keys()
    assert all(torch.equal(found[name], original[name]) for name in original)


def test_the_config_is_that_with_llavas_keys(run: Run, vicuna: Path) -> None:
    folder = Path("projector")
    shutil.copytree(PRETRAINED, folder)
    content = json.loads((folder / "config.json").read_text())
    content.update(mm_vision_select_layer=-3)
    (folder / "config.json").write_text(json.dumps(content))
    assert applied(run, vicuna, f"projector={folder}").code == 0
    assert config()["vision_feature_layer"] == -3


@pytest.mark.parametrize(
    "said",
    [
        {"rms_norm_eps": 2e-5},
        {"rope_theta": 1e6},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_configs_that_disagree_on_the_language_model(
    said: dict[str, object], run: Run, vicuna: Path
) -> None:
    """The layers are the base's; neither config is taken at its word."""
    folder = Path("projector")
    shutil.copytree(PRETRAINED, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **said}))
    ran = applied(run, vicuna, f"projector={folder}")
    assert (ran.code, "LR112" in ran.out, "`projector` and `model` disagree" in ran.out) == (
        3,
        True,
        True,
    )
    assert not Path("out").exists()


def test_rows_that_no_tokenizer_knows(run: Run) -> None:
    """Tokens were added in the training of an adapter: without its tokenizer their rows would be
    taken for free ones.
    """
    folder = Path("adapter")
    shutil.copytree(LORA, folder)
    beside = torch_file(folder / "non_lora_trainables.bin")
    rows = torch.full((322, 64), 0.5, dtype=torch.float16)
    more = {
        f"base_model.model.{name}.weight": rows.clone()
        for name in ("model.embed_tokens", "lm_head")
    }
    torch.save({**beside, **more}, folder / "non_lora_trainables.bin")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "vocab_size": 322}))
    ran = applied(run, RELEASED / "bin", f"adapter={folder}")
    assert (ran.code, "LR402" in ran.out, "322 rows, that of its base 320" in ran.out) == (
        1,
        True,
        True,
    )
    first = Path("first")  # a tokenizer with two more tokens, perhaps the one of the training
    assert (
        run(
            "apply",
            "llava-v1.5",
            "--source",
            RELEASED / "bin",
            "--source",
            f"vision_tower={CLIP}",
            "--output",
            first,
        ).code
        == 0
    )
    for file in first.glob("*token*"):
        shutil.copy(file, folder)
    assert applied(run, RELEASED / "bin", f"adapter={folder}").code == 0
    assert (config()["text_config"]["vocab_size"], config()["image_token_id"]) == (322, 320)


@pytest.mark.parametrize("file", ["adapter_model.bin", "non_lora_trainables.bin"])
def test_half_of_a_training_is_refused(file: str, run: Run) -> None:
    """As an interrupted download leaves it, and named alone."""
    folder = Path("adapter")
    shutil.copytree(LORA, folder)
    alone = applied(run, RELEASED / "bin", f"adapter={folder / file}")
    assert (
        alone.code,
        "LR115" in alone.err + alone.out,
        "Give the " in alone.err + alone.out,
    ) == (3, True, True)
    (folder / "adapter_model.bin").unlink()
    ran = applied(run, RELEASED / "bin", f"adapter={folder}")
    assert (ran.code, "LR115" in ran.err + ran.out, "has no LoRA pairs" in ran.err + ran.out) == (
        3,
        True,
        True,
    )
    assert not Path("out").exists()


def test_a_config_without_them_is_not_asked(run: Run) -> None:
    """An adapter that was saved with its language model's config says nothing of LLaVA; its base
    does.
    """
    folder = Path("adapter")
    shutil.copytree(LORA, folder)
    content = json.loads((folder / "config.json").read_text())
    plain = {key: value for key, value in content.items() if not key.startswith("mm_")}
    (folder / "config.json").write_text(json.dumps({**plain, "rms_norm_eps": 2e-5}))
    assert applied(run, RELEASED / "bin", f"adapter={folder}").code == 0
    assert config()["text_config"]["rms_norm_eps"] == 1e-5


def test_its_own_embeddings_count(run: Run, vicuna: Path) -> None:
    """What pretraining with image-start tokens leaves; then it grows as any other."""
    own = torch_file(PRETRAINED / "mm_projector.bin")
    rows = torch.full((320, 64), 0.5, dtype=torch.float16)
    Path("projector").mkdir()
    shutil.copy(PRETRAINED / "config.json", "projector")
    torch.save({**own, "model.embed_tokens.weight": rows}, "projector/mm_projector.bin")
    ran = applied(run, vicuna, "projector=projector")
    assert ran.code == 0, ran.err
    found = written()[EMBEDDING]
    assert torch.equal(found[:320], rows)
    assert found.shape == (384, 64)
    assert f"1 tensor of `projector` is taken, not that of `model`. ({EMBEDDING})" in ran.out


def test_embeddings_of_another_size_are_told(run: Run, vicuna: Path) -> None:
    own = torch_file(PRETRAINED / "mm_projector.bin")
    Path("projector").mkdir()
    shutil.copy(PRETRAINED / "config.json", "projector")
    more = torch.zeros(322, 64, dtype=torch.float16)
    torch.save({**own, "model.embed_tokens.weight": more}, "projector/mm_projector.bin")
    ran = applied(run, vicuna, "projector=projector", more=("--format", "json"))
    assert ran.code == 1
    assert "LR402" in problems(ran)


def test_the_later_of_two_is_taken(run: Run, vicuna: Path) -> None:
    """The order is the rule file's, whatever the command line's."""
    ran = applied(run, vicuna, f"adapter={LORA}", f"projector={PRETRAINED}")
    assert ran.code == 0, ran.err
    beside = torch_file(LORA / "non_lora_trainables.bin")
    assert torch.equal(written()[PROJECTOR], beside["base_model.model.model.mm_projector.0.weight"])
    assert "4 tensors of `adapter` are taken, not those of `projector`." in ran.out


def test_without_overrides_it_is_two_for_one(run: Run) -> None:
    Path("own.yaml").write_text(
        "schema: 1\nname: own\nversion: 1.0.0\nsummary: a projector that overrides nothing\n"
        "extends: [llava-v1.5.yaml]\n"
        "sources: {second: {}}\n"
    )
    shutil.copytree(RELEASED / "safetensors", "second")
    sources = given(RELEASED / "bin", "second=second", f"vision_tower={CLIP}")
    ran = run("apply", "own.yaml", *sources, "--output", "out", "--format", "json")
    assert "LR304" in problems(ran)


def test_a_language_model_alone_is_another_family(run: Run, vicuna: Path) -> None:
    ran = applied(run, vicuna, more=("--format", "json"))
    assert set(problems(ran)) == {"LR311"}
    assert "it has no `model.mm_projector.0.weight`" in problems(ran)["LR311"]
    assert "give it too: --source projector=DIR or --source adapter=DIR." in problems(ran)["LR311"]


@pytest.mark.parametrize("name", ["adapter", "projector"])
def test_the_config_that_contradicts_is_named(
    name: str, run: Run, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """It is that of a part, so the file isn't advised that was given and that the first source
    fits.
    """
    folder = adapter() if name == "adapter" else tmp_path / "part"
    if name == "projector":
        shutil.copytree(PRETRAINED, folder)
    content = json.loads((LORA / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "image_aspect_ratio": "anyres"}))
    ran = applied(run, RELEASED / "safetensors", f"{name}={folder}", more=("--format", "json"))
    assert set(problems(ran)) == {"LR311"}
    told = problems(ran)["LR311"]
    assert f"the config of `{name}` says image_aspect_ratio: 'anyres'" in told
    assert "its config" not in told
    assert "this rule file fits" not in told
    assert (
        f"`model` alone fits llava-v1.5: leave out `{name}`, or give sources that belong to this "
        "checkpoint." in told
    )


# --- from manifests alone


def test_seven_billion_from_manifests(run: Run) -> None:
    sources = given(
        MANIFESTS / "llava-v1.5-7b.released.json",
        f"vision_tower={MANIFESTS / 'clip-vit-large-patch14-336.json'}",
        f"adapter={PARTS / 'llava-v1.5-7b-lora.adapter_model.json'}",
        f"projector={PARTS / 'llava-v1.5-7b-lora.non_lora_trainables.json'}",
    )
    ran = run("apply", "llava-v1.5", *sources, "--dry-run", "--format", "json")
    assert ran.code == 0, ran.out
    merged = [entry for entry in ran.json["mapped"] if "add_lora" in str(entry["then"])]
    assert len(merged) == 224
    loras = [step["add_lora"] for entry in merged for step in entry["then"]]
    assert {(lora["rank"], lora["scale"]) for lora in loras} == {(128, None)}
    assert {entry["dtype"] for entry in merged} == {"F16"}
    assert run("apply", "llava-v1.5", *sources, "--output", "out").code == 1


def test_a_projector_from_manifests(run: Run) -> None:
    content = json.loads((MANIFESTS / "llava-v1.5-7b.released.json").read_text())
    content["tensors"] = {
        name: entry for name, entry in content["tensors"].items() if "mm_projector" not in name
    }
    Path("vicuna.json").write_text(json.dumps(content))
    tower = f"vision_tower={MANIFESTS / 'clip-vit-large-patch14-336.json'}"
    pretrained = f"projector={PARTS / 'llava-v1.5-7b-pretrain.mm_projector.json'}"
    ran = run(
        "apply",
        "llava-v1.5",
        *given("vicuna.json", tower, pretrained),
        "--dry-run",
        "--format",
        "json",
    )
    assert ran.code == 0, ran.out
    assert ran.json["complete"]
    linear = f"projector={PARTS / 'llava-336px-pretrain-vicuna-13b-v1.3.mm_projector.json'}"
    ran = run(
        "apply", "llava-v1.5", *given("vicuna.json", tower, linear), "--dry-run", "--format", "json"
    )
    assert set(problems(ran)) == {"LR305"}
    assert (
        "names like `model.mm_projector.0.{p}` or `model.mm_projector.2.{p}`"
        in run("apply", "llava-v1.5", *given("vicuna.json", tower, linear), "--dry-run").out
    )
