"""Faults that readers of this code found once, each as the input that showed it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from llava_remap.checkpoint import Location, Tensor
from llava_remap.core import files
from llava_remap.core.problem import RemapError
from llava_remap.execute import value_checks
from llava_remap.jobs.apply import apply
from llava_remap.target_model.tower import read_tower
from tests.conftest import (
    CLIP,
    MANIFESTS,
    RELEASED,
    TINY,
    Changed,
    Run,
    Tensors,
    beside_progress,
    lose_last_byte,
)

OPENAI_336 = "openai/clip-vit-large-patch14-336"
TOWER = "vision_tower.vision_model."


def apply_v15(run: Run, source: Path, tower: Path = CLIP, rules: object = "llava-v1.5") -> Any:
    return run(
        "apply", rules, "--source", source, "--source", f"vision_tower={tower}", "--output", "out"
    )


def rule_file(folder: Path, text: str) -> Path:
    """A file of one's own on top of `llava-v1.5`."""
    path = folder / "mine.yaml"
    path.write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [llava-v1.5.yaml]\n"
        f"{text}\n"
    )
    return path


# --- towers


def clip_tensors(layers: int = 24, positions: int = 577) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1024,),
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (positions, 1024),
        **{f"encoder.layers.{n}.mlp.fc1.weight": (4096, 1024) for n in range(layers)},
    }
    return {
        TOWER + name: Tensor(TOWER + name, "F16", shape, None) for name, shape in shapes.items()
    }


def test_own_config_without_default_values_is_believed() -> None:
    """transformers writes only what differs from the defaults: a 224-px tower has no
    `image_size`.
    """
    own = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    tower = read_tower(TOWER, clip_tensors(positions=257), {**own, "hidden_act": "gelu"}, None)
    assert tower.config["hidden_act"] == "gelu"
    assert tower.config["image_size"] == 224
    assert tower.notes == ()


def test_a_tower_of_another_name_has_no_preset() -> None:
    """It has the sizes of a stock one, but may have another activation."""
    with pytest.raises(RemapError) as raised:
        read_tower(TOWER, clip_tensors(), None, "laion/CLIP-ViT-L-14-336")
    assert [p.code for p in raised.value.problems] == ["LR112"]
    cached = (
        "/root/.cache/huggingface/hub/models--openai--clip-vit-large-patch14-336/snapshots/0123abc"
    )
    for named in (
        OPENAI_336,
        "/models/clip-vit-large-patch14-336/",
        "C:\\models\\clip-vit-large-patch14-336",
        cached,
        None,
    ):
        assert read_tower(TOWER, clip_tensors(), None, named).config["hidden_act"] == "quick_gelu"


@pytest.mark.parametrize("named", [OPENAI_336, None])
def test_a_tower_that_lost_layers_is_no_stock_one(named: str | None) -> None:
    with pytest.raises(RemapError, match="LR112"):
        read_tower(TOWER, clip_tensors(layers=23), None, named)


