"""`rules new` through the command line: the file, the dry run with it, the questions, and wrong
input.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llava_remap.authoring.draft import draft_rules
from llava_remap.authoring.draft_target import language_model
from llava_remap.authoring.in_file_tests import run_tests
from llava_remap.core.problem import RemapError
from llava_remap.report.inferred import ask_on_terminal
from llava_remap.rewrite import compile_rules
from llava_remap.rewrite.infer import Group, Question
from llava_remap.rulefile import load_rule_file
from tests.conftest import CLIP, DATA, MANIFESTS, TINY, Changed, Run, Tensors
from tests.end_to_end.test_expected import expected

LLAVA = "LlavaForConditionalGeneration"
SHAPES = dict[str, tuple[int, ...]]


def manifest(path: Path, shapes: SHAPES, config: dict[str, Any] | None = None) -> Path:
    tensors = {name: {"dtype": "F16", "shape": list(shape)} for name, shape in shapes.items()}
    content = {
        "format": "llava-remap/manifest",
        "format_version": 1,
        "name": path.stem,
        "config": config,
        "tensors": tensors,
    }
    path.write_text(json.dumps(content))
    return path


def target(name: str, config: dict[str, Any] | None = None) -> Path:
    """The names and shapes that a manifest is to become, as a manifest."""
    wanted = expected(name)
    config = (
        {"architectures": [wanted["class"]], "model_type": "llava"} if config is None else config
    )
    return manifest(
        Path("target.json"), {n: tuple(shape) for n, shape in wanted["target"].items()}, config
    )


@pytest.mark.parametrize(
    "name",
    [
        "llava-v1.5-7b",
        "bakllava-v1",
        "llava-med-v1.5-mistral-7b.released",
        "llava-interleave-qwen-0.5b.released",
    ],
)
@pytest.mark.parametrize("by_class", [False, True], ids=["manifest", "class"])
def test_a_complete_dry_run_at_once(name: str, by_class: bool, run: Run) -> None:
    source = MANIFESTS / f"{name}.json"
    wanted = expected(name)["class"] if by_class else target(name)
    made = run(
        "rules", "new", "--from", source, "--to", wanted, "--output", "mine.yaml", "--drop-rest"
    )
    assert made.code == 0, made.err + made.out
    assert "rules test mine.yaml" in made.out
    assert run("rules", "test", "mine.yaml").code == 0
    plan = run("apply", "mine.yaml", "--source", source, "--dry-run", "--format", "json").json
    assert plan["complete"] is True
    assert {m["from"][0]["name"]: m["target"] for m in plan["mapped"]} == expected(name)["map"]


def test_the_file_is_one_that_a_person_would_write(run: Run) -> None:
    assert (
        run(
            "rules",
            "new",
            "--from",
            MANIFESTS / "video-llava-7b.json",
            "--to",
            target("video-llava-7b"),
            "--output",
            "mine.yaml",
            "--drop-rest",
        ).code
        == 0
    )
    rules = load_rule_file("mine.yaml")
    assert len(rules.text.names) <= 15
    assert len(rules.text.tests) == len(rules.text.names)
    assert all(result.status == "passed" for result in run_tests(rules))
    assert rules.text.detect.present
    assert rules.text.detect.config["image_aspect_ratio"] == "pad"
    drops = [rule for rule in rules.text.names if rule.drop]
    assert [str(rule.from_) for rule in drops] == [
        "model.video_tower.video_tower.encoder.layers.{n:int}.temporal_{rest...}"
    ]
    text = Path("mine.yaml").read_text()
    assert text.index("# unsure: nothing in the target takes it") < text.index("drop-temporal")


def test_a_question_is_told_and_answered(run: Run) -> None:
    source = manifest(
        Path("source.json"),
        {f"h.{n}.ffn.{w}.weight": (16, 8) for n in range(3) for w in ("w1", "w3")}
        | {"out.norm.weight": (8,)},
    )
    wanted = manifest(
        Path("to.json"),
        {f"l.{n}.mlp.{w}.weight": (16, 8) for n in range(3) for w in ("gate", "up")}
        | {"norm.weight": (8,)},
    )
    new = ["rules", "new", "--from", source, "--to", wanted, "--output"]
    asked = run(*new, "asked.yaml")
    assert asked.code == 1
    assert "h.{0..2}.ffn.w1.weight" in asked.out
    assert "LR301" in asked.out
    assert "#   l.{0..2}.mlp.gate.weight" in Path("asked.yaml").read_text()
    program = compile_rules(load_rule_file("asked.yaml"))
    assert program.rewrite("h.0.ffn.w1.weight").target is None
    for answer in (
        "h.{0..2}.ffn.w1.weight=l.{0..2}.mlp.up.weight",
        "h.1.ffn.w1.weight=l.1.mlp.up.weight",
    ):
        assert run(*new, "answered.yaml", "--map", answer).code == 0
        program = compile_rules(load_rule_file("answered.yaml"))
        assert program.rewrite("h.2.ffn.w1.weight").target == "l.2.mlp.up.weight"
        assert program.rewrite("h.2.ffn.w3.weight").target == "l.2.mlp.gate.weight"
        Path("answered.yaml").unlink()


def test_who_is_asked_may_leave_it_open() -> None:
    """Every question is put once; an answer settles the one beside it, so that isn't put at all."""
    source = manifest(Path("source.json"), {"a.0.weight": (8, 8), "a.1.weight": (8, 8)})
    wanted = manifest(Path("to.json"), {"b.linear_1.weight": (8, 8), "b.linear_2.weight": (8, 8)})
    asked: list[str] = []

    def answer(question: Question, choice: int | None) -> Group | None:
        asked.append(question.source.folded)
        return None if choice is None else question.candidates[choice]

    left_open = draft_rules(
        [str(source)],
        str(wanted),
        Path("open.yaml"),
        ["a.1.weight=b.linear_1.weight"],
        ask=lambda question: answer(question, None),
    )
    assert (asked, left_open.problems) == ([], [])
    with pytest.raises(RemapError, match="LR305"):
        draft_rules(
            [str(source)],
            str(wanted),
            Path("none.yaml"),
            ask=lambda question: answer(question, None),
        )
    assert asked == ["a.0.weight", "a.1.weight"]
    settled = draft_rules(
        [str(source)], str(wanted), Path("settled.yaml"), ask=lambda question: answer(question, 1)
    )
    assert asked[2:] == ["a.0.weight"]
    assert [rule.to for rule in settled.found.rules] == ["b.linear_2.weight", "b.linear_1.weight"]


