"""Refusals have an exit code, a code, names and a fix, and leave nothing in the output folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Changed, Run, Tensors


def refused(
    run: Run, folder: Path, *codes: str, exit_code: int = 1, rules: str = "llava-v1.5"
) -> str:
    """A real run is refused with exactly these codes and leaves no output; gives what was
    printed.
    """
    sources = (
        ("--source", folder, "--source", f"vision_tower={CLIP}")
        if rules == "llava-v1.5"
        else ("--source", folder)
    )
    dry = run("apply", rules, *sources, "--output", "out", "--dry-run", "--format", "json")
    assert (dry.code, [p["code"] for p in dry.json["problems"]], dry.json["complete"]) == (
        exit_code,
        list(codes),
        False,
    )
    real = run("apply", rules, *sources, "--output", "out")
    assert real.code == exit_code
    assert not Path("out").exists()
    printed = real.out + real.err
    assert all(f"{code} " in printed for code in codes)
    assert "→ " in printed  # what to do
    assert "Traceback" not in printed
    return printed


def add(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.ones(shape, dtype=torch.float16)})


@pytest.mark.parametrize(
    "name",
    [
        "model.mm_projector.1.weight",
        "model.mm_projector.4.weight",
        "model.vision_tower.vision_tower.model.stem.conv.weight",
        "modelX.layers.0.mlp.up_proj.weight",
    ],
)
def test_a_name_that_no_rule_maps(name: str, run: Run, changed: Changed) -> None:
    folder = changed(tensors=add(name, (64, 64)))
    assert name in refused(run, folder, "LR301")


def test_a_foreign_tower_beside_a_whole_one(run: Run, tmp_path: Path) -> None:
    """With the rest of a tower there, the name itself is told."""
    state = torch.load(
        TINY / "llava-v1.5" / "full_state_dict" / "model_state_dict.bin", weights_only=True
    )
    name = "model.vision_tower.vision_tower.model.stem.conv.weight"
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    torch.save({**state, name: torch.ones(2)}, folder / "model_state_dict.bin")
    (folder / "config.json").write_bytes(
        (TINY / "llava-v1.5" / "full_state_dict" / "config.json").read_bytes()
    )
    assert name in refused(run, folder, "LR301")


def test_two_sources_for_one_target(run: Run, changed: Changed) -> None:
    printed = refused(
        run, changed(tensors=add("model.vision_resampler.mm_projector.0.weight", (64, 32))), "LR304"
    )
    assert (
        "`model.mm_projector.0.weight` (model) and `model.vision_resampler.mm_projector.0.weight` "
        "(model)" in printed
    )
    assert "multi_modal_projector.linear_1.weight" in printed


def test_a_missing_projector_bias(run: Run, changed: Changed) -> None:
    printed = refused(run, changed(tensors=lambda t: t.pop("model.mm_projector.0.bias")), "LR302")
    assert "multi_modal_projector.linear_1.bias" in printed


def test_a_config_with_more_layers(run: Run, changed: Changed) -> None:
    printed = refused(
        run, changed(config=lambda config: config.update(num_hidden_layers=3)), "LR302"
    )
    assert "The config says that the language model has 3 layers; the sources have 2." in printed


def test_an_extra_layer(run: Run, changed: Changed) -> None:
    def add_layer(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.1.") and "rotary" not in n]:
            tensors[name.replace(".1.", ".2.")] = tensors[name].clone()

    printed = refused(run, changed(tensors=add_layer), "LR303")
    assert "language_model.model.layers.2.mlp.up_proj.weight" in printed


def test_a_shape_that_differs(run: Run, changed: Changed) -> None:
    printed = refused(run, changed(tensors=add("model.norm.weight", (63,))), "LR401")
    assert "language_model.model.norm.weight  [63] in the checkpoint, [64] in the model" in printed


def test_a_linear_projector(run: Run, changed: Changed) -> None:
    def linear(tensors: Tensors) -> None:
        for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
            del tensors[f"model.mm_projector.{part}"]
        tensors["model.mm_projector.weight"] = torch.ones(64, 32)
        tensors["model.mm_projector.bias"] = torch.ones(64)

    assert "model.mm_projector.0.weight" in refused(run, changed(tensors=linear), "LR311")


def test_zero3_stubs(run: Run, changed: Changed) -> None:
    def stub(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.")]:
            tensors[name] = torch.empty(0, dtype=torch.float16)

    printed = refused(run, changed(tensors=stub), "LR104")
    assert "20 of 27 tensors" in printed
    assert "model.layers.{0..1}.mlp.up_proj.weight" in printed
    assert "zero_to_fp32.py" in printed


def module_4_52(name: str) -> str:
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


def module_5_6(name: str) -> str:
    return module_4_52(name).replace("vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize(
    ("layout", "spell"),
    [("classic", str), ("module-4.52", module_4_52), ("module-5.6", module_5_6)],
    ids=["classic", "module-4.52", "module-5.6"],
)
def test_an_input_that_is_already_converted(
    layout: str, spell: Callable[[str], str], run: Run, tmp_path: Path
) -> None:
    converted = tmp_path / "converted"
    apply("llava-v1.5", [str(RELEASED / "bin"), f"vision_tower={CLIP}"], converted)
    state = {
        spell(name): t
        for file in converted.glob("*.safetensors")
        for name, t in load_file(file).items()
    }
    folder = tmp_path / layout
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((converted / "config.json").read_bytes())
    assert f"80 of 80 names in {folder} are in layout {layout}" in refused(run, folder, "LR109")


def test_a_checkpoint_of_another_family_and_the_file_that_fits(run: Run) -> None:
    """LLaVA-Interleave given to the LLaVA-1.5 file: the right file is named."""
    manifest = MANIFESTS / "llava-interleave-qwen-0.5b.released.json"
    ran = run("apply", "llava-v1.5", "--source", manifest, "--dry-run")
    assert ran.code == 1
    assert "LR311" in ran.out
    assert "its config says image_aspect_ratio: 'anyres'" in ran.out
    assert "this rule file fits: llava-interleave (715 of 715 names)." in ran.out


@pytest.mark.parametrize(
    "entry",
    [
        {"mm_patch_merge_type": "flat"},
        {"mm_patch_merge_type": "spatial"},
        {"image_aspect_ratio": "pad"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rules", ["llava-next", "llava-v1.5"])
def test_names_that_fit_and_a_config_that_computes_something_else(
    entry: dict[str, str], rules: str, run: Run, changed: Changed
) -> None:
    """All names map, and a file that overrides `detect` would give another model: that isn't
    advised.
    """
    source = changed(TINY / "llava-v1.6-mistral" / "safetensors", config=lambda c: c.update(entry))
    merged = ("LR314",) if "mm_patch_merge_type" in entry and rules == "llava-next" else ()
    whole = ("LR314",) if "image_aspect_ratio" in entry and rules == "llava-v1.5" else ()
    printed = refused(run, source, "LR311", *merged, *whole, rules=rules)
    assert "llava-next takes every name, but its `detect` refuses this config" in printed
    assert "Override `detect` only if you know that transformers computes the same." in printed
    assert "rules new" not in printed


def test_names_that_do_not_fit(run: Run, changed: Changed) -> None:
    """There a rule file of one's own is the way, whatever the config says; the command for it is
    told.
    """

    def another(tensors: Tensors) -> None:
        tensors["model.other.weight"] = tensors["model.image_newline"].clone()

    source = changed(
        TINY / "llava-v1.6-mistral" / "safetensors",
        another,
        lambda c: c.update(mm_patch_merge_type="flat"),
    )
    printed = refused(run, source, "LR311", "LR314", rules="llava-next")
    assert (
        f"llava-remap rules new --from {source} --to LlavaNextForConditionalGeneration --output "
        "mine.yaml" in printed
    )


def test_llava_1_5_given_to_the_file_of_another_family(run: Run, changed: Changed) -> None:
    printed = refused(run, changed(), "LR311", rules="llava-interleave")
    assert "it has no `model.image_newline`" in printed


def test_a_rule_file_that_matches_nothing(run: Run, changed: Changed, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("""\
schema: 1
name: other
version: 1.0.0
summary: a file for other names
sources: {model: {}}
target: {class: LlavaForConditionalGeneration}
names: [{id: other, from: 'other.{rest...}', to: '{rest}'}]
""")
    printed = refused(run, RELEASED / "safetensors", "LR305", rules=str(rules))
    assert "no rule of other takes any of the 27 names" in printed
    assert "model.layers.{0..1}.mlp.up_proj.weight" in printed


def test_a_wrapper_that_the_rule_file_leaves_on(run: Run, tmp_path: Path, changed: Changed) -> None:
    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors["module." + name] = tensors.pop(name)

    rules = tmp_path / "rules.yaml"
    rules.write_text("""\
