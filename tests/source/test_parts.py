"""The right parts: a source that a config names comes before a rule file's default, and parts that
were trained together stay together.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_remap.source.sources import last_part
from llava_remap.target_model.same_logits import compare_classes
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Ran, Run, Tensors

STOCK, MODEL = "openai/clip-vit-large-patch14-336", "liuhaotian/llava-v1.5-7b"
SIGLIP, LORA = TINY / "siglip-tiny-patch14-28", TINY / "llava-v1.5-lora"
LLAVA, FULL, NEXT = (
    RELEASED / "safetensors",
    TINY / "llava-v1.5" / "full_state_dict",
    TINY / "llava-v1.6-mistral" / "safetensors",
)
ONEVISION, PRETRAINED = (
    TINY / "llava-onevision" / "safetensors",
    TINY / "llava-v1.5" / "pretrain_projector_only",
)
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")

Hub = Callable[[Mapping[str, Path]], None]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub cache in which folders stand for repositories; there is no network."""

    def fill(repositories: Mapping[str, Path]) -> None:
        for number, (name, folder) in enumerate(repositories.items(), 1):
            at, commit = (
                tmp_path / "hub" / f"models--{name.replace('/', '--')}",
                f"{number}".rjust(40, "a"),
            )
            (at / "refs").mkdir(parents=True)
            (at / "refs" / "main").write_text(commit)
            shutil.copytree(folder, at / "snapshots" / commit)

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return fill


def read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def folder(
    name: str, tensors: Tensors, config: Mapping[str, Any], tokenizer: Path | None = None
) -> Path:
    path = Path(name)
    path.mkdir()
    save_file(
        {key: value.clone().contiguous() for key, value in tensors.items()},
        path / "model.safetensors",
        {"format": "pt"},
    )
    (path / "config.json").write_text(json.dumps(config))
    for file in TOKENIZER if tokenizer is not None else ():
        shutil.copy(Path(str(tokenizer)) / file, path)
    return path


def named(value: Any, **config: Any) -> Path:
    """A LLaVA-1.5 without its tower, whose config names this one."""
    return folder(
        "in",
        load_file(LLAVA / "model.safetensors"),
        {**read_config(LLAVA), "mm_vision_tower": value, **config},
        LLAVA,
    )


def towerless(source: Path, **config: Any) -> Path:
    tensors = {
        name: tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if "vision_tower" not in name
    }
    return folder(
        "in",
        tensors,
        {**read_config(source), **config},
        source if (source / TOKENIZER[0]).is_file() else None,
    )


def applied(run: Run, rules: object, *sources: object, more: tuple[str, ...] = ()) -> Ran:
    arguments = [argument for source in sources for argument in ("--source", str(source))]
    return run("apply", rules, *arguments, "--output", "out", *more)


def told(ran: Ran) -> str:
    """What was printed, on one line."""
    return re.sub(r"\s+", " ", ran.out + ran.err)


def notes(run: Run, rules: object, *sources: object) -> dict[str, str]:
    ran = applied(run, rules, *sources, more=("--dry-run", "--format", "json"))
    assert ran.code == 0, ran.out + ran.err
    return {note["code"]: note["message"] for note in ran.json["notes"]}