def test_single_names_are_answered_too(run: Run) -> None:
    source = manifest(Path("source.json"), {"a.0.weight": (8, 8), "a.1.weight": (8, 8)})
    wanted = manifest(Path("to.json"), {"b.linear_1.weight": (8, 8), "b.linear_2.weight": (8, 8)})
    answer = "a.0.weight=b.linear_1.weight"
    assert (
        run(
            "rules", "new", "--from", source, "--to", wanted, "--output", "m.yaml", "--map", answer
        ).code
        == 0
    )
    assert (
        compile_rules(load_rule_file("m.yaml")).rewrite("a.1.weight").target == "b.linear_2.weight"
    )


@pytest.mark.parametrize(
    "checkpoint",
    ["llava-v1.5/full_state_dict", "llava-v1.6-mistral/safetensors", "llava-onevision/bin"],
)
def test_small_checkpoints(checkpoint: str, run: Run) -> None:
    """Two layers, and hidden sizes that coincide; the target is what shipped knowledge of these
    names says.
    """
    from llava_remap.source.sources import open_source

    names = {
        t.name: t.shape
        for t in open_source(
            "model", str(TINY / checkpoint), ("tensors",), first=True
        ).catalog.values()
    }
    program = compile_rules(load_rule_file("llava-v1.5"))
    taken = {
        name: "image_newline" if name.endswith("image_newline") else program.rewrite(name).target
        for name in names
    }
    wanted = manifest(
        Path("to.json"), {new: names[name] for name, new in taken.items() if new is not None}
    )
    assert (
        run(
            "rules", "new", "--from", TINY / checkpoint, "--to", wanted, "--output", "mine.yaml"
        ).code
        == 0
    )
    mine = compile_rules(load_rule_file("mine.yaml"))
    assert {name: mine.rewrite(name).target for name in names} == taken
    assert len(mine.names) <= 15


