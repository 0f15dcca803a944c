"""Runs of Prismatic's training: the checkpoint of modules under their names, the run's config.json
above it, towers of timm inside or apart. Ids, pixels and logits are those of Prismatic's code.
"""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from llava_remap import apply, convert, plan, revert
from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.problem import RemapError
from tests.conftest import CLIP, DATA, Tensors
from tests.end_to_end.test_foreign_towers import weights

TOWERS = DATA / "operations"
TOKENIZER = DATA / "original/tokenizers/sp-legacy-true"
#: Words of the tokenizer; with <PAD> and padded to a multiple of 64, rows of the table.
WORDS, ROWS = 1000, 1024
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
#: By kind of tower: the rule file, the original, its id in Prismatic, the layer before the last.
KINDS = {
    "clip": ("prismatic-clip", "timm-clip", "clip-vit-l-336px"),
    "siglip": ("prismatic-siglip", "timm-siglip", "siglip-vit-so400m-384px"),
}
HEADS = "target: {config: {vision_config.num_attention_heads: {const: 4}}}"


def rules_for(rules: str) -> Path:
    """The rule file, for the heads of the small towers."""
    path = Path(f"{rules}-small.yaml")
    path.write_text(
        f"schema: 1\nname: {rules}-small\nversion: 1.0.0\nsummary: Prismatic, small\n"
        f"extends: [{rules}.yaml]\n{HEADS}\n"
    )
    return path


def text_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(5)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return model


def projector(width: int) -> Tensors:
    made = torch.Generator().manual_seed(6)
    sizes = {"0": (64, width), "2": (64, 64)}
    return {
        f"projector.{layer}.{kind}": torch.randn(
            size if kind == "weight" else size[:1], generator=made
        )
        * 0.2
        for layer, size in sizes.items()
        for kind in ("weight", "bias")
    }


def run(folder: Path, kind: str, *, inside: bool = False, **changed: str) -> Path:
    """The folder of a training's run, with the file that Prismatic's FSDP strategy writes."""
    _, original, named = KINDS[kind]
    tower = weights(TOWERS / original)
    width = tower["pos_embed"].shape[-1]
    modules: dict[str, Any] = {
        "projector": OrderedDict(projector(width)),
        "llm_backbone": OrderedDict(
            (f"llm.{name}", tensor) for name, tensor in text_model().state_dict().items()
        ),
    }
    if inside:
        modules["vision_backbone"] = OrderedDict((f"featurizer.{n}", t) for n, t in tower.items())
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": modules}, folder / "checkpoints" / "latest-checkpoint.pt")
    said = {
        "model": {
            "type": "one-stage+7b", "model_id": "one-stage+7b",
            "arch_specifier": "no-align+gelu-mlp", "vision_backbone_id": named,
            "llm_backbone_id": "llama2-7b-pure", "image_resize_strategy": "letterbox",
            "llm_max_length": 2048, "align_epochs": 1, "align_max_steps": None,
            "finetune_learning_rate": 2e-05, "enable_gradient_checkpointing": True,
            "reduce_in_full_precision": False, **changed,
        },
        "dataset": {"type": "llava-v15", "dataset_id": "llava-v15"},
        "stage": "finetune", "run_id": "one-stage+7b+stage-finetune+x7", "seed": 7,
        "trackers": ["jsonl", "wandb"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(said))
    return folder / "checkpoints" / "latest-checkpoint.pt"


def base(folder: Path) -> Path:
    """The language model that Prismatic's training began with, without its weights."""
    shutil.copytree(TOKENIZER, folder)
    config = text_model().config.to_dict() | {"vocab_size": WORDS, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def given(tmp_path: Path, kind: str) -> list[str]:
    tower = TOWERS / KINDS[kind][1]
    return [f"language_model={base(tmp_path / 'base')}", f"vision_tower={tower}"]


def linear(x: torch.Tensor, w: Tensors, layer: str) -> torch.Tensor:
    return torch.nn.functional.linear(
        x, w[f"projector.{layer}.weight"], w[f"projector.{layer}.bias"]
    )


def prismatic_logits(kind: str, ids: list[int]) -> torch.Tensor:
    """What PrismaticVLM computes for the pictures that timm's features were recorded of: patches of
    the block before the last one, projected, stand behind the first token.
    """
    said = load_file(TOWERS / KINDS[kind][1] / "features.safetensors")
    patches = said["features"][-2][:, 1 if kind == "clip" else 0 :]
    w = projector(patches.shape[-1])
    seen = linear(torch.nn.functional.gelu(linear(patches, w, "0")), w, "2")
    model = text_model()
    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor([ids] * len(seen)))
        whole = torch.cat([words[:, :1], seen, words[:, 1:]], 1)
        logits: torch.Tensor = model(inputs_embeds=whole, use_cache=False).logits
    return logits


def encoded(prompt: str) -> list[int]:
    return [1, *SentencePieceProcessor(str(TOKENIZER / "tokenizer.model")).encode(prompt)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", [False, True])
def test_transformers_computes_what_prismatic_does(kind: str, inside: bool, tmp_path: Path) -> None:
    source = run(tmp_path / "run", kind, inside=inside)
    sources = given(tmp_path, kind)[: 1 if inside else 2]
    apply(rules_for(KINDS[kind][0]), [source, *sources], "out", verify="full")
    model, info = AutoModelForImageTextToText.from_pretrained(
        "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = encoded("In: What is it?\nOut:")
    pixels = load_file(TOWERS / KINDS[kind][1] / "features.safetensors")["pixels"]
    pictures = [model.config.image_token_id] * 4
    asked = torch.tensor([[ids[0], *pictures, *ids[1:]]] * len(pixels))
    with torch.no_grad():
        logits = model.eval()(input_ids=asked, pixel_values=pixels, use_cache=False).logits
    own = prismatic_logits(kind, ids)
    assert logits.shape == own.shape
    assert (logits - own).abs().max() < 2e-5 * own.abs().max()


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("llama2-7b-pure", "In: What is it?\nOut:"),
        ("llama2-13b-pure", "In: What is it?\nOut:"),
        ("vicuna-v15-7b", f"{SYSTEM} USER: What is it? ASSISTANT:"),
        ("vicuna-v15-13b", f"{SYSTEM} USER: What is it? ASSISTANT:"),
    ],
)
def test_prompts_have_the_ids_of_prismatics_prompt_builders(
    text: str, prompt: str, tmp_path: Path
) -> None:
    source = run(tmp_path / "run", "clip", llm_backbone_id=text)
    apply(rules_for("prismatic-clip"), [source, *given(tmp_path, "clip")], "out")
    processor = AutoProcessor.from_pretrained("out")
    content = [{"type": "text", "text": " What is it?\n"}, {"type": "image"}]
    turns = [{"role": "user", "content": content}]
    written = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert written == f"<image>{prompt}"
    ids = processor(text=written, images=Image.new("RGB", (28, 28)), return_tensors="pt").input_ids
    own = encoded(prompt)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert ids[0].tolist() == [own[0], *[image] * 4, *own[1:]]
    assert processor.tokenizer.convert_tokens_to_ids("<PAD>") == WORDS == image - 1
    turns += [
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And this?"},
    ]
    again = {"I": "In: And this?\nOut:", "A": "USER: And this? ASSISTANT:"}[prompt[0]]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        f"<image>{prompt} A cat.</s>{again}"
    )


