"""Converted models under other names: from every layout to the classic one, and from research
checkpoints to every layout.
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
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply, plan
from llava_remap.rulefile import shipped_layouts
from llava_remap.target_model import WRITTEN, layout_program
from tests.conftest import CLIP, MANIFESTS, RELEASED, Run, Tensors

LAYOUTS = list(shipped_layouts())
SOURCES = [str(RELEASED / "bin"), f"vision_tower={CLIP}"]
IDS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA-1.5, converted."""
    return apply("llava-v1.5", SOURCES, tmp_path_factory.mktemp("classic") / "out").output


def tensors(folder: Path) -> Tensors:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def respelt(folder: Path, copy: Path, spell: Callable[[str], str]) -> Path:
    """A folder as transformers saves it, without a record, under other names."""
    shutil.copytree(
        folder,
        copy,
        ignore=shutil.ignore_patterns("*.safetensors", "*.index.json", "llava_remap.json"),
    )
    save_file(
        {spell(name): tensor for name, tensor in tensors(folder).items()},
        copy / "model.safetensors",
        {"format": "pt"},
    )
    return copy


def in_layout(layout: str) -> Callable[[str], str]:
    return lambda name: str(layout_program(layout).inverse(name))


def loaded(folder: Path) -> Tensors:
    """The parameters of the model as it loads from a folder, with nothing missing, unexpected or
    mismatched, and its logits.
    """
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return {**model.state_dict(), "logits": logits}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_every_layout_to_the_classic_one(
    layout: str, classic: Path, run: Run, tmp_path: Path
) -> None:
    """Bit-equal; config and small files say what they said."""
    source = respelt(classic, tmp_path / "source", in_layout(layout))
    ran = run(
        "apply",
        "hf-layouts",
        "--source",
        source,
        "--output",
        "out",
        "--verify",
        "full",
        "--format",
        "json",
    )
    assert ran.code == 0
    assert ran.json["target"] == {
        "class": "LlavaForConditionalGeneration",
        "layout": "classic",
        "tensors": 80,
    }
    assert all(entry["rules"][0].startswith(f"{layout}/") for entry in ran.json["mapped"])
    assert same(tensors(Path("out")), tensors(classic))
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (classic, Path("out"))
    )
    assert_kept(before, after)
    small, kept = (
        {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}
        for folder in (Path("out"), classic)
    )
    assert small == kept
    assert (Path("out") / "chat_template.jinja").read_text() == (
        classic / "chat_template.jinja"
    ).read_text()
    made = AutoProcessor.from_pretrained(Path("out"))
    assert type(made).__name__ == "LlavaProcessor"
    assert (
        made.tokenizer.get_vocab() == AutoProcessor.from_pretrained(classic).tokenizer.get_vocab()
    )
    assert run("verify", "out", "--against", source).code == 0
    assert run("revert", "out", "--output", "back").code == 0
    assert same(tensors(Path("back")), tensors(source))


