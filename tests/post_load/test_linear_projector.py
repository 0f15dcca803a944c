"""LLaVA 1.0: its projector, one linear layer, is written as transformers' two layers. The second
layer is made up and changes nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from llava_remap.authoring.shrink import shrink
from llava_remap.core.dtypes import TORCH_DTYPES
from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import apply
from llava_remap.jobs.apply import plan as plan_job
from llava_remap.jobs.load import load_model
from llava_remap.post_load import Before
from llava_remap.post_load.run import load_post_load_rule
from llava_remap.source import sources
from llava_remap.verification.record import RECORD
from tests.conftest import CLIP, DATA, MANIFESTS, RELEASED, Run, Tensors, with_own_digest

LIGHTNING = "llava-lightning-7b-v1-1.released"
ONE, SECOND = (f"multi_modal_projector.linear_{n}" for n in (1, 2))
ACT = "projector_hidden_act"
LINEAR = {ACT: "linear"}
DTYPES = ("F16", "BF16", "F32")
PARTS = MANIFESTS / "parts"


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small twin of LLaVA-Lightning, with its tower beside it."""
    folder = tmp_path_factory.mktemp("lightning") / "small"
    shrink(MANIFESTS / f"{LIGHTNING}.json", folder)
    return folder


@pytest.fixture(scope="module")
def out(twin: Path) -> Path:
    """The twin, converted."""
    folder = twin.parent / "out"
    apply("llava-v1", given(twin), folder, verify="full")
    return folder


def given(folder: Path, tower: Path | None = None) -> list[str]:
    return [str(folder), f"vision_tower={tower or folder / 'vision_tower'}"]


def arguments(folder: Path) -> list[str]:
    return [argument for source in given(folder) for argument in ("--source", source)]