def test_a_target_in_todays_module_names(run: Run) -> None:
    def module(name: str) -> str:
        if name == "language_model.lm_head.weight":
            return "lm_head.weight"
        for old, new in (
            ("language_model.model.", "language_model."),
            ("vision_tower.vision_model.", "vision_tower."),
        ):
            if name.startswith(old):
                return "model." + new + name.removeprefix(old)
        return "model." + name

    shapes = {
        module(name): tuple(shape) for name, shape in expected("llava-v1.5-7b")["target"].items()
    }
    wanted = manifest(
        Path("to.json"),
        shapes,
        {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"},
    )
    source = MANIFESTS / "llava-v1.5-7b.json"
    assert run("rules", "new", "--from", source, "--to", wanted, "--output", "mine.yaml").code == 0
    program = compile_rules(load_rule_file("mine.yaml"))
    assert {
        name: program.rewrite(name).target for name in expected("llava-v1.5-7b")["map"]
    } == expected("llava-v1.5-7b")["map"]


def test_a_converted_checkpoint_is_a_target(run: Run) -> None:
    source = TINY / "llava-v1.5" / "full_state_dict"
    given = ["--source", source, "--source", f"vision_tower={TINY / 'clip-vit-tiny-patch14-28'}"]
    assert run("apply", "llava-v1.5", *given, "--output", "converted").code == 0
    config = json.loads(Path("converted/config.json").read_text())
    config["vision_feature_layer"] = [-1]
    config["id2label"] = {"0": "LABEL_0"}
    Path("converted/config.json").write_text(json.dumps(config))
    assert (
        run("rules", "new", "--from", source, "--to", "converted", "--output", "mine.yaml").code
        == 0
    )
    with safe_open("converted/model-00001-of-00001.safetensors", "np") as file:
        written = set(file.keys())
    program = compile_rules(load_rule_file("mine.yaml"))
    from llava_remap.source.sources import open_source

    names = open_source("model", str(source), ("tensors",), first=True).catalog
    assert {program.rewrite(name).target for name in names} - {None} == written
    constant = load_rule_file("mine.yaml").target.config["vision_feature_layer"].const
    assert list(constant) == [-1]
    assert "id2label" not in Path("mine.yaml").read_text()
    assert run("apply", "mine.yaml", *given, "--dry-run").code == 0
    # The config alone is enough: the class that it names is built from it.
    assert (
        run(
            "rules",
            "new",
            "--from",
            source,
            "--to",
            "converted/config.json",
            "--output",
            "again.yaml",
        ).code
        == 0
    )


def test_source_equal_to_target(run: Run) -> None:
    same = target("llava-v1.5-7b")
    assert run("rules", "new", "--from", same, "--to", same, "--output", "mine.yaml").code == 0
    program = compile_rules(load_rule_file("mine.yaml"))
    assert all(program.rewrite(name).target == name for name in expected("llava-v1.5-7b")["target"])


def test_nothing_is_overwritten(run: Run) -> None:
    Path("mine.yaml").write_text("work of days")
    ran = run("rules", "new", "--from", "nowhere.json", "--to", "Nothing", "--output", "mine.yaml")
    assert (ran.code, "LR508" in ran.err) == (4, True)
    assert Path("mine.yaml").read_text() == "work of days"


@pytest.mark.parametrize(
    ("to", "options", "code", "said"),
    [
        ("nowhere.json", [], 2, "LR211"),
        ("NoSuchClass", [], 2, "LR211"),
        ("BertModel", [], 1, "LR601"),
        ("config.json", [], 2, "names no class"),
        ("bare.json", [], 2, "no text_config"),
        ("target.json", ["--map", "nonsense"], 2, "FROM=TO"),
        ("target.json", ["--map", "model.nrm.weight=x"], 2, "Did you mean `model.norm.weight`?"),
        (
            "target.json",
            ["--map", "model.norm.weight=language_model.lm_head.weight"],
            2,
            "the shapes are",
        ),
        (
            "target.json",
            ["--map", "lm_head.weight=language_model.model.layers.{0..31}.mlp.up_proj.weight"],
            2,
            "different layers",
        ),
        ("other.json", [], 1, "LR305"),
        ("target.json", ["--output", "no/such/folder/x.yaml"], 4, "LR508"),
    ],
)
def test_wrong_input(to: str, options: list[str], code: int, said: str, run: Run) -> None:
    target("llava-v1.5-7b")
    Path("config.json").write_text("{}")
    Path("bare.json").write_text('{"architectures": ["LlavaForConditionalGeneration"]}')
    manifest(Path("other.json"), {"x.y.z": (3, 5, 7)})
    ran = run(
        "rules",
        "new",
        "--from",
        MANIFESTS / "llava-v1.5-7b.json",
        "--to",
        to,
        "--output",
        "mine.yaml",
        *options,
    )
    assert ran.code == code, ran.err
    assert said in ran.err
    assert not Path("mine.yaml").exists()


def test_a_class_needs_a_config(run: Run) -> None:
    source = manifest(Path("bare.json"), {"model.embed_tokens.weight": (8, 8)})
    ran = run(
        "rules",
        "new",
        "--from",
        source,
        "--to",
        "LlavaForConditionalGeneration",
        "--output",
        "mine.yaml",
    )
    assert (ran.code, "has no config" in ran.err, "a manifest" in ran.err) == (2, True, True)


def test_manifest_to_manifest_needs_no_torch() -> None:
    wanted = target(
        "llava-v1.5-7b", {}
    )  # with a class, transformers is asked about the draft's values
    code = (
        "import sys\nfrom llava_remap.authoring.draft import draft_rules\n"
        "from pathlib import Path\n"
    )
    code += (
        f"draft_rules([{str(MANIFESTS / 'llava-v1.5-7b.json')!r}], {str(wanted)!r}, "
        "Path('m.yaml'))\n"
    )
    code += "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(DATA.parents[1])},
    )
    assert ran.stdout.strip() == "[]"