def assert_kept(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every value of a config, in every part of it."""
    for key, value in before.items():
        if isinstance(value, dict):
            assert_kept(value, after[key])
        else:
            assert after[key] == value, key


def old_only(config: dict[str, Any]) -> None:
    """As 4.x writes it."""
    del config["image_token_id"], config["dtype"], config["text_config"]["rope_parameters"]


def new_only(config: dict[str, Any]) -> None:
    """As 5.x writes it."""
    del (
        config["torch_dtype"],
        config["text_config"]["rope_theta"],
        config["text_config"]["rope_scaling"],
    )


@pytest.mark.parametrize("generation", [old_only, new_only])
def test_the_config_is_in_the_keys_of_both_generations(
    generation: Callable[[dict[str, Any]], None], classic: Path, tmp_path: Path
) -> None:
    source = respelt(classic, tmp_path / "source", in_layout("classic-5.6"))
    config = json.loads((source / "config.json").read_text())
    config["text_config"] |= {
        "rope_theta": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    config["text_config"]["rope_parameters"] = {
        "rope_type": "linear",
        "factor": 2.0,
        "rope_theta": 5000.0,
    }
    generation(config)
    (source / "config.json").write_text(json.dumps(config))
    apply("hf-layouts", [source], tmp_path / "out")
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["dtype"] == made["torch_dtype"] == "float16"
    assert made["image_token_id"] == made["image_token_index"] == 320
    assert made["text_config"]["rope_theta"] == 5000.0
    assert made["text_config"]["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert made["text_config"]["rope_parameters"] == {
        "rope_type": "linear",
        "factor": 2.0,
        "rope_theta": 5000.0,
    }


def test_processor_files_of_5_open_in_both_generations(classic: Path, tmp_path: Path) -> None:
    """5.x saves one file for processor and image processor, the chat template as Jinja, and no
    class that 4.x knows.
    """
    source = respelt(classic, tmp_path / "source", str)
    for file in source.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    AutoProcessor.from_pretrained(classic).save_pretrained(source)
    assert not (source / "preprocessor_config.json").exists()
    apply("hf-layouts", [source], tmp_path / "out")
    out = tmp_path / "out"
    images = json.loads((out / "preprocessor_config.json").read_text())
    assert (
        images["image_processor_type"] == "LlavaImageProcessor"
    )  # the name that 5.x writes; versions that don't know it fail, and don't crop
    assert images["size"] == {"shortest_edge": 28}
    assert "image_processor" not in json.loads((out / "processor_config.json").read_text())
    template = (classic / "chat_template.jinja").read_text()
    assert json.loads((out / "chat_template.json").read_text()) == {"chat_template": template}
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] != "TokenizersBackend"
    assert tokenizer["added_tokens_decoder"]["320"]["content"] == "<image>"
    assert AutoProcessor.from_pretrained(out).chat_template == template


def test_a_mixture_that_is_no_version_s(classic: Path, run: Run, tmp_path: Path) -> None:
    """As 5.6 saves the mixture of 5.4, whose language model it takes for missing and makes up at
    random.
    """
    names = {"language_model.lm_head.weight": "language_model.lm_head.weight"}
    source = respelt(
        classic, tmp_path / "source", lambda name: names.get(name) or in_layout("module-4.52")(name)
    )
    ran = run("apply", "hf-layouts", "--source", source, "--output", "out")
    assert ran.code == 1
    assert "LR301" in ran.out
    assert "language_model.lm_head.weight" in ran.out
    assert not Path("out").exists()


@pytest.mark.parametrize("manifest", sorted(path.name for path in MANIFESTS.glob("*.json")))
def test_no_original_is_taken(manifest: str, run: Run) -> None:
    ran = run(
        "apply", "hf-layouts", "--source", MANIFESTS / manifest, "--dry-run", "--format", "json"
    )
    assert ran.code != 0
    assert {problem["code"] for problem in ran.json["problems"]} <= {"LR305", "LR311"}


def test_a_source_without_a_class(classic: Path, run: Run, tmp_path: Path) -> None:
    source = respelt(classic, tmp_path / "source", str)
    config = json.loads((source / "config.json").read_text())
    del config["architectures"]
    (source / "config.json").write_text(json.dumps(config))
    ran = run("apply", "hf-layouts", "--source", source, "--dry-run")
    assert ran.code == 3
    assert "LR112" in ran.out
    assert "says architectures: None; one class is needed" in ran.out


def test_a_config_that_transformers_can_t_read(classic: Path, run: Run, tmp_path: Path) -> None:
    source = respelt(classic, tmp_path / "source", str)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["hidden_size"] = "64"
    (source / "config.json").write_text(json.dumps(config))
    ran = run("apply", "hf-layouts", "--source", source, "--dry-run")
    assert ran.code == 3
    assert "LR112" in ran.out


def test_a_null_head_dim_is_left_out(classic: Path, tmp_path: Path) -> None:
    source = respelt(classic, tmp_path / "source", in_layout("module-4.52"))
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["head_dim"] = None
    (source / "config.json").write_text(json.dumps(config))
    out = apply("hf-layouts", [source], tmp_path / "out").output
    assert "head_dim" not in json.loads((out / "config.json").read_text())["text_config"]
    assert same(loaded(out), loaded(classic))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_inspect_says_which_layout_it_is_and_what_to_run(
    layout: str, classic: Path, run: Run, tmp_path: Path
) -> None:
    source = respelt(classic, tmp_path / "source", in_layout(layout))
    ran = run("inspect", source)
    assert ran.code == 0
    assert f"saved by transformers: 80 of 80 names are in layout {layout}" in ran.out
    assert "hf-layouts: fits, maps 80 of 80 names" in ran.out
    assert f"llava-remap apply hf-layouts --source {source}" in ran.out
    other = run("apply", "llava-v1.5", "--source", source, "--dry-run")
    assert other.code == 1
    assert "LR109" in other.out
    assert f"80 of 80 names in {source} are in layout {layout}" in other.out
    assert f"llava-remap apply hf-layouts --source {source}" in other.out


@pytest.mark.parametrize("layout", WRITTEN)
def test_an_original_to_every_layout(layout: str, classic: Path, run: Run) -> None:
    """Plan, index, files and record have the layout's names; it loads, verifies, and leads back,
    by record and by rules.
    """
    sources = [argument for source in SOURCES for argument in ("--source", source)]
    ran = run(
        "apply",
        "llava-v1.5",
        *sources,
        "--output",
        "out",
        "--layout",
        layout,
        "--verify",
        "full",
        "--format",
        "json",
    )
    assert ran.code == 0
    names = {in_layout(layout)(name): tensor for name, tensor in tensors(classic).items()}
    assert ran.json["target"]["layout"] == layout
    assert {entry["target"] for entry in ran.json["mapped"]} == set(names)
    assert {entry["target"] for entry in ran.json["post_load"]} <= set(names)
    assert set(
        json.loads(Path("out/model.safetensors.index.json").read_text())["weight_map"]
    ) == set(names)
    assert same(tensors(Path("out")), names)  # new rows too
    assert same(loaded(Path("out")), loaded(classic))
    against = [
        argument
        for source in (f"model={SOURCES[0]}", SOURCES[1])
        for argument in ("--against", source)
    ]
    assert run("verify", "out", *against).code == 0
    assert run("revert", "out", "--output", "back").code == 0
    assert run("revert", "out", "--rules", "llava-v1.5", "--output", "by-rules").code == 0
    apply("hf-layouts", ["out"], "again")
    assert same(tensors(Path("again")), tensors(classic))


def test_the_rows_stay(classic: Path) -> None:
    """`--vocab N` with the number of rows is no change; another can't be had."""
    assert plan("hf-layouts", [classic], "out", vocab=384).plan.complete
    [problem] = plan("hf-layouts", [classic], "out", vocab=500).plan.problems
    assert (
        problem.cause
        == "--vocab 500: embed_tokens has 384 rows, and none can be added: no rule of `post_load` "
        "adds rows."
    )
    assert problem.fix == "Give --vocab keep, or leave it out."


def test_a_dry_run_shows_the_layout(run: Run) -> None:
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--dry-run",
        "--layout",
        "module-5.6",
    )
    assert ran.code == 0
    assert "LlavaForConditionalGeneration, module-5.6 layout" in ran.out
    assert "multi_modal_projector" in ran.out
    assert "model.language_model.embed_tokens.weight: 32000 → 32064 rows" in ran.out


