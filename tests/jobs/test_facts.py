"""The facts of `inspect`, compared with transformers' own classes, with torch's own reader and with
published numbers; and a run of the command that it prints.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_remap.checkpoint import Checkpoint, Tensor, open_checkpoint
from llava_remap.jobs.facts import Facts, describe
from llava_remap.jobs.inspect_parts import inspect as inspect_source
from llava_remap.target_model import Adapter, Component, LanguageModel, Projector, VisionTower
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Run

LORA = TINY / "llava-v1.5-lora"
TEXTS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def of_manifest(name: str) -> Facts:
    return describe(open_checkpoint(MANIFESTS / f"{name}.json", part=True))


def part(facts: Facts, kind: type[Component]) -> Any:
    [found] = [part for part in facts.components if type(part) is kind]
    return found


def parameters(model: PreTrainedModel) -> int:
    """Numbers in a model's parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(kind: type[PreTrainedModel], config: Any) -> int:
    with torch.device("meta"):
        return parameters(kind(config))


@pytest.mark.parametrize(
    ("manifest", "model_type"),
    [
        ("llava-v1.5-7b", "llama"),
        ("bakllava-v1.released", "mistral"),
        ("llava-onevision-qwen2-0.5b", "qwen2"),  # tied
        ("llava-next-qwen1.5-72b.released", "qwen2"),
    ],
)
def test_a_language_model_has_the_sizes_and_parameters_of_its_class(
    manifest: str, model_type: str
) -> None:
    facts = of_manifest(manifest)
    found, config = part(facts, LanguageModel), dict(facts.checkpoint.config or {})
    for key in ("architectures", "model_type"):
        config.pop(key, None)
    own = TEXTS[model_type](**config)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(own)
    assert isinstance(found, LanguageModel)
    assert found.model_type == model_type
    assert found.parameters == parameters(built)
    assert (found.layers, found.hidden_size) == (own.num_hidden_layers, own.hidden_size)
    assert facts.vocabulary is not None
    assert facts.vocabulary.rows == own.vocab_size
    assert (facts.vocabulary.head == "shared") == own.tie_word_embeddings


@pytest.mark.parametrize(
    ("manifest", "stock", "image_size", "layers"),
    [
        ("clip-vit-large-patch14", "openai/clip-vit-large-patch14", 224, 24),
        ("llava-v1.5-7b", "openai/clip-vit-large-patch14-336", 336, 24),
        ("llava-onevision-qwen2-0.5b", "google/siglip-so400m-patch14-384", 384, 26),
        ("siglip-so400m-patch14-384", "google/siglip-so400m-patch14-384", 384, 27),
    ],
)
def test_a_tower_has_the_sizes_and_parameters_of_its_class(
    manifest: str, stock: str, image_size: int, layers: int
) -> None:
    """The stock towers' sizes are those of their own manifests; 26 is what LLaVA leaves of 27."""
    found = part(of_manifest(manifest), VisionTower)
    assert isinstance(found, VisionTower)
    assert (found.stock, found.image_size, found.layers) == (stock, image_size, layers)
    if "clip" in stock:
        clip = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=image_size, patch_size=14,
        )  # fmt: skip
        assert found.parameters == on_meta(CLIPVisionModel, clip)
        assert (found.hidden_size, found.patch_size) == (1024, 14)
        return
    siglip = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=layers, num_attention_heads=16,
        image_size=384, patch_size=14, vision_use_head=layers == 27,
    )  # fmt: skip
    assert found.parameters == on_meta(SiglipVisionModel, siglip)


def test_the_released_7b_has_its_published_size() -> None:
    """The index of liuhaotian/llava-v1.5-7b: 327 names, 13518798848 bytes."""
    said = of_manifest("llava-v1.5-7b.released").to_json()
    assert (said["tensors"], said["bytes"]) == (327, 13_518_798_848)
    [odd] = said["oddities"]
    assert (odd["kind"], len(odd["names"])) == ("buffers", 32)
    assert all(name.endswith("rotary_emb.inv_freq") for name in odd["names"])