def tensors_of(folder: Path) -> Tensors:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def changed(
    folder: Path, copy: Path, tensors: Callable[[Tensors], Tensors] = lambda t: t, **config: Any
) -> Path:
    """A copy of a checkpoint with other tensors, and entries put into its config; None takes one
    out.
    """
    shutil.copytree(folder, copy)
    save_file(
        tensors(load_file(folder / "model.safetensors")),
        copy / "model.safetensors",
        {"format": "pt"},
    )
    content = {**json.loads((copy / "config.json").read_text()), **config}
    (copy / "config.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    return copy


def as_dtype(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not any(info.values())
    return model.eval()


@pytest.mark.parametrize("stored", DTYPES)
def test_it_computes_what_one_linear_layer_does(stored: str, twin: Path, tmp_path: Path) -> None:
    """Bit for bit; and the logits are those of tower, layer and language model put together by
    hand from the sources' tensors.
    """
    dtype = getattr(torch, TORCH_DTYPES[stored])
    source = changed(twin, tmp_path / "source", as_dtype(dtype))
    tower_folder = changed(twin / "vision_tower", tmp_path / "tower", as_dtype(dtype))
    apply("llava-v1", given(source, tower_folder), "out", verify="full")
    written = tensors_of(Path("out"))
    assert {written[f"{SECOND}.{part}"].dtype for part in ("weight", "bias")} == {dtype}
    original = load_file(source / "model.safetensors")
    weight, bias = (original[f"model.mm_projector.{part}"] for part in ("weight", "bias"))
    model = loaded(Path("out"), dtype)
    tower = CLIPVisionModel.from_pretrained(tower_folder, dtype=dtype).eval()
    config = json.loads((source / "config.json").read_text())
    text = LlamaConfig(**{key: value for key, value in config.items() if "mm_" not in key})
    state = {name: tensor for name, tensor in original.items() if "mm_projector" not in name}
    language = LlamaForCausalLM.from_pretrained(
        None, config=text, state_dict=state, dtype=dtype
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for size in (1e-3, 1.0, 1e3):
            features = (size * torch.randn(50, weight.shape[1])).to(dtype)
            alone = torch.nn.functional.linear(features, weight, bias)
            assert torch.equal(model.model.multi_modal_projector(features), alone)
        pixels = torch.randn(1, 3, 196, 196).to(dtype)
        features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        image = torch.nn.functional.linear(features, weight, bias)
        found = model.get_image_features(pixel_values=pixels).pooler_output
        assert torch.equal(torch.cat(list(found)), image[0])
        ids = torch.tensor([[1, 5, *[model.config.image_token_id] * image.shape[1], 7, 11, 13]])
        embedded = language.get_input_embeddings()(ids.clamp(max=config["vocab_size"] - 1)).clone()
        embedded[ids == model.config.image_token_id] = image[0]
        wanted = language(inputs_embeds=embedded).logits
        logits = model(input_ids=ids, pixel_values=pixels).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[..., : wanted.shape[-1]], wanted)


def test_another_activation_computes_something_else(out: Path, tmp_path: Path) -> None:
    """What the tests above would see if the config said nothing of the activation."""
    copy = tmp_path / "gelu"
    shutil.copytree(out, copy)
    content = json.loads((copy / "config.json").read_text())
    assert content.pop("projector_hidden_act") == "linear"
    (copy / "config.json").write_text(json.dumps(content))
    projectors = [
        loaded(folder, torch.float32).model.multi_modal_projector for folder in (out, copy)
    ]
    features = torch.randn(5, 64)
    with torch.no_grad():
        linear, gelu = (projector(features) for projector in projectors)
    assert not torch.allclose(linear, gelu, atol=1e-2)


def test_what_is_made(out: Path) -> None:
    written = tensors_of(out)
    assert torch.equal(written[f"{SECOND}.weight"], torch.eye(128, dtype=torch.float16))
    assert torch.equal(written[f"{SECOND}.bias"], torch.zeros(128, dtype=torch.float16))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(written)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())


def test_the_plan_says_it(twin: Path, run: Run) -> None:
    ran = run("apply", "llava-v1", *arguments(twin), "--dry-run", "--format", "json")
    plan = ran.json
    assert (ran.code, plan["complete"], plan["missing"]) == (0, True, [])
    made = [
        {key: entry[key] for key in ("target", "dtype", "shape", "from", "then", "rules")}
        for entry in plan["mapped"]
        if not entry["from"]
    ]
    assert made == [
        {
            "target": f"{SECOND}.{part}",
            "dtype": "F16",
            "shape": shape,
            "from": [],
            "then": [{"post_load": {"use": "identity_layer", "before": None}}],
            "rules": [],
        }
        for part, shape in (("bias", [128]), ("weight", [128, 128]))
    ]
    changes = {
        change["target"]: (change["shape_before"], change["shape_after"])
        for change in plan["post_load"]
    }
    assert changes[f"{SECOND}.weight"] == (None, [128, 128])
    text = run("apply", "llava-v1", *arguments(twin), "--dry-run").out
    assert "multi_modal_projector   4/4   from identity_layer (2), model (2)\n" in text
    assert f"Made\n  {SECOND}.bias (identity_layer)\n  {SECOND}.weight (identity_layer)\n" in text


@pytest.mark.parametrize(
    "name",
    [
        LIGHTNING,
        "llava-v1-0719-336px-vicuna-7b-v1.3.released",
        "llava-v1-0719-336px-vicuna-13b-v1.3.released",
    ],
)
def test_full_size_with_the_tower_that_the_config_names(name: str, run: Run) -> None:
    config = json.loads((MANIFESTS / f"{name}.json").read_text())["config"]
    tower = MANIFESTS / f"{config['mm_vision_tower'].split('/')[1]}.json"
    sources = ("--source", MANIFESTS / f"{name}.json", "--source", f"vision_tower={tower}")
    plan = run("apply", "llava-v1", *sources, "--dry-run", "--format", "json").json
    hidden = config["hidden_size"]
    mapped = {entry["target"]: entry for entry in plan["mapped"]}
    assert plan["complete"]
    assert mapped[f"{ONE}.weight"]["from"] == [
        {"source": "model", "name": "model.mm_projector.weight"}
    ]
    assert (mapped[f"{ONE}.weight"]["shape"], mapped[f"{SECOND}.weight"]["shape"]) == (
        [hidden, 1024],
        [hidden, hidden],
    )
    assert plan["nbytes"]["write"] == sum(
        2 ** (2 if m["dtype"] == "F32" else 1) * _count(m["shape"]) for m in plan["mapped"]
    )


def _count(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())


def test_the_tower_of_another_size_is_refused(run: Run) -> None:
    sources = (
        "--source",
        MANIFESTS / f"{LIGHTNING}.json",
        "--source",
        f"vision_tower={MANIFESTS / 'clip-vit-large-patch14-336.json'}",
    )
    ran = run("apply", "llava-v1", *sources, "--dry-run", "--format", "json")
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR309"]


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (
            "openai/clip-vit-large-patch14",
            "LR114",
            "The config names it, mm_vision_tower: `openai/clip-vit-large-patch14`: ",
        ),
        (
            "/home/me/clip",
            "LR100",
            "The config names it, mm_vision_tower: `/home/me/clip`: there is no `/home/me/clip` on "
            "this disk, and",
        ),
        (
            "./clip",
            "LR100",
            "mm_vision_tower: `./clip`: there is no `./clip` on this disk, and a repository",
        ),
        (["a/b"], "LR114", "mm_vision_tower: `a/b`: "),
        (
            7,
            "LR302",
            "mm_vision_tower: `7`, and this value is neither a repository of the hub nor a path.",
        ),
        (None, "LR302", "The config has no mm_vision_tower to name it."),
    ],
)
def test_where_the_tower_can_not_be_had(
    said: Any, code: str, words: str, twin: Path, tmp_path: Path, run: Run
) -> None:
    source = changed(twin, tmp_path / "source", mm_vision_tower=said)
    [problem] = run("apply", "llava-v1", "--source", source, "--dry-run", "--format", "json").json[
        "problems"
    ]
    assert problem["code"] == code
    assert words in problem["message"]
    assert (
        "--source vision_tower=DIR" in run("apply", "llava-v1", "--source", source, "--dry-run").out
    )