def test_a_variant_of_unknown_architecture_and_tower(run: Run) -> None:
    """A class is enough of a target for the names. The kind of language model, which no tensor
    shows, is left to the author.
    """
    ran = run(
        "rules",
        "new",
        "--from",
        DATA / "fork",
        "--to",
        "LlavaForConditionalGeneration",
        "--output",
        "mine.yaml",
        "--drop-rest",
    )
    assert (ran.code, "LR112" in ran.out, "language model: " in ran.out) == (1, True, False)
    assert ran.out.splitlines()[-1] == "  llava-remap rules lint mine.yaml"
    rules = load_rule_file("mine.yaml")
    assert [rule.kind.describe() for rule in rules.text.names] == [
        ("connector.fc1.{p}", "multi_modal_projector.linear_1.{p}"),
        ("connector.fc2.{p}", "multi_modal_projector.linear_2.{p}"),
        ("language.{rest...}", "language_model.model.{rest}"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("value_head.weight", None),
        ("vision.{rest...}", "vision_tower.vision_model.{rest}"),
    ]
    sources = ("--source", DATA / "fork", "--source", f"vision_tower={CLIP}")
    lint = run("rules", "lint", "mine.yaml")
    assert (lint.code, "`text_config.model_type` has no value" in lint.out) == (2, True)
    refused = run("apply", "mine.yaml", *sources, "--dry-run")
    assert refused.code != 0
    assert "text_config.model_type: {const: TYPE}" in refused.out + refused.err
    text = Path("mine.yaml").read_text()
    text = text.replace(
        "text_config.model_type: {const: null}", "text_config.model_type: {const: llama}"
    )
    Path("mine.yaml").write_text(
        text.replace("parts/pad.yaml]", "parts/pad.yaml, parts/chat-vicuna.yaml]")
    )
    assert run("rules", "lint", "mine.yaml").code == 0
    plan = run("apply", "mine.yaml", *sources, "--dry-run", "--format", "json").json
    assert plan["complete"] is True
    assert [dropped["name"] for dropped in plan["dropped"]] == ["value_head.weight"]


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("LlavaMistralForCausalLM", "mistral"),
        ("MineGemmaForCausalLM", "gemma"),
        ("PhiForCausalLM", "phi"),
    ],
)
def test_the_language_model_is_the_one_that_the_config_names(architecture: str, kind: str) -> None:
    """Found as `apply` finds it, so nothing of it stands in the draft."""
    config = json.loads(
        (TINY / "llava-v1.5" / "released" / "safetensors" / "config.json").read_text()
    )
    _, text, unsaid = language_model(
        "LlavaForConditionalGeneration",
        [config | {"architectures": [architecture], "model_type": "mine"}],
        "llama",
    )
    assert (text.kind, unsaid) == (kind, "")