def written() -> Tensors:
    return {
        name: tensor
        for file in Path("out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def clip() -> Tensors:
    """The tower alone, as CLIP's model has it."""
    return {
        name: t
        for name, t in load_file(CLIP / "model.safetensors").items()
        if name.startswith("vision_model.")
    }


def assert_tower(wanted: Tensors) -> None:
    found = written()
    for name, tensor in wanted.items():
        assert torch.equal(found[f"vision_tower.{name}"], tensor), name


# --- the tower that a config names


@pytest.mark.parametrize(
    "value",
    [
        "/share/our-finetuned-clip",
        "me/our-finetuned-clip",
        "our-finetuned-clip",
        "C:\\our-finetuned-clip",
    ],
)
@pytest.mark.parametrize("rules", ["llava-v1.5", "sharegpt4v", "mine.yaml"])
def test_a_tower_that_can_not_be_had_is_refused_by_its_name(
    value: str, rules: str, run: Run, hub: Hub
) -> None:
    """Though the rule file's default is there; also where a rule file of one's own has a default
    of its own.
    """
    hub(
        dict.fromkeys(
            (STOCK, "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12", "me/clip"), CLIP
        )
    )
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: own\nextends: [llava-v1.5.yaml]\n"
        "sources: {vision_tower: {default: me/clip}}\n"
    )
    architecture = {"architectures": ["Share4VLlamaForCausalLM"]} if rules == "sharegpt4v" else {}
    ran = applied(run, rules, named(value, **architecture))
    assert ran.code != 0
    assert "our-finetuned-clip" in told(ran)
    assert "--source vision_tower=DIR" in told(ran)
    assert not Path("out").exists()


def test_a_tower_that_can_be_had_is_taken(run: Run, hub: Hub) -> None:
    """From the hub and from a folder, where the default is there too and is another one."""
    other = folder(
        "tuned", {name: tensor + 1 for name, tensor in clip().items()}, read_config(CLIP)
    )
    shutil.copy(CLIP / "preprocessor_config.json", other)
    hub({STOCK: CLIP, "me/tuned": other})
    ran = applied(run, "llava-v1.5", named("me/tuned"))
    assert ran.code == 0, told(ran)
    assert "named by the config, mm_vision_tower" in told(ran)
    assert_tower(load_file(other / "model.safetensors"))
    shutil.rmtree("out")
    shutil.rmtree("in")
    ran = applied(run, "llava-v1.5", named(str(other.resolve())))
    assert ran.code == 0, told(ran)
    assert_tower(load_file(other / "model.safetensors"))


@pytest.mark.parametrize(
    "value",
    [
        "/data/clip-vit-large-patch14-336", "./clip-vit-large-patch14-336/",
        "mirror/clip-vit-large-patch14-336",
        "/root/.cache/huggingface/hub/models--openai--clip-vit-large-patch14-336/snapshots/ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    ],
)  # fmt: skip
def test_a_name_that_ends_as_the_default_does_is_a_note(value: str, run: Run, hub: Hub) -> None:
    hub({STOCK: CLIP})
    [note] = [
        message
        for code, message in notes(run, "llava-v1.5", named(value)).items()
        if code == "LR316"
    ]
    assert value[:100] in note
    assert f"{STOCK}, which has the same name, is taken instead" in note


@pytest.mark.parametrize("value", [STOCK, None, ""])
def test_the_default_where_it_is_named_or_nothing_is(value: Any, run: Run, hub: Hub) -> None:
    hub({STOCK: CLIP})
    assert "LR316" not in notes(run, "llava-v1.5", named(value))


def test_a_nickname_of_a_family(run: Run, hub: Hub) -> None:
    """ViP-LLaVA's code calls the stock tower, of which it takes several layers, by a name of its
    own; it has no other.
    """
    hub({STOCK: CLIP})
    made = torch.Generator().manual_seed(0)
    text = {
        name: tensor
        for name, tensor in load_file(LLAVA / "model.safetensors").items()
        if "mm_projector" not in name
    }
    sizes = {
        "clip_layernorm.weight": (160,),
        "clip_layernorm.bias": (160,),
        "final_linear.0.weight": (64, 160),
    }
    sizes |= {
        "final_linear.0.bias": (64,),
        "final_linear.2.weight": (64, 64),
        "final_linear.2.bias": (64,),
    }
    projector = {
        f"model.mm_projector.{name}": torch.randn(size, generator=made)
        for name, size in sizes.items()
    }
    source = folder(
        "in",
        {**text, **projector},
        {**read_config(LLAVA), "mm_vision_tower": "clip_4layers_336"},
        LLAVA,
    )
    ran = applied(run, "vip-llava", source, more=("--dry-run",))
    assert f"{STOCK}@" in ran.out
    assert "LR316" not in ran.out
    (source / "config.json").write_text(
        json.dumps({**read_config(source), "mm_vision_tower": "clip_4layers_448"})
    )
    ran = applied(run, "vip-llava", source, more=("--dry-run",))
    assert "`clip_4layers_448` on this disk" in told(ran)


def test_last_parts_of_names() -> None:
    assert [
        last_part(text)
        for text in (
            "a/b",
            "/x/b/",
            "C:\\x\\b",
            "b",
            "/x/models--a--b/snapshots/0123",
            "a/b@main",
            "",
        )
    ] == [
        *["b"] * 6,
        "",
    ]


# --- the base that a part was trained from


def part(
    base: str | None = None,
    source: Path = LORA,
    file: str = "adapter_config.json",
    key: str = "base_model_name_or_path",
) -> Path:
    """A copy of the adapter, or of a projector, that names its base."""
    path = Path("part")
    shutil.copytree(source, path)
    content = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(content if base is None else {**content, key: base}))
    return path


def vicuna(name: str = "vicuna-7b-v1.5") -> Path:
    """A plain language model."""
    if Path(name).exists():
        return Path(name)
    text = {
        key: tensor
        for key, tensor in load_file(LLAVA / "model.safetensors").items()
        if "mm_projector" not in key
    }
    config = {
        key: value
        for key, value in read_config(LLAVA).items()
        if "mm_" not in key and key != "image_aspect_ratio"
    }
    return folder(
        name, text, {**config, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}, LLAVA
    )


def projector(base: str) -> Path:
    return part(base, PRETRAINED, "config.json", "_name_or_path")


@pytest.mark.parametrize(("name", "make"), [("adapter", part), ("projector", projector)])
def test_the_base_is_the_one_that_a_part_names(
    name: str, make: Callable[[str], Path], run: Run, hub: Hub
) -> None:
    hub({STOCK: CLIP, MODEL: LLAVA, "lmsys/vicuna-7b-v1.5": vicuna()})
    ran = applied(run, "llava-v1.5", f"{name}={make('lmsys/vicuna-7b-v1.5')}")
    assert ran.code == 0, told(ran)
    record = json.loads(Path("out/llava_remap.json").read_text())
    assert record["sources"]["model"]["location"].startswith("lmsys/vicuna-7b-v1.5@")
    assert f"named by `{name}`" in ran.out
    assert MODEL not in ran.out


@pytest.mark.parametrize(("name", "make"), [("adapter", part), ("projector", projector)])
@pytest.mark.parametrize("base", ["lmsys/vicuna-7b-v1.5", "/nowhere/vicuna-7b-v1.5"])
def test_a_base_that_can_not_be_had_is_refused(
    name: str, make: Callable[[str], Path], base: str, run: Run, hub: Hub
) -> None:
    hub({STOCK: CLIP, MODEL: LLAVA})
    ran = applied(run, "llava-v1.5", f"{name}={make(base)}")
    assert ran.code != 0
    assert base in told(ran)
    assert "--source model=DIR" in told(ran)


def test_a_base_that_nothing_names_is_asked_for(run: Run, hub: Hub) -> None:
    hub({STOCK: CLIP, MODEL: LLAVA})
    ran = applied(run, "llava-v1.5", f"adapter={LORA}")
    assert (ran.code, "LR211" in told(ran), "--source model=DIR" in told(ran)) == (2, True, True)


@pytest.mark.parametrize(("name", "make"), [("adapter", part), ("projector", projector)])
def test_another_base_by_hand_is_told(name: str, make: Callable[[str], Path], run: Run) -> None:
    path, tower = make("lmsys/vicuna-7b-v1.5"), f"vision_tower={CLIP}"
    found = notes(run, "llava-v1.5", f"model={LLAVA}", f"{name}={path}", tower)
    assert f"`{name}` was trained from `lmsys/vicuna-7b-v1.5`, but" in found["LR316"]
    assert "LR316" not in notes(run, "llava-v1.5", f"model={vicuna()}", f"{name}={path}", tower)


def test_another_tower_by_hand_is_told(run: Run) -> None:
    """Where the config names one that isn't the family's, which sizes would tell from others."""
    found = notes(run, "llava-v1.5", named("me/tuned-clip"), f"vision_tower={CLIP}")
    assert "the config names `me/tuned-clip`, but" in found["LR316"]
    shutil.copytree(CLIP, "tuned-clip")
    shutil.rmtree("in")
    assert "LR316" not in notes(
        run, "llava-v1.5", named("me/tuned-clip"), "vision_tower=tuned-clip"
    )


def test_also_where_the_checkpoint_has_a_tower_of_its_own(run: Run) -> None:
    """Then heads and activation come from the config of the one that is given, which may be all
    that there is of it.
    """
    inside = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in clip().items()}
    tensors = {**load_file(LLAVA / "model.safetensors"), **inside}
    path = folder("in", tensors, {**read_config(LLAVA), "mm_vision_tower": "me/tuned-clip"}, LLAVA)
    Path("other").mkdir()
    shutil.copy(CLIP / "config.json", "other")
    assert (
        "the config names `me/tuned-clip`, but"
        in notes(run, "llava-v1.5", path, "vision_tower=other")["LR316"]
    )