def test_the_tower_that_the_config_names_is_downloaded(
    twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: Any, use: Any, **options: Any) -> Any:
        asked.append((repository.id, options["name"]))
        return SimpleNamespace(folder=twin / "vision_tower", commit="c0ffee", cached=False)

    monkeypatch.setattr(sources, "download", download)
    job = plan_job("llava-v1", [twin], dry_run=True)
    assert job.plan.complete
    assert asked == [("openai/clip-vit-large-patch14", "vision_tower")]
    assert job.plan.sources["vision_tower"].location == "openai/clip-vit-large-patch14@c0ffee"


def test_verify_and_the_way_back(twin: Path, out: Path, run: Run) -> None:
    against = [argument for source in given(twin) for argument in ("--against", source)]
    ran = run("verify", out, *against)
    assert ran.code == 0
    assert "80 tensors equal, bit by bit" in ran.out
    assert run("revert", out, "--output", "back").code == 0
    original, tower = (
        load_file(twin / "model.safetensors"),
        load_file(twin / "vision_tower" / "model.safetensors"),
    )
    buffers = [name for name in original if name.endswith("inv_freq")]
    back = tensors_of(Path("back/model"))
    assert set(back) == set(original) - set(buffers)
    assert all(torch.equal(back[name], original[name]) for name in back)
    restored = tensors_of(Path("back/vision_tower"))
    assert set(restored) == set(tower)
    assert all(torch.equal(restored[name], tower[name]) for name in tower)