def whole(edit: Callable[[Tensors], object] = lambda tensors: None) -> Path:
    """A genuine checkpoint with its tower, its tensors changed by a function."""
    source, folder = TINY / "llava-v1.5" / "full_state_dict", Path("whole")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.bin"))
    tensors = {
        name: tensor.clone()
        for name, tensor in torch.load(source / "model_state_dict.bin", weights_only=True).items()
    }
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def own_norms(tensors: Tensors) -> None:
    """What a Llama doesn't have, inside its layers and beside them."""
    for name in [
        name
        for name in tensors
        if name.startswith("model.layers.") and name.endswith("q_proj.weight")
    ]:
        tensors[name.replace("q_proj", "q_norm")] = torch.ones(16)
    tensors["model.adapter.gate.weight"] = torch.ones(3)
    tensors["lm_head.scale"] = torch.ones(5)
    tensors["aux.weight"] = torch.ones(7)


def test_nothing_is_dropped_in_the_language_model(run: Run) -> None:
    source = whole(own_norms)
    new = ("rules", "new", "--from", source, "--to", "LlavaForConditionalGeneration", "--output")
    ran = run(*new, "mine.yaml", "--drop-rest")
    assert ran.code == 1
    drops = [str(rule.from_) for rule in load_rule_file("mine.yaml").text.names if rule.drop]
    assert drops == ["aux.weight"]
    assert "model.layers.{0..1}.self_attn.q_norm.weight" in ran.out
    assert "lm_head.scale" in ran.out
    assert "--drop-rest" not in ran.out
    offered = run(*new, "other.yaml").out
    inside, outside = offered.split("LR301 source names that no rule maps")[1:]
    assert ("--drop-rest" in inside, "aux.weight" in inside) == (False, False)
    assert ("--drop-rest" in outside, "aux.weight" in outside) == (True, True)


@pytest.mark.parametrize(
    "values",
    [{"rms_norm_eps": 3e-3}, {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}],
)
def test_the_values_of_a_whole_config_are_carried(values: dict[str, Any], run: Run) -> None:
    source = TINY / "llava-v1.5" / "full_state_dict"
    given = ["--source", source, "--source", f"vision_tower={CLIP}"]
    assert run("apply", "llava-v1.5", *given, "--output", "converted").code == 0
    config = json.loads(Path("converted/config.json").read_text())
    for key in ("rope_theta", "rope_scaling"):
        config["text_config"].pop(key, None)
    config["text_config"] |= values
    config |= {
        "return_dict": True,
        "id2label": {"0": "LABEL_0"},
        "vision_feature_select_strategy": "full",
    }
    Path("target.json").write_text(json.dumps(config))
    assert (
        run("rules", "new", "--from", source, "--to", "target.json", "--output", "mine.yaml").code
        == 0
    )
    text = Path("mine.yaml").read_text()
    assert ("id2label" in text, "return_dict" in text) == (False, False)
    assert run("apply", "mine.yaml", *given, "--output", "out").code == 0
    made = json.loads(Path("out/config.json").read_text())
    assert made["vision_feature_select_strategy"] == "full"
    for key, value in values.items():
        assert made["text_config"][key] == value
    if "rope_parameters" in values:  # also under the keys of 4.x
        assert made["text_config"]["rope_theta"] == 777.0


def test_several_sources(run: Run) -> None:
    """The tower of its own checkpoint, of which the half for text is left."""

    def bare(tensors: Tensors) -> None:
        for name in [name for name in tensors if "vision_tower" in name]:
            del tensors[name]

    source = whole(bare)
    new = (
        "rules",
        "new",
        "--from",
        source,
        "--to",
        "LlavaForConditionalGeneration",
        "--output",
        "mine.yaml",
    )
    alone = run(*new)
    assert (alone.code, "--from vision_tower=DIR" in alone.err) == (2, True)
    ran = run(*new, "--from", f"vision_tower={CLIP}")
    assert ran.code == 0, ran.out
    tower = load_rule_file("mine.yaml").text.sources["vision_tower"]
    assert str(tower.select) == "vision_model.{rest...}"
    given = ("--source", f"model={source}", "--source", f"vision_tower={CLIP}")
    assert ran.out.splitlines()[-1].split(" apply ")[1].split()[:5] == [
        "mine.yaml",
        *map(str, given),
    ]
    assert (
        run("apply", "mine.yaml", *given, "--dry-run", "--format", "json").json["complete"] is True
    )
    assert run("rules", "lint", "mine.yaml").code == 0
    twice = run(*new[:-1], "again.yaml", "--from", f"model={source}")
    assert (twice.code, "given twice" in twice.err) == (2, True)