def test_a_tower_that_lost_layers_contradicts_its_config(run: Run, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    state = {
        name: t
        for name, t in load_file(CLIP / "model.safetensors").items()
        if "vision_model.encoder.layers.2." not in name
    }
    save_file(state, tower / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(CLIP / name, tower / name)
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert ran.code == 1
    assert "LR309" in ran.out
    assert "num_hidden_layers 3" in ran.out
    assert "num_hidden_layers 2" in ran.out
    assert not Path("out").exists()


def test_a_layer_missing_inside_the_tower(run: Run, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    state = {
        name: t
        for name, t in load_file(CLIP / "model.safetensors").items()
        if "vision_model.encoder.layers.1." not in name
    }
    save_file(state, tower / "model.safetensors")
    shutil.copy(CLIP / "config.json", tower / "config.json")
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert "LR302" in ran.out
    assert "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight" in ran.out


def test_the_stock_tower_of_another_size_is_told(run: Run) -> None:
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--format",
        "json",
    )
    assert any(
        note["code"] == "LR309" and OPENAI_336 in note["message"] for note in ran.json["notes"]
    )


def test_a_config_alone_will_do_for_a_tower_that_is_there(run: Run, tmp_path: Path) -> None:
    """A folder with the tower's config and no weights; but not where its weights are wanted."""
    tower = tmp_path / "tower"
    tower.mkdir()
    shutil.copy(CLIP / "config.json", tower / "config.json")
    assert apply_v15(run, TINY / "llava-v1.5" / "full_state_dict", tower).code == 0
    shutil.rmtree("out")
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert ran.code == 1
    assert "no source holds any tensor of it" in ran.out


def test_a_tokenizer_alone_will_do_for_a_language_model(changed: Changed, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    source = changed()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).rename(text / name)
    apply(
        "llava-v1.5",
        [str(source), f"vision_tower={CLIP}", f"language_model={text}"],
        tmp_path / "out",
    )
    assert (
        AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.convert_tokens_to_ids("<image>")
        == 320
    )


def test_config_and_tokenizer_of_a_bare_state_dict(tmp_path: Path) -> None:
    """`model_state_dict.bin` with nothing beside it; the language model's own folder says the
    rest.
    """
    bare, text = tmp_path / "bare", tmp_path / "text"
    bare.mkdir()
    text.mkdir()
    shutil.copy(TINY / "llava-v1.5" / "full_state_dict" / "model_state_dict.bin", bare)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(RELEASED / "bin" / name, text / name)
    config = {
        n: v
        for n, v in json.loads((RELEASED / "bin" / "config.json").read_text()).items()
        if "mm_" not in n
    }
    (text / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    apply(
        "llava-v1.5",
        [str(bare), f"vision_tower={CLIP}", f"language_model={text}"],
        tmp_path / "out",
    )
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (made["vision_feature_layer"], made["vision_feature_select_strategy"]) == (-2, "default")
    assert (
        AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.convert_tokens_to_ids("<image>")
        == 320
    )


def test_a_stock_tower_given_apart_has_to_be_the_one_that_is_named(
    run: Run, tmp_path: Path
) -> None:
    """LLaVA-1.5 was trained on 336 px; the 224-px tower has the same names, and the plan would
    be complete.
    """
    content = json.loads((MANIFESTS / "clip-vit-large-patch14-336.json").read_text())
    content["tensors"]["vision_model.embeddings.position_embedding.weight"]["shape"] = [257, 1024]
    content["config"]["vision_config"]["image_size"] = 224
    (tmp_path / "clip224.json").write_text(json.dumps(content))
    source = ("--source", MANIFESTS / "llava-v1.5-7b.released.json")
    ran = run("apply", "llava-v1.5", *source, "--source", "vision_tower=clip224.json", "--dry-run")
    assert ran.code == 1
    assert "LR309" in ran.out
    assert "has the sizes of clip-vit-large-patch14; " in ran.out


def test_the_dry_run_tries_the_processor_too(run: Run, tmp_path: Path) -> None:
    rules = rule_file(tmp_path, "processor: {class: CLIPProcessor}")
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
    )
    assert ran.code == 1
    assert "LR605" in ran.out


# --- families


def test_tiles_without_a_newline_are_not_llava_1_5(run: Run, changed: Changed) -> None:
    ran = apply_v15(
        run,
        changed(
            config=lambda c: c.update(
                {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"}
            )
        ),
    )
    assert ran.code == 1
    assert "LR311" in ran.out
    assert "image_aspect_ratio: 'anyres'" in ran.out


def test_detect_looks_at_the_config_that_is_used(run: Run, tmp_path: Path) -> None:
    """OneVision without its config, which comes from another source: the family is told by that
    one.
    """
    whole = json.loads((MANIFESTS / "llava-onevision-qwen2-0.5b.released.json").read_text())
    (tmp_path / "bare.json").write_text(json.dumps({**whole, "config": None}))
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    alone = run("apply", "llava-interleave", "--source", "bare.json", "--dry-run")
    assert "no config.json to say image_aspect_ratio" in alone.out
    both = run(
        "apply",
        "llava-interleave",
        "--source",
        "bare.json",
        "--source",
        "language_model=whole.json",
        "--dry-run",
    )
    assert "LR311" in both.out
    assert "anyres_max_9" in both.out


# --- tensors


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.float8_e4m3fn], ids=["BOOL", "I64", "F8_E4M3"]
)
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_a_parameter_is_a_float(dtype: torch.dtype, name: str, run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(tensors=lambda t: t.update({name: t[name].to(dtype)})))
    assert ran.code == 1
    assert "LR409" in ran.out
    assert not Path("out").exists()


@pytest.mark.parametrize("said", [100, 384, 400])
def test_a_vocabulary_that_the_config_has_otherwise(said: int, run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update({"vocab_size": said})))
    assert ran.code == 1
    assert f"embed_tokens has 320 rows, the source's config says vocab_size: {said}" in ran.out
    assert not Path("out").exists()