def test_also_where_the_family_has_no_tower_of_its_own(run: Run) -> None:
    tensors = {
        name: t
        for name, t in load_file(LLAVA / "model.safetensors").items()
        if "mm_projector" not in name
    }
    linear = {
        "model.mm_projector.weight": torch.ones(64, 32).half(),
        "model.mm_projector.bias": torch.ones(64).half(),
    }
    path = folder(
        "in", {**tensors, **linear}, {**read_config(LLAVA), "mm_vision_tower": "/x/ours"}, LLAVA
    )
    assert (
        "the config names `/x/ours`, but"
        in notes(run, "llava-v1", path, f"vision_tower={CLIP}")["LR316"]
    )


@pytest.mark.parametrize(
    ("file", "is_told"), [("clip-vit-large-patch14-336.json", False), ("ours.json", True)]
)
def test_a_tower_of_the_stock_sizes_is_the_stock_one_by_its_name_alone(
    file: str, is_told: bool, run: Run
) -> None:
    shutil.copy(MANIFESTS / "clip-vit-large-patch14-336.json", file)
    model = MANIFESTS / "llava-v1.5-7b.released.json"
    ran = run(
        "apply", "llava-v1.5", "--source", model, "--source", f"vision_tower={file}", "--dry-run"
    )
    assert (ran.code, "LR316" in ran.out) == (0, is_told)


# --- another part than the source is for


@pytest.mark.parametrize("name", ["adapter", "projector"])
def test_a_whole_model_is_no_part(name: str, run: Run) -> None:
    """It would take the place of the whole base."""
    ran = applied(run, "llava-v1.5", f"model={vicuna()}", f"{name}={LLAVA}", f"vision_tower={CLIP}")
    assert (ran.code, f"is given as `{name}`, but it isn't a part" in told(ran)) == (2, True)
    assert f"give only it, as `model`: --source model={LLAVA}." in told(ran)
    assert not Path("out").exists()


def test_an_adapter_is_no_projector(run: Run) -> None:
    ran = applied(run, "llava-v1.5", f"model={LLAVA}", f"projector={LORA}", f"vision_tower={CLIP}")
    assert (ran.code, "LoRA pairs" in told(ran)) == (2, True)
    assert f"Give it as an adapter: --source adapter={LORA}." in told(ran)
    assert not Path("out").exists()


# --- the projector that was trained with an adapter


