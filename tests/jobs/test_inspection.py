"""`inspect` and `apply` answer the same question by the same check, and their advice works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
)
from typer.testing import CliRunner

from llava_remap.checkpoint import Checkpoint, Tensor
from llava_remap.cli.commands import app
from llava_remap.jobs.apply import apply
from llava_remap.rewrite import Program
from llava_remap.routing.fits import fits, shipped
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Run, Tensors
from tests.families import RULES_OF

ALL_CLEAR = re.compile("No conversion is needed|load it with transformers as it is")
PATCHES = "vision_tower.vision_model.embeddings.patch_embedding.weight"
TOWER = f"vision_tower={CLIP}"
NEXT = TINY / "llava-v1.6-mistral" / "safetensors"
ONEVISION = TINY / "llava-onevision" / "safetensors"

Config = dict[str, Any]


def written(
    tensors: Tensors, config: Config | None, folder: str = "in", metadata: str = "pt"
) -> Path:
    """A checkpoint folder."""
    path = Path(folder)
    path.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path / "model.safetensors",
        {"format": metadata},
    )
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def original(source: Path = RELEASED / "safetensors") -> tuple[Tensors, Config]:
    """Tensors and config of a small checkpoint; LLaVA-1.5 is without its tower."""
    return load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())


@pytest.fixture(scope="module")
def whole() -> Tensors:
    """LLaVA-1.5 with its tower."""
    state = torch.load(
        TINY / "llava-v1.5" / "full_state_dict" / "model_state_dict.bin", weights_only=True
    )
    return {
        name: tensor
        for name, tensor in state.items()
        if "inv_freq" not in name and "position_ids" not in name
    }


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA-1.5, converted."""
    return apply(
        "llava-v1.5", [RELEASED / "bin", TOWER], tmp_path_factory.mktemp("classic") / "out"
    ).output


def converted(classic: Path) -> tuple[Tensors, Config]:
    tensors = {
        name: tensor
        for file in classic.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    return tensors, json.loads((classic / "config.json").read_text())


def both(run: Run, source: Path, rules: str, *sources: str) -> tuple[str, str]:
    """What `inspect` and `apply --dry-run` print of a checkpoint for which no rule file is."""
    inspected = run("inspect", source)
    given = [argument for one in (source, *sources) for argument in ("--source", one)]
    applied = run("apply", rules, *given, "--dry-run")
    assert inspected.code == 0, inspected.err
    assert "\nllava-remap apply" not in inspected.out
    assert "\nllava-remap convert" not in inspected.out
    assert applied.code != 0, applied.out
    return inspected.out + inspected.err, applied.out + applied.err


# Checkpoints that are converted already


def test_a_tower_alone_lacks_the_rest_and_no_rows(classic: Path, run: Run) -> None:
    tensors, config = converted(classic)
    tower_alone(tensors, config)
    source = written(tensors, config)
    for file in classic.glob("tokenizer*"):
        shutil.copy(file, source)
    ran = run("inspect", source)
    assert ("LR302" in ran.out + ran.err, "LR402" in ran.out + ran.err) == (True, False)


def half(tensors: Tensors, config: Config) -> None:
    for name in [name for name in tensors if "projector" in name]:
        del tensors[name]


def tower_alone(tensors: Tensors, config: Config) -> None:
    for name in [name for name in tensors if not name.startswith("vision_tower")]:
        del tensors[name]


def text_alone(tensors: Tensors, config: Config) -> None:
    for name in [name for name in tensors if not name.startswith("language_model")]:
        del tensors[name]


def fewer_layers(tensors: Tensors, config: Config) -> None:
    for name in [name for name in tensors if "language_model.model.layers.1." in name]:
        del tensors[name]


def mlx_axes(tensors: Tensors, config: Config) -> None:
    tensors[PATCHES] = tensors[PATCHES].permute(0, 2, 3, 1)


def other_axes(tensors: Tensors, config: Config) -> None:
    tensors[PATCHES] = tensors[PATCHES].permute(2, 3, 1, 0)


def other_vocabulary(tensors: Tensors, config: Config) -> None:
    config["text_config"]["vocab_size"] = 1000


def in_eight_bits(tensors: Tensors, config: Config) -> None:
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name] = tensors[name].to(torch.int8)