def test_what_was_made_and_changed_since_is_seen(
    twin: Path, out: Path, tmp_path: Path, run: Run
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    [file] = [path for path in copy.glob("*.safetensors") if f"{SECOND}.weight" in load_file(path)]
    tensors = load_file(file)
    tensors[f"{SECOND}.weight"][3, 4] = 1e-3
    save_file(tensors, file, {"format": "pt"})
    against = [argument for source in given(twin) for argument in ("--against", source)]
    ran = run("verify", copy, *against, "--format", "json")
    assert (
        ran.code,
        [(p["code"], p["names"]) for p in ran.json["problems"] if p["code"] == "LR602"],
    ) == (
        1,
        [("LR602", [f"{SECOND}.weight"])],
    )


@pytest.mark.parametrize(
    "more", [("--dtype", "bfloat16"), ("--dtype", "float32"), ("--layout", "module-5.6")]
)
def test_other_dtypes_and_layouts(more: tuple[str, str], twin: Path, run: Run) -> None:
    ran = run("apply", "llava-v1", *arguments(twin), "--output", "out", "--verify", "full", *more)
    assert ran.code == 0, ran.out
    written = tensors_of(Path("out"))
    prefix = "model." if more[0] == "--layout" else ""
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(more[1], torch.float16)
    assert torch.equal(written[f"{prefix}{SECOND}.weight"], torch.eye(128, dtype=dtype))
    if more[1] != "bfloat16":
        assert run("revert", "out", "--output", "back").code == 0


def test_load_model(twin: Path, out: Path) -> None:
    state = load_model("llava-v1", given(twin)).state_dict()
    wanted = loaded(out, torch.float16).state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            "llava-v1",
            "2 of 80 names belong to tensors that `identity_layer` made. They may have been "
            "trained since.",
        ),
        ("llava-v1.5", "its config says projector_hidden_act: 'linear', not 'gelu'"),
    ],
)
def test_no_way_back_without_the_record(rules: str, words: str, out: Path, run: Run) -> None:
    ran = run("revert", out, "--rules", rules, "--output", "back", "--format", "json")
    assert ran.code == 1
    assert words in ran.json["problems"][0]["message"]
    assert not Path("back").exists()


def with_both_layers(twin: Path, copy: Path) -> Path:
    """A copy with a second layer of its own, and `mine.yaml`, which takes it."""
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.yaml]\n"
        "detect: {absent: []}\n"
        "names: [{id: second, from: 'model.mm_projector.2.{p}', to: "
        "'multi_modal_projector.linear_2.{p}'}]\n"
    )
    more = {"model.mm_projector.2.weight": torch.eye(128, dtype=torch.float16)}
    return changed(twin, copy, lambda tensors: tensors | more)


def test_a_source_that_has_what_is_made(twin: Path, tmp_path: Path, run: Run) -> None:
    """It is told, and neither takes the other's place."""
    source = with_both_layers(twin, tmp_path / "source")
    ran = run("apply", "mine.yaml", *arguments(source), "--output", "out", "--format", "json")
    [problem] = ran.json["problems"]
    assert (ran.code, problem["code"]) == (1, "LR304")
    said = (
        f"`model.mm_projector.2.weight` (model) becomes `{SECOND}.weight`, which "
        "`identity_layer` makes."
    )
    assert said in problem["message"]
    assert ran.json["collisions"] == [
        {
            "target": f"{SECOND}.weight",
            "from": [{"source": "model", "name": "model.mm_projector.2.weight"}],
            "made_by": "identity_layer",
        }
    ]
    assert not Path("out").exists()


def test_without_the_first_layer_both_are_missing(twin: Path, tmp_path: Path, run: Run) -> None:
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.yaml]\n"
        "detect: {present: [model.norm.weight]}\n"
    )
    source = changed(
        twin,
        tmp_path / "source",
        lambda t: {name: t[name] for name in t if "mm_projector" not in name},
    )
    [problem] = run("apply", "mine.yaml", *arguments(source), "--dry-run", "--format", "json").json[
        "problems"
    ]
    assert (problem["code"], len(problem["names"])) == ("LR302", 4)