def step(config: Mapping[str, Any] | None = None) -> Path:
    """`checkpoint-500` of a training: the pairs of that step, without what LLaVA writes at the
    end.
    """
    path = Path("run", "checkpoint-500")
    path.mkdir(parents=True)
    for file in ("adapter_model.bin", "adapter_config.json"):
        shutil.copy(LORA / file, path)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def with_step(run: Run, path: Path, rules: str = "llava-v1.5", base: Path = LLAVA) -> Ran:
    return applied(run, rules, f"model={base}", f"adapter={path}", f"vision_tower={CLIP}")


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ({"mm_projector_lr": 2e-5}, "mm_projector_lr: 2e-05"),
        ({"tune_mm_mlp_adapter": True}, "tune_mm_mlp_adapter: true"),
        ({}, "mm_"),
    ],
)
def test_a_config_shows_that_a_projector_was_trained(
    says: dict[str, Any], shown: str, run: Run
) -> None:
    ran = with_step(run, step({**read_config(LORA), **says}))
    assert (ran.code, "LR317" in ran.out, shown in told(ran)) == (1, True, True)
    assert "--source adapter=DIR" in told(ran)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "says", [{"freeze_mm_mlp_adapter": True}, {"mm_tunable_parts": "mm_language_model"}]
)
def test_a_projector_that_was_frozen_is_the_bases(says: dict[str, Any], run: Run) -> None:
    ran = with_step(run, step({**read_config(LORA), **says}))
    assert (ran.code, "LR317" in ran.out) == (0, False)


def test_where_nothing_tells_it_is_a_note(run: Run) -> None:
    ran = with_step(run, step())
    assert (
        ran.code,
        "`adapter` has no projector, so the projector of `model` is taken" in told(ran),
    ) == (0, True)


def beside_pairs() -> Tensors:
    found: Tensors = torch.load(LORA / "non_lora_trainables.bin", weights_only=True)
    return found


def test_the_projector_of_a_step_is_found_and_the_command_puts_it_beside_the_pairs(
    run: Run,
) -> None:
    path = step()
    pairs = torch.load(LORA / "adapter_model.bin", weights_only=True)
    for number in (500, 90):
        (path / f"global_step{number}").mkdir()
        torch.save(
            {"module": {**pairs, **beside_pairs()}},
            path / f"global_step{number}" / "mp_rank_00_model_states.pt",
        )
    ran = with_step(run, path)
    assert ran.code == 1
    assert f"It is in {path.resolve()}/global_step500/mp_rank_00_model_states.pt." in told(ran)
    [code] = re.findall(r'python -c "(.*?)"', told(ran))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        exec(code, {})
    assert with_step(run, path).code == 0
    assert torch.equal(
        written()["multi_modal_projector.linear_1.weight"],
        beside_pairs()["base_model.model.model.mm_projector.0.weight"],
    )


def test_the_projector_of_a_step_is_found_for_a_plain_language_model(run: Run) -> None:
    path = step()
    (path / "global_step500").mkdir()
    torch.save({"module": beside_pairs()}, path / "global_step500" / "mp_rank_00_model_states.pt")
    ran = with_step(run, path, base=vicuna())
    assert (ran.code, "LR311" in ran.out) == (1, True)
    assert (
        f"A projector was trained with `adapter`. It is in {path.resolve()}/global_step500"
        in told(ran)
    )


def test_a_step_whose_states_have_no_projector_is_a_note(run: Run) -> None:
    path = step()
    (path / "global_step500").mkdir()
    torch.save(
        {"module": torch.load(LORA / "adapter_model.bin", weights_only=True)},
        path / "global_step500/mp_rank_00_model_states.pt",
    )
    assert with_step(run, path).code == 0


def test_the_end_of_the_training_lies_above(run: Run) -> None:
    path = step()
    for file in ("non_lora_trainables.bin", "adapter_model.bin", "adapter_config.json"):
        shutil.copy(LORA / file, "run")
    ran = with_step(run, path)
    assert (ran.code, f"Give it: --source adapter={Path('run').resolve()}." in told(ran)) == (
        1,
        True,
    )
    assert with_step(run, Path("run")).code == 0


def test_a_projector_that_tuning_saved_beside_its_step(run: Run) -> None:
    path = step()
    (path.parent / "mm_projector").mkdir()
    shutil.copy(
        PRETRAINED / "mm_projector.bin", path.parent / "mm_projector" / "checkpoint-500.bin"
    )
    ran = with_step(run, path)
    [given] = re.findall(r"Give it: --source (projector=\S+)\.", told(ran))
    assert ran.code == 1
    assert (
        applied(
            run, "llava-v1.5", f"model={LLAVA}", f"adapter={path}", given, f"vision_tower={CLIP}"
        ).code
        == 0
    )


def test_the_projector_of_another_source_is_told(run: Run) -> None:
    """One of the pretraining isn't the one that was trained with the pairs, and may be all that
    there is.
    """
    path = step({**read_config(LORA), "mm_projector_lr": 2e-5})
    ran = applied(
        run,
        "llava-v1.5",
        f"model={LLAVA}",
        f"adapter={path}",
        f"projector={PRETRAINED}",
        f"vision_tower={CLIP}",
    )
    assert (
        ran.code,
        "`adapter` was trained with its own projector, but the projector of `projector` is taken"
        in told(ran),
    ) == (
        0,
        True,
    )