def test_a_doubled_embedding_is_a_collision(run: Run, changed: Changed) -> None:
    name = "model.embed_tokens.weight"
    ran = apply_v15(run, changed(tensors=lambda t: t.update({f"module.{name}": t[name].clone()})))
    assert ran.code == 1
    assert "LR304" in ran.out


def test_doubled_names_are_one_problem(run: Run, changed: Changed) -> None:
    ran = apply_v15(
        run,
        changed(
            tensors=lambda t: t.update(
                {f"module.{n}": x.clone() for n, x in list(t.items()) if "norm" in n}
            )
        ),
    )
    assert ran.out.count("LR304") == 2  # the problem, and the last line
    assert "and so for 4 other names" in ran.out


def test_strided_tensors_are_compared_by_value(tmp_path: Path) -> None:
    """More than one chunk of each: a strided and a contiguous copy of one matrix are equal, and
    one value makes them differ.
    """
    matrix = torch.arange(1024 * 600, dtype=torch.float32).reshape(1024, 600)
    (tmp_path / "rows").write_bytes(matrix.numpy().tobytes())
    (tmp_path / "columns").write_bytes(matrix.T.contiguous().numpy().tobytes())
    nbytes = matrix.numel() * 4
    rows = Tensor("w", "F32", (1024, 600), Location(tmp_path / "rows", 0, None, False, (0, nbytes)))
    columns = Tensor(
        "w", "F32", (1024, 600), Location(tmp_path / "columns", 0, (1, 1024), False, (0, nbytes))
    )
    assert value_checks.equal(rows, columns)
    matrix[1000, 3] += 1
    (tmp_path / "rows").write_bytes(matrix.numpy().tobytes())
    assert not value_checks.equal(rows, columns)


# --- broken small files


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": "linear"}, {"rope_scaling": [1]}, {"rope_parameters": "x"},
        {"mm_vision_select_feature": {}}, {"num_attention_heads": "4"},
        {"num_attention_heads": 0}, {"hidden_size": None}, {"mm_vision_select_layer": [-2, -1]},
        {"mm_vision_select_layer": 100},
        {"mm_vision_select_layer": "x"}, {"mm_vision_select_layer": 0},
        {"tie_word_embeddings": "false"}, {"rope_theta": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_cannot_be(change: dict[str, Any], run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update(change)))
    assert ran.code == 3
    assert "LR112" in ran.out
    assert not Path("out").exists()


@pytest.mark.parametrize("named", ["LlamaForCausalLMX", "LlavaOursForCausalLM"])
def test_an_architecture_that_is_not_known(named: str, run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update({"architectures": [named]})))
    assert (
        ran.code,
        "doesn't tell which language model" in ran.out,
        "model_type: {const: TYPE}" in ran.out,
    ) == (3, True, True)


