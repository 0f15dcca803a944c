"""Language models under names of their own or with fused matrices: small checkpoints of the
original classes are converted, and transformers computes what the original class did.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Phi3Config,
    Phi3ForCausalLM,
)

from llava_remap import apply, revert
from tests.conftest import CLIP, DATA, RELEASED, Tensors

ORIGINALS = DATA / "operations"
#: The largest difference of logits, as a share of the largest logit.
NEAR = 2e-5


def weights(folder: Path) -> Tensors:
    """All tensors of a folder."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def llava(original: Path, folder: Path) -> Path:
    """The language model of an original class as LLaVA-1.5 stores it: with a projector beside it,
    and LLaVA's keys in its config.
    """
    folder.mkdir()
    projector = {n: t for n, t in weights(RELEASED / "safetensors").items() if "mm_projector" in n}
    tensors = load_file(original / "model.safetensors") | projector
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    released = json.loads((RELEASED / "safetensors" / "config.json").read_text())
    llavas = {key: value for key, value in released.items() if key.startswith(("mm_", "image_"))}
    config = json.loads((original / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | llavas))
    return folder


def far(folder: Path, original: Path) -> float:
    """The largest difference between the logits of transformers and of the original class."""
    said = load_file(original / "logits.safetensors")
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model.eval()(input_ids=said["ids"], use_cache=False).logits
    wanted = said["logits"]
    return float((logits[..., : wanted.shape[-1]] - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    ("rules", "name"),
    [("llava-internlm2", "internlm2"), ("llava-internlm2", "internlm2-bias")],
)
def test_transformers_computes_what_the_original_class_did(
    rules: str, name: str, tmp_path: Path
) -> None:
    source = llava(ORIGINALS / name, tmp_path / "source")
    apply(rules, [source, f"vision_tower={CLIP}"], "out")
    assert far(Path("out"), ORIGINALS / name) < NEAR


@pytest.mark.parametrize(("rules", "name"), [("llava-internlm2", "internlm2")])
def test_tensors_are_those_of_the_official_script(rules: str, name: str, tmp_path: Path) -> None:
    source = llava(ORIGINALS / name, tmp_path / "source")
    apply(rules, [source, f"vision_tower={CLIP}"], "out")
    wanted = json.loads((ORIGINALS / name / "expected.json").read_text())["tensors"]
    written = weights(Path("out"))
    text = {name for name in written if name.startswith("language_model.")}
    assert text == wanted.keys()
    for tensor, said in wanted.items():
        rows = written[tensor][: said["shape"][0]]  # behind them stand those of new tokens
        assert list(rows.shape) == said["shape"]
        assert digest(rows) == said["sha256"], tensor


@pytest.mark.parametrize(("rules", "name"), [("llava-internlm2", "internlm2-bias")])
def test_the_way_back_gives_the_original_tensors(rules: str, name: str, tmp_path: Path) -> None:
    source = llava(ORIGINALS / name, tmp_path / "source")
    apply(rules, [source, f"vision_tower={CLIP}"], "out")
    revert("out", "back")
    restored, original = weights(Path("back/model")), weights(source)
    assert restored.keys() == original.keys()
    assert all(torch.equal(restored[name], original[name]) for name in original)
    revert("out", "by-rules", rules=rules)
    fused = {
        name.replace(".self_attn.", ".attention."): tensor
        for name, tensor in weights(Path("by-rules")).items()
        if "wqkv" in name
    }
    assert fused.keys() == {name for name in original if "wqkv" in name}
    assert all(torch.equal(tensor, original[name]) for name, tensor in fused.items())


def test_internlm2s_own_tokenizer_class_gives_the_same_ids(tmp_path: Path) -> None:
    source = llava(ORIGINALS / "internlm2", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    for table in ("model.tok_embeddings.weight", "output.weight"):
        rows = torch.full((1002, 64), 0.01, dtype=torch.bfloat16)
        rows[: len(tensors[table])] = tensors[table]
        tensors[table] = rows
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"vocab_size": 1002}
    (source / "config.json").write_text(json.dumps(config))
    own = ORIGINALS / "internlm2" / "tokenizer"
    shutil.copytree(own, source, ignore=shutil.ignore_patterns("ids.json"), dirs_exist_ok=True)
    shutil.copy(DATA / "original/tokenizers/sp-legacy-true/tokenizer.model", source)
    apply("llava-internlm2", [source, f"vision_tower={CLIP}"], "out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    for said in json.loads((own / "ids.json").read_text()):
        assert tokenizer(said["text"]).input_ids == said["ids"], said["text"]
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    prompt = AutoProcessor.from_pretrained("out").apply_chat_template(
        turns, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def phi3(folder: Path) -> Path:
    """A small Phi-3 of transformers, and what it computes."""
    config = Phi3Config(
        vocab_size=128, hidden_size=64, intermediate_size=112, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        original_max_position_embeddings=256, pad_token_id=0, sliding_window=200,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Phi3ForCausalLM._from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, 120, (1, 40))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
        logits = model(input_ids=ids, use_cache=False).logits
    model.save_pretrained(folder)
    save_file({"ids": ids, "logits": logits}, folder / "logits.safetensors")
    return folder


@pytest.mark.parametrize(
    "named", [{}, {"architectures": ["LlavaPhiForCausalLM"], "model_type": "llava_phi"}]
)
def test_phi_3_stays_fused(named: dict[str, object], tmp_path: Path) -> None:
    """As xtuner saves it, a language model and a projector, and as LLaVA++ does."""
    original = phi3(tmp_path / "phi3")
    source = llava(original, tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | named
    del config["image_aspect_ratio"]
    (source / "config.json").write_text(json.dumps(config))
    result = apply("llava-phi-3", [source, f"vision_tower={CLIP}"], "out")
    assert any("xtuner pads them" in note.cause for note in result.notes)
    assert json.loads(Path("out/config.json").read_text())["text_config"]["model_type"] == "phi3"
    assert far(Path("out"), original) < NEAR


def test_phi_3_that_xtuner_divided_is_llama(tmp_path: Path) -> None:
    """xtuner's convert_phi_to_llama.py divides both matrices into equal chunks."""
    original = phi3(tmp_path / "phi3")
    source = llava(original, tmp_path / "source")
    divided: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        for fused, parts in {"qkv_proj": ("q", "k", "v"), "gate_up_proj": ("gate", "up")}.items():
            if fused in name:
                chunks = zip(parts, tensor.chunk(len(parts)), strict=True)
                divided |= {
                    name.replace(fused, f"{part}_proj"): chunk.clone() for part, chunk in chunks
                }
                break
        else:
            divided[name] = tensor
    save_file(divided, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    del config["embd_pdrop"], config["resid_pdrop"]  # as the script does, and no other key
    config |= {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama"}
    (source / "config.json").write_text(json.dumps(config))
    apply("llava-phi-3-xtuner", [source, f"vision_tower={CLIP}"], "out")
    assert far(Path("out"), original) < NEAR


def mistral_logits(tensors: Tensors, ids: torch.Tensor) -> torch.Tensor:
    """What Mistral's own code computes: rope turns neighbouring numbers of a head together, as the
    two parts of a complex number.
    """
    w = {name: tensor.float() for name, tensor in tensors.items()}
    heads, groups, size, (rows,) = 4, 2, 16, ids.shape
    angles = torch.outer(torch.arange(rows), 1e9 ** -(torch.arange(0, size, 2) / size))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"]

    def rope(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(rows, -1, size // 2, 2))
        return torch.view_as_real(pairs * turn).flatten(-2)

    x = w["tok_embeddings.weight"][ids]
    mask = torch.full((rows, rows), float("-inf")).triu(1)
    for layer in ("layers.0", "layers.1"):
        y = norm(x, f"{layer}.attention_norm")
        q, k, v = (y @ w[f"{layer}.attention.w{kind}.weight"].T for kind in "qkv")
        q, k = rope(q), rope(k).repeat_interleave(heads // groups, 1)
        v = v.reshape(rows, groups, size).repeat_interleave(heads // groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5 + mask
        y = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + y @ w[f"{layer}.attention.wo.weight"].T
        y = norm(x, f"{layer}.ffn_norm")
        w1, w2, w3 = (w[f"{layer}.feed_forward.w{number}.weight"].T for number in (1, 2, 3))
        x = x + (torch.nn.functional.silu(y @ w1) * (y @ w3)) @ w2
    return norm(x, "norm") @ w["output.weight"].T


@pytest.mark.parametrize(("rules", "name"), [("pixtral", "pixtral"), ("mistral-small", "mistral3")])
def test_as_mistral_stores_it(rules: str, name: str) -> None:
    original = ORIGINALS / name
    apply(rules, original, "out", verify="full")
    wanted = json.loads((original / "expected.json").read_text())["tensors"]
    written = weights(Path("out"))
    assert written.keys() == wanted.keys()
    for tensor, said in wanted.items():
        assert list(written[tensor].shape) == said["shape"]
        assert digest(written[tensor]) == said["sha256"], tensor
    model = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32).eval()
    ids = torch.arange(11, 51)
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    own = mistral_logits(load_file(original / "consolidated.safetensors"), ids)
    assert (logits - own).abs().max() < NEAR * own.abs().max()
    revert("out", "back")
    [back] = Path("back").rglob("*.safetensors")
    restored, stored = load_file(back), load_file(original / "consolidated.safetensors")
    assert restored.keys() == stored.keys()
    assert all(torch.equal(restored[name], stored[name]) for name in stored)
