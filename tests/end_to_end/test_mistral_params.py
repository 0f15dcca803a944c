"""Pixtral and Mistral Small as Mistral publishes them: consolidated.safetensors, params.json and
tekken.json, without a config.json. What they compute and how they encode is Mistral's own.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from llava_remap import apply, convert, plan, revert, verify
from llava_remap.core.problem import RemapError
from llava_remap.target_model import tekken
from tests.conftest import DATA, Tensors
from tests.end_to_end.test_operation_families import digest, mistral_logits, weights

ORIGINALS = DATA / "operations"
SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)  # fmt: skip
WORDS = (*(bytes([i]) for i in range(256)), b"ca", b"cat", b" a", b" cat", b"\n\n", b"  ")
ROWS = len(SPECIAL) + len(WORDS)
#: The keys of both published files, with small numbers.
TOWER = {
    "hidden_size": 32, "num_channels": 3, "image_size": 64, "patch_size": 16,
    "rope_theta": 10000.0, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_token_id": 10,
}  # fmt: skip
MERGE = {
    "max_image_size": 64, "adapter_bias": False, "mm_projector_id": "patch_merge",
    "spatial_merge_size": 2, "add_pre_mm_projector_layer_norm": True,
    "image_break_token_id": 12, "image_end_token_id": 13,
}  # fmt: skip
PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 112, "n_heads": 4, "n_kv_heads": 2,
    "rope_theta": 1e9, "norm_eps": 1e-5, "vocab_size": ROWS,
}  # fmt: skip
FAMILIES = {
    "pixtral": ("pixtral", PARAMS | {"vision_encoder": TOWER}),
    "mistral-small": ("mistral3", PARAMS | {"vision_encoder": TOWER | MERGE}),
}


PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_tekken(file: Path, **special: Any) -> None:
    """A tekken.json with a few words."""
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(WORDS),
        "default_vocab_size": ROWS,
        "default_num_special_tokens": len(SPECIAL),
        "version": "v7",
    }
    words = [
        {"rank": i, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for i, word in enumerate(WORDS)
    ]
    tokens = [{"rank": i, "token_str": s, "is_control": True} for i, s in enumerate(SPECIAL)]
    image = {"image_patch_size": 16, "max_image_size": 64}
    content = {"config": config, "vocab": words, "special_tokens": tokens, "image": image}
    file.write_text(json.dumps(content | special))


def published(rules: str, folder: Path, **changed: Any) -> Path:
    """The folder that Mistral would publish; `changed` keys of params.json, None for none."""
    original, params = FAMILIES[rules]
    folder.mkdir()
    tensors = load_file(ORIGINALS / original / "consolidated.safetensors")
    for table in ("tok_embeddings.weight", "output.weight"):
        tensors[table] = torch.cat([tensors[table]] * 3)[:ROWS].contiguous()
    save_file(tensors, folder / "consolidated.safetensors")
    params = {key: value for key, value in (params | changed).items() if value is not None}
    (folder / "params.json").write_text(json.dumps(params))
    write_tekken(folder / "tekken.json")
    return folder


@pytest.mark.parametrize("rules", FAMILIES)
def test_a_published_folder_computes_what_mistrals_own_code_does(
    rules: str, tmp_path: Path
) -> None:
    source = published(rules, tmp_path / "source")
    apply(rules, source, "out", verify="full")
    wanted = json.loads((ORIGINALS / FAMILIES[rules][0] / "expected.json").read_text())["tensors"]
    written = weights(Path("out"))
    assert written.keys() == wanted.keys()
    for name, said in wanted.items():
        rows = written[name][: said["shape"][0]]
        assert digest(rows) == said["sha256"], name
    model = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32).eval()
    ids = torch.arange(11, 51)
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    own = mistral_logits(load_file(source / "consolidated.safetensors"), ids)
    assert (logits - own).abs().max() < 2e-5 * own.abs().max()


#: What the official scripts make of params.json and Mistral's own code doesn't have.
FAULTS = {
    "pixtral": {"text_config.rms_norm_eps": 1e-6, "vision_config.hidden_act": "gelu"},
    "mistral-small": {"tie_word_embeddings": True, "vision_config.hidden_act": "gelu"},
}
#: Keys that the scripts hand over although no class reads them.
UNREAD = {
    "text_config.norm_eps",
    "vision_config.image_token_id",
    "vision_config.add_pre_mm_projector_layer_norm",
}


def flat(config: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Key → value, with dots for nested keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = within + key
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


@pytest.mark.parametrize("rules", FAMILIES)
def test_the_config_is_that_of_the_official_script_without_its_faults(
    rules: str, tmp_path: Path
) -> None:
    apply(rules, published(rules, tmp_path / "source"), "out")
    script = json.loads((ORIGINALS / FAMILIES[rules][0] / "script-config.json").read_text())
    made = flat(json.loads(Path("out/config.json").read_text()))
    wanted = {key: value for key, value in flat(script).items() if key not in UNREAD}
    # Written as `rope_theta`, which all versions read: 5.0 refuses the kind that 5.23 calls axial.
    assert wanted.pop("vision_config.rope_parameters.rope_type") == "axial"
    theta = wanted.pop("vision_config.rope_parameters.rope_theta")
    assert made["vision_config.rope_theta"] == theta
    assert not any("vision_config.rope_parameters" in key for key in made)
    assert {key: wanted[key] for key in wanted if made.get(key) != wanted[key]} == FAULTS[rules]


@pytest.mark.parametrize("rules", FAMILIES)
def test_the_way_back_gives_the_stored_tensors_and_config(rules: str, tmp_path: Path) -> None:
    source = published(rules, tmp_path / "source")
    apply(rules, source, "out")
    verify("out", against=source)
    revert("out", "back")
    [back] = Path("back").rglob("*.safetensors")
    restored, stored = load_file(back), load_file(source / "consolidated.safetensors")
    assert restored.keys() == stored.keys()
    assert all(torch.equal(restored[name], stored[name]) for name in stored)
    assert (
        next(Path("back").rglob("params.json")).read_text() == (source / "params.json").read_text()
    )


def features(tensors: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """The features of one picture by Mistral's own tower: rope in two dimensions turns neighbouring
    numbers together, the feed-forward layer has silu.
    """
    w = {name: tensor.float() for name, tensor in tensors.items()}
    heads, size = 2, 16
    patches = torch.nn.functional.conv2d(
        pixels[None], w["vision_encoder.patch_conv.weight"], stride=16
    )[0]
    rows, columns = patches.shape[1:]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"]

    turns = 10000.0 ** -(torch.arange(0, size, 2) / size)
    angles = torch.cat(
        [
            torch.outer(torch.arange(rows), turns[::2])[:, None].expand(-1, columns, -1),
            torch.outer(torch.arange(columns), turns[1::2])[None].expand(rows, -1, -1),
        ],
        -1,
    ).flatten(0, 1)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rope(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(len(x), heads, size // 2, 2))
        return torch.view_as_real(pairs * turn).flatten(-2)

    x = norm(patches.flatten(1).T, "vision_encoder.ln_pre")
    for number in range(2):
        layer = f"vision_encoder.transformer.layers.{number}"
        y = norm(x, f"{layer}.attention_norm")
        q, k, v = (y @ w[f"{layer}.attention.w{kind}.weight"].T for kind in "qkv")
        scores = torch.einsum("qhd,khd->hqk", rope(q), rope(k)) / size**0.5
        y = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.reshape(len(x), heads, size))
        x = x + y.flatten(1) @ w[f"{layer}.attention.wo.weight"].T
        y = norm(x, f"{layer}.ffn_norm")
        w1, w2, w3 = (w[f"{layer}.feed_forward.w{part}.weight"].T for part in (1, 2, 3))
        x = x + (torch.nn.functional.silu(y @ w1) * (y @ w3)) @ w2
    if "pre_mm_projector_norm.weight" in w:  # then four patches become one
        x = norm(x, "pre_mm_projector_norm").T.reshape(1, -1, rows, columns)
        merged = torch.nn.functional.unfold(x, kernel_size=2, stride=2)[0].T
        x = merged @ w["patch_merger.merging_layer.weight"].T
    for number, part in enumerate(("w_in", "w_out")):
        name = f"vision_language_adapter.{part}"
        x = torch.nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
        x = torch.nn.functional.gelu(x) if number == 0 else x
    return x


@pytest.mark.parametrize("rules", FAMILIES)
def test_pictures_have_the_features_of_mistrals_own_code(rules: str, tmp_path: Path) -> None:
    source = published(rules, tmp_path / "source")
    apply(rules, source, "out")
    model = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32).eval()
    pixels = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model.model.get_image_features(
            pixel_values=pixels[None], image_sizes=torch.tensor([[64, 32]])
        ).pooler_output[0]
    wanted = features(load_file(source / "consolidated.safetensors"), pixels)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("rules", FAMILIES)
def test_convert_recognises_a_published_folder(rules: str, tmp_path: Path) -> None:
    source = published(rules, tmp_path / "source")
    convert(source, "out")
    assert json.loads(Path("out/llava_remap.json").read_text())["rules"]["name"] == rules


def test_what_params_json_does_not_say_is_told(tmp_path: Path) -> None:
    notes = plan("pixtral", published("pixtral", tmp_path / "source"), dry_run=True).plan.notes
    assert not any("has silu" in note.cause for note in notes)
    [assumed] = [note.cause for note in notes if "the rule file's" in note.cause]
    for value in ("131072 (`max_seq_len`)", "True (`vision_encoder.adapter_bias`)", "'silu'"):
        assert value in assumed


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"rope_theta": None}, "`rope_theta`, which the source's config doesn't have"),
        ({"yarn": {"factor": 16}}, "yarn.factor: 16"),
        ({"moe": {"num_experts": 8}}, "moe.num_experts: 8"),
        ({"sliding_window": 4096}, "sliding_window: 4096"),
        ({"activation": "gelu"}, "activation: 'gelu'"),
        ({"norm_eps": 1e-6}, "no case of `target.config.text_config.rms_norm_eps` holds"),
    ],
)
def test_other_models_than_the_class_computes_are_refused(
    changed: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    source = published("mistral-small", tmp_path / "source", **changed)
    [problem] = plan("mistral-small", source, dry_run=True).plan.problems
    assert problem.code == "LR112"
    assert cause in problem.cause


def test_every_missing_value_is_named_at_once(tmp_path: Path) -> None:
    tower = {key: value for key, value in TOWER.items() if key != "patch_size"}
    source = published("pixtral", tmp_path / "source", dim=None, vision_encoder=tower)
    found = plan("pixtral", source, dry_run=True).plan.problems
    told = "\n".join(problem.message for problem in found)
    assert "`dim`" in told
    assert "`vision_encoder.patch_size`" in told
    assert "Add it to the source's params.json." in told


def test_without_any_config_the_file_is_asked_for(tmp_path: Path) -> None:
    source = published("pixtral", tmp_path / "source")
    (source / "params.json").unlink()
    [problem] = plan("pixtral", source, dry_run=True).plan.problems
    assert problem.code == "LR112"
    assert "has neither config.json nor params.json" in problem.cause


def test_a_config_json_of_transformers_counts_first(tmp_path: Path) -> None:
    source = published("mistral-small", tmp_path / "source", dim=None)
    config = json.loads((ORIGINALS / "mistral3" / "config.json").read_text())
    config["text_config"]["vocab_size"] = ROWS
    (source / "config.json").write_text(json.dumps(config))
    result = apply("mistral-small", source, "out")
    assert json.loads(Path("out/config.json").read_text())["vision_config"]["hidden_act"] == "gelu"
    assert any("Mistral's own code has silu" in note.cause for note in result.notes)


def test_a_config_that_does_not_say_whether_the_head_is_tied_keeps_the_stored_head(
    tmp_path: Path,
) -> None:
    """Mistral3ForConditionalGeneration ties by default, and Mistral's models have a head."""
    source = tmp_path / "source"
    shutil.copytree(ORIGINALS / "mistral3", source)
    config = json.loads((source / "config.json").read_text())
    del config["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    apply("mistral-small", source, "out")
    assert "language_model.lm_head.weight" in weights(Path("out"))
    assert AutoConfig.from_pretrained("out").tie_word_embeddings is False


def test_the_tokenizer_gives_the_ids_of_mistral_common(tmp_path: Path) -> None:
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    source = published("pixtral", tmp_path / "source")
    apply("pixtral", source, "out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    own = Tekkenizer.from_file(source / "tekken.json")
    for text in ("Two  cats, a cat\n\n", " Äpfel 漢字 12", "\tdef f(x):\n        return x"):
        assert tokenizer(text).input_ids == own.encode(text, bos=False, eos=False), text
    assert tokenizer("[IMG][IMG_BREAK]a[IMG_END]").input_ids[:2] == [10, 12]
    images = json.loads(Path("out/preprocessor_config.json").read_text())
    assert images["size"] == {"longest_edge": 64}
    assert images["patch_size"] == {"height": 16, "width": 16}
    turns: list[Any] = [
        UserMessage(content="What is it?"),
        AssistantMessage(content="a cat"),
        UserMessage(content="And  this?"),
    ]
    wanted = MistralTokenizer.from_file(str(source / "tekken.json")).encode_chat_completion(
        ChatCompletionRequest(messages=turns, model="pixtral")
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns], tokenize=False
    )
    assert tokenizer(prompt).input_ids == wanted.tokens


def test_without_mistral_common_the_way_to_a_tokenizer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tekken, "_version", lambda: "")
    source = published("pixtral", tmp_path / "source")
    result = apply("pixtral", source, "out")
    [lacking] = [note for note in result.notes if note.code == "LR408"]
    assert "mistral-common reads" in lacking.cause
    assert not Path("out/tokenizer.json").exists()