def test_a_config_with_nan(run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(config=lambda c: c.update({"rms_norm_eps": float("nan")})))
    assert ran.code == 3
    assert "LR113" in ran.err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": null}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": "x"}'),
        ("tokenizer_config.json", "[]"), ("special_tokens_map.json", '{"pad_token": {"x": 1}}'),
        ("added_tokens.json", '{"x": "y"}'), ("tokenizer.json", '{"model": null}'),
        ("tokenizer.json", '{"model": {"vocab": 3}}'), ("tokenizer.model", "no model"),
        ("generation_config.json", "[]"), ("generation_config.json", "no JSON"),
        ("generation_config.json", "[" * 100000),
    ],
)  # fmt: skip
def test_small_files_that_are_broken(file: str, text: str, run: Run, changed: Changed) -> None:
    source = changed()
    (source / file).write_text(text)
    ran = apply_v15(run, source)
    assert ran.code == 3
    assert "LR113" in ran.out + ran.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"crop_size": "28"}, 3), ({"crop_size": [28, 28]}, 3),
        ({"crop_size": {"height": 28, "width": 56}}, 1),
        ({"image_mean": "x"}, 3), ({"image_processor_type": "Foo"}, 3),
    ],
    ids=str,
)  # fmt: skip
def test_image_processors_that_do_not_work(
    change: dict[str, Any], code: int, run: Run, tmp_path: Path
) -> None:
    """A picture is taken through the processor before anything is written."""
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    content = json.loads((tower / "preprocessor_config.json").read_text())
    (tower / "preprocessor_config.json").write_text(json.dumps({**content, **change}))
    ran = apply_v15(run, RELEASED / "bin", tower)
    assert ran.code == code
    assert "LR" in ran.out + ran.err
    assert not Path("out").exists()


# --- rule files of one's own


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("target: {class: set_seed}", 2, "mine.yaml:6:17 transformers"),
        ("target: {config: {text_config: {const: 1}}}", 2, "is a group of values"),
        ("target: {config: {architectures.x: {const: 1}}}", 2, "has no parts"),
        ("target: {config: {vision_feature_layer: {const: 99}}}", 3, "the tower has 3 layers"),
        ("processor: {class: CLIPProcessor}", 1, "LR605"),
        ("processor: {chat_template: 'hello {% if %}'}", 1, "LR605"),
        ("processor: {chat_template: 'no image'}", 1, "LR605"),
        ("tokens: [{text: '<pad>', role: pad}]", 2, "`tokens` has none with this role"),
        (
            "tokens: [{text: '<a>', role: image}, {text: '<b>', role: image}]",
            2,
            "two of `tokens` have one role",
        ),
        (
            "post_load: [{use: expand_embeddings}, {use: expand_embeddings, with: {seed: 3}}]",
            2,
            "mine.yaml:6:39 two rules of",
        ),
        (
            "post_load: [{use: expand_embedings}]",
            2,
            "mine.yaml:6:13 `post_load` uses `expand_embedings`",
        ),
        ("post_load: []", 1, "LR402"),
    ],
)
def test_rule_files_that_cannot_work(
    text: str, code: int, words: str, run: Run, tmp_path: Path
) -> None:
    ran = apply_v15(run, RELEASED / "bin", rules=rule_file(tmp_path, text))
    assert ran.code == code
    assert words in ran.out + ran.err
    assert not Path("out").exists()


def test_a_changed_source_does_not_become_the_first(run: Run, tmp_path: Path) -> None:
    rules = rule_file(tmp_path, "sources: {vision_tower: {select: 'vision_model.{rest...}'}}")
    assert apply_v15(run, RELEASED / "bin", rules=rules).code == 0


# --- tokenizers


def with_tokenizer_config(changed: Changed, **content: object) -> Path:
    source = changed()
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    return source


def test_the_text_models_chat_template_is_not_taken(changed: Changed, tmp_path: Path) -> None:
    source = with_tokenizer_config(changed, chat_template="SOURCE {{ messages[0].content }}")
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    ours = json.loads((tmp_path / "out" / "chat_template.json").read_text())["chat_template"]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == ours
    assert "ASSISTANT" in ours
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template == ours
    assert "SOURCE" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_no_tokenizer_class_that_only_5_x_knows(changed: Changed, tmp_path: Path) -> None:
    apply("llava-v1.5", [str(RELEASED / "bin"), f"vision_tower={CLIP}"], tmp_path / "first")
    source = with_tokenizer_config(changed, tokenizer_class="TokenizersBackend")
    shutil.copy(tmp_path / "first" / "tokenizer.json", source / "tokenizer.json")
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] != "TokenizersBackend"