# --- delta weights


def delta(source: Path) -> Path:
    """What a training adds to a base of which every norm is 1."""
    tensors = load_file(source / "model.safetensors")
    text = {
        name: (t.float() - float("norm" in name))
        for name, t in tensors.items()
        if "mm_" not in name and "vision" not in name
    }
    change = {name: tensor.to(tensors[name].dtype) for name, tensor in text.items()}
    return folder("in", {**tensors, **change}, read_config(source), source)


def test_delta_weights_in_a_layout_of_transformers_are_refused(run: Run) -> None:
    assert applied(run, "llava-v1.5", LLAVA, f"vision_tower={CLIP}").code == 0
    tensors = {
        name: t - int("norm" in name and name.startswith("language_model"))
        for name, t in written().items()
    }
    converted = folder("in", tensors, read_config(Path("out")))
    ran = run("apply", "hf-layouts", "--source", converted, "--output", "delta")
    assert (ran.code, "these look like delta weights" in told(ran)) == (3, True)
    assert not Path("delta").exists()


@pytest.mark.parametrize(("rules", "source"), [("llava-v1.5", LLAVA), ("llava-next", NEXT)])
def test_delta_weights_are_refused(rules: str, source: Path, run: Run) -> None:
    ran = applied(run, rules, delta(source), f"vision_tower={CLIP}")
    assert ran.code == 3
    assert "these look like delta weights" in told(ran)
    assert "Add the base first" in told(ran)
    assert not Path("out").exists()


def test_a_repository_that_is_called_delta_is_not_downloaded(run: Run) -> None:
    ran = applied(run, "llava-v1", "liuhaotian/LLaVA-7b-delta-v1-1")
    assert (ran.code, "holds delta weights" in told(ran)) == (3, True)


@pytest.mark.parametrize(
    ("kind", "about_one"),
    [
        ("llama", True),
        ("mistral", True),
        ("olmo", True),
        ("opt", True),
        ("gemma", False),
        ("nemotron", False),
        ("qwen3_next", False),
    ],
)
def test_which_text_models_have_norms_about_one(kind: str, about_one: bool) -> None:
    """Held against the code of transformers: the norms that multiply by one more than their
    weights.
    """
    import transformers

    config = transformers.CONFIG_MAPPING[kind](
        num_hidden_layers=4, hidden_size=64, num_attention_heads=4, num_key_value_heads=4
    )
    assert compare_classes(config, "LlavaForConditionalGeneration").norms_about_one is about_one
    code = Path(str(transformers.__file__)).parent / "models" / kind / f"modeling_{kind}.py"
    adds_one = re.compile(r"\(1(\.0)? \+ (self\.)?weight|weight \+ 1\b")
    assert bool(adds_one.search(code.read_text())) is not about_one


# --- separate towers and projectors


FAMILIES = {
    "llava-next": (NEXT, {}, CLIP),
    "llava-next-video": (NEXT, {"mm_spatial_pool_mode": "average"}, CLIP),
    "llava-onevision": (ONEVISION, {}, SIGLIP),
    "llava-interleave": (ONEVISION, {"image_aspect_ratio": "anyres"}, SIGLIP),
    "llava-interleave-onevision": (ONEVISION, {"image_aspect_ratio": "anyres"}, SIGLIP),
}


@pytest.mark.parametrize("rules", FAMILIES)
def test_every_family_takes_its_tower_from_a_source_of_its_own(rules: str, run: Run) -> None:
    source, config, tower = FAMILIES[rules]
    ran = applied(run, rules, towerless(source, **config), f"vision_tower={tower}")
    assert ran.code == 0, told(ran)
    assert_tower(
        {
            name: t
            for name, t in load_file(tower / "model.safetensors").items()
            if name.startswith("vision_model.")
        }
    )
    layer = read_config(Path("out"))["vision_feature_layer"]
    assert (
        layer == -2
    )  # SigLIP has all its layers here; LLaVA's code deletes the last, and takes this one


def test_a_siglip_tower_inside_has_lost_its_last_layer(run: Run) -> None:
    assert applied(run, "llava-onevision", ONEVISION, f"vision_tower={SIGLIP}").code == 0
    assert read_config(Path("out"))["vision_feature_layer"] == -1


@pytest.mark.parametrize("rules", FAMILIES)
def test_the_tower_of_another_family_is_refused(rules: str, run: Run) -> None:
    source, config, tower = FAMILIES[rules]
    ran = applied(
        run, rules, towerless(source, **config), f"vision_tower={SIGLIP if tower == CLIP else CLIP}"
    )
    assert (ran.code, "LR311" in ran.out) == (1, True)
    assert "leave out `vision_tower`" in told(ran)


def test_a_default_tower_of_another_family_leads_to_the_right_file(run: Run, hub: Hub) -> None:
    """Nobody gave it, so nobody is told to leave it out."""
    hub({STOCK: CLIP})
    ran = applied(run, "llava-interleave", towerless(NEXT))
    assert (ran.code, "this rule file fits: llava-next" in told(ran), "leave out" in told(ran)) == (
        1,
        True,
        False,
    )