def packed_by_mlx(tensors: Tensors, config: Config) -> None:
    config["quantization"] = {"group_size": 64, "bits": 4}
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        rows = tensors[name].shape[0]
        tensors[name] = torch.zeros(rows, 8, dtype=torch.uint32)
        for beside in ("scales", "biases"):
            tensors[name.removesuffix("weight") + beside] = torch.ones(rows, 1, dtype=torch.float16)


def said_to_be_quantised(tensors: Tensors, config: Config) -> None:
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def another_class(tensors: Tensors, config: Config) -> None:
    config |= {"architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma"}


def no_class(tensors: Tensors, config: Config) -> None:
    config["architectures"] = ["NoSuchClass"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            half,
            [
                "LR302",
                "multi_modal_projector.linear_1.weight",
                "The sources have no tensor of multi_modal_projector.",
            ],
        ),
        (
            tower_alone,
            ["LR302", "The sources have no tensor of language_model, multi_modal_projector."],
        ),
        (
            text_alone,
            ["LR302", "The sources have no tensor of multi_modal_projector, vision_tower."],
        ),
        (
            fewer_layers,
            ["LR302", "The config says that the language model has 2 layers; the sources have 1."],
        ),
        (
            mlx_axes,
            [
                "LR401",
                "[32, 14, 14, 3] in the checkpoint, [32, 3, 14, 14] in the model",
                "as MLX stores convolutions",
            ],
        ),
        (
            other_axes,
            ["LR401", "[14, 14, 3, 32] in the checkpoint", "has the axes in another order."],
        ),
        (
            other_vocabulary,
            [
                "LR401",
                "[384, 64] in the checkpoint, [1000, 64] in the model",
                "text_config.vocab_size: 1000",
            ],
        ),
        (in_eight_bits, ["LR409", "of dtype I8", "give the unquantised one"]),
        (
            packed_by_mlx,
            [
                "LR314",
                "quantization: {'group_size': 64, 'bits': 4}",
                "only unquantised weights are converted",
            ],
        ),
        (
            said_to_be_quantised,
            ["LR314", "quantization_config: {'quant_method': 'bitsandbytes'", "remove the key"],
        ),
        (
            another_class,
            [
                "LR311",
                "architectures: 'PaliGemmaForConditionalGeneration', not "
                "'LlavaForConditionalGeneration'",
            ],
        ),
        (no_class, ["LR311", "architectures: 'NoSuchClass'"]),
    ],
)
def test_names_of_a_layout_are_no_all_clear(
    change: Callable[[Tensors, Config], None], words: list[str], classic: Path, run: Run
) -> None:
    """Each is told by its own cause, the same by `inspect`, by `apply hf-layouts` and by `apply`
    of an original's rule file.
    """
    tensors, config = converted(classic)
    change(tensors, config)
    source = written(tensors, config)
    printed = [*both(run, source, "hf-layouts"), both(run, source, "llava-v1.5")[1]]
    for text in printed:
        assert not ALL_CLEAR.search(text)
        assert [word for word in words if word not in text] == [], text
        if "axes" in change.__name__:
            assert "Check whether the config.json belongs" not in text


@pytest.mark.parametrize("metadata", ["pt", "mlx"])
def test_a_whole_model_in_the_classic_layout_is_proven_to_be_one(
    metadata: str, classic: Path, run: Run
) -> None:
    """`format: mlx` alone changes nothing: transformers loads such a file if the shapes are its
    own.
    """
    source = written(*converted(classic), metadata=metadata)
    for text in both(run, source, "llava-v1.5"):
        assert ALL_CLEAR.search(text)
        assert "LR109" in text
    LlavaForConditionalGeneration.from_pretrained(source)