schema: 1
name: no-wrappers
version: 1.0.0
summary: LLaVA without parts/wrappers.yaml
extends: [parts/buffers.yaml, parts/llava.yaml]
sources: {model: {}}
target: {class: LlavaForConditionalGeneration, config: {model_type: {const: llava}}}
""")
    assert "parts/wrappers.yaml" in refused(run, changed(tensors=wrap), "LR110", rules=str(rules))


def test_a_manifest_given_to_a_real_run(run: Run) -> None:
    ran = run(
        "apply", "llava-v1.5", "--source", MANIFESTS / "llava-v1.5-7b.json", "--output", "out"
    )
    assert ran.code == 1
    assert "LR111" in ran.out
    assert "--dry-run" in ran.out
    assert not Path("out").exists()


def test_a_drop_that_takes_what_the_target_wants(
    run: Run, tmp_path: Path, changed: Changed
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("""\
schema: 1
name: greedy
version: 1.0.0
summary: a drop that reaches too far
extends: [llava-v1.5.yaml]
prepare: [{id: norms, from: 'model.norm.{p}', drop: thought to be a buffer}]
""")
    ran = run(
        "apply", rules, "--source", changed(), "--source", f"vision_tower={CLIP}", "--output", "out"
    )
    assert ran.code == 1
    assert "LR302" in ran.out
    assert "LR306" in ran.out
    assert "the drop `prepare/norms` takes tensors that the model needs" in ran.out
    assert not Path("out").exists()


def test_names_with_doubled_segments(run: Run, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("""\
schema: 1
name: doubled
version: 1.0.0
summary: a rule that doubles a segment
extends: [llava-v1.5.yaml]
names: [{id: text-norm, from: 'model.norm.{p}', to: 'language_model.language_model.norm.{p}'}]
""")
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert ran.code == 1
    assert "LR307" in ran.out
    assert "language_model.language_model.norm.weight" in ran.out
    assert not Path("out").exists()


def test_non_finite_embeddings(run: Run, changed: Changed) -> None:
    """A value check: a dry run passes, unless it is asked to check values; a real run doesn't."""

    def poison(tensors: Tensors) -> None:
        tensors["model.embed_tokens.weight"][7, 3] = float("nan")
        tensors["model.embed_tokens.weight"][9, 1] = float("inf")

    sources = (
        "--source",
        changed(tensors=poison),
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert run("apply", "llava-v1.5", *sources, "--dry-run").code == 0
    checked = run("apply", "llava-v1.5", *sources, "--dry-run", "--check-values")
    real = run("apply", "llava-v1.5", *sources)
    for ran in (checked, real):
        assert ran.code == 1
        assert "LR406" in ran.out
        assert "2 values of `model.embed_tokens.weight` are inf or NaN" in ran.out
    assert not Path("out").exists()


def test_no_tower_anywhere(run: Run) -> None:
    ran = run("apply", "llava-v1.5", "--source", RELEASED / "bin", "--output", "out")
    assert ran.code == 3
    assert "LR114" in ran.out
    assert (
        "source `vision_tower` is not given, and `model` has no `model.vision_tower.{rest...}`"
        in ran.out
    )
    assert "--source vision_tower=DIR" in ran.out
    assert "openai/clip-vit-large-patch14-336" in ran.out
    assert not Path("out").exists()


def test_a_tower_whose_heads_nobody_tells(run: Run) -> None:
    """The tower is in the checkpoint, its dimensions are nobody's preset, and its own config
    isn't given.
    """
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        TINY / "llava-v1.5" / "full_state_dict",
        "--output",
        "out",
    )
    assert ran.code == 3
    assert "LR112" in ran.out
    assert "number of attention heads" in ran.out
    assert not Path("out").exists()