@pytest.mark.parametrize(
    ("manifest", "form", "widths", "normed"),
    [
        ("llava-lightning-7b-v1-1.released", "linear", (1024, 4096), False),
        ("llava-v1.5-7b.released", "mlp", (1024, 4096, 4096), False),
        ("vip-llava-7b", "mlp", (5120, 4096, 4096), True),
        ("mobilevlm-1.7b", "other", (), True),
        ("parts/llava-v1.5-7b-pretrain.mm_projector", "mlp", (1024, 4096, 4096), False),
    ],
)
def test_the_form_of_a_projector(
    manifest: str, form: str, widths: tuple[int, ...], normed: bool
) -> None:
    found = part(of_manifest(manifest), Projector)
    assert (found.form, found.widths, found.normed) == (form, widths, normed)


def test_what_a_projectors_file_holds_besides_is_no_projector() -> None:
    """Pretraining with `mm_use_im_start_end` saves the embeddings, too."""
    alone = open_checkpoint(
        MANIFESTS / "parts" / "llava-v1.5-7b-pretrain.mm_projector.json", part=True
    )
    more = {
        name: Tensor.of(name, "F16", shape, None)
        for name, shape in {
            "model.embed_tokens.weight": (32002, 4096),
            "model.image_newline": (4096,),
        }.items()
    }
    found = describe(replace(alone, catalog={**alone.catalog, **more}))
    assert [part.kind for part in found.components] == ["language_model", "projector", "newline"]
    assert part(found, Projector) == part(describe(alone), Projector)
    assert found.vocabulary is not None
    assert found.vocabulary.rows == 32002


def test_two_towers_are_two_components() -> None:
    towers = [
        part for part in of_manifest("video-llava-7b").components if part.kind == "vision_tower"
    ]
    assert [tower.prefix for tower in towers] == [
        "model.video_tower.video_tower.",
        "model.image_tower.image_tower.",
    ]


@pytest.mark.parametrize(
    "file",
    [
        RELEASED / "bin" / "pytorch_model.bin",
        TINY / "llava-v1.5" / "full_state_dict" / "model_state_dict.bin",
        TINY / "llava-onevision" / "bin" / "pytorch_model.bin",  # tied
        CLIP / "pytorch_model.bin",
    ],
)
def test_dtypes_and_bytes_are_those_that_torch_reads(file: Path) -> None:
    state: Mapping[str, torch.Tensor] = torch.load(file, weights_only=True)
    facts = describe(open_checkpoint(file))
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    dtypes = Counter(names[str(tensor.dtype).removeprefix("torch.")] for tensor in state.values())
    found: Counter[str] = Counter()
    for component in facts.components:
        found.update(component.dtypes)
    assert found == dtypes
    once = {tensor.data_ptr(): tensor for tensor in state.values()}
    assert facts.nbytes == sum(tensor.nbytes for tensor in once.values())
    shared = len(state) - len(once)
    assert sum(len(group) - 1 for group in facts.checkpoint.aliases) == shared


def made(tensors: Mapping[str, tuple[str, tuple[int, ...]]], config: Any = None) -> Facts:
    catalog = {
        name: Tensor.of(name, dtype, shape, None) for name, (dtype, shape) in tensors.items()
    }
    return describe(Checkpoint(Path("x.json"), "", catalog, config, None))