def test_names_that_two_sources_share_get_a_prefix(run: Run) -> None:
    one = manifest(
        Path("one.json"),
        {"layers.0.up.weight": (8, 4), "layers.1.up.weight": (8, 4), "norm.weight": (4,)},
    )
    two = manifest(Path("two.json"), {"layers.0.up.weight": (6, 2), "layers.1.up.weight": (6, 2)})
    wanted = manifest(
        Path("to.json"),
        {f"text.{n}.up.weight": (8, 4) for n in (0, 1)}
        | {f"eye.{n}.up.weight": (6, 2) for n in (0, 1)}
        | {"norm.weight": (4,)},
    )
    assert (
        run(
            "rules",
            "new",
            "--from",
            one,
            "--from",
            f"eye={two}",
            "--to",
            wanted,
            "--output",
            "m.yaml",
        ).code
        == 0
    )
    assert load_rule_file("m.yaml").text.sources["eye"].prefix == "eye."
    program = compile_rules(load_rule_file("m.yaml"))
    assert program.rewrite("eye.layers.1.up.weight").target == "eye.1.up.weight"
    assert program.rewrite("layers.1.up.weight").target == "text.1.up.weight"


@pytest.mark.parametrize("form", ["index", "list"])
def test_names_alone_are_enough_to_begin_with(form: str, run: Run) -> None:
    source = whole()
    names = list(load_file(source / "model.safetensors"))
    Path("src").mkdir()
    shutil.copy(source / "config.json", "src")
    given = Path("src")
    if form == "list":
        given = Path("src/names.txt")
        given.write_text("\n".join(names) + "\n")
    else:
        Path("src/model.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")})
        )
    new = ("rules", "new", "--from", given, "--to", "LlavaForConditionalGeneration", "--output")
    asked = run(*new, "asked.yaml")
    assert (asked.code, asked.out.count("  asked")) == (
        1,
        4,
    )  # only shapes distinguish the projector's layers
    answers = [
        f"model.mm_projector.{n}.{p}=multi_modal_projector.linear_{n // 2 + 1}.{p}"
        for n in (0, 2)
        for p in ("weight", "bias")
    ]
    ran = run(*new, "mine.yaml", *(part for answer in answers for part in ("--map", answer)))
    assert ran.code == 0, ran.out + ran.err
    assert "only names are known" in Path("mine.yaml").read_text()
    mine, shipped = (compile_rules(load_rule_file(file)) for file in ("mine.yaml", "llava-v1.5"))
    assert [mine.rewrite(name).target for name in names] == [
        shipped.rewrite(name).target for name in names
    ]
    assert run("rules", "lint", "llava-v1.5", "--source", given).code == 0
    assert (
        "language_model.lm_head.weight"
        in run("rules", "explain", "llava-v1.5", "--source", given).out
    )
    assert run("apply", "llava-v1.5", "--source", given, "--dry-run").code != 0


@pytest.mark.parametrize("content", ["", "two words\n", "\xff"])
def test_what_is_no_list_of_names(content: str, run: Run) -> None:
    Path("names.txt").write_bytes(content.encode("latin-1"))
    ran = run("rules", "explain", "llava-v1.5", "--source", "names.txt")
    assert (ran.code, "LR102" in ran.err, "one a line" in ran.err) == (3, True, True)


def test_what_is_printed_is_capped(run: Run) -> None:
    source = manifest(Path("source.json"), {f"a{n}x.w{n}q.weight": (n + 2, 3) for n in range(500)})
    wanted = manifest(
        Path("to.json"),
        {f"b{n}x.w{n}q.weight": (n + 2, 3) for n in range(400)} | {"z.weight": (1, 1, 1)},
    )
    ran = run("rules", "new", "--from", source, "--to", wanted, "--output", "mine.yaml")
    assert ran.code == 1
    assert len(ran.out.splitlines()) < 120
    assert "… and 360 more in mine.yaml" in ran.out
    assert len(load_rule_file("mine.yaml").text.names) == 400


