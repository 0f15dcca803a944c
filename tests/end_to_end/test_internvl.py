"""InternVL: small checkpoints of the original class are converted, and transformers makes the same
prompts, ids and pixels, and computes the same logits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_remap import apply, plan, revert
from llava_remap.core.problem import RemapError
from llava_remap.folder.processor import _processor
from llava_remap.rulefile import Processor, load_rule_file
from tests.conftest import DATA, Tensors
from tests.original.facts import picture

QWEN, INTERNLM = DATA / "operations" / "internvl", DATA / "operations" / "internvl-internlm2"
FACTS: dict[str, Any] = json.loads((QWEN / "facts.json").read_text())
#: The largest difference of logits, as a share of the largest logit.
NEAR = 2e-5


def source(original: Path, folder: Path, **config: Any) -> Path:
    """A copy of a checkpoint, with other values in its config; None takes a key out."""
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("logits*", "facts*", "expec*"))
    said = json.loads((folder / "config.json").read_text())
    said = {key: value for key, value in {**said, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def internlm(folder: Path, **config: Any) -> Path:
    """The checkpoint on InternLM2. It has no tokenizer, so its config says the picture's token."""
    return source(INTERNLM, folder, image_token_id=200, **config)


def weights(folder: Path) -> Tensors:
    return {n: t for file in folder.rglob("*.safetensors") for n, t in load_file(file).items()}


def opened(folder: Path | str) -> Any:
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """A case's turns, with its pictures where the original prompt has them."""
    made: list[dict[str, Any]] = [{"role": "system", "content": case["system"]}]
    for number, turn in enumerate(case["turns"]):
        texts = turn.split("<image>\n")
        parts: list[dict[str, Any]] = []
        for at, text in enumerate(texts):
            parts += [{"type": "image"}] if at else []
            parts += [{"type": "text", "text": text}] if text else []
        made.append({"role": ("user", "assistant")[number % 2], "content": parts})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("internvl")
    apply("internvl", source(QWEN, made / "source"), made / "out", verify="full")
    return made / "out"


@pytest.mark.parametrize("case", FACTS)
def test_prompts_ids_pixels_and_logits_are_those_of_the_original_code(
    case: str, folder: Path
) -> None:
    said, wanted = FACTS[case], load_file(QWEN / "logits.safetensors")[case]
    made = load_rule_file("internvl").text.processor
    assert isinstance(made, Processor)
    processor = _processor(folder, made)
    prompt = processor.apply_chat_template(messages(said), add_generation_prompt=True)
    assert prompt.replace("<IMG_CONTEXT>", "<image>") == said["prompt"]
    pictures = [picture(name) for name in said["pictures"]] or None
    given = processor(images=pictures, text=prompt, return_tensors="pt")
    assert given["input_ids"][0].tolist() == [i for i, times in said["ids"] for _ in range(times)]
    tiles = given["pixel_values"].split(said["tiles"]) if pictures else ()
    for seen, digest, mean in zip(tiles, said["pixels"], said["mean"], strict=True):
        equal = hashlib.sha256(np.ascontiguousarray(seen.numpy()).tobytes()).hexdigest() == digest
        assert equal or abs(float(seen.mean()) - mean) < 1e-6
    with torch.no_grad():
        logits = opened(folder)(**given, use_cache=False).logits[0, -1]
    assert (logits[: len(wanted)] - wanted).abs().max() < NEAR * wanted.abs().max()


@pytest.mark.parametrize("name", ["internvl", "internvl-internlm2"])
def test_tensors_are_those_of_the_official_script(name: str, tmp_path: Path) -> None:
    original = DATA / "operations" / name
    given = source if name == "internvl" else lambda _, folder: internlm(folder)
    apply(name, given(original, tmp_path / "source"), "out", verify="full")
    wanted, written = (
        json.loads((original / "expected.json").read_text())["tensors"],
        weights(Path("out")),
    )
    assert written.keys() == wanted.keys()
    for tensor, said in wanted.items():
        rows = written[tensor][: said["shape"][0]]  # behind them stands that of `<video>`
        assert list(rows.shape) == said["shape"]
        data = rows.contiguous().view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(data).hexdigest() == said["sha256"], tensor


def test_a_tower_with_other_norms_and_an_inner_layer(tmp_path: Path) -> None:
    """InternViT of 6B has norms of q and k; its features are taken before its last layer."""
    apply("internvl-internlm2", internlm(tmp_path / "source"), "out")
    ids = torch.cat([torch.arange(3, 9), torch.full((512,), 200), torch.arange(30, 60)])[None]
    pixels = torch.randn(2, 3, 448, 448, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pixels = pixels.mul(8).round().div(8)
        logits = opened("out")(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0, -1]
    wanted = load_file(INTERNLM / "logits.safetensors")["tiles"]
    assert (logits[: len(wanted)] - wanted).abs().max() < NEAR * wanted.abs().max()


@pytest.mark.parametrize("name", ["internvl", "internvl-internlm2"])
def test_the_way_back_gives_the_original_tensors(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    given = source(QWEN, folder) if name == "internvl" else internlm(folder)
    apply(name, given, "out")
    revert("out", "back")
    restored, original = weights(Path("back")), weights(given)
    assert restored.keys() == original.keys()
    assert all(torch.equal(restored[name], original[name]) for name in original)


@pytest.mark.parametrize(
    "config",
    [{"ps_version": "v1"}, {"ps_version": None}, {"downsample_ratio": 1.0}, {"pad2square": True},
     {"use_thumbnail": False}, {"force_image_size": 224}],
)  # fmt: skip
def test_what_transformers_computes_otherwise_is_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    given = source(QWEN, tmp_path / "source", **config)
    found = plan("internvl", given, dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR314"]


def test_whole_pictures_are_one_tile(tmp_path: Path) -> None:
    given = source(QWEN, tmp_path / "source", dynamic_image_size=False, use_thumbnail=False)
    apply("internvl", given, "out")
    assert json.loads(Path("out/preprocessor_config.json").read_text())["max_patches"] == 1


def test_a_config_of_another_tower_is_refused(tmp_path: Path) -> None:
    vision = json.loads((QWEN / "config.json").read_text())["vision_config"]
    given = source(QWEN, tmp_path / "source", vision_config=vision | {"num_hidden_layers": 3})
    found = plan("internvl", given, dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR302"]


def test_a_token_of_the_training_is_not_added(tmp_path: Path) -> None:
    """A new row in place of the trained one would load, and compute something else."""
    given = source(QWEN, tmp_path / "source")
    for name in ("vocab.json", "tokenizer_config.json", "merges.txt"):
        (given / name).unlink()
    with pytest.raises(RemapError, match="the training had a token `<IMG_CONTEXT>`"):
        apply("internvl", given, "out")
