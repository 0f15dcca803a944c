"""A checkpoint alone leads to the rule file that `apply` would be given, and to the sources."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.authoring.shrink import shrink
from llava_remap.core import Problem, RemapError
from llava_remap.jobs.apply import apply, plan
from llava_remap.jobs.convert import choose, convert, default_output
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY
from tests.families import AS_WELL, RULES_OF

LORA = TINY / "llava-v1.5-lora"
PROJECTOR = TINY / "llava-v1.5" / "pretrain_projector_only"
SIGLIP = TINY / "siglip-tiny-patch14-28"
#: With its tower inside.
WHOLE = TINY / "llava-v1.5" / "full_state_dict"
#: The twin of one manifest for each rule file.
TWINS = {rules: manifest for manifest, rules in sorted(RULES_OF.items())}


def codes(refused: pytest.ExceptionInfo[RemapError]) -> set[str]:
    return {problem.code for problem in refused.value.problems}


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file but the record, which has the folder's name in it."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "llava_remap.json"
    }


def copied(source: Path, place: str, **config: Any) -> Path:
    """A copy with some values in its config."""
    shutil.copytree(source, place)
    path = Path(place, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return Path(place)


def language_model(place: str) -> None:
    """A plain Llama, without a projector."""
    shutil.copytree(RELEASED / "safetensors", place)
    path = Path(place, "model.safetensors")
    kept = {name: tensor for name, tensor in load_file(path).items() if "mm_" not in name}
    save_file(kept, path, {"format": "pt"})
    config = json.loads(Path(place, "config.json").read_text())
    config = {key: value for key, value in config.items() if "mm_" not in key}
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    Path(place, "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("source", "rules", "tower"),
    [
        *((path, "llava-v1.5", CLIP) for path in sorted(RELEASED.iterdir())),
        (TINY / "llava-v1.5" / "legacy_pickle", "llava-v1.5", CLIP),
        (TINY / "llava-v1.6-mistral" / "sharded", "llava-next", CLIP),
        (TINY / "llava-onevision" / "safetensors", "llava-onevision", SIGLIP),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_it_writes_what_apply_writes(source: Path, rules: str, tower: Path) -> None:
    sources = {"model": source, "vision_tower": tower}
    convert(source, "found", sources={"vision_tower": tower}, verify="none")
    apply(rules, sources, "named", verify="none")
    assert files(Path("found")) == files(Path("named"))


@pytest.mark.parametrize("rules", [name for name in TWINS if name not in AS_WELL])
def test_the_twin_of_each_family_is_planned_as_by_its_rule_file(rules: str) -> None:
    twin = shrink(MANIFESTS / f"{TWINS[rules]}.json", "twin")
    towers = {"vision_tower": str(twin.tower)} if twin.tower is not None else {}
    chosen = choose("twin", sources=towers)
    assert chosen.rules == rules
    by_name = plan(rules, {"model": "twin", **towers}, "out", dry_run=True)
    found = plan(chosen.rules, chosen.sources, "out", dry_run=True)
    assert found.plan == by_name.plan


# What it needs besides


def test_a_tower_beside_it_that_has_the_name_in_its_config() -> None:
    source = copied(RELEASED / "bin", "runs/mine")
    shutil.copytree(CLIP, "runs/clip-vit-large-patch14-336")
    chosen = choose(source)
    assert chosen.sources["vision_tower"] == "runs/clip-vit-large-patch14-336"
    assert "openai/clip-vit-large-patch14-336" in chosen.found["vision_tower"]


VARIANT = """\
schema: 1
name: variant
version: 1.0.0
summary: a variant of a user's own, with its tower inside
extends: [llava-v1.5.yaml]
sources: {vision_tower: {optional: true, use: [config, processor], used_if_absent: null}}
"""


@pytest.mark.parametrize("named", ["/train/towers/my-tower", "runs/my-tower"])
@pytest.mark.parametrize("rules", ["llava-v1.5", "variant.yaml"])
def test_the_own_checkpoint_of_a_tower_inside_that_nothing_else_describes(
    rules: str, named: str
) -> None:
    source = copied(WHOLE, "runs/mine", mm_vision_tower=named)
    Path("variant.yaml").write_text(VARIANT)
    asked = None if rules == "llava-v1.5" else rules
    [problem] = plan(rules, source, "out").plan.problems
    assert problem.fix.endswith(": --source vision_tower=DIR.")
    shutil.copytree(CLIP, "runs/my-tower")
    [problem] = plan(rules, source, "out").plan.problems
    assert problem.code == "LR112"
    assert problem.fix.endswith(": --source vision_tower=runs/my-tower")
    chosen = choose(source, rules=asked)
    assert chosen.sources["vision_tower"] == "runs/my-tower"
    assert named in chosen.found["vision_tower"]
    assert plan(rules, chosen.sources, "out").plan.complete


def test_a_tower_inside_that_is_known_needs_no_folder() -> None:
    source = copied(WHOLE, "runs/mine", mm_vision_tower="/train/towers/my-tower")
    shutil.copytree(CLIP, "runs/my-tower")
    config = json.loads((CLIP / "config.json").read_text())
    copied(source, "known/mine", vision_config=config.get("vision_config", config))
    shutil.copytree(CLIP, "known/my-tower")
    assert set(choose("known/mine").sources) == {"model"}


def test_a_tower_in_a_folder_of_its_own() -> None:
    source = copied(RELEASED / "bin", "mine")
    shutil.copytree(CLIP, source / "vision_tower")
    assert choose(source).sources["vision_tower"] == "mine/vision_tower"


def test_a_projector_in_a_folder_of_its_own() -> None:
    language_model("mine")
    shutil.copytree(PROJECTOR, "mine/mm_projector")
    chosen = choose("mine", sources={"vision_tower": CLIP})
    assert chosen.rules == "llava-v1.5"
    assert chosen.sources["projector"] == "mine/mm_projector"
    assert plan(chosen.rules, chosen.sources, "out").plan.complete


def test_no_tower_is_asked_for_where_the_projector_is_missing() -> None:
    language_model("mine")
    with pytest.raises(RemapError) as refused:
        choose("mine", ask=lambda name, problems: pytest.fail(name))
    assert refused.value.problems[0].code == "LR320"
    assert "projector" in refused.value.problems[0].fix


@pytest.mark.parametrize(
    ("folder", "name"),
    [(CLIP, "clip-vit-large-patch14"), (SIGLIP, "clip-vit-large-patch14-336")],
)
def test_a_folder_of_another_name_or_kind_is_no_tower(folder: Path, name: str) -> None:
    source = copied(RELEASED / "bin", "runs/mine")
    shutil.copytree(folder, f"runs/{name}")
    with pytest.raises(RemapError) as refused:
        choose(source)
    assert codes(refused) == {"LR114"}
    [problem] = refused.value.problems
    assert problem.fix.endswith("llava-remap convert runs/mine --source vision_tower=DIR")


@pytest.mark.parametrize("part", [LORA, PROJECTOR], ids=["adapter", "projector"])
def test_a_part_with_its_base(part: Path) -> None:
    name = "adapter" if part == LORA else "projector"
    besides = {"model": RELEASED / "bin", "vision_tower": CLIP}
    convert(part, "found", sources=besides, verify="none")
    apply("llava-v1.5", {**besides, name: part}, "named", verify="none")
    assert files(Path("found")) == files(Path("named"))


def test_the_base_beside_an_adapter_that_names_it() -> None:
    shutil.copytree(LORA, "lora")
    path = Path("lora", "adapter_config.json")
    named = {"base_model_name_or_path": "lmsys/vicuna-tiny"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}))
    shutil.copytree(RELEASED / "bin", "vicuna-tiny")
    chosen = choose("lora", sources={"vision_tower": CLIP})
    assert chosen.rules == "llava-v1.5"
    assert chosen.sources["model"] == "vicuna-tiny"
    assert "lmsys/vicuna-tiny" in chosen.found["model"]


@pytest.mark.parametrize("rules", [None, "llava-v1.5"])
def test_the_folder_of_a_training(rules: str | None) -> None:
    """The whole command for its newest step, which then works."""
    for number in (5, 10):
        copied(RELEASED / "bin", f"run/checkpoint-{number}")
    with pytest.raises(RemapError) as refused:
        choose("run", rules=rules, sources={"vision_tower": CLIP})
    named = f" --rules {rules}" if rules else ""
    command = f"llava-remap convert run/checkpoint-10{named} --source vision_tower={CLIP}"
    assert refused.value.problems[0].fix == f"Convert the newest: {command}"
    chosen = choose("run/checkpoint-10", rules=rules, sources={"vision_tower": CLIP})
    assert chosen.rules == "llava-v1.5"


def test_a_part_whose_base_nothing_names_is_refused_with_the_command() -> None:
    with pytest.raises(RemapError, match="--source model=DIR") as refused:
        choose(LORA, sources={"vision_tower": CLIP})
    assert f"convert {LORA} --source vision_tower={CLIP} --source model=DIR" in str(refused.value)


def test_the_tokenizer_of_the_training() -> None:
    step = copied(RELEASED / "safetensors", "run/checkpoint-5")
    for path in step.glob("*token*"):
        path.rename(f"run/{path.name}")
    chosen = choose(step, sources={"vision_tower": CLIP})
    assert Path(str(chosen.sources["language_model"])) == Path("run").resolve()
    job = plan(chosen.rules, chosen.sources, "out", dry_run=True)
    assert job.plan.complete
    assert "tokenizer.json" in job.small_files


def test_a_person_is_asked_until_a_tower_opens() -> None:
    answers = iter(["nowhere", f"{CLIP}\n"])
    asked: list[tuple[str, set[str]]] = []

    def ask(name: str, problems: Sequence[Problem]) -> str:
        asked.append((name, {problem.code for problem in problems}))
        return next(answers)

    chosen = choose(RELEASED / "bin", ask=ask)
    assert asked == [("vision_tower", {"LR114"}), ("vision_tower", {"LR100"})]
    assert chosen.sources["vision_tower"] == str(CLIP)


def test_nobody_answers() -> None:
    with pytest.raises(RemapError) as refused:
        choose(RELEASED / "bin", ask=lambda name, problems: "\n")
    assert codes(refused) == {"LR114"}


def test_the_checkpoint_cannot_be_given_twice() -> None:
    with pytest.raises(RemapError, match=r"`model` is given twice.*--source NAME=SRC") as refused:
        choose(RELEASED / "bin", sources={"model": RELEASED / "sharded"})
    assert codes(refused) == {"LR211"}


# Which rule file


@pytest.mark.parametrize("rules", AS_WELL)
def test_of_two_that_fit_none_is_taken(rules: str) -> None:
    both = {rules, *AS_WELL[rules]}
    twin = shrink(MANIFESTS / f"{TWINS[rules]}.json", "twin")
    with pytest.raises(RemapError) as refused:
        convert("twin", "out", sources={"vision_tower": str(twin.tower)})
    assert codes(refused) == {"LR216"}
    [problem] = refused.value.problems
    assert {name for name, _ in problem.table} == both
    for name in both:
        command = f"llava-remap convert twin --rules {name} --source vision_tower={twin.tower}"
        assert command in problem.fix
        chosen = choose("twin", rules=name, sources={"vision_tower": str(twin.tower)})
        assert plan(chosen.rules, chosen.sources, "out").plan.complete
    assert not Path("out").exists()


def test_of_two_that_fit_with_what_a_person_answers_none_is_taken() -> None:
    """A projector alone fits both until its model is known, and with it, too."""
    twin = shrink(MANIFESTS / "llava-interleave-qwen-0.5b.released.json", "twin")
    projector = {
        name: tensor
        for name, tensor in load_file("twin/model.safetensors").items()
        if "mm_projector" in name
    }
    Path("projector").mkdir()
    torch.save(projector, "projector/mm_projector.bin")
    shutil.copy("twin/config.json", "projector")
    tower = {"vision_tower": str(twin.tower)}
    with pytest.raises(RemapError) as refused:
        choose("projector", sources=tower, ask=lambda name, problems: "twin")
    assert codes(refused) == {"LR216"}
    command = f"--rules llava-interleave --source vision_tower={twin.tower} --source model=twin"
    assert command in refused.value.problems[0].fix


def test_none_fits() -> None:
    with pytest.raises(RemapError, match="--source vision_tower=") as refused:
        convert(CLIP)
    assert codes(refused) == {"LR320"}


def test_the_reason_is_what_the_config_excludes() -> None:
    reason = choose(RELEASED / "bin", sources={"vision_tower": CLIP}).reason
    assert reason.startswith("takes 25 of 25 names")
    assert "architectures LlavaLlamaForCausalLM" in reason


def test_a_converted_folder_needs_nothing() -> None:
    convert(RELEASED / "bin", "out", sources={"vision_tower": CLIP}, verify="none")
    with pytest.raises(RemapError) as refused:
        convert("out", "again")
    assert codes(refused) == {"LR109"}


def test_a_manifest_is_recognised_and_has_nothing_to_convert() -> None:
    manifest = MANIFESTS / "llava-v1.6-vicuna-7b.released.json"
    with pytest.raises(RemapError) as refused:
        convert(manifest, "out")
    assert codes(refused) == {"LR111"}
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "LR102"),
        (lambda path: path.unlink(), "LR100"),
    ],
)
def test_what_cannot_be_read(spoil: Callable[[Path], object], code: str) -> None:
    source = copied(RELEASED / "safetensors", "mine")
    spoil(source / "model.safetensors")
    with pytest.raises(RemapError) as refused:
        convert(source)
    assert codes(refused) == {code}


# Where it is written


def test_a_step_of_a_training_is_named_after_the_training() -> None:
    Path("llava-run/checkpoint-500").mkdir(parents=True)
    assert default_output("llava-run/checkpoint-500") == Path("llava-run-checkpoint-500-hf")
    assert default_output("llava-run/checkpoint-500/") == Path("llava-run-checkpoint-500-hf")
    assert default_output("llava-run") == Path("llava-run-hf")
    assert default_output("me/checkpoint-500@main") == Path("checkpoint-500-hf")


def test_an_adapter_of_another_kind_of_language_model_is_told_as_that() -> None:
    """Every rule file is contradicted by one of the configs, and none of them is the cause."""
    base = TINY / "llava-v1.6-mistral" / "safetensors"
    with pytest.raises(RemapError) as refused:
        choose(TINY / "llava-v1.5-lora", sources={"model": base, "vision_tower": CLIP})
    [problem] = refused.value.problems
    assert problem.code == "LR112"
    assert "disagree on the language model: model_type 'llama' and 'mistral'" in problem.cause