def test_no_matrix_to_follow(twin: Path, run: Run) -> None:
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.yaml]\npost_load:\n"
        "  - use: identity_layer\n"
        f"    with: {{after: {ONE}.bias, weight: {SECOND}.weight, bias: {SECOND}.bias}}\n"
    )
    ran = run("apply", "mine.yaml", *arguments(twin), "--dry-run", "--format", "json")
    [problem] = ran.json["problems"]
    assert (ran.code, problem["code"]) == (2, "LR212")
    assert f"`identity_layer`: `{ONE}.bias` is [128]" in problem["message"]


@pytest.mark.parametrize("contradiction", ["no change", "read", "copied", "shape before"])
def test_records_that_can_not_be(contradiction: str, out: Path, tmp_path: Path, run: Run) -> None:
    """What is from no source needs a post-load rule that makes it, and nothing is read of it."""
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    record = json.loads((copy / RECORD).read_text())
    plan = record["plan"]
    made = next(change for change in plan["post_load"] if change["target"] == f"{SECOND}.weight")
    if contradiction == "no change":
        plan["post_load"].remove(made)
    elif contradiction == "read":
        made["reads"] = [f"{SECOND}.weight"]
    elif contradiction == "copied":
        next(e for e in plan["mapped"] if e["target"] == f"{SECOND}.weight")["then"] = []
    else:
        made["shape_before"] = [128, 128]
    (copy / RECORD).write_text(with_own_digest(record))
    for command in (("revert", copy, "--output", "back"), ("verify", copy)):
        ran = run(*command, "--format", "json")
        assert (ran.code, [p["code"] for p in ran.json["problems"]]) == (3, ["LR113"])


@pytest.mark.parametrize(
    ("said", "noted"), [(None, False), ("linear", False), ("mlp2x_gelu", True)]
)
def test_kind_of_projector_in_the_config(
    said: str | None, noted: bool, twin: Path, tmp_path: Path, run: Run
) -> None:
    source = changed(twin, tmp_path / "source", mm_projector_type=said)
    plan = run("apply", "llava-v1", *arguments(source), "--dry-run", "--format", "json").json
    notes = [note["message"] for note in plan["notes"] if note["code"] == "LR308"]
    assert plan["complete"]
    assert bool(notes) is noted
    assert all(
        "the config says mm_projector_type: mlp2x_gelu; the tensors are one linear layer." in note
        for note in notes
    )


@pytest.mark.parametrize(
    ("marks", "picture"), [(True, "<im_start><image><im_end>\n"), (False, "<image>\n")]
)
def test_prompt(marks: bool, picture: str, twin: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    source = changed(twin, tmp_path / "source", mm_use_im_start_end=marks)
    apply("llava-v1", given(source), "out", verify="none")
    processor = AutoProcessor.from_pretrained("out")
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "Sure?"},
    ]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert prompt == f"USER: {picture}What is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    ids = processor.tokenizer(prompt)["input_ids"]
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    assert [name for name in names if name.startswith("<im")] == (
        ["<im_start>", "<image>", "<im_end>"] if marks else ["<image>"]
    )


def test_a_projector_of_its_own_with_its_language_model(run: Run) -> None:
    """A pretraining's `mm_projector.bin`, whose config names the tower, put into Vicuna."""
    content = json.loads(
        (MANIFESTS / "llava-v1-0719-336px-vicuna-13b-v1.3.released.json").read_text()
    )
    content["tensors"] = {
        name: tensor for name, tensor in content["tensors"].items() if "mm_projector" not in name
    }
    Path("vicuna.json").write_text(json.dumps(content))
    projector = PARTS / "llava-336px-pretrain-vicuna-13b-v1.3.mm_projector.json"
    parts = (
        "vicuna.json",
        f"projector={projector}",
        f"vision_tower={MANIFESTS / 'clip-vit-large-patch14-336.json'}",
    )
    sources = [argument for part in parts for argument in ("--source", part)]
    plan = run("apply", "llava-v1", *sources, "--dry-run", "--format", "json").json
    assert plan["complete"]
    origins = {
        entry["target"]: entry["from"]
        for entry in plan["mapped"]
        if entry["target"].startswith("multi_modal")
    }
    assert origins[f"{ONE}.weight"] == [
        {"source": "projector", "name": "model.mm_projector.weight"}
    ]
    assert origins[f"{SECOND}.weight"] == []