def test_of_two_files_that_fit_the_one_with_the_named_tower_comes_first(run: Run) -> None:
    ran = run("inspect", towerless(NEXT))
    assert re.findall(r"^  (\S+): fits", ran.out, re.MULTILINE)[0] == "llava-next"


def test_what_is_missing_in_truth_is_named(run: Run) -> None:
    """The language model, the projector and the tower are there; no source that could be added
    brings `image_newline`.
    """
    tensors = load_file(NEXT / "model.safetensors")
    config = {
        k: v for k, v in read_config(NEXT).items() if "mm_" not in k and not k.startswith("image_")
    }
    text = {
        k: t for k, t in tensors.items() if not re.search("mm_projector|vision_tower|newline", k)
    }
    base = folder("mistral", text, {**config, "architectures": ["MistralForCausalLM"]}, NEXT)
    stage1 = folder(
        "stage1", {k: t for k, t in tensors.items() if "mm_projector" in k}, read_config(NEXT)
    )
    ran = applied(run, "llava-next", f"model={base}", f"projector={stage1}", f"vision_tower={CLIP}")
    assert (ran.code, "Give a checkpoint that has `model.image_newline`" in told(ran)) == (1, True)
    assert "--source adapter" not in told(ran)


def saved_by_transformers() -> Tensors:
    """A tower as the installed transformers saves it alone."""
    model = CLIPVisionModel(CLIPVisionConfig(**read_config(CLIP)["vision_config"]))
    model.save_pretrained("saved")
    names = load_file("saved/model.safetensors")
    assert not any(name.startswith("vision_model.") for name in names)
    assert {f"vision_model.{name}" for name in names} == clip().keys()
    return {name: clip()[f"vision_model.{name}"] for name in names}


def under_llavas_names() -> Tensors:
    return {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in clip().items()}


def without_model_before_them() -> Tensors:
    return {f"vision_tower.vision_tower.{name}": tensor for name, tensor in clip().items()}


def of_a_converted_llava() -> Tensors:
    return {f"vision_tower.{name}": tensor for name, tensor in clip().items()}


def in_modules_of_4_52() -> Tensors:
    return {f"model.vision_tower.{name}": tensor for name, tensor in clip().items()}


def in_modules_of_5_6() -> Tensors:
    return {
        f"model.{name.replace('vision_model', 'vision_tower')}": tensor
        for name, tensor in clip().items()
    }


LIKE_LLAVA = [under_llavas_names, without_model_before_them]


@pytest.mark.parametrize(
    "make",
    [
        saved_by_transformers,
        *LIKE_LLAVA,
        of_a_converted_llava,
        in_modules_of_4_52,
        in_modules_of_5_6,
    ],
)
def test_a_tower_under_other_names(make: Callable[[], Tensors], run: Run) -> None:
    tower = folder("tower", make(), read_config(CLIP)["vision_config"])
    shutil.copy(CLIP / "preprocessor_config.json", tower)
    ran = applied(run, "llava-v1.5", RELEASED / "bin", f"vision_tower={tower}")
    assert ran.code == 0, told(ran)
    assert_tower(clip())
    assert (
        run(
            "verify", "out", "--against", RELEASED / "bin", "--against", f"vision_tower={tower}"
        ).code
        == 0
    )


def respelt(name: str, before: str) -> str:
    own = name.removeprefix("model.mm_projector.")
    return before + (own if not before.endswith("linear_") else f"{int(own[0]) // 2 + 1}{own[1:]}")


HF_PROJECTORS = ["multi_modal_projector.linear_", "model.multi_modal_projector.linear_", "linear_"]


@pytest.mark.parametrize(
    "before", ["model.", "layers.", "", "mm_projector.", "model.mm_projector.", *HF_PROJECTORS]
)
def test_a_projector_under_other_names(before: str, run: Run) -> None:
    """As xtuner and VILA save it, as its module's own state dict, under LLaVA's names and under
    those of transformers.
    """
    own = torch.load(PRETRAINED / "mm_projector.bin", weights_only=True)
    spelt = {respelt(name, before): tensor for name, tensor in own.items()}
    path = folder(
        "projector",
        spelt,
        {"architectures": ["ProjectorModel"], "model_type": "projector", "hidden_act": "gelu"},
    )
    ran = applied(
        run, "llava-v1.5", f"model={vicuna()}", f"projector={path}", f"vision_tower={CLIP}"
    )
    assert ran.code == 0, told(ran)
    found = written()
    assert torch.equal(
        found["multi_modal_projector.linear_1.weight"], own["model.mm_projector.0.weight"]
    )
    assert torch.equal(
        found["multi_modal_projector.linear_2.bias"], own["model.mm_projector.2.bias"]
    )