def test_what_is_unusual_is_told_by_its_kind() -> None:
    facts = made(
        {
            "module.model.embed_tokens.weight": ("F16", (10, 4)),
            "module.model.layers.0.mlp.up_proj.weight": ("I8", (4, 4)),
            "module.model.layers.0.mlp.down_proj.weight": ("F32", (4, 4)),
            "module.model.norm.weight": ("F16", (0,)),
            "module.model.mm_projector.weight": ("F16", (4, 8)),
            "module.model.gate": ("BF16", (4,)),
        },
        {
            "architectures": ["LlavaLlamaForCausalLM"],
            "hidden_size": 4,
            "num_hidden_layers": 2,
            "vocab_size": 11,
            "quantization_config": {"load_in_4bit": True},
        },
    )
    assert {odd.kind for odd in facts.oddities} == {
        "empty_tensors",
        "integer_weights",
        "layers_missing",
        "mixed_dtypes",
        "quantised",
        "rows_and_config",
        "unknown_tensors",
        "wrappers",
    }
    assert part(facts, LanguageModel).model_type == "llama"


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"architectures": "A" * 100_000, "vocab_size": 1},
        {"model_type": ["x"], "hidden_size": 1, "text_config": {"model_type": {"a": 1}}},
        {"vocab_size": "many", "num_hidden_layers": 1e300, "mm_vision_tower": [3]},
    ],
)
def test_names_and_configs_of_any_kind_are_described(config: Any) -> None:
    facts = made(
        {
            "model.vision_tower.embeddings.patch_embedding.weight": ("F16", (4, 3, 2, 2)),
            "model.vision_tower.embeddings.class_embedding": ("F16", (4,)),
            "model.vision_tower.embeddings.position_embedding.weight": ("F16", (0, 4)),
            "model.vision_tower.encoder.layers.0.mlp.fc1.weight": ("F16", (4, 4)),
            f"layers.{'9' * 400}.weight": ("F16", (1,)),
            ".": ("F16", ()),
            "": ("F16", (2,)),
            "embed_tokens.weight": ("F16", (3,)),
        },
        config,
    )
    assert sum(part.tensors for part in facts.components) == 8
    assert json.loads(json.dumps(facts.to_json())) == facts.to_json()


# Anything that can be read