def test_tokens_that_are_there_keep_their_ids(changed: Changed, tmp_path: Path) -> None:
    """A tokenizer with `<image>` and a pad token of its own, in rows that the embedding has:
    nothing is added or resized.
    """

    def more_rows(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.ones(10, 64, dtype=torch.float16)])

    apply("llava-v1.5", [str(RELEASED / "bin"), f"vision_tower={CLIP}"], tmp_path / "first")
    source = changed(tensors=more_rows, config=lambda c: c.update({"vocab_size": 330}))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tmp_path / "first" / name, source / name)
    result = apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    assert "LR407" in {note.code for note in result.notes}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        config["image_token_id"],
        config["pad_token_id"],
        config["text_config"]["vocab_size"],
    ) == (320, 321, 330)


def test_cls_patch_makes_one_token_more(changed: Changed, tmp_path: Path) -> None:
    source = changed(config=lambda c: c.update({"mm_vision_select_feature": "cls_patch"}))
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["image_seq_length"] == 5


SENTENCES = ("What is it?", "USER: a cat, 3 dogs\nASSISTANT: é中")


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ("llava-v1.5", "LlavaLlamaForCausalLM"),
        ("bakllava", "LlavaMistralForCausalLM"),
        ("sharegpt4v", "Share4VLlamaForCausalLM"),
    ],
)
@pytest.mark.parametrize("said", ["whole", "no class", "nothing"])
def test_the_output_cuts_words_as_sentencepiece_does(
    rules: str, text: str, said: str, changed: Changed, tmp_path: Path
) -> None:
    """Whatever class a tokenizer's config names, and whatever transformers would take for a
    model of this type.
    """
    source = changed(config=lambda c: c.update({"architectures": [text]}))
    config = json.loads((source / "tokenizer_config.json").read_text())
    if said != "whole":
        del config["tokenizer_class"]
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    if said == "nothing":
        (source / "tokenizer_config.json").unlink()
    apply(rules, [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    for sentence in SENTENCES:
        assert tokenizer(sentence)["input_ids"] == [1, *pieces.encode(sentence)]


# --- the output, and how a run can end


@pytest.mark.parametrize("name", ["x" * 300, "file/below"])
def test_outputs_that_cannot_be(name: str, run: Run) -> None:
    Path("file").write_text("a file")
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        name,
        "--dry-run",
    )
    assert ran.code == 4
    assert "LR508" in ran.out


def test_sources_that_cannot_be(run: Run) -> None:
    assert run("apply", "llava-v1.5", "--source", "x" * 300).code == 3
    assert run("apply", "llava-v1.5", "--source", "x=" + "y" * 300).code in (2, 3)
    assert run("apply", "llava-v1.5", "--source", "").code == 2
    assert run("apply", "llava-v1.5", "--source", "~no-such-user/x").code == 2


def test_sources_are_never_written_to(run: Run, changed: Changed) -> None:
    source = changed()
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        source / "out",
    )
    assert ran.code == 4
    assert "is inside source `model`" in ran.out
    assert not (source / "out").exists()


@pytest.mark.parametrize(
    "report", ["checkpoint/config.json", "checkpoint/plan.json", "manifest.json"]
)
def test_a_report_does_not_replace_a_source(report: str, run: Run, changed: Changed) -> None:
    shutil.copy(MANIFESTS / "llava-v1.5-7b.json", "manifest.json")
    source = changed() if report.startswith("checkpoint") else Path("manifest.json")
    before = {path: path.read_bytes() for path in Path().rglob("*.json")}
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--report",
        report,
    )
    assert ran.code == 4
    assert f"{report} is inside source `model`" in ran.err
    assert {path: path.read_bytes() for path in Path().rglob("*.json")} == before


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "pytorch_model.bin.index.json", "added_tokens.json"],
)
def test_a_report_does_not_replace_or_become_what_lies_beside_an_index(name: str, run: Run) -> None:
    shutil.copytree(RELEASED / "sharded", "checkpoint")
    source = "checkpoint/pytorch_model.bin.index.json"
    before = {path: path.read_bytes() for path in Path("checkpoint").iterdir()}
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--report",
        f"checkpoint/{name}",
    )
    assert ran.code == 4
    assert f"checkpoint/{name} is inside source `model`" in ran.err
    assert {path: path.read_bytes() for path in Path("checkpoint").iterdir()} == before