def test_a_projector_with_another_activation_is_refused(run: Run) -> None:
    own = torch.load(PRETRAINED / "mm_projector.bin", weights_only=True)
    path = folder(
        "projector",
        {respelt(name, "model."): tensor for name, tensor in own.items()},
        {"hidden_act": "silu"},
    )
    ran = applied(
        run, "llava-v1.5", f"model={vicuna()}", f"projector={path}", f"vision_tower={CLIP}"
    )
    assert (
        ran.code,
        "says hidden_act: 'silu', but llava-v1.5 writes a projector with 'gelu'" in told(ran),
    ) == (3, True)
    line = "target: {config: {projector_hidden_act: {const: silu}}}"
    assert line in told(ran)
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: silu\nextends: [llava-v1.5.yaml]\n"
        f"{line}\n"
    )
    assert (
        applied(
            run, "mine.yaml", f"model={vicuna()}", f"projector={path}", f"vision_tower={CLIP}"
        ).code
        == 0
    )
    assert read_config(Path("out"))["projector_hidden_act"] == "silu"


@pytest.mark.parametrize(
    ("name", "odd", "beside", "wanted"),
    [
        ("vision_tower", "visual.trunk.blocks", LLAVA, "vision_model.{rest...}"),
        ("projector", "connector.fc", f"vision_tower={CLIP}", "model.mm_projector.0.{p}"),
    ],
)
def test_a_source_of_which_no_name_is_known(
    name: str, odd: str, beside: object, wanted: str, run: Run
) -> None:
    """The message is about it: that it was read, how its names look, which names are asked for.
    It isn't asked for again.
    """
    path = folder("odd", {f"{odd}.{n}.weight": torch.ones(4, 4) for n in range(3)}, {})
    base = [f"model={vicuna()}"] if name == "projector" else []
    ran = applied(run, "llava-v1.5", *base, beside, f"{name}={path}")
    assert (ran.code, "LR305" in ran.out) == (1, True)
    assert f"source `{name}` (odd) was read, but llava-v1.5 knows none of its 3 names" in told(ran)
    assert odd + ".{0..2}.weight" in told(ran)
    assert f"names like `{wanted}`" in told(ran)
    assert "--source" not in ran.out.split("LR305")[1]
    assert "decoder" not in told(ran)


def test_a_projector_under_unknown_names_leads_to_a_rule_file_that_takes_it(run: Run) -> None:
    """By the command that is told."""
    own = torch.load(PRETRAINED / "mm_projector.bin", weights_only=True)
    path = folder(
        "odd",
        {
            name.replace("model.mm_projector.", "connector.fc"): tensor
            for name, tensor in own.items()
        },
        {},
    )
    sources = [f"model={vicuna()}", f"projector={path}", f"vision_tower={CLIP}"]
    ran = applied(run, "llava-v1.5", *sources)
    [command] = re.findall(r"llava-remap (rules new .* --output mine.yaml)", told(ran))
    assert "--from model=vicuna-7b-v1.5 --from projector=odd" in command
    drafted = run(*command.split())
    assert drafted.code == 0, drafted.out + drafted.err
    ran = applied(run, "mine.yaml", *sources)
    assert ran.code == 0, told(ran)
    assert torch.equal(
        written()["multi_modal_projector.linear_1.weight"], own["model.mm_projector.0.weight"]
    )


def test_a_tower_in_the_order_of_mlx_is_told_as_that(run: Run) -> None:
    tensors = {
        name: t.permute(0, 2, 3, 1) if "patch_embedding" in name else t
        for name, t in clip().items()
    }
    ran = applied(
        run,
        "llava-v1.5",
        RELEASED / "bin",
        f"vision_tower={folder('mlx', tensors, read_config(CLIP))}",
    )
    assert (ran.code, "as MLX stores convolutions: [out, height, width, in]" in told(ran)) == (
        1,
        True,
    )
    assert "[32, 14, 14, 3] in the checkpoint, [32, 3, 14, 14] in the model" in told(ran)
    assert "Check whether the config.json belongs" not in told(ran)


# --- parts of another training


def with_rows(part: Path, file: str, name: str, rows: int) -> Path:
    """A copy of a part that brings its own table of token embeddings, and whose config says its
    rows.
    """
    path = Path("own-table")
    shutil.copytree(part, path)
    torch.save(
        {**torch.load(path / file, weights_only=True), name: torch.ones(rows, 64).half()},
        path / file,
    )
    (path / "config.json").write_text(json.dumps({**read_config(path), "vocab_size": 322}))
    return path


ADAPTER = ("adapter", LORA, "non_lora_trainables.bin", "base_model.model.model.embed_tokens.weight")
PROJECTOR = ("projector", PRETRAINED, "mm_projector.bin", "model.embed_tokens.weight")


@pytest.mark.parametrize(("kind", "source", "file", "name"), [ADAPTER, PROJECTOR])
def test_a_table_that_only_a_part_has_explains_the_rows_of_lm_head(
    kind: str, source: Path, file: str, name: str, run: Run
) -> None:
    path = with_rows(source, file, name, 322)
    ran = applied(run, "llava-v1.5", f"model={vicuna()}", f"{kind}={path}", f"vision_tower={CLIP}")
    assert (ran.code, "LR401" in ran.out) == (1, True)
    assert (
        f"`{kind}` has a `language_model.model.embed_tokens.weight` of 322 rows, in place of "
        "one with 320 rows" in told(ran)
    )
    assert "Give the model with 322 rows" in told(ran)
    assert "The config has" not in told(ran)