def test_others_are_not_taken(run: Run) -> None:
    """A two-layer projector is no linear one, nor the other way round."""
    sources = ("--source", RELEASED / "safetensors", "--source", f"vision_tower={CLIP}")
    ran = run("apply", "llava-v1", *sources, "--dry-run", "--format", "json")
    assert [problem["code"] for problem in ran.json["problems"]][:1] == ["LR311"]
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        DATA / "manifests" / f"{LIGHTNING}.json",
        "--dry-run",
        "--format",
        "json",
    )
    assert [problem["code"] for problem in ran.json["problems"]][:1] == ["LR311"]
    assert "this rule file fits: llava-v1 " in json.dumps(ran.json["problems"])


# The second form


@pytest.fixture(scope="module")
def gelu(twin: Path) -> Path:
    """The twin, converted for programs that always put a GELU between two layers."""
    folder = twin.parent / "gelu"
    apply("llava-v1", given(twin), folder, verify="full", projector_form="gelu")
    return folder


@pytest.mark.parametrize("stored", DTYPES)
def test_with_a_gelu_it_computes_what_one_linear_layer_does(
    stored: str, twin: Path, tmp_path: Path
) -> None:
    """But for rounding, and whatever the GELU: exact, or by tanh."""
    dtype = getattr(torch, TORCH_DTYPES[stored])
    source = changed(twin, tmp_path / "source", as_dtype(dtype))
    tower = changed(twin / "vision_tower", tmp_path / "tower", as_dtype(dtype))
    apply("llava-v1", given(source, tower), "out", verify="full", projector_form="gelu")
    original = load_file(source / "model.safetensors")
    weight, bias = (original[f"model.mm_projector.{part}"] for part in ("weight", "bias"))
    projector = loaded(Path("out"), dtype).model.multi_modal_projector
    torch.manual_seed(0)
    for kind in ("none", "tanh"):
        projector.act = torch.nn.GELU(approximate=kind)
        for size in (1e-3, 1.0, 1e2):
            features = (size * torch.randn(50, weight.shape[1])).to(dtype)
            exact = torch.nn.functional.linear(*(t.double() for t in (features, weight, bias)))
            with torch.no_grad():
                found = projector(features).double()
            assert (found - exact).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("dtype", "linear", "two"),
    [
        (torch.float32, 6e-7, 6e-7),
        (torch.bfloat16, 3e-3, 4e-3),
        (torch.float16, 4e-4, 5e-4),
    ],
)
def test_the_errors_that_the_documentation_gives(
    dtype: torch.dtype, linear: float, two: float
) -> None:
    """Of the largest value, with layers as large as LLaVA's; docs/families.md rounds them."""
    columns, rows = 1024, 4096
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (
        (torch.randn(*shape, dtype=torch.float64, generator=generator) * scale).to(dtype)
        for shape, scale in (((576, columns), 1), ((rows, columns), columns**-0.5), ((rows,), 0.1))
    )
    exact = torch.nn.functional.linear(features.double(), weight.double(), bias.double())
    both = torch.nn.functional.gelu(torch.cat([features, -features], 1))
    for found, most in (
        (torch.nn.functional.linear(features, weight, bias), linear),
        (torch.nn.functional.linear(both, torch.cat([weight, -weight], 1), bias), two),
    ):
        error = (found.double() - exact).abs().max() / exact.abs().max()
        assert most / 3 < error < most * 1.25