def own_pixels(picture: Image.Image, strategy: str, kind: str) -> np.ndarray[Any, Any]:
    """Prismatic's transforms of a picture, by Pillow."""
    mean, std = np.array([0.5] * 3), np.array([0.5] * 3)
    if kind == "clip":
        mean = np.array([0.48145466, 0.4578275, 0.40821073])
        std = np.array([0.26862954, 0.26130258, 0.27577711])
    (w, h), side = picture.size, max(picture.size)
    if strategy == "letterbox":
        square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in mean))
        square.paste(picture, (int((side - w) / 2), int((side - h) / 2)))
        picture = square
    small = picture.resize((28, 28), Image.Resampling.BICUBIC)
    made: np.ndarray[Any, Any] = (np.asarray(small) / 255 - mean) / std
    return made.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("rules", "kind", "strategy"),
    [
        ("prismatic-clip", "clip", "letterbox"),
        ("prismatic-clip-naive", "clip", "resize-naive"),
        ("prismatic-siglip", "siglip", "letterbox"),
        ("prismatic-siglip", "siglip", "resize-naive"),
    ],
)
def test_pictures_have_the_pixels_of_prismatics_transforms(
    rules: str, kind: str, strategy: str, tmp_path: Path
) -> None:
    source = run(tmp_path / "run", kind, image_resize_strategy=strategy)
    result = apply(rules_for(rules), [source, *given(tmp_path, kind)], "out")
    told = any("one pixel less" in note.cause for note in result.notes)
    assert told == (strategy == "letterbox")
    noise = np.random.default_rng(3).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    made = AutoProcessor.from_pretrained("out").image_processor(picture, return_tensors="np")
    wanted = own_pixels(picture, strategy, kind)
    assert np.abs(made["pixel_values"][0] - wanted).max() < 0.02  # a step of 1/255 is 0.015


def test_a_clip_tower_may_have_the_names_of_transformers(tmp_path: Path) -> None:
    """OpenAI's tower, as it is downloaded if none is given, has the weights of timm's."""
    source = run(tmp_path / "run", "clip")
    heads = json.loads((CLIP / "config.json").read_text())
    heads = heads.get("vision_config", heads)["num_attention_heads"]
    rules = rules_for("prismatic-clip")
    rules.write_text(rules.read_text().replace("{const: 4}", f"{{const: {heads}}}"))
    parts = [given(tmp_path, "clip")[0], f"vision_tower={CLIP}"]
    apply(rules, [source, *parts], "out")
    tower = {n: t for n, t in weights(Path("out")).items() if n.startswith("vision_tower.")}
    for name, tensor in load_file(CLIP / "model.safetensors").items():
        if (new := f"vision_tower.{name}") in tower:
            assert torch.equal(tower.pop(new), tensor)
    assert not tower