@pytest.mark.parametrize("wrapper", ["", "net.", "student.net."])
def test_a_chat_template_is_taken_from_the_family_behind_what_is_around_all(
    wrapper: str, run: Run
) -> None:
    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[wrapper + name] = tensors.pop(name)

    source = whole(wrap)
    assert (
        run(
            "rules",
            "new",
            "--from",
            source,
            "--to",
            "LlavaForConditionalGeneration",
            "--output",
            "m.yaml",
        ).code
        == 0
    )
    assert "parts/chat-vicuna.yaml" in [name for name, _ in load_rule_file("m.yaml").texts]


def test_a_rule_file_without_a_chat_template_is_told_which_parts_have_one(run: Run) -> None:
    source = TINY / "llava-v1.5" / "full_state_dict"
    assert (
        run(
            "rules",
            "new",
            "--from",
            source,
            "--to",
            "LlavaForConditionalGeneration",
            "--output",
            "m.yaml",
        ).code
        == 0
    )
    text = Path("m.yaml").read_text()
    Path("m.yaml").write_text(re.sub(r", parts/chat-[a-z0-9-]+\.yaml(?=.*\])", "", text))
    ran = run(
        "apply", "m.yaml", "--source", source, "--source", f"vision_tower={CLIP}", "--output", "out"
    )
    assert ran.code == 1
    assert "LR605" in ran.out + ran.err
    assert "parts/chat-vicuna.yaml" in ran.out + ran.err


def test_no_answer_on_a_terminal_leaves_a_question_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: object) -> str:
        raise EOFError

    console = Console()
    monkeypatch.setattr(console, "input", nothing)
    assert (
        ask_on_terminal(console, Question(Group(("a",), {(): (1,)}), (Group(("b",), {(): (1,)}),)))
        is None
    )


def test_an_answer_of_another_shape_is_refused(run: Run) -> None:
    """One row is no smaller vocabulary."""
    answer = ("--map", "value_head.weight=language_model.lm_head.weight")
    ran = run(
        "rules",
        "new",
        "--from",
        DATA / "fork",
        "--to",
        "LlavaForConditionalGeneration",
        "--output",
        "m.yaml",
        *answer,
    )
    assert (ran.code, Path("m.yaml").exists()) == (2, False)
    assert "the shapes are (1, 64) and (320, 64)" in ran.err


def test_a_draft_without_a_chat_template_says_so(run: Run, tmp_path: Path) -> None:
    tensors = load_file(DATA / "fork" / "model.safetensors")
    shutil.copytree(DATA / "fork", "other")
    save_file(
        {f"student.net.{name}": tensor for name, tensor in tensors.items()},
        "other/model.safetensors",
    )
    ran = run(
        "rules",
        "new",
        "--from",
        "other",
        "--to",
        "LlavaForConditionalGeneration",
        "--output",
        "m.yaml",
        "--drop-rest",
    )
    assert "no chat template" in ran.out
    assert "# unsure: no chat template" in Path("m.yaml").read_text()
    assert "parts/chat-vicuna.yaml" in ran.out


def test_what_nothing_takes_is_not_dropped_unasked(run: Run) -> None:
    """LLaVA-1.6 taken for 1.5 lacks nothing; its `image_newline` is all that tells."""
    source = (
        "--from",
        MANIFESTS / "llava-v1.6-vicuna-7b.released.json",
        "--to",
        "LlavaForConditionalGeneration",
    )
    ran = run("rules", "new", *source, "--output", "mine.yaml")
    assert ran.code == 1
    assert "LR301" in ran.out
    assert "model.image_newline" in ran.out
    assert "drop:" not in Path("mine.yaml").read_text()
    assert run("apply", "mine.yaml", "--source", source[1], "--dry-run").code == 1