def test_the_logits_of_both_forms(out: Path, gelu: Path) -> None:
    one, two = (loaded(folder, torch.float32) for folder in (out, gelu))
    assert two.config.projector_hidden_act == "gelu"
    torch.manual_seed(0)
    image = [one.config.image_token_id] * (196 // 14) ** 2
    inputs = {"input_ids": torch.tensor([[1, 5, *image, 7, 11]])}
    inputs["pixel_values"] = torch.randn(1, 3, 196, 196)
    with torch.no_grad():
        torch.testing.assert_close(one(**inputs).logits, two(**inputs).logits, rtol=0, atol=1e-5)


def test_what_is_made_for_a_gelu(twin: Path, gelu: Path) -> None:
    written, original = tensors_of(gelu), load_file(twin / "model.safetensors")
    weight, bias = (original[f"model.mm_projector.{part}"] for part in ("weight", "bias"))
    rows, columns = weight.shape
    one = torch.eye(columns, dtype=torch.float16)
    rest = torch.zeros(rows - 2 * columns, columns, dtype=torch.float16)
    assert torch.equal(written[f"{ONE}.weight"], torch.cat([one, -one, rest]))
    assert torch.equal(written[f"{ONE}.bias"], torch.zeros(rows, dtype=torch.float16))
    assert torch.equal(
        written[f"{SECOND}.weight"],
        torch.cat([weight, -weight, rest.new_zeros(rows, rows - 2 * columns)], 1),
    )
    assert torch.equal(written[f"{SECOND}.bias"], bias)


@pytest.mark.parametrize("more", [(), ("--layout", "module-5.6"), ("--dtype", "float32")])
def test_the_way_back_from_a_gelu(more: tuple[str, ...], twin: Path, run: Run) -> None:
    form = ("--projector-form", "gelu", *more)
    ran = run("apply", "llava-v1", *arguments(twin), "--output", "out", *form)
    assert ran.code == 0, ran.out
    assert "linear_2.weight: [128, 64] → [128, 128] (identity_layer)" in ran.out
    against = [argument for source in given(twin) for argument in ("--against", source)]
    assert run("verify", "out", *against).code == 0
    assert run("revert", "out", "--output", "back").code == 0
    original, back = load_file(twin / "model.safetensors"), tensors_of(Path("back/model"))
    assert set(original) - set(back) == {name for name in original if name.endswith("inv_freq")}
    assert all(torch.equal(back[name], original[name]) for name in back)


def test_a_changed_sign_is_seen(twin: Path, gelu: Path, tmp_path: Path, run: Run) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(gelu, copy)
    [file] = [path for path in copy.glob("*.safetensors") if f"{SECOND}.weight" in load_file(path)]
    tensors = load_file(file)
    tensors[f"{SECOND}.weight"][3, 64 + 4] *= -1
    save_file(tensors, file, {"format": "pt"})
    against = [argument for source in given(twin) for argument in ("--against", source)]
    ran = run("verify", copy, *against, "--format", "json")
    [problem] = [found for found in ran.json["problems"] if found["code"] == "LR602"]
    assert (ran.code, problem["names"]) == (1, [f"{SECOND}.weight"])


def test_the_plan_of_a_gelu(twin: Path) -> None:
    job = plan_job("llava-v1", given(twin), dry_run=True, projector_form="gelu")
    assert job.derived is not None
    assert job.derived.config.config["projector_hidden_act"] == "gelu"
    assert {entry.target for entry in job.plan.mapped if entry.is_made} == {
        f"{ONE}.weight",
        f"{ONE}.bias",
    }


def test_the_form_of_a_rule_file(twin: Path, gelu: Path, run: Run) -> None:
    """The same bytes as by the option, which goes before it."""
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.yaml]\npost_load:\n"
        "  - {use: expand_embeddings, with: {pad_to_multiple_of: 64, init: multivariate_normal, "
        "scale: 1.0e-5, seed: 0}}\n"
        f"  - use: identity_layer\n    with: {{projector_form: gelu, after: {ONE}.weight, "
        f"weight: {SECOND}.weight, bias: {SECOND}.bias}}\n"
    )
    assert run("rules", "lint", "mine.yaml").code == 0
    for output, form, wanted in (
        ("a", (), "gelu"),
        ("b", ("--projector-form", "identity"), "linear"),
    ):
        assert run("apply", "mine.yaml", *arguments(twin), "--output", output, *form).code == 0
        assert json.loads(Path(output, "config.json").read_text())["projector_hidden_act"] == wanted
    ours, theirs = tensors_of(Path("a")), tensors_of(gelu)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_report_says_which_programs_take_which_form(twin: Path, run: Run) -> None:
    plain, form = (
        run("apply", "llava-v1", *arguments(twin), "--dry-run", *more).out
        for more in ((), ("--projector-form", "gelu"))
    )
    assert "vLLM refuses it. llama.cpp and mlx-vlm put a GELU there" in plain
    assert "--projector-form gelu" in plain
    assert "that always put a GELU there" in form