def test_rows_of_new_tokens_alone_are_no_table(run: Run) -> None:
    path = with_rows(*PROJECTOR[1:], 2)
    ran = applied(
        run, "llava-v1.5", f"model={vicuna()}", f"projector={path}", f"vision_tower={CLIP}"
    )
    assert ran.code == 1
    assert (
        "`projector` brings an embed_tokens of 2 rows, and the config of `projector` says "
        "vocab_size: 322" in told(ran)
    )


def test_a_base_with_more_rows_than_an_adapter_was_trained_on_is_another_one(run: Run) -> None:
    tensors = load_file(LLAVA / "model.safetensors")
    more = {name: torch.cat([tensors[name], tensors[name][:3] + 1]) for name in EMBEDDINGS}
    base = folder("in", {**tensors, **more}, {**read_config(LLAVA), "vocab_size": 323}, LLAVA)
    ran = applied(run, "llava-v1.5", f"model={base}", f"adapter={LORA}", f"vision_tower={CLIP}")
    assert (
        ran.code,
        "`adapter` was trained from a model of 320 tokens, and `model` has 323" in told(ran),
    ) == (1, True)
    assert "set vocab_size" not in told(ran)


def test_pairs_that_the_base_has_no_room_for_are_told_once(run: Run) -> None:
    tensors = {
        name: t[:32] if re.search("[kv]_proj", name) else t
        for name, t in load_file(LLAVA / "model.safetensors").items()
    }
    base = folder("in", tensors, {**read_config(LLAVA), "num_key_value_heads": 2}, LLAVA)
    ran = applied(run, "llava-v1.5", f"model={base}", f"adapter={LORA}", f"vision_tower={CLIP}")
    assert (ran.code, "Give the base on which the adapter was trained." in told(ran)) == (3, True)
    assert "Check whether the config.json belongs" not in told(ran)


@pytest.mark.parametrize(("kind", "path"), [("adapter", LORA), ("projector", PRETRAINED)])
def test_a_part_beside_a_converted_model_is_not_in_it(kind: str, path: Path, run: Run) -> None:
    assert applied(run, "llava-v1.5", LLAVA, f"vision_tower={CLIP}").code == 0
    ran = run(
        "apply", "llava-v1.5", "--source", "out", "--source", f"{kind}={path}", "--output", "second"
    )
    assert (ran.code, "LR109" in ran.err + ran.out, f"`{kind}` is not in it." in told(ran)) == (
        1,
        True,
        True,
    )
    assert "under its own names: --source model=DIR" in told(ran)
    assert "No conversion is needed" not in told(ran)


def test_an_adapter_of_a_converted_model_is_merged_as_peft_merges_it(run: Run) -> None:
    """By the command that is told, by `apply` and by `inspect` alike."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    assert applied(run, "llava-v1.5", LLAVA, f"vision_tower={CLIP}").code == 0
    model = AutoModelForImageTextToText.from_pretrained("out", dtype="auto")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = get_peft_model(
        model, LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    )
    tuned.save_pretrained("tuned")
    told_by = (
        run(
            "apply",
            "llava-v1.5",
            "--source",
            "out",
            "--source",
            "adapter=tuned",
            "--output",
            "second",
        ),
        run("inspect", "tuned"),
    )
    assert [ran.code for ran in told_by] == [1, 0]
    command = "llava-remap apply hf-layouts --source model=out --source adapter=tuned"
    assert [command in told(ran) for ran in told_by] == [True, True]
    assert run(*command.split()[1:], "--output", "merged", "--verify", "full").code == 0
    merged = tuned.merge_and_unload().state_dict()
    found = AutoModelForImageTextToText.from_pretrained("merged", dtype="auto").state_dict()
    assert found.keys() == merged.keys()
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name for name in found if "q_proj" in name and "language" in name}
    for name, tensor in merged.items():  # within the last place of half precision
        assert torch.allclose(found[name].float(), tensor.float(), rtol=2**-10, atol=2**-24), name


# --- rows that no token explains


@pytest.mark.parametrize(
    ("rules", "source", "tower"), [("llava-v1.5", LLAVA, CLIP), ("llava-next", NEXT, CLIP)]
)
def test_a_row_that_was_trained_never_becomes_image(
    rules: str, source: Path, tower: Path, run: Run
) -> None:
    tensors = load_file(source / "model.safetensors")
    more = {name: torch.cat([tensors[name], tensors[name][:3] + 1]) for name in EMBEDDINGS}
    path = folder("in", {**tensors, **more}, {**read_config(source), "vocab_size": 323}, source)
    ran = applied(run, rules, path, f"vision_tower={tower}")
    assert (ran.code, "LR402" in ran.out, "would get these rows" in told(ran)) == (1, True, True)
    (path / "added_tokens.json").write_text(json.dumps({f"<t{n}>": 320 + n for n in range(3)}))
    assert applied(run, rules, path, f"vision_tower={tower}").code == 0
    assert read_config(Path("out"))["image_token_id"] == 323
    assert torch.equal(
        written()["language_model.model.embed_tokens.weight"][:323],
        more["model.embed_tokens.weight"],
    )