def test_a_tower_of_pixtral_inside_the_familys_class(run: Run) -> None:
    """Converted, value for value; and as it was saved, when it is loaded again."""
    vision = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )
    text = MistralConfig(
        hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=384,
        head_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=10,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained("in")
    assert run("apply", "hf-layouts", "--source", "in", "--output", "out").code == 0
    again, info = LlavaForConditionalGeneration.from_pretrained("out", output_loading_info=True)
    assert not any(info.values()), info
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_another_tower_inside_the_familys_class_is_named(classic: Path, run: Run) -> None:
    tensors, config = converted(classic)
    config["vision_config"]["model_type"] = "dinov2"
    renamed = {
        name.replace("vision_tower.vision_model.", "vision_tower.blocks."): t
        for name, t in tensors.items()
    }
    for text in both(run, written(renamed, config), "hf-layouts"):
        assert (
            "has a tower inside, which its config calls 'dinov2', of a kind that hf-layouts "
            "doesn't know" in text
        )


# One answer


def triple_width(tensors: Tensors, config: Config) -> None:
    tensors["model.mm_projector.0.weight"] = torch.cat(
        [tensors["model.mm_projector.0.weight"]] * 3, dim=1
    )
    config["mm_hidden_size"] = 96


def more_layers(tensors: Tensors, config: Config) -> None:
    config["num_hidden_layers"] = 3


def wider(tensors: Tensors, config: Config) -> None:
    config["intermediate_size"] = 96


def another_projector(tensors: Tensors, config: Config) -> None:
    config["mm_projector_type"] = "ldpnet"


def no_such_layer(tensors: Tensors, config: Config) -> None:
    config["mm_vision_select_layer"] = -9


def no_heads(tensors: Tensors, config: Config) -> None:
    del config["num_attention_heads"]


def scales(tensors: Tensors, config: Config) -> None:
    triple_width(tensors, config)
    config["s2"] = True


def scales_of_bunny(tensors: Tensors, config: Config) -> None:
    triple_width(tensors, config)
    config["use_s2"] = True


REFUSED = [
    (scales, "s2: True"),
    (scales_of_bunny, "use_s2: True"),
    (triple_width, "mm_hidden_size: 96"),
    (more_layers, "The config says that the language model has 3 layers; the sources have 2."),
    (wider, "intermediate_size: 96"),
    (another_projector, "mm_projector_type: 'ldpnet'"),
    (no_such_layer, "is -9, but the tower has 3 layers"),
    (no_heads, "has no num_attention_heads"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_apply_refuses_does_not_fit_in_inspect(
    change: Callable[[Tensors, Config], None], words: str, whole: Tensors, run: Run
) -> None:
    tensors, config = dict(whole), original()[1]
    change(tensors, config)
    for text in both(run, written(tensors, config), "llava-v1.5", TOWER):
        assert "llava-v1.5: fits" not in text
        assert words in text


@pytest.mark.parametrize(
    ("change", "words"), [case for case in REFUSED if case[0] not in (triple_width, no_such_layer)]
)
def test_nor_without_its_tower(
    change: Callable[[Tensors, Config], None], words: str, run: Run
) -> None:
    """What doesn't depend on the tower is checked without one."""
    tensors, config = original()
    change(tensors, config)
    for text in both(run, written(tensors, config), "llava-v1.5", TOWER):
        assert "llava-v1.5: fits" not in text
        assert words in text


def test_inspect_says_what_is_not_checked_without_a_tower(run: Run) -> None:
    ran = run("inspect", RELEASED / "safetensors")
    assert ran.code == 0
    assert "with --source vision_tower=DIR: the checkpoint has no tower inside" in ran.out


@pytest.mark.parametrize(
    ("source", "config", "fitting"),
    [
        (ONEVISION, {}, ["llava-onevision"]),
        (
            ONEVISION,
            {"image_aspect_ratio": "anyres"},
            ["llava-interleave", "llava-interleave-onevision"],
        ),
        (
            NEXT,
            {"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 2},
            ["llava-next-video"],
        ),
    ],
)
def test_the_tower_that_is_made_up_is_of_the_kind_that_the_rule_file_is_for(
    source: Path, config: Config, fitting: list[str], run: Run
) -> None:
    """SigLIP has no class token, and the rule files for it refuse one."""
    tensors, own = original(source)
    bare = {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}
    ran = run("inspect", written(bare, {**own, **config}))
    assert ran.code == 0, ran.out
    assert re.findall(r"  (\S+): fits, maps", ran.out) == fitting


def test_a_refused_video_model_is_not_led_to_a_rule_file_for_another_tower(run: Run) -> None:
    tensors, config = original(NEXT)
    bare = {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}
    config |= {
        "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_stride": 2,
        "mm_newline_position": "no_token",
    }
    ran = run("inspect", written(bare, config))
    assert ran.code == 0
    assert "fits, maps" not in ran.out
    assert "llava-interleave takes every name" not in ran.out


def test_inspect_says_why_a_tower_inside_needs_its_config(whole: Tensors, run: Run) -> None:
    """Tensors don't show the number of heads; with the tower's own config, `apply` takes it."""
    source = written(whole, original()[1])
    ran = run("inspect", source)
    assert ran.code == 0
    assert "llava-v1.5: fits, maps 80 of 80 names" in ran.out
    assert "with --source vision_tower=DIR: nothing shows the number of attention heads" in ran.out
    assert (
        ran.out.splitlines()[-1]
        == f"llava-remap apply llava-v1.5 --source {source} --source vision_tower=DIR"
    )
    assert run("apply", "llava-v1.5", "--source", source, "--source", TOWER, "--dry-run").code == 0


# Advice


def test_the_nearest_rule_file_keeps_as_much_as_the_one_that_was_asked_for(run: Run) -> None:
    """LLaVA-Video has LLaVA-OneVision's names. LLaVA-Interleave takes them too, and would drop
    one.
    """
    tensors, config = original(ONEVISION)
    for text in both(
        run, written(tensors, config | {"mm_newline_position": "grid"}), "llava-onevision"
    ):
        assert "mm_newline_position: 'grid'" in text
        assert "llava-interleave takes" not in text
    assert "llava-onevision takes every name" in both(run, Path("in"), "llava-interleave")[1]


def test_every_rule_file_that_does_not_fit_has_a_reason(whole: Tensors, run: Run) -> None:
    ran = run("inspect", written({**whole, "model.gate.weight": torch.ones(4)}, original()[1]))
    assert ran.code == 0
    lines = ran.out.splitlines()
    verdicts = [(line, after) for line, after in pairwise(lines) if "doesn't fit" in line]
    assert verdicts[0] == (
        "  llava-v1.5: doesn't fit, maps 80 of 81 names",
        "    it has no rule for `model.gate.weight` (1 tensor)",
    )
    assert all(after.startswith("    ") or " names: " in line for line, after in verdicts)


def test_a_tower_of_another_kind_is_named_and_no_other_is_asked_for(run: Run) -> None:
    """A ConvNeXt of open_clip."""
    tensors, config = original(ONEVISION)
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if "vision_tower" not in name and "newline" not in name
    }
    tensors["model.vision_tower.vision_tower.vision_stem.weight"] = torch.ones(32, 3, 4, 4)
    tensors["model.vision_tower.vision_tower.vision_stages.0.gamma"] = torch.ones(32)
    config |= {
        "mm_vision_tower": "convnext_large_d_320",
        "image_aspect_ratio": "pad",
        "mm_patch_merge_type": "flat",
    }
    for text in both(run, written(tensors, config), "llava-v1.5"):
        assert (
            "has a tower inside, which its config calls 'convnext_large_d_320', of a kind that "
            "llava-v1.5 doesn't know" in text
        )
        assert "Give the tower's own checkpoint" not in text
        assert "llava-remap rules new --from in --to CLASS --output mine.yaml" in text


def test_a_tower_alone_is_a_part(run: Run) -> None:
    way = f"llava-remap apply RULES --source model=DIR --source vision_tower={CLIP}"
    assert f"\nGive it beside the model:\n{way}\n" in run("inspect", CLIP).out


def test_an_adapter_of_a_converted_model_has_both_commands(run: Run, tmp_path: Path) -> None:
    before, after = "base_model.model.model.", "base_model.model.language_model.model."
    lora = TINY / "llava-v1.5-lora"
    tensors = torch.load(lora / "adapter_model.bin")
    renamed = {name.replace(before, after): value for name, value in tensors.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    config = json.loads((lora / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "llava-hf/llava-1.5-7b-hf"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    given = f"--source model=llava-hf/llava-1.5-7b-hf --source adapter={tmp_path}"
    ways = f"llava-remap convert {tmp_path}\nllava-remap apply RULES {given}\n"
    assert f"\nGive it beside the model:\n{ways}" in run("inspect", tmp_path).out


def test_a_language_model_alone_lacks_a_projector(run: Run) -> None:
    tensors, config = original()
    text = {name: tensor for name, tensor in tensors.items() if "mm_projector" not in name}
    config = {key: value for key, value in config.items() if not key.startswith("mm_")} | {
        "architectures": ["LlamaForCausalLM"]
    }
    for printed in both(run, written(text, config), "llava-v1.5", TOWER):
        assert "give it too: --source projector=DIR or --source adapter=DIR." in printed
    assert (
        "llava-remap apply RULES --source model=in --source projector=DIR"
        in run("inspect", "in").out
    )


def test_a_fine_tune_of_1_6_on_whole_pictures_is_led_to_a_rule_file_that_takes_it(run: Run) -> None:
    tensors, config = original(NEXT)
    source = written(tensors, config | {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"})
    ran = run("inspect", source)
    assert ran.code == 0
    command = shlex.split(ran.out.splitlines()[-1].replace("vision_tower=DIR", TOWER))[1:]
    applied = run(*command, "--output", "out")
    assert applied.code == 0
    assert "model.image_newline" in applied.out
    assert json.loads(Path("out/config.json").read_text())["architectures"] == [
        "LlavaForConditionalGeneration"
    ]


# Names that no rule file knows


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("mm_projector", "adapter_mlp", "LR311"),
        ("model.layers", "model.tiers", "LR301"),
        ("model.", "llm.", "LR311"),
    ],
)
def test_unknown_names_lead_to_a_draft(
    old: str, new: str, code: str, whole: Tensors, run: Run
) -> None:
    """By the command that is told, which runs."""
    source = written(
        {name.replace(old, new): tensor for name, tensor in whole.items()}, original()[1]
    )
    command = (
        f"llava-remap rules new --from {source} --to LlavaForConditionalGeneration --output "
        "mine.yaml"
    )
    texts = both(run, source, "llava-v1.5", TOWER)
    assert code in texts[1]
    assert all(command in text for text in texts)
    assert run(*command.split()[1:]).code in (0, 1)
    assert Path("mine.yaml").exists()


@pytest.mark.parametrize("prefix", ["model.", "net.llava."])
def test_a_prefix_that_all_names_have_is_found_and_taken_off(
    prefix: str, whole: Tensors, run: Run
) -> None:
    """As PyTorch Lightning puts its module's own attribute before each. The command that is told
    makes the rule file.
    """
    source = written({prefix + name: tensor for name, tensor in whole.items()}, original()[1])
    texts = both(run, source, "llava-v1.5", TOWER)
    for text in texts:
        assert f"All names fit llava-v1.5 without the prefix `{prefix}`." in text
    assert_made_by_the_command(texts[0])
    assert (
        run("apply", "mine.yaml", "--source", source, "--source", TOWER, "--output", "out").code
        == 0
    )


def test_a_prefix_before_names_of_a_layout(classic: Path, run: Run) -> None:
    """`model.` before classic names looks like another layout, but for one name."""
    tensors, config = converted(classic)
    source = written({f"model.{name}": tensor for name, tensor in tensors.items()}, config)
    texts = both(run, source, "llava-v1.5", TOWER)
    for text in texts:
        assert "All names fit hf-layouts without the prefix `model.`." in text
    assert_made_by_the_command(texts[0])
    assert run("apply", "mine.yaml", "--source", source, "--output", "out").code == 0


def assert_made_by_the_command(text: str) -> None:
    found = re.search(r"printf .* > mine\.yaml", text)
    assert found is not None
    subprocess.run(["sh", "-c", found[0]], check=True)
    lint = CliRunner().invoke(app, ["rules", "lint", "mine.yaml"])
    assert (lint.exit_code, "clean" in lint.stdout) == (0, True), lint.stdout


# At full size


@pytest.mark.parametrize("manifest", RULES_OF)
def test_inspect_plans_the_rule_file_of_every_manifest(manifest: str, run: Run) -> None:
    """With its tower, and without where the rule file takes one from elsewhere."""
    ran = run("inspect", MANIFESTS / f"{manifest}.json")
    assert ran.code == 0, ran.out
    assert f"  {RULES_OF[manifest]}: fits, maps " in ran.out


def test_a_tower_is_made_up_for_features_of_many_layers(run: Run) -> None:
    """ViP-LLaVA's rule file takes features of five layers, the eleventh from the end among them."""
    content = json.loads((MANIFESTS / "vip-llava-7b.json").read_text())
    content["tensors"] = {
        name: tensor for name, tensor in content["tensors"].items() if "vision_tower" not in name
    }
    Path("vip.json").write_text(json.dumps(content))
    ran = run("inspect", "vip.json")
    assert ran.code == 0, ran.out
    assert "  vip-llava: fits, maps 297 of 297 names" in ran.out


def test_many_names_are_compared_by_their_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no rule tells apart goes through the rules once, and the result is that of every
    name.
    """
    tensors = {
        f"model.layers.{layer}.mlp.experts.{number}.{part}.weight": Tensor.of(
            f"{layer}.{number}.{part}", "F16", (1,), None
        )
        for layer in range(8)
        for number in range(30)
        for part in ("w1", "w2", "w3")
    } | {
        f"m.{number:032x}.{number % 7}.weight": Tensor.of(str(number), "F16", (1,), None)
        for number in range(1_500)
    }
    tensors = {name: replace(tensor, name=name) for name, tensor in tensors.items()}
    checkpoint = Checkpoint(Path("big"), "safetensors", tensors, None, None)
    rewritten: list[str] = []
    rewrite = Program.rewrite

    def counted(self: Program, name: str, *rest: Any) -> Any:
        rewritten.append(name)
        return rewrite(self, name, *rest)

    monkeypatch.setattr(Program, "rewrite", counted)
    found = fits(checkpoint)
    assert 4 * len(rewritten) < len(shipped()) * len(tensors)
    monkeypatch.setattr(
        "llava_remap.routing.fits.names_alike",
        lambda one: {name: [name] for name in one.catalog},
    )
    every = {fit.rules: fit for fit in fits(checkpoint)}
    assert all(replace(fit, unknown=()) == replace(every[fit.rules], unknown=()) for fit in found)
    assert all(sorted(fit.unknown) == sorted(every[fit.rules].unknown) for fit in found)


@pytest.mark.parametrize("named", [-1, "LlavaLlamaForCausalLM", [3], {"a": 1}])
def test_architectures_of_another_kind(named: object, run: Run) -> None:
    tensors = load_file(RELEASED / "safetensors" / "model.safetensors")
    config = json.loads((RELEASED / "safetensors" / "config.json").read_text())
    said = run("inspect", written(tensors, {**config, "architectures": named}, "odd")).out
    assert (
        f"\n  {named if isinstance(named, str) else 'no config.json that names an architecture'}\n"
        in said
    )


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_towers_weights_that_cannot_be_read_are_not_absent(name: str, run: Run) -> None:
    """They were passed over for the config alone, and the tower said to be nowhere."""
    shutil.copytree(CLIP, "tower")
    Path("tower/model.safetensors").unlink()
    Path("tower", name).symlink_to("nowhere")
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        "vision_tower=tower",
        "--dry-run",
    )
    assert ran.code == 3
    assert "LR100" in ran.err
    assert f"tower/{name}" in ran.err


@pytest.mark.parametrize(
    "name", ["generation_config.json", "config.json", "special_tokens_map.json"]
)
def test_half_a_letter_is_no_text(name: str, run: Run) -> None:
    """It could be read and not be written again, which was told as a fault of our own."""
    shutil.copytree(RELEASED / "bin", "in")
    content = json.loads(Path("in", name).read_text())
    Path("in", name).write_text(json.dumps({**content, "bos_token_id": "\ud800"}))
    ran = run("apply", "llava-v1.5", "--source", "in", "--source", TOWER, "--dry-run")
    assert ran.code == 3
    assert "LR113" in ran.out + ran.err
    assert f"`{name}` is not valid JSON (a text in it is not valid Unicode)" in ran.out + ran.err


# The short command


@pytest.mark.parametrize("kind", ["whole", "adapter", "projector", "inside"])
def test_the_short_command_writes_what_the_other_one_writes(kind: str, run: Run) -> None:
    sources = {
        "whole": RELEASED / "bin",
        "adapter": TINY / "llava-v1.5-lora",
        "projector": TINY / "llava-v1.5" / "pretrain_projector_only",
        "inside": TINY / "llava-v1.5" / "full_state_dict",
    }
    shutil.copytree(sources[kind], "in")
    if kind == "inside":
        config = json.loads(Path("in/config.json").read_text())
        tower = {"mm_vision_tower": "/train/clip-vit-large-patch14-336-mine"}
        Path("in/config.json").write_text(json.dumps(config | tower))
        shutil.copytree(CLIP, "clip-vit-large-patch14-336-mine")
    else:
        shutil.copytree(CLIP, "clip-vit-large-patch14-336")
    ran = run("inspect", "in")
    short, long = ran.out.splitlines()[-2:]
    base = " --source model=DIR" if kind in ("adapter", "projector") else ""
    assert short == f"llava-remap convert in{base}"
    for number, command in enumerate((short, long)):
        words = shlex.split(command.replace("model=DIR", f"model={RELEASED / 'bin'}"))[1:]
        done = run(*words, "--output", f"out-{number}")
        assert done.code == 0, done.err + done.out
    written = [
        {path.name: path.read_bytes() for path in Path(f"out-{number}").iterdir()}
        for number in (0, 1)
    ]
    assert written[0] == written[1]
    document = run("inspect", "in", "--format", "json").json
    assert [document["short_command"], document["command"]] == [
        shlex.split(short),
        shlex.split(long),
    ]


def test_of_several_rule_files_the_short_command_names_one(run: Run) -> None:
    source = MANIFESTS / "llava-interleave-qwen-0.5b.released.json"
    out = run("inspect", source).out
    for rules in ("llava-interleave", "llava-interleave-onevision"):
        assert f"\n\nllava-remap convert {source} --rules {rules} --dry-run\n" in out