def test_a_report_through_a_link_that_leads_to_itself(run: Run) -> None:
    Path("plan.json").symlink_to("plan.json")
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
        "--report",
        "plan.json",
    )
    assert ran.code == 4
    assert "plan.json: Too many levels of symbolic links" in ran.err


@pytest.mark.parametrize(
    ("output_format", "done"), [("human", True), ("json", True), ("human", False), ("json", False)]
)
def test_a_report_that_fails_at_the_end_hides_no_result(
    output_format: str, done: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = files.write_whole, []

    def failing(path: Path, *arguments: Any) -> None:
        written.extend([path] if path.name == "plan.json" else [])
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *arguments)

    monkeypatch.setattr(files, "write_whole", failing)
    if not done:
        lose_last_byte(monkeypatch)
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
        "--verify",
        "full",
        "--report",
        "plan.json",
        "--format",
        output_format,
    )
    assert ran.code == 4
    assert "plan.json can't be written: No space left on device" in ran.err
    if output_format == "json":
        assert ("result" in json.loads(ran.out)) is done
    else:
        assert ("Done: ./out written" in ran.out) is done
    if not done:
        assert "LR602" in ran.err
        assert "Nothing of it is left." in ran.err


@pytest.mark.parametrize("leads_to", ["link", "nowhere"])
def test_an_output_that_is_a_link_to_nothing(leads_to: str, run: Run) -> None:
    Path("link").symlink_to(leads_to)
    command = (
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
    )
    ran = run(*command, "link", "--dry-run")
    assert (ran.code, "LR503" in ran.out) == (4, True)
    assert run(*command, "link/below").code == 4
    assert Path("link").is_symlink()


def test_home_in_an_output(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a source: a shell leaves the tilde of `--output=~/out` as it is, and a folder `~`
    here is nobody's wish.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = (
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--verify",
        "none",
    )
    assert run(*command, "--output=~/out").code == 0
    assert (tmp_path / "home" / "out" / "config.json").is_file()
    ran = run(*command, "--output=~no-such-user/out")
    assert (ran.code, "LR211" in ran.err) == (2, True)
    assert not Path("~").exists()


def test_names_and_terminals_that_are_not_text() -> None:
    """A source, an output and a report whose names are no UTF-8, on a terminal that has ASCII
    alone.
    """
    odd = os.fsdecode(b"\xff")
    shutil.copytree(RELEASED / "bin", odd)
    program = "from llava_remap.cli import main; main()"
    sources = ("--source", odd, "--source", f"vision_tower={CLIP}")
    files = ("--output", f"out{odd}", "--report", f"{odd}.json")
    command = [
        sys.executable,
        "-c",
        program,
        "apply",
        "llava-v1.5",
        *sources,
        *files,
        "--verify",
        "none",
        "--format",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for form, words in (("human", "\\udcff written in"), ("json", '"output": "out\\udcff"')):
        ran = subprocess.run(
            [*command, form], capture_output=True, text=True, check=False, env=environment
        )
        assert (ran.returncode, beside_progress(ran.stderr)) == (0, "")
        assert words in ran.stdout
        for made in (f"{odd}.json", f"out{odd}/llava_remap.json"):
            assert json.loads(Path(made).read_text())["sources"]["model"]["location"] == odd
        shutil.rmtree(f"out{odd}")


def test_a_file_given_alone_can_have_its_output_beside_it(run: Run, changed: Changed) -> None:
    source = changed()
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source / "model.safetensors",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        source / "out",
    )
    assert ran.code == 0


def test_inspect_one_shard_of_several(run: Run) -> None:
    shard = TINY / "llava-v1.5" / "released" / "sharded" / "pytorch_model-00002-of-00002.bin"
    assert run("inspect", shard).code == 1
