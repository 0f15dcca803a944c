"""FastVLM: a small checkpoint of the original class is converted, and transformers makes the same
prompts, ids and pixels, and computes the same logits. Its tower is timm's, which the tests skip
without.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from llava_remap import apply, plan, revert
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import load_rule_file
from tests.conftest import DATA, Tensors
from tests.original.facts import picture

ORIGINAL = DATA / "operations" / "fastvlm"
FACTS: dict[str, Any] = json.loads((ORIGINAL / "facts.json").read_text())
TENSORS: dict[str, Any] = json.loads((ORIGINAL / "expected.json").read_text())["tensors"]
#: The original tower has these sizes, and is otherwise as released.
SMALL = """schema: 1
name: small
version: 1.0.0
summary: FastVLM with a small tower
extends: [fastvlm.yaml]
target:
  config:
    vision_config.model_args.layers: {const: [2, 1, 1, 1, 1]}
    vision_config.model_args.embed_dims: {const: [8, 16, 16, 32, 64]}
"""
#: The largest difference of logits, as a share of the largest logit.
NEAR = 2e-5
HAS_TIMM = importlib.util.find_spec("timm") is not None
with_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm isn't installed")


def rules(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return path


def source(folder: Path, **config: Any) -> Path:
    """A copy of the checkpoint, with other values in its config."""
    names = ("logits*", "facts*", "expected*")
    shutil.copytree(ORIGINAL, folder, ignore=shutil.ignore_patterns(*names))
    said = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def weights(folder: Path) -> Tensors:
    return {n: t for file in folder.rglob("*.safetensors") for n, t in load_file(file).items()}


def messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a helpful assistant."},
    ]
    for number, turn in enumerate(case["turns"]):
        image, text = turn.startswith("<image>\n"), turn.removeprefix("<image>\n")
        parts = [{"type": "image"}] * image + [{"type": "text", "text": text}]
        made.append({"role": ("user", "assistant")[number % 2], "content": parts})
    return made


def test_names_are_those_of_the_official_script() -> None:
    program = compile_rules(load_rule_file("fastvlm"))
    written = {}
    for name in load_file(ORIGINAL / "model.safetensors"):
        done = program.rewrite(name)
        if done.reason is None:
            assert done.target is not None, name
            target = done.target.replace("language_model.model.", "language_model.")
            bare = target.removeprefix("language_model.lm_head.")
            written[f"lm_head.{bare}" if bare != target else f"model.{target}"] = name
    assert written.keys() == TENSORS.keys()


def test_without_timm_the_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.timm_wrapper import modeling_timm_wrapper

    def lacking(owner: Any, backends: Any) -> None:
        raise ImportError(
            "\nTimmWrapperModel requires the timm library but it was not found in your "
            "environment. You can install it with pip:\n`pip install timm`. Please note that you "
            "may need to restart your runtime after installation.\n"
        )

    monkeypatch.setattr(modeling_timm_wrapper, "requires_backends", lacking)
    path = rules(tmp_path)
    path.write_text(SMALL.replace("[2, 1, 1, 1, 1]", "[2, 1, 1, 1, 2]"))  # not in the cache
    [problem] = plan(path, source(tmp_path / "source"), dry_run=True).plan.problems
    assert problem.code == "LR601"
    assert "TimmWrapperModel requires the timm library" in problem.cause
    assert problem.fix == "Install the library: pip install timm"


def test_a_tower_for_pictures_of_another_size_is_refused(tmp_path: Path) -> None:
    given = source(tmp_path / "source", mm_vision_tower="mobileclip_l_384")
    [problem] = plan(rules(tmp_path), given, dry_run=True).plan.problems
    assert problem.code == "LR311"
    assert "mm_vision_tower: 'mobileclip_l_384', not 'mobileclip_l_1024'" in problem.cause


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fastvlm")
    apply(rules(made), source(made / "source"), made / "out", verify="full")
    return made / "out"


@with_timm
def test_tensors_are_those_of_the_official_script(folder: Path) -> None:
    written = weights(folder)
    assert written.keys() == TENSORS.keys()
    for name, said in TENSORS.items():
        tensor = written[name]
        assert list(tensor.shape) == said["shape"], name
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(data).hexdigest() == said["sha256"], name


@with_timm
@pytest.mark.parametrize("case", FACTS)
def test_prompts_ids_pixels_and_logits_are_those_of_the_original_code(
    case: str, folder: Path
) -> None:
    said, wanted = FACTS[case], load_file(ORIGINAL / "logits.safetensors")[case]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        messages(said), add_generation_prompt=True, tokenize=False
    )
    assert prompt == said["prompt"]
    image, ids = tokenizer.convert_tokens_to_ids("<image>"), tokenizer(prompt).input_ids
    assert [-200 if i == image else i for i in ids] == said["ids"]
    spread = [i for one in ids for i in [one] * (256 if one == image else 1)]
    given: dict[str, Any] = {"input_ids": torch.tensor([spread])}
    if said["pictures"]:
        # torchvision's own resizing, which transformers prefers where it is installed, rounds.
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        pixels = processor(images=[picture(n) for n in said["pictures"]], return_tensors="pt")
        given |= pixels
        for seen, digest, mean in zip(
            pixels["pixel_values"], said["pixels"], said["mean"], strict=True
        ):
            data = np.ascontiguousarray(seen.numpy()).tobytes()
            equal = hashlib.sha256(data).hexdigest() == digest
            assert equal or abs(float(seen.mean()) - mean) < 1e-6
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model.eval()(**given, use_cache=False).logits[0, -1]
    assert (logits - wanted).abs().max() < NEAR * wanted.abs().max()


@with_timm
def test_the_way_back_gives_the_original_tensors(folder: Path, tmp_path: Path) -> None:
    revert(folder, tmp_path / "back")
    restored, original = weights(tmp_path / "back"), load_file(ORIGINAL / "model.safetensors")
    assert original.keys() - restored.keys() == {"model.vision_tower.vision_tower.model.head.proj"}
    assert all(torch.equal(restored[name], original[name]) for name in restored)


@with_timm
def test_pictures_are_cropped_where_the_config_says_square(tmp_path: Path) -> None:
    apply(rules(tmp_path), source(tmp_path / "source", image_aspect_ratio="square"), "out")
    assert json.loads(Path("out/preprocessor_config.json").read_text())["do_pad"] is False
