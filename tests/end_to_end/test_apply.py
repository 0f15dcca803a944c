"""The whole job on genuine small checkpoints: bytes, files, and the folder in the installed
transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava_remap.jobs.apply import apply
from llava_remap.jobs.run import Result
from tests.conftest import CLIP, RELEASED, TINY, Changed, Ran, Run, Tensors

LLAVA = TINY / "llava-v1.5"
#: The same released model (27 tensors) in every form.
FORMS = {form: RELEASED / form for form in ("bin", "sharded", "safetensors", "sharded_safetensors")}
FORMS["legacy_pickle"] = LLAVA / "legacy_pickle"
EXPANDED = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def convert(
    source: Path, output: Path, rules: str = "llava-v1.5", tower: Path | None = CLIP
) -> Result:
    sources = [str(source), *([f"vision_tower={tower}"] if tower else [])]
    return apply(rules, sources, output)


def written(folder: Path) -> Tensors:
    return {
        name: t
        for file in sorted(folder.glob("*.safetensors"))
        for name, t in load_file(file).items()
    }


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


def hand_mapped(source: Tensors, tower: Tensors) -> Tensors:
    """The classic names, spelt out here by hand."""
    named = {}
    for name, tensor in source.items():
        if name.endswith("inv_freq"):
            continue
        if name == "lm_head.weight":
            named["language_model.lm_head.weight"] = tensor
        elif name.startswith("model.mm_projector."):
            _, _, number, part = name.split(".")
            named[f"multi_modal_projector.linear_{int(number) // 2 + 1}.{part}"] = tensor
        elif name.startswith("model.vision_tower.vision_tower."):
            named[name.replace("model.vision_tower.", "", 1)] = tensor
        else:
            named["language_model." + name] = tensor
    for name, tensor in tower.items():
        if name.startswith("vision_model.") and not name.endswith("position_ids"):
            named["vision_tower." + name] = tensor
    return named


def released() -> Tensors:
    return load_file(RELEASED / "safetensors" / "model.safetensors")


def clip() -> Tensors:
    return load_file(CLIP / "model.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_bit_equal_to_its_source(form: str, tmp_path: Path) -> None:
    convert(FORMS[form], tmp_path / "out")
    result, source = written(tmp_path / "out"), hand_mapped(released(), clip())
    assert result.keys() == source.keys()
    for name, tensor in source.items():
        got = result[name][:320] if name in EXPANDED else result[name]
        assert got.dtype == tensor.dtype
        assert torch.equal(got.view(torch.uint8), tensor.view(torch.uint8)), name
    for name in EXPANDED:
        assert result[name].shape == (384, 64)
        assert torch.isfinite(result[name]).all()


def test_every_form_gives_the_same_tensors(tmp_path: Path) -> None:
    """New rows included: they don't depend on the form or the sharding."""
    outputs = []
    for form, source in FORMS.items():
        convert(source, tmp_path / form)
        outputs.append(
            {n: t.view(torch.uint8).numpy().tobytes() for n, t in written(tmp_path / form).items()}
        )
    assert all(output == outputs[0] for output in outputs)