def test_a_tokenizer_given_apart_is_taken(tmp_path: Path) -> None:
    pytest.importorskip("mistral_common")
    source = published("pixtral", tmp_path / "source")
    (tmp_path / "apart").mkdir()
    shutil.move(source / "tekken.json", tmp_path / "apart" / "tekken.json")
    result = apply("pixtral", [source, f"tokenizer={tmp_path / 'apart'}"], "out")
    assert not [note for note in result.notes if note.code == "LR408"]
    assert AutoTokenizer.from_pretrained("out")("cat").input_ids == [len(SPECIAL) + 257]


@pytest.mark.parametrize(
    ("special", "code"), [({"vocab": []}, "LR113"), ({"special_tokens": []}, "LR113")]
)
def test_a_broken_tekken_json_is_refused(
    special: dict[str, Any], code: str, tmp_path: Path
) -> None:
    pytest.importorskip("mistral_common")
    source = published("pixtral", tmp_path / "source")
    write_tekken(source / "tekken.json", **special)
    with pytest.raises(RemapError, match=code):
        apply("pixtral", source, "out")


def test_a_pictures_token_with_another_id_in_the_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mistral_common")
    source = published("pixtral", tmp_path / "source", vision_encoder=TOWER | {"image_token_id": 9})
    [problem] = plan("pixtral", source, dry_run=True).plan.problems
    assert problem.code == "LR403"
    assert "`[IMG]` with the id 9" in problem.cause