def test_a_form_for_another_projector(run: Run) -> None:
    sources = ("--source", RELEASED / "safetensors", "--source", f"vision_tower={CLIP}")
    form = ("--projector-form", "gelu")
    ran = run("apply", "llava-v1.5", *sources, "--dry-run", *form, "--format", "json")
    [problem] = ran.json["problems"]
    assert (ran.code, problem["code"]) == (2, "LR211")
    assert "projector isn't one linear layer" in problem["message"]
    assert run("apply", "llava-v1.5", *sources, "--projector-form", "relu").code == 2


def test_a_source_that_has_the_place_of_the_trained_layer(
    twin: Path, tmp_path: Path, run: Run
) -> None:
    source = with_both_layers(twin, tmp_path / "source")
    form = ("--projector-form", "gelu", "--format", "json")
    ran = run("apply", "mine.yaml", *arguments(source), "--output", "out", *form)
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR304"]
    assert not Path("out").exists()


def test_a_language_model_that_is_too_narrow_for_a_gelu() -> None:
    rule = load_post_load_rule(
        "identity_layer",
        {"projector_form": "gelu", "after": f"{ONE}.weight", "weight": "w", "bias": "b"},
    )
    with pytest.raises(RemapError, match="needs 128 rows, two for each column"):
        rule.plan(Before({f"{ONE}.weight": ("F16", (127, 64))}, 0, config=LINEAR))
    with pytest.raises(RemapError, match=r"says projector_hidden_act: linear.*'gelu'"):
        rule.plan(Before({f"{ONE}.weight": ("F16", (128, 64))}, 0, config={ACT: "gelu"}))


def test_an_activation_that_is_kept(twin: Path, run: Run) -> None:
    """A GELU behind the one layer is another model: the form `gelu` would take it away, and no note
    says that the config has none.
    """
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: s\nextends: [llava-v1.yaml]\n"
        f"target: {{config: {{{ACT}: {{const: gelu}}}}}}\n"
    )
    plain = run("apply", "mine.yaml", *arguments(twin), "--dry-run")
    assert (plain.code, "the activation `linear`" in plain.out) == (0, False)
    form = ("--projector-form", "gelu", "--dry-run", "--format", "json")
    ran = run("apply", "mine.yaml", *arguments(twin), *form)
    [problem] = ran.json["problems"]
    assert (ran.code, problem["code"]) == (2, "LR212")
    assert f"in a config that says {ACT}: linear" in problem["message"]


def test_no_way_back_from_a_gelu_without_the_record(gelu: Path, run: Run) -> None:
    ran = run("revert", gelu, "--rules", "llava-v1", "--output", "back", "--format", "json")
    assert ran.code == 1
    assert "tensors that `identity_layer` made" in ran.json["problems"][0]["message"]