def test_an_output_that_is_not_empty(run: Run) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
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
    assert ran.code == 4
    assert "LR503" in ran.out
    assert [p.name for p in Path("out").iterdir()] == ["notes.txt"]


def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
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
    assert ran.code == 4
    assert "LR502" in ran.out
    assert "1,000 are free" in ran.out
    assert not Path("out").exists()


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_a_full_disk_and_nothing_to_write(
    back: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest has no values, so no room is needed for a plan of it; a checkpoint's dry run
    still says that there is none.
    """
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    manifest = MANIFESTS / "llava-v1.5-7b.json"
    forward, way_back = ("llava-v1.5", "--source", manifest), (manifest, "--rules", "llava-v1.5")
    way = ("revert", *way_back) if back else ("apply", *forward)
    ran = run(*way, "--dry-run", "--format", "json")
    assert "LR502" not in {problem["code"] for problem in ran.json["problems"]}
    assert back or (ran.code, ran.json["complete"]) == (0, True)
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
    )
    assert (ran.code, "LR502" in ran.out) == (4, True)


def test_a_tokenizer_with_more_words_than_rows(run: Run, changed: Changed) -> None:
    def cut(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:300].clone()

    def vocabulary(config: dict[str, Any]) -> None:
        config["vocab_size"] = 300

    printed = refused(run, changed(tensors=cut, config=vocabulary), "LR402")
    assert "embed_tokens has 300 rows" in printed
    assert "320 tokens" in printed


def test_an_image_processor_for_another_image_size(run: Run, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    for name in ("config.json", "model.safetensors"):
        (tower / name).write_bytes((CLIP / name).read_bytes())
    content = json.loads((CLIP / "preprocessor_config.json").read_text())
    content["crop_size"] = {"height": 42, "width": 42}
    (tower / "preprocessor_config.json").write_text(json.dumps(content))
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={tower}",
        "--output",
        "out",
    )
    assert ran.code == 1
    assert "LR604" in ran.out
    assert "images of 42 px make 9 tokens" in ran.out
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--source", "a", "--source", "b"), "source `model` is given twice"),
        (("--source", "vision_towr=a"), "Did you mean `vision_tower=a`?"),
        (("--source", RELEASED / "bin", "--report", "plan.txt"), "has to end in .html or .json"),
    ],
    ids=["twice", "misspelt", "report"],
)
def test_wrong_command_lines(arguments: tuple[object, ...], words: str, run: Run) -> None:
    ran = run("apply", "llava-v1.5", *arguments)
    assert ran.code == 2
    assert "LR211" in ran.err
    assert words in ran.err


def test_a_rule_file_without_a_default(run: Run) -> None:
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: x\nextends: [parts/llava.yaml]\n"
        "target: {class: LlavaForConditionalGeneration}\n"
    )
    ran = run("apply", "mine.yaml")
    assert ran.code == 2
    assert "no checkpoint is given for source `model`, and mine has no default" in ran.err


def test_unknown_rule_file(run: Run) -> None:
    ran = run("apply", "llava-1.5", "--source", RELEASED / "bin")
    assert ran.code == 2
    assert "Did you mean `llava-v1.5`?" in ran.err


def test_a_source_that_is_not_there(run: Run) -> None:
    ran = run("apply", "llava-v1.5", "--source", "nowhere", "--format", "json")
    assert ran.code == 3
    assert [p["code"] for p in ran.json["problems"]] == ["LR100"]
    assert ran.json["complete"] is False


def test_a_drop_of_everything_is_told_as_one(run: Run) -> None:
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.5.yaml]\n"
        "detect: {present: [], absent: []}\nnames: [{id: all, from: '{r...}', drop: too wide}]\n"
    )
    ran = run("apply", "mine.yaml", "--source", MANIFESTS / "llava-v1.5-7b.json", "--dry-run")
    assert ran.code == 1
    assert "LR305" not in ran.out