def text_alone(folder: Path) -> Path:
    tensors = load_file(RELEASED / "safetensors" / "model.safetensors")
    folder.mkdir()
    kept = {name: tensor for name, tensor in tensors.items() if "mm_projector" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((RELEASED / "safetensors" / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("mm_")}
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForCausalLM"]})
    )
    return folder


@pytest.mark.parametrize(
    ("source", "kinds", "fitting"),
    [
        (LORA, ["adapter", "projector"], ["llava-v1.5"]),
        (TINY / "llava-v1.5" / "pretrain_projector_only", ["projector"], ["llava-v1.5"]),
        (CLIP, ["vision_tower", "text_encoder"], None),
        ("text", ["language_model"], []),
        (RELEASED / "sharded" / "pytorch_model-00001-of-00002.bin", None, []),
    ],
)
def test_a_part_is_described_and_ends_with_0(
    source: Path | str, kinds: list[str] | None, fitting: list[str] | None, run: Run
) -> None:
    """JSON on standard output, equal to what the function of the package gives."""
    place = text_alone(Path("text")) if source == "text" else Path(source)
    ran = run("inspect", place, "--format", "json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert (said["format"], said["format_version"]) == ("llava-remap/inspection", 1)
    assert said == inspect_source(place).to_json()
    found = [part["kind"] for entry in said["checkpoints"] for part in entry["components"]]
    assert kinds is None or found == kinds
    assert fitting is None or said["fitting"] == fitting
    human = run("inspect", place)
    assert human.code == 0
    assert said["fitting"] or said["advice"] in human.out


def test_what_cannot_be_read_is_a_document_too(run: Run) -> None:
    ran = run("inspect", "nowhere", "--format", "json")
    assert ran.code == 3
    said = json.loads(ran.out)
    assert said["format"] == "llava-remap/inspection"
    assert [problem["code"] for problem in said["problems"]] == ["LR100"]


def test_an_adapters_pairs() -> None:
    """Against the adapter's own config."""
    found = part(describe(open_checkpoint(LORA, part=True)), Adapter)
    config = json.loads((LORA / "adapter_config.json").read_text())
    assert isinstance(found, Adapter)
    assert set(found.modules) == set(config["target_modules"])
    assert found.ranks == (config["r"],)
    assert found.scales == (config["lora_alpha"] / config["r"],)


# Manifests


def without_files(said: dict[str, Any]) -> dict[str, Any]:
    """An inspection without what only files tell."""
    of_files = ("not_read", "training_state", "tokenizer_unreadable")
    for entry in said["checkpoints"]:
        for key in ("location", "form", "manifest"):
            del entry[key]
        entry["oddities"] = [odd for odd in entry["oddities"] if odd["kind"] not in of_files]
        if entry["vocabulary"] is not None:
            del entry["vocabulary"]["tokenizer"], entry["vocabulary"]["tokens"]
    for fit in said["rule_files"]:
        del fit["reasons"], fit["command"]
    del said["command"], said["short_command"], said["advice"]
    return said


@pytest.mark.parametrize(
    "source", [RELEASED / "sharded", LORA, CLIP, TINY / "llava-onevision" / "bin"]
)
def test_a_manifest_gives_the_same_inspection(source: Path, run: Run) -> None:
    assert run("inspect", source, "--manifest", "m.json").code == 0
    one, other = inspect_source(source), inspect_source(Path("m.json"))
    assert without_files(other.to_json()) == without_files(one.to_json())
    again = run("inspect", "m.json", "--manifest", "n.json")
    assert again.code == 0
    first, second = (json.loads(Path(name).read_text()) for name in ("m.json", "n.json"))
    assert replace_name(first) == replace_name(second)


def replace_name(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "name": ""}


def test_a_manifest_is_not_written_into_its_source(run: Run) -> None:
    shutil.copytree(CLIP, "in")
    ran = run("inspect", "in", "--manifest", "in/m.json")
    assert (ran.code, "LR508" in ran.err, Path("in/m.json").exists()) == (4, True, False)


# The command


def test_the_command_runs_as_it_is_printed(run: Run) -> None:
    """No tower is given: the one that the config names is on this disk. A space is quoted."""
    shutil.copytree(RELEASED / "bin", "my model")
    config = json.loads(Path("my model/config.json").read_text())
    Path("my model/config.json").write_text(json.dumps({**config, "mm_vision_tower": str(CLIP)}))
    printed = run("inspect", "my model").out.splitlines()[-1]
    assert printed == "llava-remap apply llava-v1.5 --source 'my model'"
    command = json.loads(run("inspect", "my model", "--format", "json").out)["command"]
    assert shlex.split(printed) == command
    assert run(*command[1:]).code == 0


@pytest.mark.parametrize(
    ("width", "place"), [(1024, "openai/clip-vit-large-patch14-336"), (32, None)]
)
def test_a_tower_of_the_hub_is_named_only_if_the_projector_takes_it(
    width: int, place: str | None
) -> None:
    """The small checkpoint names CLIP's stock tower, 1024 wide."""
    checkpoint = open_checkpoint(RELEASED / "bin")
    name = "model.mm_projector.0.weight"
    first = replace(checkpoint.catalog[name], shape=(64, width), pieces=())
    inspection = inspect_source(RELEASED / "bin")
    changed = describe(replace(checkpoint, catalog={**checkpoint.catalog, name: first}))
    inspection = replace(inspection, facts=(changed,))
    [needed] = inspection.needed(inspection.fitting[0])
    assert (needed.source, needed.place or None, needed.download) == (
        "vision_tower",
        place,
        place is not None,
    )
    assert f"vision_tower={place or 'DIR'}" in inspection.command(inspection.fitting[0])


def test_an_adapter_on_a_base_without_a_tower_fits(run: Run) -> None:
    """The tower is a source of its own, as for the base alone."""
    shutil.copytree(LORA, "lora")
    config = json.loads(Path("lora/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(RELEASED / "bin")
    Path("lora/adapter_config.json").write_text(json.dumps(config))
    ran = run("inspect", "lora")
    assert "llava-v1.5: fits, maps 39 of 39 names" in ran.out
    command = shlex.split(
        ran.out.splitlines()[-1].replace("vision_tower=DIR", f"vision_tower={CLIP}")
    )
    assert run(*command[1:], "--dry-run").code == 0