@pytest.mark.parametrize("form", FORMS)
def test_a_second_run_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    convert(FORMS[form], tmp_path / "one")
    convert(FORMS[form], tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_files_of_the_output(tmp_path: Path) -> None:
    result = convert(RELEASED / "sharded", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(result.files) == [
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "llava_remap.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]  # fmt: skip
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    in_files: dict[str, str] = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            in_files |= dict.fromkeys(opened.keys(), file.name)
    assert index["weight_map"] == in_files
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for t in written(tmp_path / "out").values()
    )


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        convert(RELEASED / "bin", tmp_path / "out")
    finally:
        os.umask(old)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()} == {0o640}


def test_sources_are_left_as_they_are(tmp_path: Path) -> None:
    shutil.copytree(RELEASED / "sharded", tmp_path / "source")
    before = digests(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    assert digests(tmp_path / "source") == before


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def logits(model: Any, folder: Path) -> torch.Tensor:
    """Of one prompt with one picture, made by the folder's own processor."""
    processor = AutoProcessor.from_pretrained(folder)
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}
    ]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert prompt.count("<image>") == 1
    inputs = processor(images=picture(), text=prompt, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def opened(folder: Path) -> Any:
    """The model as a user opens it, in float32; nothing may be left over."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


@pytest.mark.parametrize(
    "source", [RELEASED / "sharded", LLAVA / "full_state_dict"], ids=["released", "full_state_dict"]
)
def test_it_computes_what_a_model_built_by_hand_computes(source: Path, tmp_path: Path) -> None:
    """Logits equal, bit for bit, those of a model whose config and state dict are written out
    here from the source's tensors.
    """
    out = tmp_path / "out"
    convert(source, out)
    config = LlavaConfig(
        text_config={
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 112,
            "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            "vocab_size": 320,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
        },
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
            "hidden_act": "quick_gelu",
        },
        image_token_id=320, vision_feature_layer=-2, vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )  # fmt: skip
    by_hand = LlavaForConditionalGeneration(config).eval()
    state = {}
    for name, tensor in hand_mapped(released(), clip()).items():
        module = name.replace("language_model.model.", "language_model.").replace(
            "vision_tower.vision_model.", "vision_tower."
        )
        state["lm_head.weight" if name.endswith("lm_head.weight") else f"model.{module}"] = (
            tensor.float()
        )
    by_hand.load_state_dict(state, strict=True)
    # The image token's row has to exist, but its values have no effect: the picture's features
    # replace them.
    by_hand.get_input_embeddings().weight.data = torch.cat(
        [state["model.language_model.embed_tokens.weight"], torch.zeros(1, 64)]
    )
    found = logits(opened(out), out)
    assert found.shape[-1] == 384
    assert torch.isfinite(found).all()
    assert torch.equal(found[..., :320], logits(by_hand, out))


def test_the_loader_warns_of_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convert(RELEASED / "bin", tmp_path / "out")
    capfd.readouterr()
    opened(tmp_path / "out")
    printed = "".join(capfd.readouterr())
    assert not any(
        word in printed for word in ("newly initialized", "MISSING", "UNEXPECTED", "MISMATCH")
    )


def without_newline(tensors: Tensors) -> None:
    del tensors["model.image_newline"]


def square(config: dict[str, Any]) -> None:
    """A config that cuts no image into tiles, as LLaVA-1.5's."""
    config.update({"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"})


def test_mistral_text(changed: Changed, tmp_path: Path) -> None:
    """Grouped heads and a rope theta of 1e6, as in LLaVA-Med 1.5; LLaVA-1.6's tensors without
    the one that 1.5 hasn't.
    """
    out = tmp_path / "out"
    convert(
        changed(
            TINY / "llava-v1.6-mistral" / "safetensors", tensors=without_newline, config=square
        ),
        out,
        "llava-med-v1.5",
    )
    config = AutoConfig.from_pretrained(out)
    assert config.text_config.model_type == "mistral"
    assert config.text_config.num_key_value_heads == 2
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    model = opened(out)
    assert model.dtype == torch.float32
    assert torch.isfinite(logits(model, out)).all()


def test_qwen2_text_and_a_siglip_tower(changed: Changed, tmp_path: Path) -> None:
    """No tokenizer, a tower that lost its last layer, no class token: everything of it is in the
    config.
    """
    source = changed(
        TINY / "llava-onevision" / "safetensors", tensors=without_newline, config=square
    )
    out = tmp_path / "out"
    result = convert(source, out, tower=TINY / "siglip-tiny-patch14-28")
    assert "LR408" in {note.code for note in result.notes}
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["model_type"] == "qwen2"
    assert config["vision_config"]["model_type"] == "siglip_vision_model"
    assert config["vision_config"]["num_hidden_layers"] == 2
    assert config["vision_config"]["vision_use_head"] is False
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (
        -1,
        "full",
    )
    model = opened(out)
    tokens = torch.tensor([[1, *[config["image_token_id"]] * 4, 5, 6]])
    with torch.no_grad():
        found = model(input_ids=tokens, pixel_values=torch.randn(1, 3, 28, 28)).logits
    assert torch.isfinite(found).all()


def test_a_whole_siglip_given_apart(changed: Changed, tmp_path: Path) -> None:
    """A stock tower has all its layers and its pooling head: they are kept, and the layer is the
    one that the config says.
    """

    def no_tower(tensors: Tensors) -> None:
        without_newline(tensors)
        for name in [n for n in tensors if "vision_tower" in n]:
            del tensors[name]

    out = tmp_path / "out"
    convert(
        changed(TINY / "llava-onevision" / "safetensors", tensors=no_tower, config=square),
        out,
        tower=TINY / "siglip-tiny-patch14-28",
    )
    config = json.loads((out / "config.json").read_text())
    assert config["vision_config"]["num_hidden_layers"] == 3
    assert config["vision_config"]["vision_use_head"] is True
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (
        -2,
        "full",
    )
    opened(out)


@pytest.fixture
def interleave(changed: Changed) -> Callable[..., Path]:
    """A small LLaVA-Interleave: OneVision's classes are its own, its config says `anyres`."""

    def make(tensors: Callable[[Tensors], object] = lambda tensors: None, **config: object) -> Path:
        return changed(
            TINY / "llava-onevision" / "safetensors",
            tensors=tensors,
            config=lambda content: content.update({"image_aspect_ratio": "anyres", **config}),
        )

    return make


def test_interleave_drops_the_newline_and_keeps_the_rest(
    interleave: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = interleave(), tmp_path / "out"
    convert(source, out, "llava-interleave", TINY / "siglip-tiny-patch14-28")
    original = load_file(source / "model.safetensors")
    wanted = hand_mapped({n: t for n, t in original.items() if n != "model.image_newline"}, {})
    assert written(out).keys() == wanted.keys()
    opened(out)


def test_a_tied_head_that_is_stored_is_checked_and_not_written(
    interleave: Callable[..., Path], tmp_path: Path
) -> None:
    def tie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    out = tmp_path / "out"
    convert(
        interleave(tie, tie_word_embeddings=True),
        out,
        "llava-interleave",
        TINY / "siglip-tiny-patch14-28",
    )
    assert "language_model.lm_head.weight" not in written(out)
    model = opened(out)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.shape == (384, 64)


def test_a_tied_head_that_differs_is_refused(
    interleave: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    source = interleave(tie_word_embeddings=True)  # its stored lm_head differs from embed_tokens
    sources = ("--source", source, "--source", f"vision_tower={TINY / 'siglip-tiny-patch14-28'}")
    ran: Ran = run("apply", "llava-interleave", *sources, "--output", "out")
    assert ran.code == 1
    assert "LR405" in ran.out
    assert "lm_head.weight" in ran.out
    assert not Path("out").exists()


def test_strided_and_shared_tensors(tmp_path: Path) -> None:
    """A transposed weight is written row-major; two names on one storage are each written where
    the model doesn't tie them.
    """
    state = torch.load(RELEASED / "bin" / "pytorch_model.bin", weights_only=True)
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name].T.contiguous().T
    state["model.layers.1.input_layernorm.weight"] = state["model.layers.0.input_layernorm.weight"]
    source = tmp_path / "source"
    shutil.copytree(RELEASED / "bin", source)
    torch.save(state, source / "pytorch_model.bin")
    result = convert(source, tmp_path / "out")
    assert torch.equal(written(tmp_path / "out")["language_model." + name], state[name])
    assert "LR506" in {note.code for note in result.notes}
    tensors = written(tmp_path / "out")
    assert torch.equal(
        tensors["language_model.model.layers.1.input_layernorm.weight"],
        tensors["language_model.model.layers.0.input_layernorm.weight"],
    )


def test_a_tower_in_the_checkpoint_wins_over_the_stock_one(tmp_path: Path) -> None:
    """A fine-tuned tower is kept, though the stock one is given, and it is told how many tensors
    differ.
    """
    state = torch.load(LLAVA / "full_state_dict" / "model_state_dict.bin", weights_only=True)
    name = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    state[name] = state[name] + 1
    source = tmp_path / "source"
    shutil.copytree(LLAVA / "full_state_dict", source)
    torch.save(state, source / "model_state_dict.bin")
    result = convert(source, tmp_path / "out")
    assert torch.equal(
        written(tmp_path / "out")["vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"],
        state[name],
    )
    notes = [note for note in result.notes if note.code == "LR310"]
    assert any("is not used" in note.cause for note in notes)
    assert any("1 of 55 tensors differ" in note.cause for note in notes)


def test_tokens_and_config(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(RELEASED / "bin", out)
    config = json.loads((out / "config.json").read_text())
    assert (config["image_token_index"], config["image_token_id"], config["pad_token_id"]) == (
        320,
        320,
        321,
    )
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (
        -2,
        "default",
    )
    assert config["text_config"]["vocab_size"] == 384
    assert (
        config["text_config"]["rope_theta"]
        == config["text_config"]["rope_parameters"]["rope_theta"]
        == 10000.0
    )
    assert (config["torch_dtype"], config["dtype"]) == ("float16", "float16")
    assert json.loads((out / "generation_config.json").read_text())["pad_token_id"] == 321
    processor = AutoProcessor.from_pretrained(out)
    assert processor.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [320, 321]
    assert processor.tokenizer.pad_token == "<pad>"
    assert processor.tokenizer.bos_token_id == 1
    assert processor.image_processor.crop_size == {"height": 28, "width": 28}


def test_config_follows_the_source(changed: Changed, tmp_path: Path) -> None:
    source = changed(
        config=lambda c: c.update(
            {"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}
        )
    )
    convert(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (
        -1,
        "full",
    )
    found = logits(opened(tmp_path / "out"), tmp_path / "out")
    assert torch.isfinite(found).all()


def test_no_tokenizer(changed: Changed, tmp_path: Path) -> None:
    """Converted all the same; what the folder lacks is told, with the way to add it; with
    `language_model=` it is there.
    """
    source = changed()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    result = convert(source, tmp_path / "out")
    [note] = [note for note in result.notes if note.code == "LR408"]
    assert "--source language_model=DIR" in note.fix
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    opened(tmp_path / "out")
    apply(
        "llava-v1.5",
        [str(source), f"vision_tower={CLIP}", f"language_model={RELEASED / 'bin'}"],
        tmp_path / "whole",
    )
    assert digests(tmp_path / "whole")["tokenizer.json"]
    assert written(tmp_path / "whole").keys() == written(tmp_path / "out").keys()


def test_a_folder_that_the_loader_refuses_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """The strict load is asked before the index is written; if it disagrees, everything goes."""
    from llava_remap.core.problem import Problem

    monkeypatch.setattr(
        "llava_remap.jobs.job.strict_load",
        lambda *arguments: [Problem("LR601", "the loader reports 1 name as missing.")],
    )
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert ran.code == 1
    assert "LR601" in ran.err
    assert not Path("out").exists()


def test_strict_load_sees_what_is_wrong(tmp_path: Path) -> None:
    """The check after writing isn't a formality: a name taken away, one too many and a wrong
    shape are each reported.
    """
    from llava_remap.verification import strict_load

    convert(RELEASED / "bin", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = written(tmp_path / "out")
    moved = tensors.pop("multi_modal_projector.linear_1.bias")
    tensors["multi_modal_projector.linear_9.bias"] = moved
    tensors["language_model.model.norm.weight"] = torch.ones(63, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    causes = [
        problem.cause
        for problem in strict_load(
            [tmp_path / "model.safetensors"], "LlavaForConditionalGeneration", config
        )
    ]
    assert any("1 names as missing" in cause for cause in causes)
    assert any("1 names as unexpected" in cause for cause in causes)
    assert any("1 names as mismatched" in cause for cause in causes)