def test_the_way_back_gives_the_modules_tensors(tmp_path: Path) -> None:
    source = run(tmp_path / "run", "clip", inside=True)
    apply(rules_for("prismatic-clip"), [source, *given(tmp_path, "clip")[:1]], "out")
    revert("out", "back")
    restored: Tensors = {}
    for file in Path("back").rglob("*.safetensors"):
        restored |= load_file(file)
    stored = torch.load(source)["model"]
    wanted = {f"{m}.{n}": tensor for m, part in stored.items() for n, tensor in part.items()}
    assert restored.keys() == wanted.keys()
    assert all(torch.equal(restored[name], wanted[name]) for name in wanted)


def test_convert_recognises_a_run(tmp_path: Path) -> None:
    source = run(tmp_path / "run", "siglip", image_resize_strategy="resize-naive")
    convert(source, "out", sources=dict(part.split("=", 1) for part in given(tmp_path, "siglip")))
    record = json.loads(Path("out/llava_remap.json").read_text())
    assert record["rules"]["name"] == "prismatic-siglip"


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"llm_backbone_id": "phi-2-3b"}, "model.llm_backbone_id: 'phi-2-3b'"),
        ({"image_resize_strategy": "corner-pad"}, "model.image_resize_strategy: 'corner-pad'"),
        ({"arch_specifier": "linear"}, "model.arch_specifier: 'linear'"),
        ({"dropout_of_patches": "0.1"}, "model.dropout_of_patches: '0.1'"),
    ],
)
def test_other_settings_of_a_run_are_refused(
    changed: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    source = str(run(tmp_path / "run", "clip", **changed))
    found = plan(rules_for("prismatic-clip"), [source, *given(tmp_path, "clip")], dry_run=True)
    assert any(cause in problem.cause for problem in found.plan.problems), found.plan.problems


def test_without_the_base_its_config_is_asked_for(tmp_path: Path) -> None:
    source = str(run(tmp_path / "run", "siglip", inside=True))
    [problem] = plan("prismatic-siglip", [source], dry_run=True).plan.problems
    assert problem.code == "LR112"
    assert "--source language_model=DIR" in problem.fix


def test_an_aligned_projector_alone_lacks_the_language_model(tmp_path: Path) -> None:
    source = run(tmp_path / "run", "clip", inside=True)
    stored = torch.load(source)
    del stored["model"]["llm_backbone"]
    torch.save(stored, source)
    found = plan(rules_for("prismatic-clip"), [str(source), *given(tmp_path, "clip")], dry_run=True)
    lacking = {n for p in found.plan.problems if p.code == "LR302" for n in p.names}
    assert "language_model.model.embed_tokens.weight" in lacking


def test_a_number_of_heads_below_one_is_refused(tmp_path: Path) -> None:
    """The part for CLIP says that heads are 64 wide, and the small tower is 32."""
    source = str(run(tmp_path / "run", "clip"))
    [problem] = plan(
        "prismatic-clip", [source, *given(tmp_path, "clip")], dry_run=True
    ).plan.problems
    assert problem.code == "LR112"
    assert "times 0.015625: less than 1" in problem.cause


def test_two_towers_are_refused_with_the_reason(tmp_path: Path) -> None:
    source = run(tmp_path / "run", "clip", vision_backbone_id="dinoclip-vit-l-336px",
                 arch_specifier="no-align+fused-gelu-mlp")  # fmt: skip
    stored = torch.load(source)
    stored["model"]["projector"] |= {"projector.4.weight": torch.ones(64, 64)}
    torch.save(stored, source)
    found = plan(rules_for("prismatic-clip"), [str(source), *given(tmp_path, "clip")], dry_run=True)
    told = "\n".join(problem.message for problem in found.plan.problems)
    assert "No class of transformers for LLaVA has two towers for a picture." in told


def test_a_checkpoint_of_modules_has_the_names_of_the_model_around_them(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    torch.save(
        {"model": {"a": {"x.weight": tensor}, "b": {"x.weight": tensor + 1}, "c": {}}}, "a.pt"
    )
    found = open_checkpoint(Path("a.pt"))
    assert set(found.catalog) == {"a.x.weight", "b.x.weight"}
    for odd in ({"a.b": {"x": tensor}}, {"a": {"x": tensor}, "b": 1}, {"a": {"x": {"y": tensor}}}):
        torch.save({"model": odd}, "a.pt")
        with pytest.raises(RemapError, match="LR106"):
            open_checkpoint(Path("a.pt"))