def test_layouts_that_are_not_written(run: Run) -> None:
    for layout in ("classic-5.6", "mixed-5.4", "clasic", ""):
        ran = run("apply", "llava-v1.5", "--source", RELEASED / "bin", "--layout", layout)
        assert ran.code == 2
        assert "LR211" in ran.err
        assert "is not one of 'classic', 'module-4.52', 'module-5.6'" in ran.err
    with pytest.raises(RemapError, match="LR211"):
        apply("llava-v1.5", SOURCES, "out", layout="module")


def test_explain_says_which_layout_s_rule_it_was(run: Run) -> None:
    name = "model.vision_tower.post_layernorm.bias"
    ran = run("rules", "explain", "hf-layouts", name, "model.norm.weight", "--format", "json")
    mapped, unmapped = sorted(ran.json["names"], key=lambda entry: entry["outcome"])
    assert [step["rule"] for step in mapped["steps"]] == ["module-5.6/tower-post-norm"]
    assert mapped["target"] == "vision_tower.vision_model.post_layernorm.bias"
    assert unmapped["outcome"] == "unmapped"
    assert unmapped["nearest"]


def test_a_key_mapping_needs_to_know_the_layout(classic: Path, run: Run, tmp_path: Path) -> None:
    ran = run("rules", "explain", "hf-layouts", "--as", "key-mapping")
    assert ran.code == 2
    assert "LR211" in ran.err
    source = respelt(classic, tmp_path / "source", in_layout("mixed-5.4"))
    patterns = json.loads(
        run("rules", "explain", "hf-layouts", "--as", "key-mapping", "--source", source).out
    )
    assert any("model" in pattern for pattern in patterns)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(image_token_index=320, image_token_id=5),
        lambda config: config["text_config"].update(rope_theta=500000.0),
        lambda config: config.update(model_type="llava_next"),
    ],
    ids=["token ids", "rope theta", "model type"],
)
def test_configs_that_contradict_themselves(
    change: Callable[[Any], None], classic: Path, run: Run, tmp_path: Path
) -> None:
    source = respelt(classic, tmp_path / "source", in_layout("module-5.6"))
    content = json.loads((source / "config.json").read_text())
    change(content)
    (source / "config.json").write_text(json.dumps(content))
    ran = run("apply", "hf-layouts", "--source", source, "--output", "out")
    assert (ran.code, "LR112" in ran.out, "target.class" in ran.out) == (3, True, False)
    assert not Path("out").exists()


def test_a_model_that_only_the_whole_config_ties(classic: Path, run: Run, tmp_path: Path) -> None:
    """As 5.23 saves it, without a head; 4.x asks the language model's part of the config, and
    would make up a head.
    """
    source = respelt(classic, tmp_path / "source", in_layout("classic-5.6"))
    state = load_file(source / "model.safetensors")
    del state["language_model.lm_head.weight"]
    save_file(state, source / "model.safetensors", {"format": "pt"})
    content = json.loads((source / "config.json").read_text())
    content["tie_word_embeddings"], content["text_config"]["tie_word_embeddings"] = True, False
    (source / "config.json").write_text(json.dumps(content))
    ran = run("apply", "hf-layouts", "--source", source, "--output", "out")
    assert ran.code == 0, ran.out + ran.err
    written = json.loads(Path("out/config.json").read_text())
    assert written["tie_word_embeddings"] is written["text_config"]["tie_word_embeddings"] is True