@pytest.mark.parametrize(
    ("checkpoint", "class_name", "tower"),
    [
        (
            "llava-v1.6-mistral/safetensors",
            "LlavaNextForConditionalGeneration",
            "clip-vit-tiny-patch14-28",
        ),
        ("llava-onevision/bin", "LlavaOnevisionForConditionalGeneration", "siglip-tiny-patch14-28"),
    ],
)
def test_a_draft_for_tiles_carries_what_its_class_needs(
    checkpoint: str, class_name: str, tower: str, run: Run
) -> None:
    """The processors of the class, its keys, and nothing that it doesn't have: the draft works
    as it is.
    """
    source = TINY / checkpoint
    assert (
        run("rules", "new", "--from", source, "--to", class_name, "--output", "mine.yaml").code == 0
    )
    assert run("rules", "lint", "mine.yaml").code == 0
    given = ["--source", source, "--source", f"vision_tower={TINY / tower}"]
    made = run("apply", "mine.yaml", *given, "--output", "out")
    assert made.code == 0, made.out + made.err
    config = json.loads(Path("out/config.json").read_text())
    assert config["image_grid_pinpoints"]
    assert ("image_seq_length" in config) == (class_name == "LlavaNextForConditionalGeneration")


def test_a_draft_of_tiles_for_a_class_without_them_tells_it(changed: Changed, run: Run) -> None:
    """The draft's own `detect` takes the source's config as it is; the class would see one
    square in place of the tiles.
    """
    source = changed(
        TINY / "llava-v1.5" / "released" / "safetensors",
        config=lambda c: c.update(image_aspect_ratio="anyres"),
    )
    for path in source.glob("*token*"):
        path.unlink()
    given = (
        "--from",
        source,
        "--from",
        f"vision_tower={CLIP}",
        "--to",
        "LlavaForConditionalGeneration",
    )
    drafted = run("rules", "new", *given, "--output", "mine.yaml")
    assert (drafted.code, "image_aspect_ratio: anyres cuts pictures into tiles" in drafted.out) == (
        0,
        True,
    )
    assert run("rules", "lint", "mine.yaml").code == 0
    made = run(
        "apply",
        "mine.yaml",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert (
        made.code,
        "LR315" in made.out,
        "trained on pictures cut into tiles" in " ".join(made.out.split()),
    ) == (0, True, True)


def test_a_draft_takes_away_keys_that_the_class_lacks(run: Run) -> None:
    """Without a part for its class, a draft says null for each key of the shared part that the
    class doesn't have.
    """
    from llava_remap.authoring.draft_target import bare_rules
    from llava_remap.target_model import unknown_target

    for class_name in ("AyaVisionForConditionalGeneration", "VideoLlavaForConditionalGeneration"):
        assert unknown_target(bare_rules(class_name)) == []


def test_a_processor_that_fails_names_the_part_for_its_class(run: Run) -> None:
    source = TINY / "llava-v1.6-mistral" / "safetensors"
    text = (
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: mine\nextends: [bakllava.yaml]\n"
        "detect: {config: {}}\n"
    )
    Path("mine.yaml").write_text(
        text.replace(
            "bakllava.yaml",
            "parts/llava.yaml, parts/wrappers.yaml, parts/clip-tower.yaml, parts/chat-mistral.yaml",
        )
        + "names: [{id: newline, from: model.image_newline, to: image_newline}]\n"
        + "config_keys: {image_grid_pinpoints: unused}\n"
        + "target: {class: LlavaNextForConditionalGeneration, config: {model_type: {const: "
        "llava_next}}}\n" + "processor: {class: LlavaNextProcessor}\n"
    )
    ran = run(
        "apply", "mine.yaml", "--source", source, "--source", f"vision_tower={CLIP}", "--dry-run"
    )
    assert (ran.code, "LR605" in ran.out, "parts/class-llava-next.yaml" in ran.out) == (
        1,
        True,
        True,
    ), ran.out + ran.err


def test_the_note_on_chat_says_which_parts_can_be_meant(run: Run) -> None:
    """A tokenizer without the tokens of a part, or another language model, rules the part out."""
    shutil.copytree(TINY / "llava-v1.5" / "full_state_dict", "mine")
    command = ("rules", "new", "--from", "mine", "--to", LLAVA, "--output")
    out = " ".join(run(*command, "mine.yaml").out.split())
    possible = "parts/chat-llama-2.yaml, parts/chat-vicuna-human.yaml, parts/chat-vicuna.yaml"
    assert f"Tokenizer and config allow {possible} " in out
    for file in Path("mine").glob("*token*"):
        file.unlink()
    out = run(*command, "other.yaml").out
    assert ("(`--version`)" in out, "it can be" in out) == (True, False)
